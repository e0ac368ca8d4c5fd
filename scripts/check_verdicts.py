#!/usr/bin/env python3
"""Does `torchpace compare` judge rightly? Repeats one comparison and counts its verdicts.

Each run pairs a reference with two more copies of the same worker: one unchanged, which must not
be called FASTER or SLOWER, and one whose every step is made longer by 3 % with a busy wait, which
must be called SLOWER.

    scripts/check_verdicts.py --program build/release/bin/torchpace > verdicts.txt 2> verdicts.log &

Takes runs x seconds (20 minutes). Exit code 0 if at most 1 in 20 copies was judged different and at
least 18 in 20 slowed ones were called SLOWER, else 1.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile


def run(options: argparse.Namespace, index: int, folder: str) -> dict[str, dict]:
    """Speedup objects of results.json by worker name."""
    worker = f"{options.program.parent}/torchpace_worker --runtime cpp-eager"
    command = [
        str(options.program), "compare", "--cases", options.case,
        "--runtimes", "cpp-eager", "--reference", "cpp-eager",
        "--worker", f"copy={worker}", "--worker", f"slowed={worker} --slow {options.slow}",
        "--max-seconds", str(options.seconds), "--invocations", str(options.invocations),
        "--seed", str(index), "--no-html", "--output", folder,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = json.loads(pathlib.Path(folder, "results.json").read_text())
    return {r["runtime"]: r["speedup"] for r in results["cases"][0]["runtimes"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--program", type=pathlib.Path, default=pathlib.Path("build/release/bin/torchpace")
    )
    parser.add_argument("--case", default="dnn_wide_inference/size:quick")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=55)
    parser.add_argument("--invocations", type=int, default=10)
    parser.add_argument("--slow", type=float, default=0.03)
    options = parser.parse_args()
    options.program = options.program.resolve()

    wrong = found = 0
    for index in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            speedups = run(options, index, folder)
        copy, slowed = speedups["copy"], speedups["slowed"]
        wrong += copy["verdict"] in ("FASTER", "SLOWER")
        found += slowed["verdict"] == "SLOWER"
        print(f"run {index + 1:2}: " + ", ".join(
            f"{name} {s['median']:.4f} [{s['low']:.4f}, {s['high']:.4f}] {s['verdict']}"
            for name, s in (("copy", copy), ("slowed", slowed))), flush=True)  # fmt: skip
    print(f"{options.case}, {options.invocations} invocations, at most {options.seconds:g} s a run")
    print(f"identical copy judged FASTER or SLOWER: {wrong} of {options.runs}")
    print(f"copy slowed by {options.slow:.0%} called SLOWER: {found} of {options.runs}")
    return 0 if wrong * 20 <= options.runs and found * 20 >= 18 * options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
