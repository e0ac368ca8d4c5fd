"""A training step as one function of tensors, traced below autograd.

Rules: docs/training.md.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from torchpace.aot import random_draws
from torchpace.aot.training_module import copied, expect_trainable, placed_loss
from torchpace.aot.training_package import (
    ALIGNMENT,
    Layout,
    Recipe,
    StateTensor,
    TrainingPackage,
    View,
)
from torchpace.errors import InputError
from torchpace.execution_options import AUTOCAST
from torchpace.io.tensor_spec import spec_of
from torchpace.refusal import refused


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
        expect_trainable(module, loss, (*inputs, target))
        self.source, self.recipe, self.autocast = module, recipe, autocast
        self.module = copied(module)  # to trace: hooks and counters leave their marks in it
        parameters = dict(self.module.named_parameters())
        wanted = {n: p for n, p in parameters.items() if p.requires_grad}
        dtypes = {p.dtype for p in wanted.values()}
        if len(dtypes) > 1:
            found = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
            raise InputError(f"module: expected trained parameters of one dtype, found {found}")
        self.dtype = dtypes.pop()
        self.device = next(iter(wanted.values())).device
        self.loss = placed_loss(loss, self.device, self.dtype)
        self.inputs, self.target = tuple(x.detach() for x in inputs), target.detach()
        self.places = _places(module)
        self.draws: int | None = None  # random tensors of a call, known once it is traced
        trained = self._trained(wanted)
        self.fixed = {n: p for n, p in parameters.items() if n not in trained}
        self.trained, self.elements = _lay_out(trained, self.dtype)
        self.initial, self.layout = self._state(parameters)

    def contents(self, deterministic: bool, gemm: str) -> TrainingPackage:
        return TrainingPackage(
            self.recipe,
            self.layout,
            tuple(map(spec_of, self.inputs)),
            spec_of(self.target),
            self.device.type,
            self.autocast,
            deterministic,
            gemm,
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

        def run(*arguments: Tensor) -> tuple[Tensor]:
            with random_draws.Traced() as draws:
                loss = self(*arguments)
            self.draws = draws.count
            return (loss,)

        trace = make_fx(
            run,
            tracing_mode="fake",
            _allow_non_fake_inputs=True,  # what the module holds beside parameters and buffers
        )
        with (
            refusing("export: expected a step that torch can trace"),
            kept_random_state(self.device),
            _traceable(),
            torch.autograd.set_multithreading_enabled(False),  # a GPU's backward has its own thread
            torch.no_grad(),
        ):
            return trace(*self.arguments())

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
        tensors = {**given, **leaves}
        held = {place: tensors[name] for place, name in self.places.items()}
        # Held until the gradients are there: checkpointing computes again in the backward.
        with torch.enable_grad(), _reparametrize_module(self.module, held):
            loss = loss_of(self.module, self.loss, tuple(inputs), target, self.autocast)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            self._keep_replaced(held)
        self._update(state, rate, self._join(gradients))
        return loss.detach()

    def _keep_replaced(self, held: dict[str, Tensor]) -> None:
        """Writes buffers that the module has replaced, not changed, into the state."""
        for place, old in held.items():
            prefix, _, name = place.rpartition(".")
            new = self.module.get_submodule(prefix)._buffers.get(name)
            if new is not None and new is not old:
                with torch.no_grad():
                    old.copy_(new)

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
        rate = rate.to(_of_scalars(self.dtype))
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
            new["corrections"] = corrections(r, count + 2, self.dtype)
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

    def _trained(self, wanted: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Those that get a gradient, found by a step of eager torch on a copy."""
        module, inputs = copied(self.source), tuple(x.clone() for x in self.inputs)
        versions = [x._version for x in inputs]
        with (
            refusing("module: expected one that eager torch trains"),
            kept_random_state(self.device),
            torch.enable_grad(),
        ):
            loss = loss_of(module, self.loss, inputs, self.target, self.autocast)
            _expect_scalar(loss)
            loss.backward()
        for index, (x, version) in enumerate(zip(inputs, versions, strict=True)):
            if x._version != version:
                raise InputError(
                    f"module: changes its input {index} in place, so every step would see another "
                    "one; clone it first (x = x.clone())"
                )
        gradients = {name: p.grad for name, p in module.named_parameters()}
        for name, gradient in gradients.items():
            if gradient is not None and gradient.layout is not torch.strided:
                raise InputError(
                    f"module: expected dense gradients, found a sparse one of {name}; construct "
                    "its layer with sparse=False"
                )
        trained = {name: p for name, p in wanted.items() if gradients[name] is not None}
        if not trained:
            raise InputError(
                "module: expected parameters that get a gradient, found none in a copy of it; a "
                "forward that was assigned to it must not hold its weights itself"
            )
        return trained

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
            initial["corrections"] = corrections(self.recipe, initial["steps"] + 1, self.dtype)
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


def loss_of(
    module: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    inputs: Sequence[Tensor],
    target: Tensor,
    autocast: str,
) -> Tensor:
    """Forward and loss. Autocast is entered anew each time: its cache would keep old weights."""
    scope: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if autocast != "none":
        scope = torch.autocast(target.device.type, dtype=AUTOCAST[autocast])
    with scope:
        return loss(module(*inputs), target)


def _expect_scalar(loss: Any) -> None:
    scalar = isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point()
    if scalar and loss.requires_grad:
        return
    found = type(loss).__name__
    if isinstance(loss, Tensor):
        found = spec_of(loss) + ("" if loss.requires_grad else " without a gradient")
    raise InputError(f"loss: expected a floating-point scalar to differentiate, found {found}")


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Makes whatever the block raises one line that names the place in the model's code."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise refused(what, error) from None


@contextlib.contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """torch's random state after the block as before it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


class _Checkpoint:
    """torch's reentrant checkpointing as the other kind, which autograd.grad can go through."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        checkpoint = torch.utils.checkpoint.checkpoint
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=preserve)


@contextlib.contextmanager
def _traceable() -> Iterator[None]:
    """Without what compiles to something else than it was: oneDNN's recurrent layers, whose
    workspace is no tensor, and reentrant checkpointing.
    """
    import torch.utils.checkpoint

    usual = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        with mock.patch.object(torch.utils.checkpoint, "CheckpointFunction", _Checkpoint):
            yield
    finally:
        torch.backends.mkldnn.enabled = usual


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


def corrections(recipe: Recipe, step: Tensor, dtype: torch.dtype) -> Tensor:
    """Adam's 1 - beta1^t and sqrt(1 - beta2^t), computed in float64. [2]"""
    t = step.to(torch.float64)
    found = torch.stack([1 - recipe.beta1**t, (1 - recipe.beta2**t).sqrt()])
    return found.to(_of_scalars(dtype))


def _of_scalars(dtype: torch.dtype) -> torch.dtype:
    """The dtype of numbers that scale parameters of `dtype`."""
    return torch.float64 if dtype is torch.float64 else torch.float32


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
