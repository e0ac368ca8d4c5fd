"""What rounding may do to a float64 run: the result of every operation rounded to the case's dtype,
up or down at random.

Stochastic arithmetic (Vignes 1993, Math. Comput. Simul. 35, 233; Parker 1997, Monte Carlo
arithmetic): how far such results lie apart shows how many of their digits rounding leaves, also
where they are the difference of large numbers, or rounding alone, such as the gradient of a bias
before a BatchNorm.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

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


def _decompositions() -> dict[Any, Any]:
    aten = torch.ops.aten
    return torch._decomp.get_decompositions([getattr(aten, name) for name in _DECOMPOSED])


class RandomRounding(TorchDispatchMode):
    """In the block, float64 results are rounded to `dtype`, those of matrix products and
    convolutions to `lowered`. What either holds exactly stays as it is, so that comparisons and
    masks do not change.
    """

    def __init__(self, dtype: torch.dtype, lowered: torch.dtype, seed: int):
        super().__init__()
        self.dtype, self.lowered = dtype, lowered
        self.generator = torch.Generator().manual_seed(seed)
        self.offsets = random.Random(seed)
        self.noise: dict[torch.device, Tensor] = {}
        self.decompositions = _decompositions()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.decompositions:
            with self:
                return self.decompositions[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        dtype = self.lowered if schema.name.partition("::")[2] in _LOWERED else self.dtype
        if schema.is_mutable:
            for argument, value in zip(schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    for x in tree_leaves(value):
                        if isinstance(x, Tensor) and self._concerns(x):
                            x.copy_(self._rounded(x, dtype))
            return result
        if any(returned.alias_info is not None for returned in schema.returns):
            return result  # a view
        result = self._accumulated(func, args, result, dtype)
        return tree_map_only(
            Tensor, lambda x: self._rounded(x, dtype) if self._concerns(x) else x, result
        )

    def _accumulated(self, func: Any, args: Any, result: Any, dtype: torch.dtype) -> Any:
        """A sum with what adding term by term may lose: a part of the sum of magnitudes, and not of
        a sum that cancels.
        """
        aten = torch.ops.aten
        if not args or not isinstance(args[0], Tensor) or not self._concerns(args[0]):
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
        return torch.addcmul(x, magnitude, self._drawn(x), value=torch.finfo(dtype).eps / 2)

    def _concerns(self, x: Tensor) -> bool:
        wide = x.dtype in (torch.float64, torch.complex128)
        return wide and x.layout is torch.strided and self.dtype is not torch.float64

    def _rounded(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.is_complex():
            return torch.view_as_complex(self._rounded(torch.view_as_real(x.resolve_conj()), dtype))
        # Below half of the last digit: a number that `dtype` holds is rounded back to itself.
        size = torch.finfo(dtype).eps / 4
        return torch.addcmul(x, x, self._drawn(x), value=size).to(dtype).to(x.dtype)

    def _drawn(self, x: Tensor) -> Tensor:
        """Numbers between -1 and 1 for x, from a supply: drawing costs more than the operation."""
        supply = self.noise.get(x.device)
        if supply is None or supply.numel() < x.numel() + _OFFSETS:
            drawn = torch.rand(x.numel() + _OFFSETS, generator=self.generator, dtype=torch.float64)
            supply = self.noise[x.device] = (2 * drawn - 1).to(x.device)
        begin = self.offsets.randrange(_OFFSETS)
        return supply[begin : begin + x.numel()].view(x.shape)
