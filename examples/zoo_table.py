"""What ran where: the table of docs/guides/your-own-model.md, made with `torchpace compare`.

    cd examples && ../.venv/bin/python zoo_table.py --output zoo-table [--models graph t5 ...]

Each model's inference runs once in each runtime, briefly: the table says whether its outputs agree,
not how fast it is. Goes on where it was stopped, and prints the table as Markdown.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from zoo import TIMM

HERE = pathlib.Path(__file__).resolve().parent
MODELS = ("faster_rcnn", "ssdlite", "t5", "graph", *(f"timm_{name}" for name in TIMM))
RUNTIMES = ("py-eager", "py-torchscript", "cpp-torchscript", "py-aot", "cpp-aot")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("zoo-table"))
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--quick", action="store_true", help="packages compiled in one way")
    parser.add_argument("--compile-timeout", default="300", help="seconds for each compiled file")
    parser.add_argument("--program", default=str(HERE.parent / "build/release/bin/torchpace"))
    options = parser.parse_args()
    rows = {name: compare(name, options) for name in options.models}
    show(rows)


def compare(name, options):
    """The rows of a model's inference by runtime: what `results.json` says of them."""
    folder = options.output.absolute() / name
    results = folder / "results.json"
    if not results.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [options.program, "compare", "--model", f"zoo:{name}", "--no-html"]
        command += ["--cases", f"{name}_inference", "--runtimes", ",".join(RUNTIMES)]
        command += ["--invocations", "1", "--max-seconds", "3", "--output", str(folder)]
        command += ["--compile-timeout", options.compile_timeout]
        if options.quick:
            command += ["--set", "gemm=torchpace"]
        with open(folder / "log", "w") as log:
            code = subprocess.run(command, cwd=HERE, stdout=log, stderr=log).returncode
        print(f"{name}: exit code {code}", file=sys.stderr, flush=True)
    if not results.exists():
        last = (folder / "log").read_text().strip().splitlines()[-1:]
        return {"py-eager": {"status": "failed", "reason": " ".join(last)}}
    found = json.loads(results.read_text())
    if not found["complete"]:
        return {}
    (case,) = found["cases"]
    return {row["runtime"]: row for row in case["runtimes"] if "copy_of" not in row}


def show(rows):
    """The table, and each reason under a number."""
    reasons = {}
    print(f"| model | {' | '.join(f'`{runtime}`' for runtime in RUNTIMES)} |")
    print("|---" * (1 + len(RUNTIMES)) + "|")
    for name, found in rows.items():
        cells = []
        for runtime in RUNTIMES:
            row = found.get(runtime, {"status": "not run", "reason": "not run"})
            if row["status"] == "ok":
                cells.append("agrees")
                continue
            number = reasons.setdefault(row["reason"], len(reasons) + 1)
            cells.append(f"{row['status']} ({number})")
        print(f"| {name.replace('timm_', 'timm ')} | {' | '.join(cells)} |")
    print()
    for reason, number in reasons.items():
        print(f"{number}. {reason}")


if __name__ == "__main__":
    main()
