"""Shapes and dtypes as text: `1x3x224x224:float32`.

Twin: include/torchpace/io/tensor_spec.hpp.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spec(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """`8x64:int64`, as in every package of torchpace; a scalar is `:int64`."""
    return f"{'x'.join(map(str, shape))}:{str(dtype).removeprefix('torch.')}"


def spec_of(x: Tensor) -> str:
    return spec(tuple(x.shape), x.dtype)


def parse_spec(text: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Raises ValueError on anything else than a spec."""
    sizes, _, name = text.partition(":")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"the dtype '{name}'")
    return parse_sizes(sizes), dtype


def parse_sizes(text: str) -> tuple[int, ...]:
    """Raises ValueError on what no tensor can have."""
    sizes = tuple(int(size) for size in text.split("x")) if text else ()
    if min(sizes, default=0) < 0 or math.prod(sizes) >= 2**56:
        raise ValueError(f"the sizes {text}")
    return sizes
