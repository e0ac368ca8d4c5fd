#!/usr/bin/env python3
"""What `--deterministic` costs: a package made with it against one without, block after block.

    PYTHONPATH=python scripts/deterministic_cost.py plain.pt2 deterministic.pt2

Prints the median time of a step of both, and the median ratio of neighboring blocks with its
interval of 95 % (sign test). Both packages must be of the same case. --below is how many rows of an
embedding the batch's tokens hit: with the default all of them hit two.
"""

import argparse
import math
import statistics
import time

import torch
from torchpace import CompiledTraining
from torchpace.runtimes import aot
from torchpace.io.tensor_spec import parse_spec


def steps(training: CompiledTraining, batch, count: int) -> float:
    """Seconds a step."""
    begin = time.perf_counter()
    for _ in range(count):
        training.step(*batch, 1e-4)
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count


def interval(values: list[float]) -> tuple[float, float]:
    """Of the median: the order statistics that bound it in 95 % of all samples."""
    n, ordered, outside, k = len(values), sorted(values), 0.0, 0
    while (outside := outside + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    return ordered[k - 1], ordered[n - k]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plain")
    parser.add_argument("deterministic")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--block", type=int, default=20, help="steps")
    parser.add_argument("--below", type=int, default=2, help="bound of the batch's integers")
    options = parser.parse_args()
    if options.rounds < 6:
        parser.error("--rounds: expected 6 or more, for an interval of 95 %")
    paths = (options.plain, options.deterministic)
    torch.set_num_threads(int(aot.read_metadata(paths[0])["torchpace.threads"]))
    pair = [CompiledTraining(path) for path in paths]
    shapes = [*map(parse_spec, pair[0].contents.inputs), parse_spec(pair[0].contents.target)]
    batch = [
        torch.randn(s, dtype=d) if d.is_floating_point else torch.randint(options.below, s, dtype=d)
        for s, d in shapes
    ]
    batch = [x.to(pair[0].device) for x in batch]
    times: list[list[float]] = [[], []]
    for training in pair:
        steps(training, batch, options.block)
    for round_ in range(options.rounds):
        for i in (0, 1) if round_ % 2 else (1, 0):
            times[i].append(steps(pair[i], batch, options.block))
    for path, seconds in zip(paths, times, strict=True):
        print(f"{path}: {1e3 * statistics.median(seconds):.3f} ms a step")
    ratios = [b / a for a, b in zip(*times, strict=True)]
    low, high = interval(ratios)
    print(
        f"deterministic / plain: {statistics.median(ratios):.4f} [{low:.4f}, {high:.4f}], "
        f"{options.rounds} pairs of {options.block} steps"
    )


if __name__ == "__main__":
    main()
