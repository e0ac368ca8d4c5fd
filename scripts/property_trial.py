"""The property test at length: drawn modules in all runtimes, against plain torch.

    .venv/bin/python scripts/property_trial.py FOLDER [--seeds 0:200] [--aot-every 3] ...

Appends a line of JSON for each row to FOLDER/rows.jsonl, and goes on after the last seed that is
whole there. Prints a table of verdicts, and the rows that are wrong, dead or falsely invalid.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "python" / "tests")]

from random_trial import Trial, as_line  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0:200", help="the first and the one after the last")
    parser.add_argument(
        "--aot-every", type=int, default=3, help="every Nth in AOTInductor; 0: none"
    )
    parser.add_argument("--train-every", type=int, default=6, help="every Nth in training; 0: none")
    parser.add_argument("--train-only", action="store_true", help="no inference")
    parser.add_argument("--languages", default="cpp", help="of compiled files: cpp,py")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "rows.jsonl"
    if not options.table:
        run(options, log)
    return show(log)


def run(options: argparse.Namespace, log: Path) -> None:
    first, _, end = options.seeds.partition(":")
    done = {row["seed"] for row in read(log) if row["runtime"] == "done"}
    trial = Trial(options.folder.absolute(), tuple(options.languages.split(",")))
    try:
        for seed in range(int(first), int(end)):
            if seed in done:
                continue
            started = time.monotonic()
            aot, train = (
                every > 0 and seed % every == 0
                for every in (options.aot_every, options.train_every)
            )
            rows = trial.run(seed, aot=aot, train=train, infer=not options.train_only)
            lines = [as_line(row) for row in rows]
            lines.append(json.dumps({"seed": seed, "runtime": "done"}))
            with open(log, "a") as file:
                file.write("\n".join(lines) + "\n")
            print(f"{seed}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    finally:
        trial.close()


def read(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def show(log: Path) -> int:
    """The tables. 1 where a row is wrong or a process died."""
    rows = [row for row in read(log) if row["runtime"] != "done"]
    counts = collections.Counter((row["runtime"], row["phase"], row["verdict"]) for row in rows)
    verdicts = ("ok", "invalid", "refused", "false invalid", "wrong", "dead")
    print(f"{'runtime':20} {'phase':10}" + "".join(f"{v:>15}" for v in verdicts))
    for runtime, phase in dict.fromkeys((row["runtime"], row["phase"]) for row in rows):
        found = "".join(f"{counts[runtime, phase, v]:15}" for v in verdicts)
        print(f"{runtime:20} {phase:10}{found}")
    reasons = collections.Counter(
        (row["verdict"], row["trap"] or "-", re.sub(r"drawn_\d+|[\d.e+-]*\d", "N", row["reason"]))
        for row in rows
        if row["verdict"] in ("refused", "invalid")
    )
    for (verdict, trap, reason), count in reasons.most_common():
        print(f"{count:4} {verdict:8} {trap:18} {reason[:200]}")
    bad = [row for row in rows if row["verdict"] in ("wrong", "dead", "false invalid")]
    for row in bad:
        print(
            f"{row['verdict'].upper()}: seed {row['seed']} {row['runtime']} {row['phase']} "
            f"{row['trap'] or '-'}: {row['reason'][:300]}"
        )
    missed = [  # training may move buffers
        row
        for row in rows
        if row["trap"] in ("inplace_on_input", "counting", "keeping")
        and row["verdict"] == "ok"
        and (row["phase"] != "train" or row["trap"] == "inplace_on_input")
    ]
    for row in missed:
        print(f"NOT REFUSED: seed {row['seed']} {row['runtime']} {row['phase']} {row['trap']}")
    return int(any(row["verdict"] in ("wrong", "dead") for row in bad) or bool(missed))


if __name__ == "__main__":
    sys.exit(main())
