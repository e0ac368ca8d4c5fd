"""What a case shows, in sentences: who leads, by how much, and what was not measured."""

from torchpace.report import number_format

# Codes of warnings that are notes of a case.
NOTE_CODES = ("note", "artifact", "export", "no-golden")


def speedup(row):
    """A row's speedup, with `*` where a setting that decides about time differs."""
    return number_format.ratio(row["speedup"], "*" if row["differs"] else "")


def fastest(case):
    """(row that leads or None, rows not significantly different from it), as the file says."""
    rows = {row["runtime"]: row for row in case["runtimes"]}
    said = case["fastest"] or {"runtime": None, "equals": []}
    return rows.get(said["runtime"]), [rows[name] for name in said["equals"] if name in rows]


def compared(case):
    """Rows with a speedup that counts, the fastest first: neither the reference nor its copy."""
    rows = [
        r
        for r in case["runtimes"]
        if r["status"] == "ok"
        and not r["implausible"]
        and not r["copy_of"]
        and r["runtime"] != case["reference"]
        and r["speedup"]["median"] is not None
    ]
    return sorted(rows, key=lambda r: -r["speedup"]["median"])


def broken(case):
    """[(row, word, why)] of rows that should have a speedup and have none that counts."""
    rows = [r for r in case["runtimes"] if not r["copy_of"]]
    failed = [(r, r["status"], r["reason"]) for r in rows if r["status"] in ("failed", "invalid")]
    return failed + [(r, "implausible", r["implausible"]) for r in rows if r["implausible"]]


def finding(case, delta, missing):
    """What a case shows, in plain words: (runtime that leads or None, sentence, of the others)."""
    reference, rows = case["reference"], compared(case)
    names = [row["runtime"] for row, word, _ in broken(case) if word == "implausible"]
    uncounted = f"Implausible: {joined(names)}." if names else ""
    if not rows:
        reason = missing or ("" if names else "only the reference ran")
        return None, f"Nothing to compare{': ' if reason else ''}{reason}.", uncounted
    leader, near = fastest(case)
    rest = [r for r in rows if r is not leader and r not in near]
    groups = {
        "FASTER": "Also faster",
        "SLOWER": "Slower" if leader else f"Slower than {reference}",
        "SAME": f"The same as {reference} within {100 * delta:g} %",
        "UNSURE": "Undecided",
        "NONE": "No verdict",
    }
    of_others = " ".join(
        f"{title}: {listed(group)}."
        for verdict, title in groups.items()
        if (group := [r for r in rest if r["speedup"]["verdict"] == verdict])
    )
    of_others = " ".join(filter(None, [of_others, uncounted]))
    if leader is None:
        return None, of_others, ""
    sentence = f"is fastest: {speedup(leader)} the speed of {reference}."
    if leader["runtime"] == reference:
        sentence = "(the reference) is fastest."
    if near:
        sentence += f" Not significantly different from {listed(near)}: the intervals overlap."
    return leader["runtime"], sentence, of_others


def notes(case):
    """Lines below the table of a case: the file's own, and reasons that these lack."""
    lines = list(case["notes"])
    for row, word, why in broken(case):
        if word != "failed" and not any(why in line for line in lines):
            lines.append(f"{row['runtime']}: {word}: {why}")
    return lines


def is_told_below(warning, results):
    """Whether a warning is one of the notes of its case."""
    return warning["code"] in NOTE_CODES and any(
        warning["text"] in line
        for case in results["cases"]
        if case["case"] == warning.get("case")
        for line in case["notes"]
    )


def excluded(case):
    """What the rounds that are excluded show; empty where there are hardly any."""
    share = case["excluded_share"] or 0
    if share < 0.01:
        return ""
    return f"{number_format.share(share)} of rounds excluded: vCPUs had migrated to another die"


def listed(rows):
    """`cpp-eager 1.33× [1.31, 1.36] and py-aot 1.1× [1.0, 1.2]`; the reference has its name."""
    return joined(
        [
            row["runtime"] + (f" {speedup(row)}" if row["speedup"]["median"] is not None else "")
            for row in rows
        ]
    )


def joined(parts):
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def never_measured(results):
    """Runtimes that are skipped on every case for the same reason: {runtime: reason}."""
    rows = [
        {r["runtime"]: r["reason"] for r in case["runtimes"] if r["status"] == "skipped"}
        for case in results["cases"]
    ]
    if not rows:
        return {}
    return {
        runtime: reason
        for runtime, reason in rows[0].items()
        if all(each.get(runtime) == reason for each in rows[1:])
    }


def not_measured(rows):
    """`cpp-cuda-graph skipped (no CUDA device)`, those of the same reason together."""
    groups = {}
    for row in rows:
        if row["status"] != "ok":
            groups.setdefault((row["status"], row["reason"]), []).append(row["runtime"])
    return "; ".join(
        f"{', '.join(names)} {status}" + (f" ({reason})" if reason else "")
        for (status, reason), names in groups.items()
    )


def footnotes(results):
    """What `*` stands for, a line for each setting that differs."""
    lines = {}
    for case in results["cases"]:
        rows = {row["runtime"]: row for row in case["runtimes"]}
        theirs = rows.get(case["reference"], {}).get("environment", {})
        for row in rows.values():
            for key in row["differs"]:
                pair = (row["environment"].get(key), theirs.get(key))
                ours, other = (number_format.NOT_KNOWN if x in (None, "") else str(x) for x in pair)
                line = f"{key} = {ours}, {case['reference']} with {other}"
                lines.setdefault(line, dict.fromkeys([]))[row["runtime"]] = None
    return [f"* {joined([*names])} ran with {line}" for line, names in lines.items()]
