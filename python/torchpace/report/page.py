"""The page: one HTML file with everything in it."""

import json
import shlex
from pathlib import Path

import jinja2

from torchpace.report import headline, number_format

MARKS = {
    "FASTER": "▲",
    "SLOWER": "▼",
    "SAME": "=",
    "UNSURE": "?",
    "INVALID": "✕",
    "IMPLAUSIBLE": "✕",
    "REFERENCE": "●",
    "NONE": "–",
}
MEANINGS = {
    "FASTER": "the whole interval lies above 1 and beyond the noise band",
    "SLOWER": "the whole interval lies below 1 and beyond the noise band",
    "SAME": "the interval and the noise band both lie within 1 ± {delta:g} %",
    "UNSURE": "the samples do not settle it; the row says what would",
    "INVALID": "the outputs differ from those of the float64 run, or without one from the "
    "reference's, by more than is allowed: not timed",
    "IMPLAUSIBLE": "faster than this machine can multiply or read: the row does less work than the "
    "case, and counts nowhere",
}
SEVERITIES = ("error", "warning", "info")


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
        headline=lines_of_findings(results),
        left_out=left_out(results),
        footnotes=headline.footnotes(results),
        tally=tally(results),
        tables=tables(results),
        cold_columns=cold_columns(results),
        cold_tables=cold_tables(results),
        has_p99=any("p99" in r["percentiles_ns"] for c in results["cases"] for r in c["runtimes"]),
        warnings=grouped(w for w in results["warnings"] if not headline.is_told_below(w, results)),
        machine=[(key, show(key, value)) for key, value in results["environment"].items()],
        workers=worker_environments(results),
        facts=facts(results),
        command=shlex.join(["torchpace", "compare", *without_program(plan["arguments"])]),
        meanings={word: text.format(delta=100 * plan["delta"]) for word, text in MEANINGS.items()},
        marks=MARKS,
    )


def grouped(warnings):
    """Each text once, with the places that it speaks of; errors first."""
    groups = {}
    for warning in warnings:
        key = (warning["severity"], warning["text"], warning["code"])
        places = groups.setdefault(key, [])
        for name in ("case", "runtime"):
            if warning.get(name) and warning[name] not in places:
                places.append(warning[name])
    lines = [
        {"severity": severity, "text": text, "where": " · ".join([*places, code])}
        for (severity, text, code), places in groups.items()
    ]
    order = {name: i for i, name in enumerate(SEVERITIES)}
    return sorted(lines, key=lambda line: order.get(line["severity"], len(order)))


def without_program(arguments):
    """The arguments after `torchpace compare`, where these are part of the list."""
    rest = list(map(str, arguments))
    if rest and Path(rest[0]).name == "torchpace":
        rest = rest[1:]
    return rest[1:] if rest[:1] == ["compare"] else rest


def lines_of_findings(results):
    """One line a case: what is fastest, and what was not measured."""
    lines = []
    nowhere = headline.never_measured(results)
    for case in results["cases"]:
        rows = [row for row in case["runtimes"] if row["runtime"] not in nowhere]
        missing = headline.not_measured(rows)
        leader, sentence, others = headline.finding(case, results["plan"]["delta"], missing)
        lines.append(
            {
                "case": case["case"],
                "leader": leader,
                "sentence": sentence,
                "others": others,
                "missing": "" if not headline.compared(case) else missing,
            }
        )
    return lines


def left_out(results):
    """What no case has, in words."""
    rows = [
        {"runtime": runtime, "status": "skipped", "reason": reason}
        for runtime, reason in headline.never_measured(results).items()
    ]
    return headline.not_measured(rows)


def tally(results):
    """How often each verdict fell: [(word, count)]."""
    counts = dict.fromkeys(MEANINGS, 0)
    for case in results["cases"]:
        for row in case["runtimes"]:
            if (
                row["speedup"]["verdict"] in counts
                and not row["copy_of"]
                and not row["condition_of"]
            ):
                counts[row["speedup"]["verdict"]] += 1
    return [(word, count) for word, count in counts.items() if count]


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
        ("took", number_format.seconds(results.get("elapsed_s"))),
    ]
    return [(name, show(name, value)) for name, value in entries if value not in (None, "", 0)]


