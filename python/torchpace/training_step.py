"""A training step as one function of tensors, traced below autograd.

Rules: docs/training.md.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchpace.artifacts import refused
from torchpace.axes import AUTOCAST
from torchpace.errors import InputError
from torchpace.tensors import spec_of
from torchpace.training_package import (
    ALIGNMENT,
    Contents,
    Layout,
    Recipe,
    StateTensor,
    View,
)


class TrainingStep:
    """The step as a function of tensors: state, learning rate, inputs and target to the loss. Its
    state, changed in place, has the layout of docs/training.md.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Any, Tensor], Tensor],
        inputs: tuple[Tensor, ...],
        target: Tensor,
        recipe: Recipe,
        autocast: str,
    ):
        self.module, self.loss, self.recipe, self.autocast = module, loss, recipe, autocast
        self.inputs, self.target = inputs, target
        parameters = dict(module.named_parameters())
        if not parameters:
            raise InputError("module: expected parameters to train, found none")
        self.device = next(iter(parameters.values())).device
        for x in (*parameters.values(), *module.buffers(), *inputs, target):
            if x.device != self.device:
                raise InputError(
                    f"module: expected parameters, buffers, inputs and target on one device, found "
                    f"{self.device} and {x.device}"
                )
        self.places = _places(module)
        trained = self._trained(parameters)
        self.fixed = {n: p for n, p in parameters.items() if n not in trained}
        dtypes = {p.dtype for p in trained.values()}
        if len(dtypes) > 1:
            found = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
            raise InputError(f"module: expected trained parameters of one dtype, found {found}")
        self.dtype = dtypes.pop()
        self.trained, self.elements = _lay_out(trained, self.dtype)
        self.initial, self.layout = self._state(parameters)

    def contents(self, deterministic: bool) -> Contents:
        return Contents(
            self.recipe,
            self.layout,
            tuple(map(spec_of, self.inputs)),
            spec_of(self.target),
            self.device.type,
            self.autocast,
            deterministic,
        )

    def initial_bytes(self) -> bytes:
        parts = bytearray()
        for tensor in self.layout.state:
            if tensor.offset is not None:
                parts += bytes(tensor.offset - len(parts))
                value = self.initial[tensor.name].detach().cpu().contiguous()
                parts += value.reshape(-1).view(torch.uint8).numpy().tobytes()
        return bytes(parts)

    def trace(self) -> torch.fx.GraphModule:
        """Below autograd, and not by torch.export, which takes no backward and adds to what is
        below nothing but a second trace. Computes and changes nothing.
        """
        from torch.fx.experimental.proxy_tensor import make_fx

        trace = make_fx(
            lambda *arguments: (self(*arguments),),
            tracing_mode="fake",
            _allow_non_fake_inputs=True,  # what the module holds beside parameters and buffers
        )
        try:
            with self._as_trained(), torch.no_grad():
                return trace(*self.arguments())
        except InputError:
            raise
        except Exception as error:
            raise refused("export: expected a step that torch can trace", error) from None

    def arguments(self) -> list[Tensor]:
        """Those of a first call: state, learning rate, inputs and target."""
        state = [self.initial[tensor.name] for tensor in self.layout.state]
        rate = torch.zeros((), dtype=torch.float32, device=self.device)
        return [*state, rate, *(x.contiguous() for x in (*self.inputs, self.target))]

    def __call__(self, *arguments: Tensor) -> Tensor:
        state = dict(zip((t.name for t in self.layout.state), arguments, strict=False))
        rate, *inputs, target = arguments[len(state) :]
        leaves = {v.name: v.of(state["parameters"]).detach() for v in self.trained}
        for leaf in leaves.values():
            leaf.requires_grad_()
        given = {n.split(".", 1)[1]: t for n, t in state.items() if "." in n}
        with torch.enable_grad():
            loss = self._forward({**given, **leaves}, tuple(inputs), target)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
        self._update(state, rate, self._join(gradients))
        return loss.detach()

    def _forward(
        self, tensors: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor
    ) -> Tensor:
        scope = contextlib.nullcontext()
        if self.autocast != "none":
            scope = torch.autocast(self.device.type, dtype=AUTOCAST[self.autocast])
        given = {place: tensors[name] for place, name in self.places.items()}
        # Without tie_weights, which leaves its tensors in a module that has two names.
        call = torch.func.functional_call
        with scope:
            return self.loss(call(self.module, given, inputs, tie_weights=False), target)

    def _join(self, gradients: Sequence[Tensor]) -> Tensor:
        parts, end = [], 0
        for view, gradient in zip(self.trained, gradients, strict=True):
            if view.offset > end:
                parts.append(gradient.new_zeros(view.offset - end, dtype=self.dtype))
            parts.append(gradient.reshape(-1))
            end = view.offset + gradient.numel()
        if self.elements > end:
            parts.append(parts[-1].new_zeros(self.elements - end))
        return torch.cat(parts)

    def _update(self, state: dict[str, Tensor], rate: Tensor, g: Tensor) -> None:
        """The arithmetic of torch.optim, one tensor for all parameters."""
        r, last, count = self.recipe, None, state["steps"]
        if r.accumulate > 1:
            g = state["gradient"] + g / r.accumulate
            last = state["part"] == r.accumulate - 1
        joined = g
        if r.clip_norm < math.inf:
            norm = torch.linalg.vector_norm(g)
            g = g * (r.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        p = state["parameters"]
        if r.weight_decay and r.kind == "adamw":
            p = p * (1 - rate * r.weight_decay)
        elif r.weight_decay:
            g = g + r.weight_decay * p
        new = {}
        if r.is_adam:
            m, v, c = state["first_moment"], state["second_moment"], state["corrections"]
            new["first_moment"] = m + (g - m) * (1 - r.beta1)
            new["second_moment"] = v * r.beta2 + g * g * (1 - r.beta2)
            scale = new["second_moment"].sqrt() / c[1] + r.eps
            new["parameters"] = p - (rate / c[0]) * (new["first_moment"] / scale)
            new["corrections"] = corrections(r, count + 2)
        else:
            new["momentum"] = state["momentum"] * r.momentum + g
            new["parameters"] = p - rate * new["momentum"]
        new["steps"] = count + 1
        for name, value in new.items():
            old = state[name]
            value = value.to(old.dtype)
            old.copy_(value if last is None else torch.where(last, value, old))
        if last is not None:
            state["gradient"].copy_(torch.where(last, 0.0, joined))
            state["part"].copy_(torch.where(last, 0, state["part"] + 1))

    def _trained(self, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Those that get a gradient, found by a step of eager torch."""
        copies = {
            n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in parameters.items()
        }
        buffers = {n: b.clone() for n, b in self.module.named_buffers()}
        wanted = {n: p for n, p in copies.items() if p.requires_grad}
        with self._as_trained(), torch.enable_grad():
            loss = self._forward({**buffers, **copies}, self.inputs, self.target)
            scalar = isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point()
            if not scalar or not loss.requires_grad:
                found = type(loss).__name__
                if isinstance(loss, Tensor):
                    found = spec_of(loss) + ("" if loss.requires_grad else " without a gradient")
                raise InputError(
                    f"loss: expected a floating-point scalar to differentiate, found {found}"
                )
            gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        return {n: parameters[n] for n, g in zip(wanted, gradients, strict=True) if g is not None}

    def _state(self, parameters: dict[str, nn.Parameter]) -> tuple[dict[str, Tensor], Layout]:
        flat = torch.zeros(self.elements, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            for view in self.trained:
                view.of(flat).copy_(parameters[view.name])
        initial = {"parameters": flat}
        stored = {"parameters", "corrections"}
        initial |= {name: torch.zeros_like(flat) for name in self.recipe.moments}
        initial["steps"] = torch.zeros((), dtype=torch.int64, device=self.device)
        if self.recipe.is_adam:
            initial["corrections"] = corrections(self.recipe, initial["steps"] + 1)
        if self.recipe.accumulate > 1:
            initial["gradient"] = torch.zeros_like(flat)
            initial["part"] = torch.zeros_like(initial["steps"])
        persistent = self.module.state_dict(keep_vars=True).keys()
        others = {f"parameter.{n}": p.detach() for n, p in self.fixed.items()}
        for name, buffer in self.module.named_buffers():
            others[f"{'buffer' if name in persistent else 'transient'}.{name}"] = buffer
        initial |= {name: tensor.contiguous() for name, tensor in others.items()}
        tensors, end = [], 0
        for name, tensor in initial.items():
            offset = end if name in stored or name in others else None
            tensors.append(StateTensor(name, tuple(tensor.shape), tensor.dtype, offset))
            if offset is not None:
                end = _aligned(offset + tensors[-1].bytes)
        by_parameter = {id(parameters[v.name]): v for v in self.trained}
        views = tuple(
            View(name, tuple(p.shape), by_parameter[id(p)].offset)
            for name, p in self.module.named_parameters(remove_duplicate=False)
            if id(p) in by_parameter
        )
        return initial, Layout(tuple(tensors), views)

    @contextlib.contextmanager
    def _as_trained(self) -> Iterator[None]:
        """Train mode, and no effect on the module's modes or on the random state."""
        modes = {m: m.training for m in self.module.modules()}
        devices = [self.device] if self.device.type == "cuda" else []
        self.module.train()
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _places(module: nn.Module) -> dict[str, str]:
    """Every place of a module that holds a parameter or a buffer, each by one name, and the name
    that the tensor has: for a tied one its first.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    names |= {id(b): name for name, b in module.named_buffers()}
    places = {}
    for prefix, owner in module.named_modules():
        for attribute, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                places[f"{prefix}.{attribute}" if prefix else attribute] = names[id(tensor)]
    return places


def corrections(recipe: Recipe, step: Tensor) -> Tensor:
    """Adam's 1 - beta1^t and sqrt(1 - beta2^t), computed in float64. float32 [2]."""
    t = step.to(torch.float64)
    return torch.stack([1 - recipe.beta1**t, (1 - recipe.beta2**t).sqrt()]).to(torch.float32)


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """torch's deterministic algorithms in the block, without filling new memory."""
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn, fill = (
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(wanted)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def _lay_out(
    parameters: dict[str, nn.Parameter], dtype: torch.dtype
) -> tuple[tuple[View, ...], int]:
    views, end = [], 0
    for name, p in parameters.items():
        views.append(View(name, tuple(p.shape), end // dtype.itemsize))
        end = _aligned(end + p.numel() * dtype.itemsize)
    return tuple(views), end // dtype.itemsize


def _aligned(bytes_: int) -> int:
    return -(-bytes_ // ALIGNMENT) * ALIGNMENT
