"""Reads what `torchpace compare` or `torchpace explain` wrote and refuses it unless it is whole and
right.

    python tests/check_results.py RESULTS.json [--cases PATTERN,...] [--runtimes NAME,...]
        [--explained]

Checks the JSON Schema, that the run was complete, that each wanted case is there, and that in every
case each wanted runtime was measured, passed its parity and has a verdict.
"""

import argparse
import fnmatch
import json
import sys
from pathlib import Path

import jsonschema

SCHEMA = Path(__file__).resolve().parents[1] / "tools/torchpace/results/results.schema.json"
FAMILIES = (
    "gptlite_train/*,gptlite_inference/*,dnn_deep_train/*,dnn_deep_inference/*,"
    "dnn_wide_train/*,dnn_wide_inference/*"
)


BARS = ("dispatch", "matrix products", "optimizer", "host code between operators", "unexplained")


def problems(results: dict, cases: list[str], runtimes: list[str], explained: bool) -> list[str]:
    """One line for each thing that is not as it should be."""
    schema = json.loads(SCHEMA.read_text())
    found = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(results)
    ]
    if found:
        return found
    if not results["complete"]:
        found.append("complete: expected true")
    names = [case["case"] for case in results["cases"]]
    found += [
        f"{p}: no such case among {', '.join(names)}" for p in cases if not fnmatch.filter(names, p)
    ]
    for case in results["cases"]:
        rows = {row["runtime"]: row for row in case["runtimes"]}
        for name in runtimes:
            row = rows.get(name)
            if row is None:
                found.append(f"{case['case']}: no row {name}")
            elif row["status"] != "ok":
                found.append(f"{case['case']}: {name} is {row['status']}: {row['reason']}")
            else:
                found += [
                    f"{case['case']}: {name}: {text}"
                    for text in row_problems(row, name == case["reference"])
                ]
        if explained:
            found += [
                f"{case['case']}: explanation: {text}"
                for text in explanation_problems(case.get("explanation"))
            ]
    return found


def explanation_problems(explanation: dict | None) -> list[str]:
    if explanation is None:
        return ["there is none"]
    bars = {bar["name"]: bar for bar in explanation["bars"]}
    found = [f"no bar '{name}'; notes: {explanation['notes']}" for name in BARS if name not in bars]
    total = explanation["total_ns"]["median"]
    parts = sum(bar["ns"]["median"] for bar in bars.values())
    if abs(total - parts) > 1e-6 * abs(explanation["from_ns"]["median"]):
        found.append(f"expected bars that add up to {total}, found {parts}")
    found += [
        f"{name} takes {bars[name]['from_ns']} ns"
        for name in BARS[:4]
        if bars.get(name, {}).get("from_ns", 1) <= 0
    ]
    return found


def row_problems(row: dict, is_reference: bool) -> list[str]:
    found = []
    # The reference is what others are checked against.
    if not row.get("parity", {}).get("passed", is_reference):
        found.append("its outputs were not checked and passed")
    if row.get("speedup", {}).get("verdict", "NONE") in ("NONE", "INVALID"):
        found.append("no verdict")
    if row.get("implausible"):
        found.append(f"implausible: {row['implausible']}")
    steps = [ns for g in row.get("invocations", []) for r in g["rounds"] for ns in r["step_ns"]]
    if not steps or min(steps) <= 0:
        found.append(f"expected step times above 0, found {len(steps)} samples")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument(
        "--cases", default=FAMILIES, help="patterns, each of which must match a case"
    )
    parser.add_argument(
        "--runtimes", default="cpp-eager,py-eager", help="each must have a good row in every case"
    )
    parser.add_argument(
        "--explained", action="store_true", help="each case has a waterfall that adds up"
    )
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    found = problems(
        results, options.cases.split(","), options.runtimes.split(","), options.explained
    )
    for line in found:
        print(f"{options.results}: {line}", file=sys.stderr)
    if not found:
        print(f"{options.results}: {len(results['cases'])} cases are whole, checked and judged")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
