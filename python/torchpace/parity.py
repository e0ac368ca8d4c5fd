"""Whether a runtime's values equal the reference's, by a tolerance that is computed, never set by
hand.

Rule: docs/design.md, "Parity". Twin: include/torchpace/workload.hpp.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

SPREAD = "spread."  # prefix in a truth's file


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
    """Compares by name, in float64: names, shapes and finiteness first, then two norms of own -
    reference.

    A tensor passes if for both norms |.| (largest magnitude, root mean square) |own - reference| <=
    4 max(|reference - truth|, spread) + 8 eps |truth|, with eps of `dtype`. The truth's file brings
    `spread.<name>` [2]: how far, in these norms, the truth moves when its weights and inputs move
    by 4 eps. That is what rounding alone may do, also where the reference was lucky: one ReLU that
    rounding flips, or one gradient near 0 that Adam divides by itself, moves a result by far more
    than eps. Without a truth |own - reference| <= sqrt(eps) |reference|. The largest magnitude sees
    one wrong element; the root mean square a small error of all.
    """
    spread = {}
    if truth is not None:
        spread = {
            k.removeprefix(SPREAD): v.tolist() for k, v in truth.items() if k.startswith(SPREAD)
        }
        truth = {k: v for k, v in truth.items() if not k.startswith(SPREAD)}
    others = {"reference": reference} | ({"truth": truth} if truth is not None else {})
    problem = next((p for name, other in others.items() if (p := _mismatch(own, other, name))), "")
    if not problem:
        problem = next(
            (p for name, v in (("own", own), *others.items()) if (p := _infinite(v, name))), ""
        )
    if problem:
        return Parity(False, None, None, None, None, note=problem)

    eps = torch.finfo(dtype).eps
    result = Parity(
        compared=len(own), note="" if truth is not None else "no truth: tolerance sqrt(eps)"
    )
    worst_ratio = -1.0
    for name in sorted(own):
        y, r = own[name].double(), reference[name].double()
        t = truth[name].double() if truth is not None else None
        errors = norms(y - r)
        if t is None:
            tolerances = [math.sqrt(eps) * norm for norm in norms(r)]
        else:
            tolerances = [
                4 * max(error, moved) + 8 * eps * size
                for error, moved, size in zip(
                    norms(r - t), spread.get(name, (0, 0)), norms(t), strict=True
                )
            ]
        ratio = max(_ratio(e, t) for e, t in zip(errors, tolerances, strict=True))
        if ratio > worst_ratio:
            worst_ratio, result.worst = ratio, name
            result.max_abs_error, result.rms_error = errors
            result.tolerance, result.rms_tolerance = tolerances
    result.passed = worst_ratio <= 1
    return result


def norms(x: Tensor) -> list[float]:
    """Largest magnitude and root mean square."""
    if x.numel() == 0:
        return [0.0, 0.0]
    return [x.abs().max().item(), x.square().mean().sqrt().item()]


def _ratio(error: float, tolerance: float) -> float:
    if error == 0:
        return 0.0
    return error / tolerance if tolerance > 0 else math.inf


def _mismatch(own: dict[str, Tensor], other: dict[str, Tensor], what: str) -> str:
    for missing, lacks, has in (
        (own.keys() - other.keys(), what, "the runtime"),
        (other.keys() - own.keys(), "the runtime", what),
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
    return ""


def _infinite(values: dict[str, Tensor], what: str) -> str:
    for name in sorted(values):
        if not values[name].isfinite().all():
            return f"{name}: expected finite numbers, found {what} values that are not"
    return ""
