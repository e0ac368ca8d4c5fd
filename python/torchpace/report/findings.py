"""What a case shows, in sentences: who leads, by how much, and what was not measured."""

from torchpace.report import words


def speedup(row):
    """A row's speedup, with `*` where a setting that decides about time differs."""
    return words.ratio(row["speedup"], "*" if row["differs"] else "")


def fastest(case):
    """(row that leads or None, rows not told apart from it).

    The reference leads where all others are slower; nothing leads where nothing is faster for sure.
    """
    others = compared(case)
    leader = next((r for r in others if r["speedup"]["verdict"] == "FASTER"), None)
    if leader:
        rest = [r for r in others if r is not leader]
        return leader, [r for r in rest if overlap(r["speedup"], leader["speedup"])]
    if others and all(r["speedup"]["verdict"] == "SLOWER" for r in others):
        return next(r for r in case["runtimes"] if r["runtime"] == case["reference"]), []
    return None, []


def compared(case):
    """Rows with a speedup, the fastest first: neither the reference nor its copy."""
    rows = [
        r
        for r in case["runtimes"]
        if r["status"] == "ok"
        and not r["copy_of"]
        and r["runtime"] != case["reference"]
        and r["speedup"]["median"] is not None
    ]
    return sorted(rows, key=lambda r: -r["speedup"]["median"])


def finding(case, delta, missing):
    """What a case shows, in plain words: (runtime that leads or None, sentence, of the others)."""
    reference, rows = case["reference"], compared(case)
    if not rows:
        return None, f"Nothing to compare: {missing or 'only the reference ran'}.", ""
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
    if leader is None:
        return None, of_others, ""
    if leader["runtime"] == reference:
        return reference, f"(the reference) is fastest. {of_others}", ""
    sentence = f"is fastest: {speedup(leader)} the speed of {reference}."
    if near:
        sentence += f" Not told apart from {listed(near)}: the intervals overlap."
    return leader["runtime"], sentence, of_others


def elsewhere(case):
    """What the rounds that are set aside show; empty where there are hardly any."""
    share = case["set_aside_share"] or 0
    if share < 0.01:
        return ""
    rows = [r for r in case["runtimes"] if not r["copy_of"] and r["elsewhere"] is not None]
    there = ", ".join(f"{r['runtime']} {words.plain(r['elsewhere'], 3)}×" for r in rows)
    there = f": there {there}" if there else ""
    return f"cores elsewhere in {words.share(share)} of the rounds, left out{there}"


def listed(rows):
    """`cpp-eager 1.33× [1.31, 1.36] and py-aot 1.1× [1.0, 1.2]`."""
    return joined([f"{row['runtime']} {speedup(row)}" for row in rows])


def joined(parts):
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def overlap(a, b):
    """True unless both intervals are known and apart."""
    bounds = (a["low"], a["high"], b["low"], b["high"])
    return None in bounds or (a["low"] <= b["high"] and b["low"] <= a["high"])


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
                ours, other = (words.NOT_KNOWN if x in (None, "") else str(x) for x in pair)
                line = f"{key} = {ours}, {case['reference']} with {other}"
                lines.setdefault(line, dict.fromkeys([]))[row["runtime"]] = None
    return [f"* {joined([*names])} ran with {line}" for line, names in lines.items()]
