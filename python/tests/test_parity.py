import math
import re

import pytest
import torch
from conftest import FIXTURES

from torchpace import models, parity
from torchpace.io import tensor_file
from torchpace.runtimes import eager
from torchpace.settings import Settings

EPS = torch.finfo(torch.float32).eps


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def compare(own, reference, golden, dtype=torch.float32):
    return parity.check_parity(own, reference, golden, dtype)


def test_the_tolerance_is_computed():
    golden = {"y": tensor(1.0, -2.0), "spread.y": tensor(1e-5, 1e-5)}
    bound = 1e-5 + 8 * EPS * 2
    for off, passed in ((0.99 * bound, True), (1.01 * bound, False)):
        own = {"y": golden["y"] + tensor(0.0, off)}
        found = compare(own, own, golden)
        assert found.passed is passed
        assert found.max_abs_error == pytest.approx(off) and found.tolerance == pytest.approx(bound)


def test_a_wrong_reference_fails_and_excuses_nobody():
    golden = {"y": tensor(1.0, 1.0), "spread.y": tensor(1e-6, 1e-6)}
    wrong, right = {"y": tensor(7.0, 1.0)}, {"y": tensor(1.0, 1.0)}
    assert not compare(wrong, wrong, golden).passed
    found = compare({"y": tensor(3.0, 1.0)}, wrong, golden)
    assert not found.passed and found.tolerance < 1e-4
    assert compare(right, wrong, golden).passed  # it is the reference that its own check fails


def test_what_rounding_may_do_is_allowed():
    golden = {"y": tensor(1.0, 1.0), "spread.y": tensor(4e-3, 4e-3)}
    own = {"y": tensor(1.003, 1.0)}
    assert compare(own, own, golden).passed
    assert not compare(own, own, {"y": golden["y"]}).passed


def test_a_small_error_of_all_fails_by_the_root_mean_square():
    golden = {"y": torch.zeros(1000, dtype=torch.float64), "spread.y": tensor(1.0, 0.01)}
    own = {"y": golden["y"] + 0.5}
    found = compare(own, own, golden)
    assert found.max_abs_error < found.tolerance and found.rms_error > found.rms_tolerance
    assert not found.passed


def test_without_a_golden_run_the_bound_is_the_root_of_eps():
    reference = {"y": tensor(2.0)}
    for factor, passed in ((0.9, True), (1.1, False)):
        own = {"y": reference["y"] + factor * math.sqrt(EPS) * 2}
        found = compare(own, reference, None)
        assert found.passed is passed and "no float64 run" in found.note


def test_integers_and_bools_are_compared_exactly():
    reference = {"label": torch.tensor([3, 1]), "mask": torch.tensor([True, False])}
    assert compare(dict(reference), reference, None).passed
    for name, wrong in (("label", torch.tensor([3, 2])), ("mask", torch.tensor([True, True]))):
        found = compare(reference | {name: wrong}, reference, None)
        assert not found.passed and found.worst == name and found.max_abs_error == 1
        assert not compare(reference | {name: wrong}, reference, dict(reference)).passed


def test_what_is_met_exactly_excuses_no_other_element():
    golden = {"y": tensor(1.0, 2.0, -1e9, -1e9)}  # of a mask
    right, wrong = {"y": tensor(1.0, 2.0, -1e9, -1e9)}, {"y": tensor(0.0, 0.0, -1e9, -1e9)}
    for reference_alone in (golden, None):
        assert compare(right, right, reference_alone).passed
        assert not compare(wrong, right, reference_alone).passed


def test_the_largest_number_of_a_dtype_is_another_in_float64():
    least, wide = torch.finfo(torch.float32).min, torch.finfo(torch.float64).min
    own, golden = {"y": torch.tensor([1.0, least])}, {"y": tensor(1.0, wide)}
    assert compare(own, own, golden).passed
    assert not compare({"y": torch.tensor([least, least])}, own, golden).passed


def test_a_tolerance_that_cannot_be_told_fails():
    golden = {"y": tensor(1.0), "spread.y": tensor(math.inf, math.nan)}
    found = compare({"y": tensor(2.0)}, {"y": tensor(2.0)}, golden)
    assert not found.passed and found.tolerance is None


def test_labels_that_rounding_flips_may_flip():
    golden = {"label": torch.arange(100), "spread.label": tensor(8.0, 0.08)}
    own = golden["label"].clone()
    own[:8] = 0
    assert compare({"label": own}, {"label": golden["label"]}, golden).passed  # 7 of at most 8
    own[:20] = 0
    assert not compare({"label": own}, {"label": golden["label"]}, golden).passed


def test_complex_numbers_are_pairs():
    reference = {"y": torch.tensor([1 + 2j, 3 - 1j])}
    golden = {"y": reference["y"].to(torch.complex128)}
    assert compare(dict(reference), reference, golden).passed
    assert not compare({"y": torch.tensor([1 + 2j, 3 + 1j])}, reference, golden).passed
    found = compare({"y": reference["y"].real}, reference, golden)
    assert not found.passed and "expected complex values" in found.note


