"""What a compiled training step can train: modules, losses and batches, each refusal one line.

Rules: docs/training.md, "What can be exported".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedTensorMixin

from torchpace.errors import InputError
from torchpace.module_state import place

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))  # of nn.Module itself
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_DEPTH = 4  # of containers in containers that are searched for weights


def expect_trainable(
    module: nn.Module, loss: Callable[[Any, Tensor], Tensor], batch: Sequence[Tensor]
) -> None:
    """Raises InputError on what no compiled step can train rightly and what can be known before
    anything runs. `batch`: the inputs and the target.
    """
    for name, part in module.named_modules():
        if kind := _foreign_kind(part):
            where = f" ({name})" if name else ""
            raise InputError(
                f"module: expected a plain nn.Module, found {kind[0]}{where}; {kind[1]}"
            )
    tensors = _tensors_of(module, batch)
    for name, x in tensors.items():
        if isinstance(x, UninitializedTensorMixin):
            raise InputError(
                f"module: expected parameters with a shape, found {name} of a lazy module; run it "
                "once on a batch first"
            )
    _expect_one_device(tensors)
    _expect_parameters(dict(module.named_parameters()))
    _expect_own_memory(module)
    _expect_registered(module)
    if isinstance(loss, nn.Module):
        _expect_untrained(loss)


def placed_loss(
    loss: Callable[[Any, Tensor], Tensor], device: torch.device, dtype: torch.dtype
) -> Callable[[Any, Tensor], Tensor]:
    """The loss; of one that is a module a copy, with its class weights and the like on the device
    and in the dtype.
    """
    return place(copied(loss), device, dtype) if isinstance(loss, nn.Module) else loss


def copied(module: nn.Module) -> nn.Module:
    """A deep copy. Raises InputError where it has what cannot be copied."""
    memo: dict[int, Any] = {id(p): copy.deepcopy(p) for p in module.parameters()}
    for part in module.modules():
        for _, x in _held(part):
            if isinstance(x, Tensor) and id(x) not in memo:
                memo |= _copy_of_held(x, module, memo)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise InputError(
            "module: expected one that copy.deepcopy copies, to compare its training with, found "
            f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
        ) from None


def _copy_of_held(x: Tensor, module: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """The copies of tensors in plain attributes that deepcopy makes wrongly or not at all: of one
    that shares memory with a parameter, and of what hooks computed, such as weight_norm's weight.
    """
    for p in module.parameters():
        if _overlap(_span(p), _span(x)):
            offset = x.storage_offset() - p.storage_offset() + memo[id(p)].storage_offset()
            return {id(x): memo[id(p)].detach().as_strided(x.size(), x.stride(), offset)}
    return {} if x.is_leaf else {id(x): x.detach().clone()}


def references(module: nn.Module) -> list[str]:
    """Where plain attributes hold tensors that share memory with parameters, `alias -> fc.weight`.

    A compiled step would take their initial values for ever. A recurrent layer keeps its own list
    up to date.
    """
    spans = {name: _span(p) for name, p in module.named_parameters()}
    found = []
    for prefix, part in module.named_modules():
        for path, x in _held(part):
            if isinstance(x, Tensor) and not isinstance(part, nn.RNNBase):
                shared = (
                    name
                    for name, span in spans.items()
                    # spectral_norm's weight_orig, which its weight is computed from
                    if _overlap(span, _span(x)) and not name.endswith("_orig")
                )
                if name := next(shared, ""):
                    found.append(f"{_joined(prefix, path)} -> {name}")
    return found


def _foreign_kind(part: nn.Module) -> tuple[str, str] | None:
    """What it is and what to pass instead, where it is no plain module."""
    kind = type(part)
    if isinstance(part, torch.jit.ScriptModule):
        return "TorchScript", "pass the Python module that it was made of"
    if kind.__name__ == "OptimizedModule" and hasattr(part, "_orig_mod"):
        return "what torch.compile made", "pass the module before torch.compile, its _orig_mod"
    if getattr(part, "_compiled_call_impl", None) is not None:
        return "one that was compiled by .compile()", "pass one on which compile() was not called"
    if isinstance(part, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return kind.__name__, "pass its .module"
    if kind.__name__.startswith(("FullyShardedDataParallel", "FSDP")):
        return kind.__name__, "pass the module before it was sharded"
    if kind.__module__.startswith(_QUANTIZED):
        return f"a quantized {kind.__name__}", "pass the module before its conversion"
    averages = isinstance(part, _BatchNorm) and part.training and part.track_running_stats
    if averages and part.momentum is None and part.running_mean is not None:
        return (
            f"{kind.__name__} with momentum=None",
            "its average over all steps reads a counter in Python; give it a momentum, such as "
            "0.1, or eval()",
        )
    return None


def _tensors_of(module: nn.Module, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    found = dict(module.named_parameters()) | dict(module.named_buffers())
    found |= {f"input {index}": x for index, x in enumerate(batch[:-1])}
    return found | {"target": batch[-1]}


def _expect_one_device(tensors: dict[str, Tensor]) -> None:
    first, device = next((name, x.device) for name, x in tensors.items())
    for name, x in tensors.items():
        if x.device != device:
            raise InputError(
                "module: expected parameters, buffers, inputs and target on one device, found "
                f"{first} on {device} and {name} on {x.device}"
            )
        if x.is_meta:
            raise InputError(f"module: expected tensors with values, found {name} on meta")
        if x.is_quantized or x.layout is not torch.strided:
            what = "quantized" if x.is_quantized else str(x.layout).removeprefix("torch.")
            raise InputError(f"module: expected plain dense tensors, found {name}, {what}")


def _expect_parameters(parameters: dict[str, nn.Parameter]) -> None:
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    if not trained:
        found = "none" if not parameters else "none that requires a gradient"
        raise InputError(f"module: expected parameters to train, found {found}")
    for name, p in trained.items():
        if p.dtype not in DTYPES:
            advice = ""
            if p.dtype is torch.float16:
                advice = "; take module.float(), with autocast='bfloat16' for speed"
            raise InputError(
                "module: expected trained parameters of float32, float64 or bfloat16, found "
                f"{name} of {str(p.dtype).removeprefix('torch.')}{advice}"
            )
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise InputError(
                f"module: expected parameters without hooks, found some on {name}, which a "
                "compiled step would not call; remove them, or change the gradient in the module"
            )


def _expect_own_memory(module: nn.Module) -> None:
    """Raises InputError on weights that are tied by their memory alone: the step's flat state
    would part them.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    by_storage: dict[int, list[str]] = {}
    for name, x in tensors.items():
        by_storage.setdefault(_span(x)[0], []).append(name)
    for names in by_storage.values():
        for index, name in enumerate(names):
            for other in names[:index]:
                if _overlap(_span(tensors[name]), _span(tensors[other])):
                    raise InputError(
                        f"module: expected tensors with memory of their own, found {other} and "
                        f"{name} in the same; tie weights by one nn.Parameter under both names, or "
                        "clone"
                    )


