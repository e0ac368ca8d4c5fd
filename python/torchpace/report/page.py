"""The page: one HTML file with everything in it."""

import json
import shlex
from pathlib import Path

import jinja2

from torchpace.report import units

MARKS = {
    "FASTER": "▲",
    "SLOWER": "▼",
    "SAME": "=",
    "UNSURE": "?",
    "INVALID": "✕",
    "IMPLAUSIBLE": "✕",
    "APPROXIMATE": "≈",
    "REFERENCE": "●",
    "NONE": "–",
}
MEANINGS = {
    "FASTER": "the whole interval lies above 1 and beyond the noise band",
    "SLOWER": "the whole interval lies below 1 and beyond the noise band",
    "SAME": "the interval and the noise band both lie within 1 ± {delta:g} %",
    "UNSURE": "the samples do not decide it; the row says what would",
    "INVALID": "the outputs differ from those of the float64 run, or without one from the "
    "reference's, by more than is allowed: not timed",
    "IMPLAUSIBLE": "faster than this machine can multiply or read: the row does less work than the "
    "case, and counts nowhere",
    "APPROXIMATE": "the runtime computes with less precision than the case asks for: no tolerance "
    "judges its error, which stands in its row, and no ranking or mean counts it",
}


def render(results, pictures):
    """The page as text."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    plan = results["plan"]
    return environment.get_template("page.html.j2").render(
        results=results,
        plan=plan,
        style=jinja2.utils.markupsafe.Markup((here / "page.css").read_text(encoding="utf-8")),
        pictures=pictures,
        display=results["display"],
        cold_columns=cold_columns(results),
        on_device=any("device_ns" in r for c in results["cases"] for r in c["runtimes"]),
        has_p99=any("p99" in r["percentiles_ns"] for c in results["cases"] for r in c["runtimes"]),
        machine=[(key, show(key, value)) for key, value in results["environment"].items()],
        workers=worker_environments(results),
        facts=facts(results),
        command=shlex.join(["torchpace", "compare", *without_program(plan["arguments"])]),
        meanings={word: text.format(delta=100 * plan["delta"]) for word, text in MEANINGS.items()},
        marks=MARKS,
    )


def without_program(arguments):
    """The arguments after `torchpace compare`, where these are part of the list."""
    rest = list(map(str, arguments))
    if rest and Path(rest[0]).name == "torchpace":
        rest = rest[1:]
    return rest[1:] if rest[:1] == ["compare"] else rest


def facts(results):
    """What the reader must know before any number: [(name, value)]."""
    plan, machine = results["plan"], results["environment"]
    gpus = machine.get("gpus") or []
    names = ", ".join(str(g.get("name", "GPU")) if isinstance(g, dict) else str(g) for g in gpus)
    entries = [
        ("processor", machine.get("cpu")),
        ("GPU", names),
        ("device", plan["device"]),
        ("dtype", plan["dtype"]),
        ("threads", plan["threads"]),
        ("allocator", plan["allocator"]),
        ("invocations", plan["invocations"]),
        ("reference", plan["reference"]),
        ("measured", results["created"].replace("T", " ").replace("Z", " UTC")),
        ("took", results["display"]["took"]),
    ]
    return [(name, show(name, value)) for name, value in entries if value not in (None, "", 0)]


COLD_COLUMNS = {
    "start": "start",
    "load": "load",
    "compile": "compile, caches warm",
    "first_step": "first step",
    "ready": "ready",
    "tenth_step": "ten steps",
    "compile_s": "compile, caches empty",
    "break_even": "break-even",
}
MEMORY_COLUMNS = {
    "resident": "resident",
    "device_allocated": "device, allocated",
    "device_reserved": "device, reserved",
    "device_driver": "device, driver",
}


def cold_columns(results):
    """Titles of the table of cold start and memory by key; memory only where any row has some."""
    peaks = [row["peak_bytes"] for case in results["cases"] for row in case["runtimes"]]
    used = {key: title for key, title in MEMORY_COLUMNS.items() if any(p.get(key) for p in peaks)}
    return COLD_COLUMNS | used


def worker_environments(results):
    """What each worker says of itself: (runtimes, [(key, differs, [values])]).

    A value that changes from case to case shows all that were seen.
    """
    seen = {}
    for case in results["cases"]:
        for row in case["runtimes"]:
            if row["environment"] and not row["copy_of"]:
                of_runtime = seen.setdefault(row["runtime"], {})
                for key, value in row["environment"].items():
                    values = of_runtime.setdefault(key, [])
                    if (text := show(key, value)) not in values:
                        values.append(text)
    keys = dict.fromkeys(key for values in seen.values() for key in values)
    lines = []
    for key in keys:
        texts = [" | ".join(values.get(key, [units.NOT_KNOWN])) for values in seen.values()]
        lines.append((key, len(set(texts)) > 1, texts))
    return list(seen), lines


def show(key, value):
    """A value of an environment as text."""
    if value is None or value == "":
        return units.NOT_KNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and key.endswith("_bytes"):
        return units.size(value)
    if isinstance(value, dict):
        return "; ".join(f"{name} {show(name, each)}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(show(key, each) for each in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)
