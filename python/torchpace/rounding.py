"""What rounding may do to a float64 run: the result of every operation rounded to the case's dtype,
up or down at random, by a little more than that dtype does.

Stochastic arithmetic (Vignes 1993, Math. Comput. Simul. 35, 233; Parker 1997, Monte Carlo
arithmetic): how far such results lie apart shows how many of their digits rounding leaves, also
where they are the difference of large numbers, or rounding alone, such as the gradient of a bias
before a BatchNorm.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from torchpace import parity
from torchpace.errors import InputError

# Of an error, to that of one rounding: so large that a kink which rounding may cross is crossed
# (docs/method.md, "Parity"). In 16 bits each run crosses many, and more would hide mistakes.
SCALE, SCALE_OF_16_BITS = 16, 4
# A correct result is one more draw of the same kind: where training is chaotic, it lies farther
# from the golden run than the farthest of four others in one tensor of a thousand, by up to 1.3.
MARGIN = 4
# Operators that autocast runs in its own dtype.
_LOWERED = (
    *("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "linear"),
    *("addmv", "mv", "matmul", "addbmm"),
)
# Operators of several steps: an error of a mean inside of one is shared by all that it returns.
_DECOMPOSED = (
    *("native_batch_norm", "native_layer_norm", "native_group_norm"),
    *("native_batch_norm_backward", "native_layer_norm_backward", "native_group_norm_backward"),
    *("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"),
    *("gelu", "gelu_backward", "silu", "silu_backward"),
)
_OFFSETS = 4096


@dataclass(frozen=True)
class _Operator:
    decomposition: Any
    lowered: bool
    written: tuple[int, ...]  # arguments that it changes in place
    is_view: bool


@functools.cache
def _operator(func: Any) -> _Operator:
    schema = func._schema
    written = tuple(
        i
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return _Operator(
        _decompositions().get(func),
        schema.name.partition("::")[2] in _LOWERED,
        written,
        any(returned.alias_info is not None for returned in schema.returns),
    )


@functools.cache
def _decompositions() -> dict[Any, Any]:
    aten = torch.ops.aten
    return torch._decomp.get_decompositions([getattr(aten, name) for name in _DECOMPOSED])


class RandomRounding(TorchDispatchMode):
    """In the block, float64 results are rounded to `dtype`, those of matrix products and
    convolutions to `lowered`, with `error_of` it. What either holds exactly stays as it
    is, so that comparisons and masks do not change. Where `own` is set, for a run that cannot be
    in float64, all results are moved by as much.

    Runs 2 i and 2 i + 1 have the same errors with opposite signs: where rounding may push a number
    across a kink, such as a ReLU's 0 or a gradient that Adam divides by itself, one of the two
    does.
    """

    def __init__(self, dtype: torch.dtype, lowered: torch.dtype, index: int, own: bool = False):
        super().__init__()
        self.dtype, self.lowered, self.own = dtype, lowered, own
        self.sign = _sign(index)
        # Not torch's generators: modes below this one may count what is drawn.
        self.generator = numpy.random.default_rng(index // 2)
        self.offsets = random.Random(index // 2)
        self.noise: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = _operator(func)
        if operator.decomposition is not None:
            with self:
                return operator.decomposition(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        dtype = self.lowered if operator.lowered else self.dtype
        for i in operator.written:
            for x in tree_leaves(args[i]) if i < len(args) else ():
                if self._concerns(x):
                    x.copy_(self._rounded(x, dtype))
        if operator.written or operator.is_view:
            return result
        result = self._accumulated(func, args, result, dtype)
        return tree_map_only(
            Tensor, lambda x: self._rounded(x, dtype) if self._concerns(x) else x, result
        )

    def _accumulated(self, func: Any, args: Any, result: Any, dtype: torch.dtype) -> Any:
        """A sum with what adding term by term may lose: a part of the sum of magnitudes, and not of
        a sum that cancels.
        """
        aten = torch.ops.aten
        if not args or not self._concerns(args[0]):
            return result
        if func is aten.sum.dim_IntList or func is aten.mean.dim:
            return self._off(result, func(args[0].abs(), *args[1:]), dtype)
        if func in (aten.sum.default, aten.mean.default):
            return self._off(result, func(args[0].abs()), dtype)
        if func is aten.convolution_backward.default and result[2] is not None:
            gradient = args[0].abs()
            sums = gradient.sum([0, *range(2, gradient.dim())])
            return (*result[:2], self._off(result[2], sums, dtype))
        return result

    def _off(self, x: Tensor, magnitude: Tensor, dtype: torch.dtype) -> Tensor:
        if not self._concerns(x) or x.is_complex():
            return x
        size = self.sign * error_of(dtype) / 2
        return torch.addcmul(x, magnitude, self._drawn(x), value=size)

    def _concerns(self, x: Any) -> bool:
        if not isinstance(x, Tensor) or x.layout is not torch.strided:
            return False
        if self.own:
            return x.is_floating_point() or x.is_complex()
        wide = x.dtype in (torch.float64, torch.complex128)
        return wide and self.dtype is not torch.float64

    def _rounded(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.is_complex():
            return torch.view_as_complex(self._rounded(torch.view_as_real(x.resolve_conj()), dtype))
        size = self.sign * error_of(x.dtype if self.own else dtype) / 4
        moved = torch.addcmul(x, x, self._drawn(x), value=size)
        if self.own:
            return torch.where(moved.isfinite(), moved, x)
        nearest = x.to(dtype)
        return torch.where(nearest.to(x.dtype) == x, nearest, moved.to(dtype)).to(x.dtype)

    def _drawn(self, x: Tensor) -> Tensor:
        """Numbers between -1 and 1 for x, from a supply: drawing costs more than the operation."""
        key = x.device, x.dtype
        supply = self.noise.get(key)
        if supply is None or supply.numel() < x.numel() + _OFFSETS:
            drawn = torch.from_numpy(self.generator.uniform(-1, 1, x.numel() + _OFFSETS))
            supply = self.noise[key] = drawn.to(x.device, x.dtype)
        begin = self.offsets.randrange(_OFFSETS)
        return supply[begin : begin + x.numel()].view(x.shape)


def error_of(dtype: torch.dtype) -> float:
    """The relative error that stands for rounding to `dtype`."""
    scale = SCALE_OF_16_BITS if dtype.itemsize == 2 else SCALE
    return scale * torch.finfo(dtype).eps


def perturbing(dtype: torch.dtype, index: int) -> Callable[[Tensor], Tensor]:
    """A function that multiplies each element of a tensor by 1 + e or 1 - e, at random, with e the
    `error_of` `dtype`; in the second run of a pair by the other of the two. Integers and bools
    stay.
    """
    generator = torch.Generator().manual_seed(index // 2)
    size = _sign(index) * error_of(dtype)

    def perturbed(x: Tensor) -> Tensor:
        if not (x.is_floating_point() or x.is_complex()):
            return x
        signs = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.int8).to(x.device)
        return x * (1 + size * (2.0 * signs - 1)).to(x.dtype)

    return perturbed


def sensitivity(
    golden: dict[str, Tensor], runs: Iterable[dict[str, Tensor]]
) -> dict[str, list[float]]:
    """The two norms by which rounding may move each value: those of the farthest of the perturbed
    runs, times MARGIN; of integers and bools without it. Raises InputError where rounding changes
    a shape.
    """
    farthest = {name: [0.0, 0.0] for name in golden}
    for values in runs:
        for name, value in values.items():
            if value.shape != golden[name].shape:
                raise InputError(
                    f"{name}: expected a shape that rounding does not change, found "
                    f"{list(golden[name].shape)} and {list(value.shape)}; outputs of such a model "
                    "cannot be compared"
                )
            margin = 1 if parity.is_exact(value) else MARGIN
            found = [margin * norm for norm in parity.norms(value, golden[name])]
            farthest[name] = [max(pair) for pair in zip(farthest[name], found, strict=True)]
    return farthest


def as_values(spread: dict[str, list[float]]) -> dict[str, Tensor]:
    """In the form of a golden file: `spread.<name>` [2]."""
    return {
        parity.SPREAD + name: torch.tensor(norms, dtype=torch.float64)
        for name, norms in spread.items()
    }


def _sign(index: int) -> int:
    """Of the errors of a run: runs are pairs with opposite signs."""
    return 1 if index % 2 == 0 else -1
