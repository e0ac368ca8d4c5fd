import math
import re

import pytest
import torch
from conftest import FIXTURES

from torchpace import models, parity, tensors
from torchpace.runtimes import eager
from torchpace.settings import Settings

EPS = torch.finfo(torch.float32).eps


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_tolerance_is_computed():
    truth = {"y": tensor(1.0, -2.0)}
    reference = {"y": tensor(1.0, -2.0 + 1e-5)}
    bound = 4 * 1e-5 + 8 * EPS * 2
    for off, passed in ((0.99 * bound, True), (1.01 * bound, False)):
        own = {"y": reference["y"] + tensor(0.0, off)}
        found = parity.compare(own, reference, truth, torch.float32)
        assert found.passed is passed
        assert found.max_abs_error == pytest.approx(off) and found.tolerance == pytest.approx(bound)


def test_the_spread_of_the_truth_counts_where_the_reference_was_lucky():
    truth = {"y": tensor(1.0, 1.0), "spread.y": tensor(1e-3, 1e-3)}
    own, reference = {"y": tensor(1.003, 1.0)}, {"y": tensor(1.0, 1.0)}
    assert parity.compare(own, reference, truth, torch.float32).passed
    assert not parity.compare(own, reference, {"y": truth["y"]}, torch.float32).passed


def test_a_small_error_of_all_fails_by_the_root_mean_square():
    truth = {"y": torch.zeros(1000, dtype=torch.float64)}
    reference = {"y": truth["y"].clone()}
    reference["y"][0] = (
        1.0  # one large error of the reference hides all others from the largest magnitude
    )
    own = {"y": reference["y"] + 0.5}
    found = parity.compare(own, reference, truth, torch.float32)
    assert (
        found.max_abs_error < found.tolerance
        and found.rms_error > found.rms_tolerance
        and not found.passed
    )


def test_without_truth_the_bound_is_the_root_of_eps():
    reference = {"y": tensor(2.0)}
    for factor, passed in ((0.9, True), (1.1, False)):
        own = {"y": reference["y"] + factor * math.sqrt(EPS) * 2}
        found = parity.compare(own, reference, None, torch.float32)
        assert found.passed is passed and "no truth" in found.note


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({}, "the runtime lacks a"),
        ({"a": tensor(1.0), "b": tensor(1.0)}, "reference lacks b"),
        ({"a": tensor(1.0, 2.0)}, r"a: expected shape \[1\] of the reference, found \[2\]"),
        ({"a": tensor(math.nan)}, "a: expected finite numbers, found own values"),
    ],
)
def test_names_shapes_and_finiteness_come_first(own, message):
    found = parity.compare(own, {"a": tensor(1.0)}, {"a": tensor(1.0)}, torch.float32)
    assert not found.passed and found.max_abs_error is None
    assert re.search(message, found.note)


@pytest.mark.parametrize("name", ["gptlite", "dnn"])
@pytest.mark.parametrize("phase", ["inference", "train"])
@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_the_fixtures_hold(name, phase, attention):
    torch.set_num_threads(1)
    content = tensors.load(FIXTURES / f"{name}.pt", "fixture")
    settings = Settings.parse((FIXTURES / f"{name}.txt").read_text())
    settings = settings.replace(phase=phase, attention=attention, state=FIXTURES / f"{name}.pt")

    def part(kind):
        prefix = f"{phase}.{kind}."
        return {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}

    values = eager.load("py-eager", settings, models.find(name)).values()
    found = parity.compare(values, part("reference"), part("truth"), torch.float32)
    assert found.passed, found
    wrong = {
        "inference": {
            "swap": {
                "gptlite": "blocks.0.attention.qkv.weight,blocks.1.attention.qkv.weight",
                "dnn": "layers.0.weight,layers.2.weight",
            }[name]
        },
        "train": {"eps": 1e-6},
    }[phase]
    values = eager.load("py-eager", settings.replace(**wrong), models.find(name)).values()
    assert not parity.compare(values, part("reference"), part("truth"), torch.float32).passed