def test_equal_infinities_and_nans_in_the_same_places_are_equal():
    values = {"y": torch.tensor([math.nan, math.inf, -math.inf, 1.0])}
    assert compare(dict(values), values, None).passed
    assert compare(dict(values), values, {"y": values["y"].double()}).passed
    for other in ([math.nan, math.inf, math.inf, 1.0], [0.0, math.inf, -math.inf, 1.0]):
        found = compare({"y": torch.tensor(other)}, values, None)
        assert not found.passed and found.worst == "y" and "or in other places" in found.note
    overflown = {"y": torch.tensor([math.inf])}
    assert compare(overflown, overflown, {"y": tensor(1e300)}).passed  # infinite in float32
    assert not compare(overflown, overflown, {"y": tensor(1e30)}).passed


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({}, "the runtime lacks a"),
        ({"a": tensor(1.0), "b": tensor(1.0)}, "reference lacks b"),
        ({"a": tensor(1.0, 2.0)}, r"a: expected shape \[1\] of the reference, found \[2\]"),
        ({"a": torch.tensor([1])}, "a: expected floating-point values .* found integer"),
        ({"a": tensor(math.nan)}, "a: the float64 run has 0 of 1 values NaN, the runtime 1"),
    ],
)
def test_names_shapes_and_kinds_come_first(own, message):
    found = compare(own, {"a": tensor(1.0)}, {"a": tensor(1.0)})
    assert not found.passed and found.max_abs_error is None
    assert re.search(message, found.note)


def measure(own, golden):
    return parity.measure_parity(own, own, golden, torch.float32)


def test_errors_of_an_approximate_runtime_are_told_and_fail_nothing():
    golden = {"y": torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double(), "spread.y": tensor(1.0, 1.0)}
    found = measure({"y": torch.tensor([[1.0, 1.5], [0.0, 0.5]])}, golden)
    assert found.passed and found.note == ""
    assert found.max_abs_error == 3 and found.rms_error == pytest.approx(math.sqrt(9.5 / 4))
    assert found.tolerance is None and found.rms_tolerance is None
    # Over what differs: 1.0 is met exactly.
    assert found.cosine == pytest.approx(3 / math.sqrt(2.5 * 13)) and found.top1 == 0.5


def test_the_worst_output_of_an_approximate_runtime_has_the_largest_relative_error():
    golden = {"a": tensor([1e6], [1e6]), "b": tensor([1.0], [1.0]), "label": torch.arange(100)}
    own = {"a": tensor([1e6 + 10], [1e6]), "b": tensor([1.1], [1.1]), "label": torch.arange(100)}
    own["label"][0] = 7
    found = measure(own, golden)
    assert found.worst == "b" and found.max_abs_error == pytest.approx(0.1)
    assert found.cosine == pytest.approx(1)
    assert found.top1 is None  # one number a row is no logits
    found = measure(own | {"label": torch.arange(100) + 1}, golden)
    assert found.worst == "label" and found.max_abs_error == 100


def test_what_is_exact_or_zero_has_a_cosine():
    ones = {"y": torch.ones(2)}
    assert measure(ones, ones).cosine == 1
    assert measure({"y": torch.zeros(2)}, ones).cosine == 0
    assert measure({"y": -torch.ones(2)}, ones).cosine == pytest.approx(-1)
    integers = {"y": torch.ones(2, dtype=torch.int64)}
    assert measure(integers, integers).cosine is None


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({}, "lacks y"),
        ({"y": torch.ones(3)}, r"expected shape \[2\]"),
        ({"y": torch.ones(2, dtype=torch.int64)}, "expected floating-point values"),
        ({"y": torch.tensor([1.0, math.nan])}, "0 of 2 values NaN, the runtime 1"),
    ],
)
def test_an_approximate_runtime_must_agree_in_names_shapes_kinds_and_nan(own, message):
    found = measure(own, {"y": torch.ones(2)})
    assert not found.passed and re.search(message, found.note)
    assert found.cosine is None and found.max_abs_error is None


def test_an_approximate_runtime_is_measured_against_the_reference_without_a_golden_run():
    found = parity.measure_parity(
        {"y": tensor(1.5, 1.5)}, {"y": tensor(1.0, 1.0)}, None, torch.float32
    )
    assert found.passed and found.max_abs_error == 0.5
    assert found.note == parity.AGAINST_REFERENCE


@pytest.mark.parametrize("name", ["gptlite", "dnn"])
@pytest.mark.parametrize("phase", ["inference", "train"])
@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_the_fixtures_hold(name, phase, attention):
    torch.set_num_threads(1)
    content = tensor_file.read_tensors(FIXTURES / f"{name}.pt", "fixture")
    settings = Settings.parse((FIXTURES / f"{name}.txt").read_text())
    settings = settings.replace(phase=phase, attention=attention, state=FIXTURES / f"{name}.pt")

    def part(kind):
        prefix = f"{phase}.{kind}."
        return {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}

    values = eager.load("py-eager", settings, models.find(name)).values()
    found = parity.check_parity(values, part("reference"), part("golden"), torch.float32)
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
    assert not parity.check_parity(values, part("reference"), part("golden"), torch.float32).passed
