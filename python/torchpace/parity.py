"""Whether a runtime's values are right, by a tolerance that is computed, never set by hand.

Rule: docs/method.md, "Parity". Twin: include/torchpace/parity.hpp.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

SPREAD = "spread."  # prefix in a golden file: rounding sensitivity, the two norms
# Of the size of an output: sums in another order move it by less, one dropped element by more.
REPEATABLE = 1e-5
NO_GOLDEN = "no float64 run: tolerance sqrt(eps)"
AGAINST_REFERENCE = "no float64 run: errors are those from the reference"


@dataclass
class Parity:
    """The verdict, with the errors of `worst`: the tensor with the largest error / tolerance.

    Errors are differences from the golden run, without one from the reference. Of an approximate
    runtime, None where nothing has them: `cosine`, the smallest of the angle between a
    floating-point tensor and what is expected; `top1`, of all rows of logits the share whose
    largest element is where it is expected.
    """

    passed: bool = True
    max_abs_error: float | None = 0.0
    tolerance: float | None = 0.0
    rms_error: float | None = 0.0
    rms_tolerance: float | None = 0.0
    worst: str = ""
    compared: int = 0
    note: str = ""
    cosine: float | None = None
    top1: float | None = None

    def json(self) -> dict:
        return asdict(self)


def check_parity(
    own: dict[str, Tensor],
    reference: dict[str, Tensor],
    golden: dict[str, Tensor] | None,
    dtype: torch.dtype,
) -> Parity:
    """Compares by name, in float64. Names, shapes and kinds must be those of the reference and of
    the golden (float64) run; NaN and infinities must be in the same places.

    A tensor passes if for both norms |.| of `norms` |own - golden| <= spread + 8 eps |golden|,
    with eps of `dtype`. The golden file brings `spread.<name>` [2], its rounding sensitivity: how
    far it moves when every weight, input and result of an operation moves by rounding
    (rounding.py). One ReLU that rounding flips, or one gradient near 0 that Adam divides by itself,
    moves a result by far more than eps. What the reference does is no part of the bound: a wrong
    reference must fail, not excuse others. Without a golden run |own - reference| <= sqrt(eps)
    |reference|, integers exactly.
    """
    spread = {}
    if golden is not None:
        spread = {
            k.removeprefix(SPREAD): v.tolist() for k, v in golden.items() if k.startswith(SPREAD)
        }
        golden = _values(golden)
    if problem := _incomparable(own, reference, golden):
        return _failed("", problem)

    eps = torch.finfo(dtype).eps
    result = Parity(compared=len(own), note="" if golden is not None else NO_GOLDEN)
    yardstick, what = (reference, "reference") if golden is None else (golden, "float64 run")
    worst_ratio = -1.0
    for name in sorted(own):
        found = _difference(own[name], yardstick[name], dtype)
        if found.problem:
            return _failed(name, f"{name}: the {what} has {found.problem}")
        if golden is None:
            tolerances = [math.sqrt(eps) * size for size in found.sizes]
        else:
            moved = spread.get(name, (0.0, 0.0))
            tolerances = [m + 8 * eps * s for m, s in zip(moved, found.sizes, strict=True)]
        ratio = max(_ratio(e, t) for e, t in zip(found.errors, tolerances, strict=True))
        if ratio > worst_ratio:
            worst_ratio, result.worst = ratio, name
            result.max_abs_error, result.rms_error = map(_told, found.errors)
            result.tolerance, result.rms_tolerance = map(_told, tolerances)
    result.passed = worst_ratio <= 1
    return result


def measure_parity(
    own: dict[str, Tensor],
    reference: dict[str, Tensor],
    golden: dict[str, Tensor] | None,
    dtype: torch.dtype,
) -> Parity:
    """As check_parity, of a runtime whose arithmetic is coarser than that of the case: no error
    fails, and there is no tolerance. Names, shapes, kinds of values, NaN and infinities must still
    agree. `worst` is the tensor with the largest root mean square error relative to its size.
    """
    golden = None if golden is None else _values(golden)
    if problem := _incomparable(own, reference, golden):
        return _failed("", problem)
    yardstick, what = (reference, "reference") if golden is None else (golden, "float64 run")
    result = Parity(tolerance=None, rms_tolerance=None, compared=len(own))
    result.note = AGAINST_REFERENCE if golden is None else ""
    worst_ratio, cosines, agreeing = -1.0, [], []
    for name in sorted(own):
        found = _difference(own[name], yardstick[name], dtype)
        if found.problem:
            return _failed(name, f"{name}: the {what} has {found.problem}")
        # The share of integers that differ is relative already.
        ratio = _ratio(found.errors[1], 1.0 if is_exact(own[name]) else found.sizes[1])
        if ratio > worst_ratio:
            worst_ratio, result.worst = ratio, name
            result.max_abs_error, result.rms_error = map(_told, found.errors)
        if is_exact(own[name]):
            continue
        cosines.append(found.cosine)
        if _are_logits(own[name]):
            agreeing.append((_largest(own[name]) == _largest(yardstick[name])).flatten())
    result.cosine = min(cosines, default=None)
    if agreeing and (rows := torch.cat(agreeing)).numel():
        result.top1 = rows.double().mean().item()
    return result


def _values(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the rounding sensitivities."""
    return {name: value for name, value in golden.items() if not name.startswith(SPREAD)}


