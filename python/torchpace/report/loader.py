"""Reads a results.json and checks the parts of its schema that the page relies on."""

import json

SCHEMA = 2
STATUSES = ("ok", "skipped", "failed", "invalid")
NUMBER = (int, float, type(None))

# Keys that must be there and what they must hold, and those that are checked where they are there.
RESULTS = {
    "torchpace": str,
    "created": str,
    "complete": bool,
    "plan": dict,
    "environment": dict,
    "warnings": list,
    "cases": list,
    "display": dict,
}
PLAN = {
    "arguments": list,
    "reference": str,
    "runtimes": list,
    "invocations": int,
    "threads": int,
    "device": str,
    "dtype": str,
    "allocator": str,
    "delta": (int, float),
}
WARNING = {"code": str, "severity": str, "text": str}
CASE = {"case": str, "family": str, "phase": str, "settings": dict, "reference": str}
CASE |= {"runtimes": list}
CASE_OPTIONAL = {"flops": NUMBER, "items": NUMBER, "item": str, "noise_floor": dict, "curves": dict}
CASE_OPTIONAL |= {"memory_bytes": dict, "explanation": dict, "excluded_share": NUMBER}
CASE_OPTIONAL |= {"fastest": dict, "notes": list, "limit": dict}
CASE_OPTIONAL |= {"minimum_bytes": NUMBER, "gemm_peak_flops_per_s": NUMBER}
LIMIT = {"flops_per_s": NUMBER, "bytes_per_s": NUMBER}
FASTEST = {"runtime": str, "equals": list}
EXPLANATION = {"from": str, "to": str}
EXPLANATION_OPTIONAL = {"from_ns": dict, "to_ns": dict, "explained": NUMBER}
EXPLANATION_OPTIONAL |= {"bars": list, "notes": list}
DISPLAY = {"took": str, "tally": dict, "footnotes": list, "left_out": list, "warnings": list}
DISPLAY |= {"cases": list}
CASE_DISPLAY = {"about": str, "noise": str, "leader": str, "sentence": str, "others": str}
CASE_DISPLAY |= {"ranking": list, "skipped": list, "missing": list, "below": list, "rows": list}
CASE_DISPLAY |= {"counted": str, "counted_sum": str, "bound": str}
ROW_TEXTS = (
    "speedup",
    "step",
    "p90",
    "p99",
    "items",
    "flops",
    "gemm_peak",
    "fma_peak",
    "bandwidth",
    "limit",
    "error",
    "faults",
    "device",
)
ROW_DISPLAY = dict.fromkeys((*ROW_TEXTS, "samples"), str) | {"cold": dict, "peaks": dict}
RUNTIME = {"runtime": str, "status": str, "reason": str}
RUNTIME_OPTIONAL = {
    "copy_of": str,
    "condition_of": str,
    "implausible": str,
    "approximate": bool,
    "step_ns": dict,
    "percentiles_ns": dict,
    "samples": int,
    "speedup": dict,
    "parity": dict,
    "differs": list,
    "cold_s": dict,
    "cold_total_s": NUMBER,
    "compile_s": NUMBER,
    "peak_bytes": dict,
    "device_ns": NUMBER,
    "host_ns": NUMBER,
    "page_faults_per_step": NUMBER,
    "limit_share": NUMBER,
    "environment": dict,
    "invocations": list,
}
INTERVAL = {"median": NUMBER, "low": NUMBER, "high": NUMBER}


class ReportError(Exception):
    """What ends the report: one line with what was expected, what was found and what to do."""


