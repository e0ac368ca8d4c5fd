"""What a module returns, as tensors by name: all of them are checked, in every runtime.

Rule: docs/method.md, "Parity". C++ does the same to the outputs of TorchScript files:
include/torchpace/runtimes/torchscript.hpp.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchpace.errors import InputError

ROOT = "output"


def named(result: Any, path: str = ROOT) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its path, `output.policy.0`: of tuples and lists in order, of mappings as
    they are filled, of dataclasses field by field. None, numbers and strings are no tensors.

    Raises InputError on any other object: tensors inside could not be checked.
    """
    if isinstance(result, Tensor):
        yield path, result
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield from named(value, f"{path}.{key}")
    elif isinstance(result, (tuple, list)):
        for key, value in enumerate(result):
            yield from named(value, f"{path}.{key}")
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        for field in dataclasses.fields(result):
            yield from named(getattr(result, field.name), f"{path}.{field.name}")
    elif result is not None and not isinstance(result, (numbers.Number, str, bytes, torch.Size)):
        raise InputError(
            f"{path}: expected tensors in tuples, lists, dictionaries or dataclasses, found a "
            f"{type(result).__name__}, whose tensors cannot be checked; return those instead"
        )


def flat(result: Any) -> list[Tensor]:
    return [tensor for _, tensor in named(result)]


def names_of(result: Any) -> list[str]:
    """The paths, as the key `outputs` of a case's line has them. Raises InputError where two are
    the same: one of both would not be compared.
    """
    paths = [path.replace(",", "_").replace(" ", "_") for path, _ in named(result)]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise InputError(f"outputs: expected a name for each, found '{path}' twice; rename one")
    return paths


def by_name(result: Any, names: list[str]) -> dict[str, Tensor]:
    """The tensors under `names`; where these are not as many, `output` or `output.0`, ...: then a
    comparison by name fails.
    """
    tensors = flat(result)
    if len(names) != len(tensors):
        alone = len(tensors) == 1
        names = [ROOT] if alone else [f"{ROOT}.{index}" for index in range(len(tensors))]
    return dict(zip(names, map(plain, tensors), strict=True))


def plain(x: Tensor) -> Tensor:
    """A copy on the CPU that any file of tensors can hold: dense, not quantized, resolved."""
    x = x.detach()
    if x.is_quantized:
        x = x.dequantize()
    if x.is_nested:
        x = torch.nested.to_padded_tensor(x, 0.0)
    if x.layout is not torch.strided:
        x = x.to_dense()
    return x.resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)


class Flat(nn.Module):
    """A module that returns all its tensors as one tuple: what an artifact is made of."""

    def __init__(self, module: nn.Module, scope: Any):
        super().__init__()
        self.module, self.scope = module, scope  # scope: the case's autocast

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with self.scope:
            return tuple(flat(self.module(*inputs)))