def tables(results):
    """Every row of every case as text."""
    return [
        {
            "case": case["case"],
            "noise": number_format.ratio(case["noise_floor"]),
            "flops": flop(case["flops"]) if case["flops"] else "",
            "gemm_peak": flop(case["gemm_peak_flops_per_s"])
            if case.get("gemm_peak_flops_per_s")
            else "",
            "rows": [table_row(case, row) for row in case["runtimes"]],
            "item": case["item"] or "items",
            "below": [*headline.notes(case), *filter(None, [headline.excluded(case)])],
            "has_excluded": bool(headline.excluded(case)),
        }
        for case in results["cases"]
    ]


def flop(count):
    """FLOPs of a step: `2.60 GFLOP`."""
    scale, prefix = number_format.of_unit(count, number_format.RATES)
    return f"{number_format.plain(count / scale, 3)} {prefix}FLOP"


def table_row(case, row):
    """One row of the table; `n/a` where the file knows nothing."""
    parity = row["parity"]
    is_reference = row["runtime"] == case["reference"]
    verdict = row["speedup"]["verdict"]
    return {
        "runtime": row["runtime"],
        "is_copy": bool(row["copy_of"]),
        "verdict": "NONE" if row["copy_of"] else verdict,
        "status": row["status"],
        "reason": row["reason"],
        "advice": row["speedup"].get("advice") or "",
        "step": number_format.duration(row["step_ns"]),
        "p90": percentile(row, "p90"),
        "p99": percentile(row, "p99"),
        "speedup": "1" if is_reference and row["status"] == "ok" else headline.speedup(row),
        "items": number_format.rate(case["items"], row["step_ns"], ""),
        "flops": number_format.rate(case["flops"], row["step_ns"], "FLOP/s"),
        "share": number_format.share(row.get("gemm_peak_share")),
        "parity": parity_text(parity),
        "parity_note": parity.get("note") or "",
        "faults": number_format.plain(row["page_faults_per_step"]),
        "samples": str(row["samples"]) if row["samples"] else number_format.NOT_KNOWN,
    }


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


def cold_tables(results):
    """Cold start, break-even and memory of every measured row as text."""
    return [
        {
            "case": case["case"],
            "counted": counted(case),
            "rows": [
                {"runtime": row["runtime"], **cold_row(row)}
                for row in case["runtimes"]
                if not row["copy_of"] and (row["cold_s"] or row["peak_bytes"])
            ],
        }
        for case in results["cases"]
    ]


def cold_row(row):
    """One row of that table."""
    times = row["cold_s"] | {"ready": row["cold_total_s"], "compile_s": row["compile_s"]}
    texts = {key: number_format.seconds(times.get(key)) for key in COLD_COLUMNS}
    texts["break_even"] = number_format.break_even(row["break_even_steps"])
    return texts | {key: number_format.size(row["peak_bytes"].get(key)) for key in MEMORY_COLUMNS}


def counted(case):
    """`parameters 13 MiB, gradients 13 MiB`: bytes counted tensor by tensor."""
    return ", ".join(
        f"{key} {number_format.size(n)}" for key, n in case["memory_bytes"].items() if n
    )


def percentile(row, name):
    """A percentile of the steps; `n/a` where the samples do not support it."""
    value = row["percentiles_ns"].get(name)
    return number_format.NOT_KNOWN if value is None else number_format.seconds(value / 1e9)


def parity_text(parity):
    """`2.4e-07 of 3.1e-06`: the error and what is allowed."""
    if not parity:
        return number_format.NOT_KNOWN
    error = number_format.error_of(parity.get("max_abs_error"))
    allowed = number_format.error_of(parity.get("tolerance"))
    if error == allowed == number_format.NOT_KNOWN:
        return "agrees" if parity.get("passed") else "differs"
    return f"{error} of {allowed}"


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
        texts = [" | ".join(values.get(key, [number_format.NOT_KNOWN])) for values in seen.values()]
        lines.append((key, len(set(texts)) > 1, texts))
    return list(seen), lines


def show(key, value):
    """A value of an environment as text."""
    if value is None or value == "":
        return number_format.NOT_KNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and key.endswith("_bytes"):
        return number_format.size(value)
    if isinstance(value, dict):
        return "; ".join(f"{name} {show(name, each)}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(show(key, each) for each in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)
