#!/usr/bin/env python3
"""Does `torchpace doctor --limits` measure the rate of memory reads rightly?

Compares its rate for a working set of 256 MiB with that of numpy, which reads an array of the same
size, on one thread of the same processor. Both take the best of several trials in processor time,
one after the other in every repetition, the order changing.

    .venv/bin/python scripts/check_limits.py [--program build/release/bin/torchpace]

Takes about 3 s a repetition and prints both rates and their ratio, each as a median with its
interval over the repetitions. Exit code 0 if the ratio's median is within 20 % of 1, else 1.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

BYTES = 256 << 20
TRIALS = 4  # as machine_limits.hpp
ALLOWED = 0.20
PROCESSORS = os.sched_getaffinity(0)


def limits_rate(program: pathlib.Path) -> float:
    """B/s that torchpace measures."""
    command = [str(program), "doctor", "--limits", "--json", "--threads", "1"]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return next(BYTES / read["seconds"] for read in answer["read"] if read["bytes"] == BYTES)


def numpy_rate(array: np.ndarray) -> float:
    """B/s of the fastest of several reads, on the first processor, as torchpace binds it."""
    os.sched_setaffinity(0, {min(PROCESSORS)})
    times = []
    for _ in range(TRIALS):
        start = time.thread_time()
        array.max()  # loads each vector once; the product with itself would load it twice
        times.append(time.thread_time() - start)
    os.sched_setaffinity(0, PROCESSORS)
    return BYTES / min(times)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median and the exact interval of the sign test at 95 % or more."""
    x, k = sorted(values), 0
    while 2 * sum(math.comb(len(x), i) for i in range(k + 1)) / 2 ** len(x) <= 0.05:
        k += 1
    return statistics.median(x), x[max(k - 1, 0)], x[len(x) - max(k, 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--program", type=pathlib.Path, default=pathlib.Path("build/release/bin/torchpace")
    )
    parser.add_argument("--repetitions", type=int, default=9, help="at least 6")
    options = parser.parse_args()
    if options.repetitions < 6:
        parser.error(f"--repetitions {options.repetitions}: an interval needs at least 6")
    array = np.ones(BYTES, np.uint8)
    rates = {"torchpace": [], "numpy": []}
    for repetition in range(options.repetitions):
        both = [
            ("torchpace", lambda: limits_rate(options.program)),
            ("numpy", lambda: numpy_rate(array)),
        ]
        for name, measure in both if repetition % 2 == 0 else reversed(both):
            rates[name].append(measure())
    for name, values in rates.items():
        median, low, high = interval([value / 1e9 for value in values])
        print(f"{name:<10} {median:.2f} GB/s [{low:.2f}, {high:.2f}]")
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    median, low, high = interval(ratios)
    print(f"{'ratio':<10} {median:.3f} [{low:.3f}, {high:.3f}], {len(ratios)} repetitions")
    return 0 if abs(median - 1) <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