def read_results(path):
    """The file as dictionaries, with missing optional keys filled in as null or empty.

    Raises ReportError in one line when the file cannot be read, is cut short, is of another schema
    or lacks a key.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except OSError as error:
        raise ReportError(f"{path}: expected a results.json: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: expected JSON in UTF-8, found byte {error.start}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ReportError(
            f"{path}: expected JSON, found an error{where}: the file is cut short or damaged; "
            "run the comparison again"
        ) from error
    check = Check(path)
    if not isinstance(results, dict):
        raise check.error("", "an object", results)
    if results.get("schema") != SCHEMA:
        raise ReportError(
            f"{path}: expected schema {SCHEMA}, found {describe(results.get('schema'))}: "
            "read it with the torchpace that wrote it, or run the comparison again"
        )
    check.keys("", results, RESULTS)
    check.number("/elapsed_s", results.get("elapsed_s"))
    check.keys("/plan", results["plan"], PLAN)
    for i, warning in enumerate(results["warnings"]):
        check.keys(f"/warnings/{i}", warning, WARNING)
    for i, case in enumerate(results["cases"]):
        check_case(check, f"/cases/{i}", case)
    give_display(check, results)
    return results


def give_display(check, results):
    """Gives each case and row what the file shows of it: `display` and `text`."""
    display = results["display"]
    check.keys("/display", display, DISPLAY)
    check.length("/display/cases", display["cases"], results["cases"])
    for i, (case, shown) in enumerate(zip(results["cases"], display["cases"], strict=True)):
        at = f"/display/cases/{i}"
        check.keys(at, shown, CASE_DISPLAY)
        check.length(f"{at}/rows", shown["rows"], case["runtimes"])
        case["display"] = shown
        names = {row["runtime"] for row in case["runtimes"]}
        for j, name in enumerate(shown["ranking"]):
            if name not in names:
                raise check.error(f"{at}/ranking/{j}", "a runtime of the case", name)
        for j, (row, text) in enumerate(zip(case["runtimes"], shown["rows"], strict=True)):
            check.keys(f"{at}/rows/{j}", text, ROW_DISPLAY)
            row["text"] = text
        if case["explanation"]:
            check.keys(at, shown, {"explanation": dict})
            text = shown["explanation"]
            check.keys(f"{at}/explanation", text, {"from": str, "to": str, "bars": list})
            bars = case["explanation"]["bars"]
            check.length(f"{at}/explanation/bars", text["bars"], bars)
            case["explanation"]["text"] = text
            for bar, words in zip(bars, text["bars"], strict=True):
                bar["text"] = words


def check_case(check, at, case):
    """Checks one case and fills in what is optional."""
    check.keys(at, case, CASE, CASE_OPTIONAL)
    check.interval(f"{at}/noise_floor", case)
    for key, value in case["settings"].items():
        check.kind(f"{at}/settings/{key}", value, str)
    for name, losses in case["curves"].items():
        check.numbers(f"{at}/curves/{name}", losses)
    for key, value in case["memory_bytes"].items():
        check.number(f"{at}/memory_bytes/{key}", value)
    if case["limit"]:
        check.keys(f"{at}/limit", case["limit"], LIMIT)
    if case["fastest"]:
        check.keys(f"{at}/fastest", case["fastest"], FASTEST)
    for key, texts in (("notes", case["notes"]), ("fastest/equals", case["fastest"].get("equals"))):
        for i, text in enumerate(texts or []):
            check.kind(f"{at}/{key}/{i}", text, str)
    if case["explanation"]:
        check_explanation(check, f"{at}/explanation", case["explanation"])
    for i, row in enumerate(case["runtimes"]):
        here = f"{at}/runtimes/{i}"
        check.keys(here, row, RUNTIME, RUNTIME_OPTIONAL)
        if row["status"] not in STATUSES:
            raise check.error(f"{here}/status", "one of " + ", ".join(STATUSES), row["status"])
        check.interval(f"{here}/step_ns", row)
        check.interval(f"{here}/speedup", row)
        row["speedup"].setdefault("verdict", "NONE")
        for j, key in enumerate(row["differs"]):
            check.kind(f"{here}/differs/{j}", key, str)
        if row.setdefault("break_even_steps", None) != "never":
            check.number(f"{here}/break_even_steps", row["break_even_steps"])
        for key in ("max_abs_error", "tolerance", "cosine", "top1"):
            check.number(f"{here}/parity/{key}", row["parity"].get(key))
        for name in ("cold_s", "peak_bytes", "percentiles_ns"):
            for key, value in row[name].items():
                check.number(f"{here}/{name}/{key}", value)
        for j, invocation in enumerate(row["invocations"]):
            where = f"{here}/invocations/{j}"
            check.keys(where, invocation, {"rounds": list})
            for k, turn in enumerate(invocation["rounds"]):
                check.keys(f"{where}/rounds/{k}", turn, {"step_ns": list})
                check.numbers(f"{where}/rounds/{k}/step_ns", turn["step_ns"])


def check_explanation(check, at, explanation):
    """As check_case, for the waterfall of a case."""
    check.keys(at, explanation, EXPLANATION, EXPLANATION_OPTIONAL)
    for end in ("from_ns", "to_ns"):
        check.interval(f"{at}/{end}", explanation)
    for i, bar in enumerate(explanation["bars"]):
        check.keys(f"{at}/bars/{i}", bar, {"name": str, "ns": dict})
        check.interval(f"{at}/bars/{i}/ns", bar)
    for i, note in enumerate(explanation["notes"]):
        check.kind(f"{at}/notes/{i}", note, str)


class Check:
    """Checks of one file; every failure is a ReportError with the place inside the file."""

    def __init__(self, path):
        self.path = path

    def error(self, at, expected, found):
        """The error for the place `at`, a JSON pointer."""
        return ReportError(
            f"{self.path}: expected {expected} at {at or 'the top'}, found {describe(found)}; "
            "run the comparison again"
        )

    def keys(self, at, value, required, optional=None):
        """Checks an object's keys; missing optional ones become empty or null."""
        if not isinstance(value, dict):
            raise self.error(at, "an object", value)
        for key, kind in required.items():
            if key not in value:
                raise self.error(f"{at}/{key}", words(kind), None)
            self.kind(f"{at}/{key}", value[key], kind)
        for key, kind in (optional or {}).items():
            if value.get(key) is None:
                value[key] = None if kind is NUMBER else kind()
            self.kind(f"{at}/{key}", value[key], kind)

    def kind(self, at, value, kind):
        """Checks a type; true and false are no numbers."""
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(at, words(kind), value)

    def length(self, at, values, others):
        """Checks that a list has as many members as another."""
        if len(values) != len(others):
            raise self.error(at, f"a list of {len(others)}", values)

    def number(self, at, value):
        """Checks a number or null."""
        self.kind(at, value, NUMBER)

    def numbers(self, at, values):
        """Checks a list of numbers and nulls."""
        self.kind(at, values, list)
        for i, value in enumerate(values):
            self.number(f"{at}/{i}", value)

    def interval(self, at, parent):
        """Checks an interval; what is missing becomes null."""
        value = parent[at.rsplit("/", 1)[1]]
        for key in INTERVAL:
            self.number(f"{at}/{key}", value.setdefault(key, None))


def words(kind):
    """A type in words."""
    names = {
        str: "text",
        bool: "true or false",
        dict: "an object",
        list: "a list",
        int: "an integer",
    }
    return names.get(kind, "a number or null" if kind is NUMBER else "a number")


def describe(value):
    """A found value in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