def _expect_registered(module: nn.Module) -> None:
    """Raises InputError on weights that want a gradient and are in plain lists and the like."""
    known = {id(p) for p in module.parameters()}
    for prefix, part in module.named_modules():
        for path, x in _held(part):
            if isinstance(x, nn.Module):
                unknown = [n for n, p in x.named_parameters() if _is_weight(p, known)]
                path = _joined(path, unknown[0]) if unknown else ""
            elif not (isinstance(x, Tensor) and _is_weight(x, known)):
                path = ""
            if path:
                raise InputError(
                    f"module: expected weights that it registers, found {_joined(prefix, path)} in "
                    "a plain attribute or list, which no optimizer sees; take nn.ModuleList or "
                    "nn.ParameterList, or requires_grad_(False)"
                )


def _is_weight(x: Tensor, known: set[int]) -> bool:
    return x.requires_grad and x.is_leaf and id(x) not in known


def _expect_untrained(loss: nn.Module) -> None:
    name = next((n for n, p in loss.named_parameters() if p.requires_grad), "")
    if name:
        raise InputError(
            f"loss: expected no parameters to train, found {name}; make it a part of the module, "
            "or requires_grad_(False)"
        )


def _held(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """Tensors and modules in a module's plain attributes, also within containers, by path."""
    for name, value in vars(part).items():
        if name not in _OWN_ATTRIBUTES:
            yield from _within(name, value, _DEPTH)


def _within(path: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Tensor, nn.Module)):
        yield path, value
    elif isinstance(value, (list, tuple, set)) and depth:
        for index, item in enumerate(value):
            yield from _within(f"{path}[{index}]", item, depth - 1)
    elif isinstance(value, dict) and depth:
        for key, item in value.items():
            yield from _within(f"{path}[{key!r}]", item, depth - 1)


def _span(x: Tensor) -> tuple[int, int, int]:
    """The storage and the bytes in it from the first to behind the last element."""
    if x.numel() == 0 or x.is_meta or x.layout is not torch.strided:
        return id(x), 0, 0
    begin = x.storage_offset() * x.itemsize
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.untyped_storage().data_ptr(), begin, begin + (last + 1) * x.itemsize


def _overlap(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2])


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
