"""All tensors that decide what a module computes, and moving them to a device and dtype.

Parameters and persistent buffers are in a state dictionary; buffers that are not persistent and
tensors in plain attributes are drawn anew by every process that builds the module, so a case's
state file carries them too. What cannot be carried is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchpace.errors import InputError

# In a state file: what the tensor is, in front of its name.
PARAMETER, BUFFER, TRANSIENT, ATTRIBUTE, LOSS = (
    *("parameter.", "buffer.", "transient.", "attribute.", "loss."),
)
IN_SET = "*"  # in a path: an element of a set
# Attributes of every nn.Module that hold no tensor of the user's own.
_OWN = set(vars(nn.Module()))


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """By name; a tensor that has several names under its first."""
    return dict(module.named_parameters())


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers by name; a tensor that has several names under its first."""
    kept = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def transients_of(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that are not persistent."""
    kept = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in kept}


def attributes_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors in plain attributes of a module and of its children, also in lists, tuples and
    dictionaries, without those that are parameters or buffers, or are computed from others.
    """
    known = {id(x) for x in (*module.parameters(), *module.buffers())}
    return {
        name: value
        for name, value in _plain(module)
        if isinstance(value, Tensor) and id(value) not in known and value.is_leaf
    }


def state_of(module: nn.Module, loss: nn.Module | None = None) -> dict[str, Tensor]:
    """Everything under the keys of a state file, the module's own tensors. Of a loss that is a
    module its parameters and buffers.
    """
    parts = {
        PARAMETER: parameters_of(module),
        BUFFER: buffers_of(module),
        TRANSIENT: transients_of(module),
        ATTRIBUTE: attributes_of(module),
    }
    if loss is not None:
        parts[LOSS] = parameters_of(loss) | dict(loss.named_buffers())
    return {prefix + name: x for prefix, found in parts.items() for name, x in found.items()}


def expect_known(module: nn.Module, what: str) -> None:
    """Raises InputError on weights that a module holds outside of what torch knows of it: they are
    not moved, not trained and not in its state, and so not the same in two processes.
    """
    known = {id(x) for x in (*module.modules(), *module.parameters(), *module.buffers())}
    for name, value in _plain(module):
        if id(value) in known:
            continue
        if f".{IN_SET}" in name and isinstance(value, Tensor):
            raise InputError(
                f"{what}: expected tensors in lists or dictionaries, found one in the set "
                f"'{name.partition('.' + IN_SET)[0]}', which has no order"
            )
        if isinstance(value, nn.Parameter):
            raise InputError(
                f"{what}: expected parameters that the module knows, found one in the plain "
                f"attribute '{name}'; put it into an nn.ParameterList or nn.ParameterDict"
            )
        if isinstance(value, nn.Module) and [*value.parameters(), *value.buffers()]:
            raise InputError(
                f"{what}: expected layers that the module knows, found a {type(value).__name__} in "
                f"the plain attribute '{name}'; put it into an nn.ModuleList or nn.ModuleDict"
            )
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(
                f"{what}: expected initialized parameters, found the lazy '{name}'; call the "
                "module once before it is returned"
            )
        if parameter.is_meta:
            raise InputError(
                f"{what}: expected parameters with values, found '{name}' on the meta device"
            )


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Tensors and modules in the plain attributes of a module and its children, by path."""
    for prefix, owner in module.named_modules():
        for key, value in vars(owner).items():
            if key not in _OWN:
                yield from _inside(value, f"{prefix}.{key}" if prefix else key, set())


def _inside(value: Any, path: str, above: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Tensor, nn.Module)):
        yield path, value
    elif isinstance(value, (list, tuple, set, frozenset, Mapping)) and id(value) not in above:
        if isinstance(value, Mapping):
            items = value.items()
        else:
            unordered = isinstance(value, (set, frozenset))
            items = ((IN_SET if unordered else i, part) for i, part in enumerate(value))
        for key, part in items:
            yield from _inside(part, f"{path}.{key}", above | {id(value)})


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Moves all tensors of a module, in place: floating point to `dtype`, complex to the complex
    dtype as wide, others as they are. Tensors that share memory go on sharing it.
    """
    move = _Move(device, dtype)
    module._apply(move)
    with torch.no_grad():
        for tensor in attributes_of(module).values():
            tensor.data = move(tensor)
    return module


class _Move:
    """Moves tensors, each storage once."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.moved: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        dtype = dtype_for(x, self.dtype)
        if x.dtype == dtype and x.device == self.device:
            return x
        if x.layout is not torch.strided or x.is_quantized or type(x) not in (Tensor, nn.Parameter):
            return x.to(device=self.device) if x.is_quantized else x.to(self.device, dtype)
        x = x.detach()
        key = (x.untyped_storage().data_ptr(), x.dtype)
        if key not in self.moved:
            whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
            self.moved[key] = whole, whole.to(self.device, dtype)
        return self.moved[key][1].as_strided(x.size(), x.stride(), x.storage_offset())


def dtype_for(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What becomes of a tensor in a case of `dtype`."""
    if x.is_quantized:
        return x.dtype
    if x.is_complex():
        return torch.complex128 if dtype is torch.float64 else torch.complex64
    return dtype if x.is_floating_point() else x.dtype
