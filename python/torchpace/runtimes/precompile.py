"""py-precompile: torch.compiler.precompile, which traces one call and writes it as a Python program
and a cache of its kernels; forward, loss and backward as one graph in training.

A prototype upstream. It has no C++ twin: what it writes is Python.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
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
from torchpace.runtimes.detail.inference_workload import Source
from torchpace.runtimes.eager import EagerTraining
from torchpace.settings import Settings
from torchpace.workload import Workload

RUNTIMES = {"py-precompile": "torch.compiler.precompile, its program called from Python"}
ARTIFACTS = {"py-precompile": "precompile"}
NEEDS_TORCH = "2.15"  # 2.14 has another function of the same name
CACHE = "model.cache"  # beside the program

prepare = inductor.prepare


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings or files, Skipped where torch is too old.
    """
    saved_compile.expect_case("precompile", NEEDS_TORCH, settings)
    path = saved_compile.file_of(settings, ".py")
    workload = _workload(settings, model)
    with expect_usable(path, "a program of torch.compiler.precompile"):
        workload.function = _function(path)
    return workload


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes model.py and model.cache, which hold no parameters, and Inductor's caches beside them.

    Raises Skipped for what it does not take, InputError that names the construct that cannot be
    traced.
    """
    saved_compile.expect_case("precompile", NEEDS_TORCH, settings)
    saved_compile.start_making(target)
    workload = _workload(settings, model)
    path = target / "model.py"
    try:
        with torch.compiler.precompile.capture(
            workload.traced, artifact_path=path, cache_path=target / CACHE
        ) as capture:
            capture(*workload.example())
        saved_compile.end_making(target, lambda: _function(path))
    except Exception as error:
        raise refused(
            "torch.compiler.precompile: expected a module that it can trace", error
        ) from None
    return path


def _function(path: Path) -> Callable[..., Any]:
    with _quiet():
        return torch.compiler.precompile.load(path, path.with_name(CACHE))


def _workload(settings: Settings, model: ModuleType) -> Any:
    kind = PrecompiledTraining if case_phase(settings).trains else PrecompiledInference
    return kind(settings, model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its warning, at every load, that the program will be run."""
    log = logging.getLogger("torch._precompile")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class PrecompiledInference(Source):
    """One forward, which returns all tensors of the module in a tuple."""

    compiled_kernels = True
    function: Callable[..., Any]  # set by load

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        self.graph = self.flat()

    def traced(self, graph: Any, *inputs: Tensor) -> Any:
        # It records gradients unless told otherwise, and traces no inference mode.
        traced = torch.no_grad if self.grad_mode is torch.inference_mode else self.grad_mode
        with traced():
            return graph(*inputs)

    def example(self) -> tuple[Any, ...]:
        return self.graph, *self.inputs[0]

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.graph, *inputs)


class PrecompiledTraining(EagerTraining):
    """Forward, loss and backward in one call, which adds to the gradients of the parameters."""

    compiled_kernels = True
    function: Callable[..., Any]  # set by load

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        saved_compile.expect_no_dropout(self.module)
        self.graph = saved_compile.Loss(self.module, model)

    def traced(self, graph: Any, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        with self.autocast:
            loss = graph(inputs, target)
        loss.backward()
        return loss.detach()

    def example(self) -> tuple[Any, ...]:
        return self.graph, *self.batches[0]

    def train_on(self, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        self.zero_grad()
        loss = self.function(self.graph, tuple(inputs), target)
        self.optimizer.step()
        return loss

    def parts(self, index: int) -> list[tuple[str, Callable[[], Any]]]:
        """None: forward and backward are one call."""
        return []
