"""Whether a runtime's values equal the reference's, by a tolerance that is computed, never set by hand.

Rule: docs/design.md, "Parity". Twin: include/torchpace/workload.hpp.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass
class Parity:
    """The verdict, with the errors of `worst`: the tensor with the largest error / tolerance."""

    passed: bool = True
    max_abs_error: float | None = 0.0
    tolerance: float | None = 0.0
    rms_error: float | None = 0.0
    rms_tolerance: float | None = 0.0
    worst: str = ""
    compared: int = 0
    note: str = ""

    def json(self) -> dict:
        return asdict(self)


def compare(
    own: dict[str, Tensor],
    reference: dict[str, Tensor],
    truth: dict[str, Tensor] | None,
    dtype: torch.dtype,
) -> Parity:
    """Compares by name, in float64: names, shapes and finiteness first, then two norms of own - reference.

    A tensor passes if, for both norms |.| (largest magnitude, root mean square),
    |own - reference| <= 4 |reference - truth| + 8 eps |truth|, with eps of `dtype`; without a truth
    |own - reference| <= sqrt(eps) |reference|. The largest magnitude sees one wrong element; the root mean square
    sees a small error of all elements, which one element's rounding would hide from the first: Adam turns a
    gradient that is zero but for rounding into a whole step of either sign.
    """
    others = {"reference": reference} | ({"truth": truth} if truth is not None else {})
    problem = next((p for name, other in others.items() if (p := _mismatch(own, other, name))), "")
    if not problem:
        problem = next((p for name, v in (("own", own), *others.items()) if (p := _infinite(v, name))), "")
    if problem:
        return Parity(False, None, None, None, None, note=problem)

    eps = torch.finfo(dtype).eps
    result = Parity(compared=len(own), note="" if truth is not None else "no truth: tolerance sqrt(eps)")
    worst_ratio = -1.0
    for name in sorted(own):
        y, r = own[name].double(), reference[name].double()
        t = truth[name].double() if truth is not None else None
        errors, tolerances = [], []
        for norm in (_max, _rms):
            errors.append(norm(y - r))
            tolerances.append(
                4 * norm(r - t) + 8 * eps * norm(t) if t is not None else math.sqrt(eps) * norm(r)
            )
        ratio = max(_ratio(e, t) for e, t in zip(errors, tolerances, strict=True))
        if ratio > worst_ratio:
            worst_ratio, result.worst = ratio, name
            (result.max_abs_error, result.rms_error) = errors
            (result.tolerance, result.rms_tolerance) = tolerances
    result.passed = worst_ratio <= 1
    return result


def _max(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item() if x.numel() else 0.0


def _ratio(error: float, tolerance: float) -> float:
    if error == 0:
        return 0.0
    return error / tolerance if tolerance > 0 else math.inf


def _mismatch(own: dict[str, Tensor], other: dict[str, Tensor], what: str) -> str:
    for missing, lacks, has in ((own.keys() - other.keys(), what, "the runtime"),
                                (other.keys() - own.keys(), "the runtime", what)):  # fmt: skip
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
    return ""


def _infinite(values: dict[str, Tensor], what: str) -> str:
    for name in sorted(values):
        if not values[name].isfinite().all():
            return f"{name}: expected finite numbers, found {what} values that are not"
    return ""
