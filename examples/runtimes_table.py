"""How fast each runtime runs six models on this machine, as one table: outputs checked, intervals.

    .venv/bin/pip install torchvision==0.26 transformers openvino onnx onnxscript onnxruntime
    cd examples && ../.venv/bin/python runtimes_table.py --output runtimes-table

GPTlite, a deep and a wide network, ResNet-18, ViT-B/16 and GPT-2 small, inference and latency, in
every runtime for the CPU that is there. Goes on where it was stopped; prints the table as Markdown.
Of the columns, `% of limit` is that of the fastest exact row.
"""

import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PHASES = ("inference", "latency")
QUICK = ("gptlite", "dnn_deep", "dnn_wide")  # cases of torchpace
ZOO = ("resnet18", "vit", "gpt2")  # of zoo.py
RUNTIMES = (
    *("py-eager", "cpp-eager", "py-compile:default", "py-aot", "cpp-aot", "cpp-torchscript"),
    *("py-openvino", "cpp-openvino", "py-onnxruntime", "cpp-onnxruntime", "py-executorch"),
    *("py-int8", "cpp-int8"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runtimes-table"))
    parser.add_argument("--models", nargs="*", default=(*QUICK, *ZOO), choices=(*QUICK, *ZOO))
    parser.add_argument("--runtimes", nargs="*", default=RUNTIMES)
    parser.add_argument("--invocations", default="17")
    parser.add_argument("--max-seconds", default="300", help="of each phase of a model")
    parser.add_argument("--compile-timeout", default="900", help="seconds for each compiled file")
    parser.add_argument("--program", default=str(HERE.parent / "build/release/bin/torchpace"))
    options = parser.parse_args()
    cases = [case for model in options.models for case in compare(model, options)]
    show(cases, options.runtimes)


def compare(model, options):
    """The model's cases, as `results.json` has them."""
    found = []
    for phase in PHASES:
        folder = options.output.absolute() / f"{model}_{phase}"
        command = [options.program, "compare", "--cases", f"{model}_{phase}", "--no-html"]
        if model in ZOO:
            command += ["--model", f"zoo:{model}"]
        else:
            command += ["--preset", "quick"]
        command += ["--runtimes", ",".join(options.runtimes), "--invocations", options.invocations]
        command += ["--max-seconds", options.max_seconds, "--output", str(folder), "--resume"]
        command += ["--compile-timeout", options.compile_timeout]
        if not complete(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "results.json").exists():
                command.remove("--resume")
            with open(folder / "log", "w") as log:
                code = subprocess.run(command, cwd=HERE, stdout=log, stderr=log).returncode
            print(f"{model} {phase}: exit code {code}", file=sys.stderr, flush=True)
        if complete(folder):
            found += json.loads((folder / "results.json").read_text())["cases"]
    return found


def complete(folder):
    results = folder / "results.json"
    return results.exists() and json.loads(results.read_text())["complete"]


def show(cases, runtimes):
    """Speedups over the reference; the fastest exact row in bold."""
    print("| case | A/A | " + " | ".join(f"`{name}`" for name in runtimes) + " | % of limit |")
    print("|---" * (3 + len(runtimes)) + "|")
    for case in cases:
        rows = {row["runtime"]: row for row in case["runtimes"]}
        noise = next((row for row in case["runtimes"] if "copy_of" in row), None)
        exact = [row for row in rows.values() if is_exact(row)]
        best = min(exact, key=lambda row: row["step_ns"]["median"])
        cells = [cell(rows.get(name), best) for name in runtimes]
        share = best.get("limit_share")
        limit = "n/a" if share is None else f"{100 * share:.0f} %"
        print(f"| {case['case']} | {speedup(noise)} | {' | '.join(cells)} | {limit} |")


def is_exact(row):
    judged = row.get("speedup", {}).get("verdict") != "IMPLAUSIBLE" and "copy_of" not in row
    return row["status"] == "ok" and not row.get("approximate") and judged


def cell(row, best):
    if row is None or row["status"] != "ok":
        return "-" if row is None else row["status"]
    if "speedup" not in row:
        return time_of(row)
    text = "implausible" if row["speedup"]["verdict"] == "IMPLAUSIBLE" else speedup(row)
    if row.get("approximate"):
        return f"{text} approximate"
    return f"**{text}**" if row is best else text


def speedup(row):
    ratio = {} if row is None else row.get("speedup", {})
    if ratio.get("median") is None:
        return "n/a"
    if ratio["low"] is None:
        return f"{ratio['median']:.2f}"
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def time_of(row):
    step_s = row["step_ns"]["median"] * 1e-9
    unit, factor = ("ms", 1e3) if step_s >= 1e-3 else ("µs", 1e6)
    return f"{step_s * factor:.3g} {unit}"


if __name__ == "__main__":
    main()
