"""The page of a comparison of all runtimes: cold start, memory, marks, and what was left out."""

import copy
import html as markup
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import refreshed

from torchpace.report.__main__ import BAD_INPUT, main

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"
NO_GPU = "no CUDA device"


def made(folder, *arguments):
    """The synthetic results with these arguments."""
    path = folder / "results.json"
    script = FIXTURES / "make_full_results.py"
    subprocess.run([sys.executable, script, *arguments, "--output", path], check=True)
    return refreshed(folder, json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return made(tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="module")
def html(tmp_path_factory, results):
    return page_of(tmp_path_factory.mktemp("page"), results)


def page_of(folder, results):
    """The page of results."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    path = folder / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    assert main([str(path), "--output", str(folder)]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def picture(html, name):
    """The words of a picture, as a list for each of its two drawings."""
    start = html.index('<h2 id="' + name + '">')
    drawings = re.findall(r"<svg .*?</svg>", html[start : html.index("</section>", start)], re.S)
    return [
        [markup.unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", one, re.S)]
        for one in drawings
    ]


def table_rows(html, heading):
    """{(case, runtime): cells} of the table under a heading."""
    part = html[html.index(f'<h2 id="{heading}">') :]
    found, case = {}, None
    for row in re.findall(r"<tr.*?</tr>", part[: part.index("</table>")], re.S):
        cells = [
            " ".join(markup.unescape(re.sub(r"<[^>]*>", "", cell)).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)
        ]
        if 'class="case"' in row:
            case = re.search(r"<span>(.*?)</span>", row)[1]
        elif case:
            found[case, cells[0]] = cells[1:]
    return found


def rows_of(results):
    return [
        (case, row)
        for case in results["cases"]
        for row in case["runtimes"]
        if not row.get("copy_of")
    ]


def texts_of(results):
    """[(case, row, what is shown of it)]"""
    return [
        (case, row, words)
        for case, shown in zip(results["cases"], results["display"]["cases"], strict=True)
        for row, words in zip(case["runtimes"], shown["rows"], strict=True)
        if not row.get("copy_of")
    ]


def test_fixture_has_what_these_tests_are_about_and_is_of_the_schema(results):
    rows = [row for _, row in rows_of(results)]
    assert {row["status"] for row in rows} == {"ok", "skipped", "failed", "invalid"}
    steps = {row.get("break_even_steps") for row in rows if row["status"] == "ok"}
    assert {None, 0, "never"} < steps
    assert len({row["runtime"] for row in rows}) == 13
    jsonschema = pytest.importorskip("jsonschema")
    path = FIXTURES.parents[1] / "tools/torchpace/results/results.schema.json"
    jsonschema.validate(results, json.loads(path.read_text(encoding="utf-8")))


def test_numbers_of_the_speedup_picture_are_those_of_the_results(html, results):
    for drawing in picture(html, "speedup"):
        text = " ".join(drawing)
        for _, row, words in texts_of(results):
            if row["status"] == "ok" and row["speedup"]["median"] is not None:
                assert words["speedup"] in text
        assert ("x* [" in text) == any(row.get("differs") for _, row in rows_of(results))


def test_rows_of_a_case_stand_in_the_order_of_speedup(html, results):
    wide = picture(html, "speedup")[0]
    places = [wide.index(case["case"]) for case in results["cases"]] + [len(wide)]
    for case, start, end in zip(results["cases"], places, places[1:], strict=False):
        rows = [r for r in case["runtimes"] if r["status"] == "ok" and not r.get("copy_of")]
        rows.sort(key=lambda r: -(r["speedup"]["median"] or 1))
        names = [row["runtime"] for row in rows]
        assert [text for text in wide[start:end] if text in names] == names


def test_numbers_of_start_and_memory_are_those_of_the_results(html, results):
    table = table_rows(html, "costs")
    wide = picture(html, "cold")[0]
    for case, row, words in texts_of(results):
        at = case["case"], row["runtime"]
        if not row.get("cold_s"):
            assert at not in table
            continue
        keys = ("start", "load", "compile", "first_step", "ready", "tenth_step", "compile_s")
        expected = [words["cold"].get(key, "n/a") for key in (*keys, "break_even")]
        assert table[at] == [*expected, words["peaks"]["resident"]]
        assert words["cold"]["ready"] in wide
        assert words["cold"].get("break_even", "") in wide or "break_even" not in words["cold"]


def test_counted_memory_is_beside_the_peak(html, results):
    for drawing in picture(html, "memory"):
        assert "optimizer state" in drawing
        text = " ".join(drawing)
        for shown in results["display"]["cases"]:
            assert shown["counted_sum"] in text
    assert "parameters 14.0 MiB, gradients 14.0 MiB, optimizer 28.0 MiB" in html


def test_device_memory_has_a_bar_and_columns(tmp_path):
    results = made(tmp_path, "--device", "cuda")
    html = page_of(tmp_path, results)
    table = table_rows(html, "costs")
    for drawing in picture(html, "memory"):
        assert {"device, allocated", "device, reserved", "device, driver"} < set(drawing)
    for case, row, words in texts_of(results):
        if row.get("peak_bytes"):
            names = ("resident", "device_allocated", "device_reserved", "device_driver")
            expected = [words["peaks"][name] for name in names]
            assert table[case["case"], row["runtime"]][-4:] == expected


def test_a_marked_row_has_a_footnote(html, results):
    note = "* cpp-eager:fused ran with optimizer = adam fused, py-eager with adam per-tensor"
    assert note in html
    assert note in picture(html, "speedup")[0]


def test_what_no_case_has_is_said_once_and_is_no_row(html, results):
    for drawing in picture(html, "speedup"):
        text = " ".join(drawing)
        assert text.count(NO_GPU) == 1
        assert "cpp-cuda-graph" not in drawing
    # Skipped on some cases only: named in each of these.
    wide = " ".join(picture(html, "speedup")[0])
    trains = [case for case in results["cases"] if case["phase"] == "train"]
    assert wide.count("no train: inference only") == len(trains)
    assert "making compile:max-autotune passed its limit" in wide
    assert "output differs by 0.0417" in wide


def test_a_reason_that_changes_is_not_said_once(tmp_path, results):
    changed = copy.deepcopy(results)
    row = next(r for _, r in rows_of(changed) if r["reason"] == NO_GPU)
    row["reason"] = "another reason"
    text = " ".join(picture(page_of(tmp_path, refreshed(tmp_path, changed)), "speedup")[0])
    assert text.count(NO_GPU) == len(changed["cases"]) - 1
    assert "another reason" in text


NEW_KEYS = ("implausible", "differs", "cold_total_s", "compile_s", "artifact", "break_even_steps")


def test_older_results_have_a_page(tmp_path, results):
    older = copy.deepcopy(results)
    for case in older["cases"]:
        for key in ("memory_bytes", "fastest"):
            case.pop(key, None)
        for row in case["runtimes"]:
            for key in NEW_KEYS:
                row.pop(key, None)
            for key in ("compile", "tenth_step"):
                row.get("cold_s", {}).pop(key, None)
            row.get("peak_bytes", {}).pop("device_driver", None)
    html = page_of(tmp_path, older)
    assert "None" not in html
    assert "caches empty" not in " ".join(picture(html, "cold")[0])


def test_hostile_names_are_text_in_every_picture(tmp_path, results):
    changed = copy.deepcopy(results)
    name = "</text><script>alert(1)</script>&amp;\"'"
    for case in changed["cases"][:2]:
        case["case"] += name
        for row in case["runtimes"]:
            row["runtime"] = row["runtime"].replace("cpp-eager:fused", name)
            row["reason"] += name
            if row.get("differs"):
                row["environment"]["optimizer"] = name
    html = page_of(tmp_path, refreshed(tmp_path, changed))
    assert "<script" not in html
    assert "&lt;script" in html


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("break_even_steps", "soon", "a number or null at /cases/0/runtimes/0/break_even_steps"),
        ("differs", [1], "text at /cases/0/runtimes/0/differs/0"),
        ("compile_s", "long", "a number or null at /cases/0/runtimes/0/compile_s"),
    ],
)
def test_wrong_kinds_are_named(tmp_path, capsys, results, key, value, said):
    changed = copy.deepcopy(results)
    changed["cases"][0]["runtimes"][0][key] = value
    path = tmp_path / "results.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert main([str(path), "--output", str(tmp_path / "out")]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_the_answer_stands_before_everything_else(html, results):
    first = html[html.index("<svg ") : html.index("</svg>")]
    speedups = {(c["case"], r["runtime"]): words["speedup"] for c, r, words in texts_of(results)}
    for case in results["cases"]:
        rows = [r for r in case["runtimes"] if r["status"] == "ok" and not r.get("copy_of")]
        rows = [r for r in rows if r["speedup"]["median"] is not None]
        best, *others = sorted(rows, key=lambda r: -r["speedup"]["median"])
        assert f">{best['runtime']} {speedups[case['case'], best['runtime']]}<" in first
        near = [r for r in others if r["speedup"]["high"] >= best["speedup"]["low"]]
        assert (
            (f">not significantly different from {near[0]['runtime']}" in first) if near else True
        )
    assert "significantly faster than all others" in first


def test_a_single_case_has_its_answer_in_words(tmp_path, results):
    html = page_of(tmp_path, refreshed(tmp_path, results | {"cases": results["cases"][2:3]}))
    before = html[: html.index("<svg ")]
    assert "<strong>cpp-aot</strong> is fastest:" in " ".join(before.split())
    assert "<details" not in before
