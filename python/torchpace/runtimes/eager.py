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

from torchpace import optimizers
from torchpace.errors import InputError
from torchpace.settings import Settings
from torchpace.workload import (
    PARITY_STEPS,
    State,
    Workload,
    buffers_of,
    build,
    dropouts,
    first_step_values,
    fresh_losses,
    loss_of,
    output_of,
    seed_of,
    without_dropout,
)

RUNTIMES = {"py-eager": "PyTorch eager mode from Python"}


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads a case.

    Raises InputError on unusable settings or files, Skipped where the device is missing.
    """
    phase = settings.text("phase")
    return EagerTraining(settings, model) if phase == "train" else EagerInference(settings, model)


class EagerInference(Workload):
    """One forward in eval and inference mode."""

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        state = State(settings)
        self.module = build(settings, model, state).eval()
        self.inputs = self.inputs_of(state)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

    def step(self, index: int) -> Tensor:
        with self.autocast:
            return self.module(*self.inputs[index % len(self.inputs)])

    def values(self) -> dict[str, Tensor]:
        with self.turn():
            return {"output": output_of(self.step(0)).clone()}

    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        raise InputError(f"losses: expected a case of phase train, got {self.phase}")


class EagerTraining(Workload):
    """Forward, loss, backward and the optimiser, in train mode."""

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        state = State(settings)
        self.module = build(settings, model, state).train()
        self.optimizer = optimizers.make(settings, self.module.parameters())
        self.batches = self.batches_of(state)
        self.initial = [(tensor, tensor.detach().clone()) for tensor in state_of(self.module)]
        self.seed = seed_of(settings)
        if dropouts(self.module):
            self.note = "checked at dropout 0"

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with torch.no_grad():
            for tensor, initial in self.initial:
                tensor.copy_(initial)
        optimizers.restore(self.optimizer)
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
                losses.append(self.step(index).detach())
                if index == 0:
                    first = first_step_values(self.module, before, self.settings)
            after = {
                f"parameter.{name}": p.detach().clone()
                for name, p in self.module.named_parameters()
            }
        return {"losses": torch.stack(losses), **first, **after}

    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        return fresh_losses(self, self.batches, self.train_on, steps, tokens)


def state_of(module: nn.Module) -> list[Tensor]:
    """Parameters and persistent buffers: what a turn restores."""
    return [*module.parameters(), *buffers_of(module).values()]
