"""The page and its pictures, from the results that the C++ tests read too."""

import copy
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_run import program

from torchpace.report.__main__ import BAD_INPUT, SKIPPED, main
from torchpace.report.loader import ReportError, read_results

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "results.json"
PICTURES = {f"{name}.png" for name in ("fastest", "speedup", "cold", "memory")}
PICTURES |= {"roofline.png", "curves.png", "step_times.png"}
VOID = {"meta", "br", "img", "hr", "input", "link"}


def interval(median, low=None, high=None):
    return {"median": median, "low": low, "high": high}


@pytest.fixture(scope="module")
def results():
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    assert main([str(FIXTURE), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def html(page):
    return (page / "report.html").read_text(encoding="utf-8")


def refreshed(folder, results):
    """The results with what the program makes of their samples: ranks, verdicts and texts."""
    if (torchpace := program()) is None:
        pytest.skip("torchpace is not built")
    path = folder / "raw.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    command = [torchpace, "report", "--json", path]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def written(tmp_path, results):
    """The page of changed results."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    assert main([str(path), "--output", str(tmp_path)]) == 0
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Finds tags that are not closed, ids that come twice, and addresses that are loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.loaded, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.loaded += [attributes[k] for k in ("src", "srcset", "data") if k in attributes]
        if tag in ("link", "script", "iframe", "object"):
            self.loaded.append(tag)
        if tag == "use":
            self.loaded += [v for v in attributes.values() if v and "://" in v]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "text", "path"):
            self.text.append(data)


@pytest.fixture(scope="module")
def parsed(html):
    parser = Balance()
    parser.feed(html)
    return parser


def test_writes_the_page_and_all_pictures_and_nothing_else(page):
    assert {path.name for path in page.iterdir()} == {"report.html", *PICTURES}
    for name in PICTURES:
        assert (page / name).read_bytes().startswith(b"\x89PNG")


def test_page_is_whole_and_loads_nothing(parsed, html):
    assert parsed.open == []
    assert parsed.loaded == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "@import" not in html
    # Only names of XML languages, which are no addresses to load.
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", html))
    assert all(address.startswith("http://www.w3.org/") for address in addresses), addresses
    references = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", html))
    assert references <= set(parsed.ids)


def test_every_picture_has_words_for_those_who_cannot_see_it(html):
    images = re.findall(r"<svg [^>]*>", html)
    assert len(images) == 2 * len(PICTURES)
    for image in images:
        assert 'role="img"' in image
        assert re.search(r'aria-label="[^"]{40,}"', image)


def test_colors_of_pictures_follow_the_page(html):
    for svg in re.findall(r"<svg .*?</svg>", html, flags=re.S):
        assert "var(--ink)" in svg
        assert re.findall(r"#[0-9a-f]{6}\b", svg) == []


def test_same_results_give_the_same_page(page, tmp_path):
    assert main([str(FIXTURE), "--output", str(tmp_path)]) == 0
    for name in ("report.html", *PICTURES):
        assert (tmp_path / name).read_bytes() == (page / name).read_bytes()


def test_says_what_is_fastest(parsed):
    text = " ".join(" ".join(parsed.text).split())
    assert "cpp-compiled-train is fastest: 1.84x* [1.78, 1.86] the speed of py-eager." in text
    assert "Also faster: cpp-eager 1.321x [1.315, 1.357]." in text
    assert "cpp-eager is fastest: 1.003x [0.997, 1.007] the speed of py-eager. Not signif" in text
    assert (
        "Not significantly different from cpp-eager 0.97x [0.92, 1.07]: the intervals overlap."
        in text
    )
    assert "The same as py-eager within 2 %: läufer-日本 1.001x" in text
    assert "Implausible: cpp-aot." in text
    assert "py-eager (the reference) is fastest. Slower: cpp-eager 0.910x" in text


def test_shows_every_row_reason_warning_and_name(parsed, results):
    text = " ".join(" ".join(parsed.text).split())
    for case in results["cases"]:
        assert case["case"] in text
        for row in case["runtimes"]:
            assert row["runtime"] in text
            assert row["reason"] in text
    for warning in results["warnings"]:
        assert warning["text"] in text
    assert "torchpace compare --cases 'gptlite_*,dnn_*' --seed 1" in text
    assert "Example CPU" in text
    assert "differs" in text  # the workers' languages


def test_numbers_of_the_table_are_those_of_the_results(parsed, results):
    text = " ".join(" ".join(parsed.text).split())
    for case, shown in zip(results["cases"], results["display"]["cases"], strict=True):
        for row, words in zip(case["runtimes"], shown["rows"], strict=True):
            if row["status"] == "ok":
                assert all(words[key] in text for key in ("step", "items", "flops", "error"))


def test_fixture_is_of_the_schema(results):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(
        (ROOT / "tools/torchpace/results/results.schema.json").read_text(encoding="utf-8")
    )
    jsonschema.validate(results, schema)


def test_least_that_the_schema_asks_for_is_enough(tmp_path, results):
    least = {k: results[k] for k in ("schema", "torchpace", "created", "plan")}
    least |= {"complete": False, "environment": {}, "warnings": [], "cases": []}
    html = written(tmp_path, refreshed(tmp_path, least))
    assert "No case was measured." in html
    assert "Incomplete" in html
    row = {"runtime": "py-eager", "status": "ok", "reason": ""}
    case = {"case": "own", "family": "", "phase": "other", "settings": {}, "reference": "py-eager"}
    least["cases"] = [case | {"runtimes": [row, row | {"runtime": "x"}]}]
    html = written(tmp_path, refreshed(tmp_path, least))
    assert "n/a" in html
    assert "NaN" not in html
    assert "None" not in html


def test_nulls_are_not_available(tmp_path, results):
    changed = copy.deepcopy(results)
    for case in changed["cases"]:
        case["noise_floor"] = interval(None)
        for row in case["runtimes"]:
            row["step_ns"] = interval(None)
            row["page_faults_per_step"] = None
            row["speedup"] |= interval(None) | {"verdict": "NONE"}
        for losses in case.get("curves", {}).values():
            losses[3] = None
    html = written(tmp_path, changed)
    assert "n/a" in html
    assert "None" not in html


def test_samples_beyond_the_axis_are_all_counted(tmp_path, results):
    changed = copy.deepcopy(results)
    for part in (changed, changed["display"]):
        part["cases"] = part["cases"][1:2]
    row = changed["cases"][0]["runtimes"][0]
    row["invocations"] = [{"invocation": 0, "rounds": [{"step_ns": [1e6] * 4000 + [5e9] * 7}]}]
    assert "7 beyond, to 5 s" in written(tmp_path, changed)


def test_an_approximate_row_is_shown_and_is_no_candidate_for_the_fastest(tmp_path, results):
    changed = copy.deepcopy(results)
    for part in (changed, changed["display"]):
        part["cases"] = part["cases"][1:2]
    row = changed["cases"][0]["runtimes"][1]
    assert row["runtime"] == "cpp-eager"
    row["approximate"] = True
    row["parity"] |= {"passed": True, "cosine": 0.99989, "top1": 0.9919}
    changed = refreshed(tmp_path, changed)
    assert changed["display"]["cases"][0]["ranking"] == []
    html = written(tmp_path, changed)
    assert "≈</span> approximate" in html and "cos 0.9998, top-1 99.1 %" in html
    assert "Approximate: cpp-eager 1.003x" in html
    assert "Fastest on each case" not in html


def test_rows_without_samples_are_no_lanes(tmp_path, results):
    changed = copy.deepcopy(results)
    for case in changed["cases"]:
        for row in case["runtimes"]:
            row["invocations"] = [{"invocation": 0, "rounds": []}]
    assert "Step times" not in written(tmp_path, changed)
    changed["cases"][0]["runtimes"][0]["invocations"][0]["rounds"] = [{"step_ns": [1e6, None, 2e6]}]
    assert "Step times" in written(tmp_path, changed)


def test_rounds_that_are_set_aside_have_a_line_and_no_dots(tmp_path, results):
    from torchpace.report.figures import step_times

    changed = copy.deepcopy(results)
    case = changed["cases"][0]
    rows = [r for r in case["runtimes"] if r["status"] == "ok"]
    case["excluded_share"] = 0.27
    for row in rows:
        for turn in row["invocations"][1]["rounds"]:
            turn["excluded"] = True
        row["invocations"][0]["rounds"][0]["excluded"] = True
        all_times = [x for g in row["invocations"] for t in g["rounds"] for x in t["step_ns"]]
        left = step_times.times(row)
        assert len(left) == len(row["invocations"]) - 1
        assert 0 < sum(map(len, left)) < len(all_times)
    assert "<dt>rounds excluded</dt>" in written(tmp_path, changed)
    assert "rounds excluded" not in written(tmp_path, results)


def test_an_implausible_row_is_in_the_table_and_counts_nowhere(parsed, results):
    text = " ".join(" ".join(parsed.text).split())
    row, words = next(
        (row, words)
        for case, shown in zip(results["cases"], results["display"]["cases"], strict=True)
        for row, words in zip(case["runtimes"], shown["rows"], strict=True)
        if row.get("implausible")
    )
    assert f"{row['runtime']}: implausible: {row['implausible']}" in text
    assert f"{row['runtime']} ✕ implausible {words['speedup'][:4]}" in text
    assert "✕ implausible 1" in text  # of the tally
    for case in results["cases"]:
        assert case["fastest"]["runtime"] != row["runtime"]


def test_notes_and_reasons_are_one_line_each_below_their_table(html, results):
    plain = re.sub(r"<[^>]*>", "", html)
    for case in results["cases"]:
        for note in case["notes"]:
            assert plain.count(note) == 1, note
    # And no warning besides.
    warnings = html[html.index('id="warnings"') : html.index('<h2 id="', html.index("notice"))]
    assert "TracerWarning" not in warnings
    assert "no float64 run" not in warnings


def test_what_the_file_calls_fastest_is_drawn(tmp_path, results):
    changed = copy.deepcopy(results)
    case = changed["cases"][0]
    case["fastest"] = {"runtime": "cpp-eager", "equals": ["py-eager"]}
    html = written(tmp_path, changed)
    first = html[html.index("<svg ") : html.index("</svg>")]
    assert ">cpp-eager 1.321x" in first
    assert ">not significantly different from py-eager<" in first
    del case["fastest"]
    html = written(tmp_path, changed)
    assert "no runtime is significantly faster" in html


def test_an_invalid_row_has_a_line_and_its_reason_below(html):
    assert "cpp-compiled-train: invalid: output differs by 0.0417, allowed 3.1e-06" in html
    assert "4.2e-02 of 3.1e-06" in html


def test_names_cannot_become_markup(tmp_path, results):
    changed = copy.deepcopy(results)
    name = "<script>alert('$x^2$ & \"y\"')</script>"
    changed["cases"][0]["runtimes"][1]["runtime"] = name
    changed["cases"][0]["case"] = name
    html = written(tmp_path, refreshed(tmp_path, changed))
    assert "<script" not in html
    parser = Balance()
    parser.feed(html)
    assert parser.open == []


def test_many_cases_and_samples_stay_small(tmp_path, results):
    changed = copy.deepcopy(results)
    row = changed["cases"][0]["runtimes"][1]
    for invocation in row["invocations"]:
        invocation["rounds"] *= 700
    html = written(tmp_path, changed)
    assert re.search(r"every \d+th sample", html)
    assert len(html) < 3_000_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cut short"),
        ('{"schema": 2, "cases": [', "cut short"),
        ("[]", "expected an object"),
        ('{"schema": 1}', "expected schema 2, found 1"),
        ('{"schema": "1"}', 'expected schema 2, found "1"'),
        ("{}", "expected schema 2, found nothing"),
        ('{"schema": 2}', "/torchpace"),
        ("\x00\x01", "cut short"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    assert main([str(path), "--output", str(tmp_path / "out")]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert said in error
    assert not (tmp_path / "out").exists()


def test_file_that_is_not_there_or_not_text(tmp_path, capsys):
    assert main([str(tmp_path / "none.json")]) == BAD_INPUT
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "latin.json").write_bytes(b'{"schema": "\xe4"}')
    assert main([str(tmp_path / "latin.json")]) == BAD_INPUT
    assert "UTF-8" in capsys.readouterr().err


def without(results, *keys):
    """A copy without the member at the end of the keys."""
    changed = copy.deepcopy(results)
    place = changed
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return changed


@pytest.mark.parametrize(
    "keys",
    [
        ("cases",),
        ("plan", "reference"),
        ("warnings", 0, "text"),
        ("cases", 1, "case"),
        ("cases", 1, "runtimes"),
        ("cases", 1, "runtimes", 0, "status"),
        ("cases", 0, "runtimes", 1, "invocations", 2, "rounds"),
        ("cases", 0, "runtimes", 1, "invocations", 2, "rounds", 0, "step_ns"),
    ],
)
def test_missing_key_is_named(tmp_path, results, keys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(without(results, *keys)), encoding="utf-8")
    with pytest.raises(ReportError, match="/" + "/".join(map(str, keys))):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["cases"][0].update(flops="many"), "/cases/0/flops"),
        (lambda r: r["cases"][0]["runtimes"][0].update(status="fine"), "one of ok"),
        (lambda r: r["cases"][0]["runtimes"][0]["step_ns"].update(low=True), "step_ns/low"),
        (lambda r: r["plan"].update(invocations="six"), "an integer at /plan/invocations"),
    ],
)
def test_wrong_kind_is_named(tmp_path, results, change, said):
    changed = copy.deepcopy(results)
    change(changed)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(ReportError, match=said):
        read_results(path)


def test_folder_that_cannot_be_written(capsys, page):
    assert main([str(FIXTURE), "--output", "/proc/nowhere"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "/proc/nowhere" in error


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_missing_package_is_one_line_and_exit_77(tmp_path, missing):
    # A finder that hides the package, as an interpreter without it would.
    code = (
        "import sys, importlib.machinery as m\n"
        "find = m.PathFinder.find_spec\n"
        f"m.PathFinder.find_spec = lambda n, *a: None if n == '{missing}' else find(n, *a)\n"
        "from torchpace.report.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(FIXTURE), "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        check=False,
    )
    assert done.returncode == SKIPPED, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"pip install {missing}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_report_imports_no_torch():
    code = (
        "import sys, torchpace.report.page, torchpace.report.figures, torchpace.report.__main__\n"
        "sys.exit('torch' in sys.modules)"
    )
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
