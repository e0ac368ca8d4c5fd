"""py-eager: the model as PyTorch runs it from Python by default.

Twin: include/torchpace/runtimes/eager.hpp.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from torchpace.case_phase import case_phase
from torchpace.errors import InputError
from torchpace.module_state import buffers_of, state_of
from torchpace.optim import factory
from torchpace.settings import Settings
from torchpace.workload import (
    PARITY_STEPS,
    State,
    Workload,
    build,
    dropouts,
    first_step_values,
    fresh_losses,
    grad_mode_of,
    loss_of,
    output_values,
    seed_of,
    without_dropout,
)

RUNTIMES = {"py-eager": "PyTorch eager mode from Python"}


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads a case.

    Raises InputError on unusable settings or files, Skipped where the device is missing.
    """
    return (EagerTraining if case_phase(settings).trains else EagerInference)(settings, model)


class EagerInference(Workload):
    """One forward in eval and inference mode."""

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        state = State(settings)
        self.module = build(settings, model, state).eval()
        self.inputs = self.inputs_of(state)
        self.grad_mode, self.note = grad_mode_of(settings)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with self.grad_mode():
            yield

    def step(self, index: int) -> Any:
        with self.autocast:
            return self.module(*self.inputs[index % len(self.inputs)])

    def values(self) -> dict[str, Tensor]:
        return output_values(self, len(self.inputs))

    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        raise InputError(f"losses: expected a case of phase train, got {self.phase.name}")


class EagerTraining(Workload):
    """Forward, loss, backward and the optimizer, each layer in the mode that it was made in."""

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        state = State(settings)
        self.module = build(settings, model, state)
        self.optimizer = factory.make_optimizer(settings, self.module.parameters())
        self.batches = self.batches_of(state)
        self.initial = initial_of(self.module)
        self.seed = seed_of(settings)
        notes = ["checked at dropout 0"] if dropouts(self.module) else []
        if not self.module.training:
            notes.append("trains in eval mode, as the factory gave it")
        self.note = "; ".join(notes)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with torch.no_grad():
            for tensor, initial in self.initial:
                tensor.copy_(initial)
        factory.restore(self.optimizer)
        torch.manual_seed(self.seed)
        yield

    def step(self, index: int) -> Tensor:
        return self.train_on(*self.batches[index % len(self.batches)])

    def train_on(self, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """One training step. Returns its loss, a scalar on the device."""
        self.zero_grad()
        loss = self.forward(inputs, target)
        loss.backward()
        self.optimizer.step()
        return loss

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def forward(self, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss."""
        with self.autocast:
            return loss_of(self.model, self.module(*inputs), target)

    def parts(self, index: int) -> list[tuple[str, Callable[[], Any]]]:
        """What `train_on` does, by the same functions."""
        losses = []
        batch = self.batches[index % len(self.batches)]
        return [
            ("optimizer", self.zero_grad),
            ("forward", lambda: losses.append(self.forward(*batch))),
            ("backward", lambda: losses.pop().backward()),
            ("optimizer", self.optimizer.step),
        ]

    def values(self) -> dict[str, Tensor]:
        losses, first = [], {}
        with self.turn(), without_dropout(self.module):
            before = {name: p.detach().clone() for name, p in self.module.named_parameters()}
            for index in range(PARITY_STEPS):
                losses.append(self.step(index).detach().clone())
                if index == 0:
                    first = first_step_values(self.module, before, self.settings)
            after = {
                f"parameter.{name}": p.detach().clone()
                for name, p in self.module.named_parameters()
            }
            after |= {f"buffer.{name}": b.clone() for name, b in buffers_of(self.module).items()}
        return {"losses": torch.stack(losses), **first, **after}

    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        return fresh_losses(self, self.batches, self.train_on, steps, tokens)


def initial_of(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """All tensors of a module, each with a copy: what a turn restores."""
    return [(x, x.detach().clone()) for x in state_of(module).values()]
