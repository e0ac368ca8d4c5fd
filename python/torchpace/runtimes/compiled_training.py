"""py-compiled-train: the whole training step as one AOTInductor package, driven from Python.

Twin: include/torchpace/runtimes/compiled_training.hpp, which drives the same packages.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from torchpace.aot import export_training, inductor
from torchpace.aot.compiled_training import CompiledTraining
from torchpace.aot.patches import gemm
from torchpace.case_phase import case_phase
from torchpace.errors import InputError, Skipped
from torchpace.optim import algorithms, factory
from torchpace.runtimes.detail.inference_workload import artifact_of
from torchpace.runtimes.detail.saved_compile import expect_no_dropout
from torchpace.settings import Settings
from torchpace.workload import (
    PARITY_STEPS,
    State,
    Workload,
    build,
    fresh_losses,
    loss_module,
    seed_of,
    swap_parameters,
    update_values,
)

RUNTIMES = {"py-compiled-train": "the whole training step as one compiled package, from Python"}
ARTIFACTS = {"py-compiled-train": "compiled-train"}
# Keys of the settings line that its artifact depends on, beside those that all do.
RELATED = ("optimizer", "eps", "gemm")


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings and packages, Skipped for inference.
    """
    _expect_training(settings)
    return CompiledTrain(settings, model)


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes step.pt2. Raises Skipped for inference, InputError on what cannot be exported."""
    _expect_training(settings)
    inductor.use_caches(target / "caches", warm=False)
    inductor.start_making()
    source = Source(settings, model)
    expect_no_dropout(source.module)
    inputs, batch_target = source.batches[0]
    algorithm, _ = factory.optimizer_choice(settings)
    path = export_training.export_training(
        source.module,
        loss_module(model) or model.loss,
        inputs,
        batch_target,
        path=target / "step.pt2",
        optimizer=algorithm.name,
        eps=settings.number("eps", algorithms.ADAM_EPS),
        autocast=settings.text("autocast", "none"),
        gemm=settings.text("gemm", "torchpace", gemm.CHOICES),
        compile_timeout=None,  # the process that makes artifacts has one
        check=False,  # parity checks ten steps
    )
    shutil.rmtree(target / "caches", ignore_errors=True)
    return path


def _expect_training(settings: Settings) -> None:
    if not case_phase(settings).trains:
        raise Skipped("a compiled training step is for training; py-aot has a compiled forward")
    if settings.text("memory_format", "contiguous") != "contiguous":
        raise Skipped(
            "memory_format=channels_last: the flat state of a compiled step holds contiguous "
            "parameters"
        )


class Source(Workload):
    """The case as a package is made from it: the module and its batches."""

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        state = State(settings)
        self.module = build(settings, model, state)
        self.batches = self.batches_of(state)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def step(self, index: int) -> Tensor:
        raise InputError("step: expected a package to run, found its source")

    def values(self) -> dict[str, Tensor]:
        raise InputError("values: expected a package to run, found its source")

    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        raise InputError("losses: expected a package to run, found its source")


class CompiledTrain(Workload):
    """The package's steps, from the parameters and buffers of the case's state."""

    compiled_kernels = True

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        state = State(settings)
        self.batches = self.batches_of(state)
        self.training = CompiledTraining(artifact_of(settings, ".pt2"), self.device)
        self.lr = settings.number("lr", algorithms.LEARNING_RATE)
        self.seed = seed_of(settings)
        found = self.training.contents
        expected = (factory.optimizer_choice(settings)[0].name, settings.text("autocast", "none"))
        if (found.recipe.kind, found.autocast) != expected:
            raise InputError(
                f"artifact: expected a step of {expected[0]} with autocast {expected[1]}, found "
                f"{found.recipe.kind} with {found.autocast}; make it again for this case"
            )
        self.names = _names(self.training.parameters(), state.parameters)
        own = self._parameters() | self.training.buffers()
        self.training.expect_same(own, state.parameters | state.buffers, str(state.path))
        for name, tensor in own.items():
            tensor.copy_((state.parameters | state.buffers)[name])
        if "swap" in settings:
            swap_parameters(self._parameters(), settings.text("swap"))
        self.initial = {name: tensor.clone() for name, tensor in self.training.state.items()}

    def _parameters(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.training.parameters().items() if n in self.names}

    @property
    def gemm(self) -> str:
        return self.training.contents.gemm

    @property
    def optimizer_name(self) -> str:
        return f"{self.training.recipe.kind} compiled"

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        for name, tensor in self.training.state.items():
            tensor.copy_(self.initial[name])
        torch.manual_seed(self.seed)
        yield

    def step(self, index: int) -> Tensor:
        return self.train_on(*self.batches[index % len(self.batches)])

    def train_on(self, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        return self.training.step(inputs, target, self.lr)

    def values(self) -> dict[str, Tensor]:
        losses, values = [], {}
        with self.turn():
            before = {n: p.clone() for n, p in self._parameters().items()}
            for index in range(PARITY_STEPS):
                losses.append(self.step(index))
                if index == 0:
                    found = self.training.first_gradients()
                    gradients = {n: g for n, g in found.items() if n in self.names}
                    values = update_values(gradients, before, self._parameters(), self.settings)
            after = {f"parameter.{n}": p.clone() for n, p in self._parameters().items()}
            after |= {f"buffer.{n}": b.clone() for n, b in self.training.buffers().items()}
        return {"losses": torch.stack(losses), **values, **after}

    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        return fresh_losses(self, self.batches, self.train_on, steps, tokens)


def _names(own: dict[str, Tensor], expected: dict[str, Tensor]) -> set[str]:
    """A package has a tied parameter under each of its names, a state file under its first."""
    first = {p.data_ptr() for name, p in own.items() if name in expected}
    return {name for name, p in own.items() if name in expected or p.data_ptr() not in first}
