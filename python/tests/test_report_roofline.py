"""The picture of how near runtimes come to the limits, and where nothing is drawn."""

import copy
import json
import re
import subprocess
import sys

import pytest
from test_report import ROOT, refreshed
from test_report_runtimes import FIXTURES, page_of, picture
from test_run import program

from torchpace.report.__main__ import BAD_INPUT, main


@pytest.fixture(scope="module")
def results():
    return json.loads((FIXTURES / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def html(tmp_path_factory, results):
    return page_of(tmp_path_factory.mktemp("roofline"), results)


def with_limits(results):
    """[(case, what is shown of it)] of those with a limit."""
    shown = zip(results["cases"], results["display"]["cases"], strict=True)
    return [(case, texts) for case, texts in shown if case.get("limit")]


def test_every_row_has_its_name_and_share(html, results):
    assert len(with_limits(results)) == 4
    for drawing in picture(html, "roofline"):
        text = " ".join(drawing)
        for case, shown in with_limits(results):
            assert case["case"] in text
            for row, words in zip(case["runtimes"], shown["rows"], strict=True):
                share = f"{row['runtime'][:8]}.* · {re.escape(words['limit'])}"
                counts = row.get("limit_share") and not row.get("copy_of")
                if counts and not row.get("implausible"):
                    assert re.search(share, text), share
        # Of the fixture: 620 GFLOP/s, and 8 MiB in 600 us.
        assert "FMA peak 620 GFLOP/s, GEMM peak" in text
        assert "14 GB/s" in text
        assert "#2" not in text
        assert "cpp-aot" not in text  # implausible: above every roof
        assert "größe" not in text  # its FLOPs are unknown


def test_the_words_say_what_bounds_each_case(html):
    alt = re.search(r'aria-label="(Shares of what this machine can do[^"]*)"', html)[1]
    assert "gptlite_train/size:quick, bound by compute (FMA peak 620 GFLOP/s): cpp-compil" in alt
    assert "batch:64, bound by memory reads (21.0 GB/s at this size): " in alt


def test_the_table_has_the_share_of_the_limit_and_of_both_rates(html, results):
    for _, shown in with_limits(results):
        for words in shown["rows"]:
            if words["limit"] == "n/a":
                continue
            title = f"FMA peak {words['fma_peak']}, memory reads {words['bandwidth']}"
            assert f'<td title="{title}">{words["limit"]}</td>' in re.sub(r"\s+", " ", html)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("limits"),
        lambda r: r["limits"].update(read=[]),
        lambda r: [case.update(flops=0) for case in r["cases"]],
        lambda r: [case.update(minimum_bytes=0) for case in r["cases"]],
        lambda r: [case["settings"].update(device="cuda:0") for case in r["cases"]],
    ],
)
def test_nothing_is_drawn_of_what_is_not_known(tmp_path, results, change):
    changed = copy.deepcopy(results)
    change(changed)
    html = page_of(tmp_path, refreshed(tmp_path, changed))
    assert 'id="roofline"' not in html
    assert not (tmp_path / "roofline.png").exists()


def test_a_run_without_a_gemm_peak_has_the_other_roofs(tmp_path, results):
    changed = copy.deepcopy(results)
    for case in changed["cases"]:
        for row in case["runtimes"]:
            for invocation in row.get("invocations", []):
                invocation.pop("gemm_peak", None)
    html = page_of(tmp_path, refreshed(tmp_path, changed))
    for drawing in picture(html, "roofline"):
        assert "FMA peak 620 GFLOP/s, memory reads" in " ".join(drawing)


def test_names_beside_the_marks_do_not_overlap():
    from torchpace.report.figures.roofline import spread

    places = spread([0.99, 0.98, 0.5, 0.31, 0.3, 0.29, 0.01], 0.1)
    assert places == sorted(places, reverse=True)
    assert places[0] <= 0.95 + 1e-9 and places[-1] >= 0.05 - 1e-9
    gaps = [a - b for a, b in zip(places, places[1:], strict=False)]
    assert min(gaps) > 0.1 - 1e-9
    assert places[2] == pytest.approx(0.5)  # has room
    assert places[4] == pytest.approx(0.3)


def test_a_limit_of_another_kind_is_named(tmp_path, capsys, results):
    changed = copy.deepcopy(results)
    changed["cases"][0]["limit"]["flops_per_s"] = "many"
    path = tmp_path / "results.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert main([str(path), "--output", str(tmp_path)]) == BAD_INPUT
    assert "/cases/0/limit/flops_per_s" in capsys.readouterr().err


def test_the_page_of_an_older_file_shows_what_is_derived_now(tmp_path, results):
    if (torchpace := program()) is None:
        pytest.skip("torchpace is not built")
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    older = copy.deepcopy(results)
    del older["display"]
    for case in older["cases"]:
        case.pop("limit", None)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(older), encoding="utf-8")
    output = tmp_path / "page"
    command = [torchpace, "report", path, "--output", output, "--python", sys.executable]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert 'id="roofline"' in (output / "report.html").read_text(encoding="utf-8")


def test_the_schema_takes_what_the_program_derives(tmp_path, results):
    jsonschema = pytest.importorskip("jsonschema")
    path = ROOT / "tools/torchpace/results/results.schema.json"
    jsonschema.validate(refreshed(tmp_path, results), json.loads(path.read_text(encoding="utf-8")))
