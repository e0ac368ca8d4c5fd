"""What a case shows: the program has ranked its rows and put everything into words; here it is
found in the file.
"""


def fastest(case):
    """(row that leads or None, rows not significantly different from it)."""
    rows = {row["runtime"]: row for row in case["runtimes"]}
    found = case["fastest"] or {"runtime": None, "equals": []}
    return rows.get(found["runtime"]), [rows[name] for name in found["equals"] if name in rows]


def compared(case):
    """Rows with a speedup that counts, the fastest first: neither the reference nor its copy."""
    rows = {row["runtime"]: row for row in case["runtimes"]}
    ranked = [rows[name] for name in case["display"]["ranking"]]
    return [row for row in ranked if row["speedup"]["median"] is not None]


def broken(case):
    """[(row, word, why)] of rows that should have a speedup and have none that counts."""
    rows = [r for r in case["runtimes"] if not r["copy_of"]]
    failed = [(r, r["status"], r["reason"]) for r in rows if r["status"] in ("failed", "invalid")]
    return failed + [(r, "implausible", r["implausible"]) for r in rows if r["implausible"]]


def joined(parts):
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
