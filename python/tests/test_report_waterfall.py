"""The picture of where the time goes between two runtimes, from an explanation with known bars."""

import copy
import json

import pytest
from test_report_runtimes import FIXTURES, page_of, picture

from torchpace.report.__main__ import BAD_INPUT, main


@pytest.fixture(scope="module")
def results():
    return json.loads((FIXTURES / "explanation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def html(tmp_path_factory, results):
    return page_of(tmp_path_factory.mktemp("waterfall"), results)


def test_every_bar_stands_in_order_with_its_change_of_the_step(html, results):
    explanation = results["cases"][0]["explanation"]
    drawings = picture(html, "waterfall")
    assert len(drawings) == 2
    for drawing in drawings:
        text = " ".join(drawing)
        # A phone has room for the beginning of a long name.
        places = [text.index(bar["name"][:8]) for bar in explanation["bars"]]
        assert places == sorted(places)
        for end in ("from", "to"):
            assert results["display"]["cases"][0]["explanation"][end] in text
        assert "The measured parts explain 95 %" in text.replace("\n", " ")
        # Of bars with known values: A spends 0.5 ms more on allocation, and less on copies.
        assert "-500 µs [-510, -490]" in text
        assert "+2.00 µs [1.96, 2.04]" in text


def test_bars_join_the_two_steps(results):
    explanation = results["cases"][0]["explanation"]
    end = explanation["from_ns"]["median"] - sum(b["ns"]["median"] for b in explanation["bars"])
    assert end == pytest.approx(explanation["to_ns"]["median"])


def test_notes_are_below_and_a_bar_without_a_number_is_no_row(tmp_path, results):
    changed = copy.deepcopy(results)
    explanation = changed["cases"][0]["explanation"]
    explanation["notes"] = ["parts: cpp-eager did not answer <b>"]
    explanation["bars"][1]["ns"] = {"median": None, "low": None, "high": None}
    left_out = explanation["bars"][1]["name"]
    for drawing in picture(page_of(tmp_path, changed), "waterfall"):
        text = " ".join(drawing)
        assert left_out not in text
        assert "did not answer" in text and "<b>" in text


def test_a_run_of_few_invocations_has_bars_without_intervals(tmp_path, results):
    changed = copy.deepcopy(results)
    bars = changed["cases"][0]["explanation"]["bars"]
    for bar in bars:
        bar["ns"] |= {"low": None, "high": None}
    for drawing in picture(page_of(tmp_path, changed), "waterfall"):
        assert all(bar["name"][:8] in " ".join(drawing) for bar in bars)


def test_least_that_the_schema_asks_for_has_no_picture(tmp_path, results):
    changed = copy.deepcopy(results)
    changed["cases"][0]["explanation"] = {"from": "py-eager", "to": "cpp-eager"}
    changed["display"]["cases"][0]["explanation"]["bars"] = []
    assert 'id="waterfall"' not in page_of(tmp_path, changed)
    assert not (tmp_path / "waterfall.png").exists()


@pytest.mark.parametrize(
    "key,value,said",
    [
        ("from", 3, "expected text at /cases/0/explanation/from"),
        ("bars", {}, "expected a list at /cases/0/explanation/bars"),
        ("bars", [{"name": "x"}], "expected an object at /cases/0/explanation/bars/0/ns"),
        ("explained", "all", "expected a number or null at /cases/0/explanation/explained"),
        ("notes", [1], "expected text at /cases/0/explanation/notes/0"),
    ],
)
def test_wrong_kinds_are_named(tmp_path, capsys, results, key, value, said):
    changed = copy.deepcopy(results)
    changed["cases"][0]["explanation"][key] = value
    path = tmp_path / "results.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert main([str(path), "--output", str(tmp_path)]) == BAD_INPUT
    assert said in capsys.readouterr().err