def _incomparable(
    own: dict[str, Tensor], reference: dict[str, Tensor], golden: dict[str, Tensor] | None
) -> str:
    """Why values cannot be compared; empty where they can."""
    problem = _mismatch(own, reference, "reference")
    if not problem and golden is not None:
        problem = _mismatch(own, golden, "float64 run")
    return problem or ("" if own else "nothing to compare: both sides are empty")


def _failed(name: str, note: str) -> Parity:
    return Parity(False, None, None, None, None, name, note=note)


def _are_logits(x: Tensor) -> bool:
    """Taken to be every floating-point tensor with more than one element in its last dimension."""
    return x.is_floating_point() and x.dim() > 0 and x.size(-1) > 1


def _largest(logits: Tensor) -> Tensor:
    return logits.detach().to("cpu", torch.float64).argmax(-1)


@dataclass
class _Difference:
    errors: list[float]
    sizes: list[float]  # of what is expected, where it is not met exactly
    problem: str = ""  # what is not finite, and not on both sides
    cosine: float = 1.0  # of the angle between the two, where they differ


def _difference(own: Tensor, expected: Tensor, dtype: torch.dtype) -> _Difference:
    """Errors over what is finite, and the size that may excuse them: an element that is met
    exactly, such as the -1e9 of a mask, excuses no other.
    """
    if is_exact(own) or own.numel() == 0:
        return _Difference(norms(own, expected), [0.0, 0.0])
    a, b = _wide(own), _wide(expected)
    held = [_held(x, dtype) for x in (own, expected)]
    most = torch.finfo(dtype).max
    finite = (held[0].abs() < most) & (held[1].abs() < most)
    problem = ""
    if not finite.all():
        problem = _not_finite(*held, most)
        a, b = torch.where(finite, a, 0.0), torch.where(finite, b, 0.0)
    missed = held[0] != held[1]
    a, b = torch.where(missed, a, 0.0), torch.where(missed, b, 0.0)
    return _Difference(norms(a, b), norms(b), problem, _cosine(a, b))


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two tensors as vectors; 0 where only one of them is zero."""
    one, other = (x.square().sum().sqrt().item() for x in (a, b))
    if one * other == 0:
        return 1.0 if one == other else 0.0
    return min(1.0, max(-1.0, (a * b).sum().item() / (one * other)))


def _held(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What a tensor of `dtype` can hold of x, in float64: what overflows there is infinite, however
    wide x is.
    """
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    x = x.detach().cpu()
    return (x.to(dtype) if x.dtype.itemsize > dtype.itemsize else x).double()


def _not_finite(own: Tensor, expected: Tensor, most: float) -> str:
    """What is wrong where NaN or infinities are not in the same places; '' if they are. The largest
    number of a dtype, as masks have it, counts as infinite: in float64 it is another one.
    """
    for what, test in (
        ("NaN", torch.isnan),
        ("+inf", lambda x: x >= most),
        ("-inf", lambda x: x <= -most),
    ):
        found, wanted = test(own), test(expected)
        if not torch.equal(found, wanted):
            return (
                f"{int(wanted.sum())} of {own.numel()} values {what}, the runtime "
                f"{int(found.sum())}, or in other places"
            )
    return ""


def _told(x: float) -> float | None:
    """JSON has no infinity."""
    return x if math.isfinite(x) else None


def norms(x: Tensor, other: Tensor | None = None) -> list[float]:
    """Largest magnitude and root mean square of x - other, or of x, over what is finite; complex
    numbers count as pairs. Of integers and bools the number and the share of the elements that
    differ; their own size, by which a tolerance would grow, is 0.
    """
    if x.numel() == 0:
        return [0.0, 0.0]
    if is_exact(x):
        differing = 0 if other is None else int((x != other).sum())
        return [float(differing), differing / x.numel()]
    y = _wide(x)
    finite = y.isfinite()
    if other is not None:
        z = _wide(other)
        finite &= z.isfinite()
        y = y - z
    y = torch.where(finite, y, 0.0)
    return [y.abs().max().item(), y.square().mean().sqrt().item()]


def is_exact(x: Tensor) -> bool:
    """Whether values of this kind have no rounding."""
    return not (x.is_floating_point() or x.is_complex())


def _wide(x: Tensor) -> Tensor:
    """In float64, complex as pairs."""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return x.detach().to("cpu", torch.float64)


def _ratio(error: float, tolerance: float) -> float:
    """Above 1 fails, as does whatever cannot be told."""
    if error == 0:
        return 0.0
    if not (math.isfinite(error) and math.isfinite(tolerance) and tolerance > 0):
        return math.inf
    return error / tolerance


def _mismatch(own: dict[str, Tensor], other: dict[str, Tensor], what: str) -> str:
    for missing, lacks, has in (
        (own.keys() - other.keys(), f"the {what}", "the runtime"),
        (other.keys() - own.keys(), "the runtime", f"the {what}"),
    ):
        if missing:
            return (
                f"{lacks} lacks {min(missing)} ({len(missing)} such), which {has} has: "
                "the two are of different models, phases or versions"
            )
    for name in sorted(own):
        if own[name].shape != other[name].shape:
            return (
                f"{name}: expected shape {list(other[name].shape)} of the {what}, "
                f"found {list(own[name].shape)}"
            )
        kinds = _kind(other[name]), _kind(own[name])
        if kinds[0] != kinds[1]:
            return f"{name}: expected {kinds[0]} values as the {what} has, found {kinds[1]}"
    return ""


def _kind(x: Tensor) -> str:
    if x.is_complex():
        return "complex"
    if x.is_floating_point():
        return "floating-point"
    return "bool" if x.dtype is torch.bool else "integer"
