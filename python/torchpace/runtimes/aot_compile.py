"""py-aot-compile: torch.compile's own artifact, made ahead of time by its `aot_compile` and loaded
by torch.compiler.load_compiled_function; forward and loss as one graph in training.

It has no C++ twin: the file holds Python bytecode, guards and kernels that Python calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchpace.aot import inductor
from torchpace.case_phase import case_phase
from torchpace.exporter.artifacts import refused
from torchpace.runtimes.detail import saved_compile
from torchpace.runtimes.detail.engine import expect_usable
from torchpace.runtimes.eager import EagerInference, EagerTraining
from torchpace.settings import Settings
from torchpace.workload import Workload, fresh_losses

RUNTIMES = {"py-aot-compile": "torch.compile's ahead-of-time artifact, called from Python"}
ARTIFACTS = {"py-aot-compile": "aot-compile"}
NEEDS_TORCH = "2.13"  # its first release with these functions documented

prepare = inductor.prepare


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings or files, Skipped where torch is too old.
    """
    saved_compile.expect_case("aot_compile", NEEDS_TORCH, settings)
    path = saved_compile.file_of(settings, ".pt")
    workload = _workload(settings, model)
    with expect_usable(path, "a function of torch.compile"):
        workload.function = _function(path)
    return workload


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes model.pt, which holds no parameters, and Inductor's caches beside it.

    Raises Skipped for what it does not take, InputError that names the construct that cannot be
    compiled as one graph.
    """
    saved_compile.expect_case("aot_compile", NEEDS_TORCH, settings)
    saved_compile.start_making(target)
    workload = _workload(settings, model)
    path = target / "model.pt"
    try:
        with workload.turn(), workload.autocast:
            compiled = torch.compile(workload.graph, fullgraph=True)
            function = compiled.forward.aot_compile((workload.example(), {}))
        function.save_compiled_function(str(path))
        saved_compile.end_making(target, lambda: _function(path))
    except Exception as error:
        raise refused("torch.compile: expected a module that is one graph", error) from None
    return path


def _function(path: Path) -> Callable[..., Any]:
    with path.open("rb") as file:
        return torch.compiler.load_compiled_function(file)


def _workload(settings: Settings, model: ModuleType) -> Any:
    kind = AotCompiledTraining if case_phase(settings).trains else AotCompiledInference
    return kind(settings, model)


class AotCompiledInference(EagerInference):
    """The module's forward, which is called with the module."""

    compiled_kernels = True
    function: Callable[..., Any]  # set by load

    @property
    def graph(self) -> Any:
        return self.module

    def example(self) -> tuple[Any, ...]:
        return self.inputs[0]

    def step(self, index: int) -> Any:
        with self.autocast:
            return self.function(self.module, *self.inputs[index % len(self.inputs)])


class AotCompiledTraining(EagerTraining):
    """Forward and loss, with their backward, around which eager mode does the rest."""

    compiled_kernels = True
    function: Callable[..., Any]  # set by load

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        saved_compile.expect_no_dropout(self.module)
        self.graph = saved_compile.Loss(self.module, model)

    def example(self) -> tuple[Any, ...]:
        return self.batches[0]

    def forward(self, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        with self.autocast:
            return self.function(self.graph, inputs, target)

    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        examples, like = self.batches[0]

        def train_on(inputs: Sequence[Tensor], target: Tensor) -> Tensor:
            placed = tuple(map(saved_compile.laid_out, inputs, examples))
            return self.train_on(placed, saved_compile.laid_out(target, like))

        return fresh_losses(self, self.batches, train_on, steps, tokens)
