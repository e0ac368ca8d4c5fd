"""py-compile:MODE: torch.compile in each of its modes, forward and loss as one graph in training.

It has no C++ twin: Inductor compiles from Python.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchpace.aot import inductor
from torchpace.case_phase import case_phase
from torchpace.errors import InputError, Skipped
from torchpace.exporter.artifacts import refused
from torchpace.runtimes.eager import EagerInference, EagerTraining
from torchpace.settings import Settings
from torchpace.workload import Workload, device_of, dropouts, loss_of

RUNTIMES = {
    "py-compile:default": "torch.compile",
    "py-compile:reduce-overhead": "torch.compile with CUDA graphs",
    "py-compile:max-autotune": "torch.compile with tuned kernels, and CUDA graphs on CUDA",
    "py-compile:max-autotune-no-cudagraphs": "torch.compile with tuned kernels",
}
ARTIFACTS = {
    "py-compile:default": "compile:default",
    "py-compile:reduce-overhead": "compile:reduce-overhead",
    "py-compile:max-autotune": "compile:max-autotune",
    "py-compile:max-autotune-no-cudagraphs": "compile:max-autotune-no-cudagraphs",
}
# On a CPU these do what another mode does.
SAME_ON_CPU = {"reduce-overhead": "default", "max-autotune-no-cudagraphs": "max-autotune"}
GRAPHS = ("reduce-overhead", "max-autotune")
STEPS = 3  # of making: what a second step compiles anew is then in the caches too

prepare = inductor.prepare


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads a case, to be compiled with the caches of its artifact.

    Raises InputError on unusable settings or files, Skipped where another mode does the same.
    """
    mode = name.partition(":")[2]
    expect_distinct(mode, settings)
    folder = Path(settings.text("artifact"))
    if not folder.is_dir():
        raise InputError(
            f"artifact: expected a folder of caches at {folder}, found none; make it again"
        )
    inductor.use_caches(folder, warm=True)
    return compiled(mode, settings, model)


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Compiles the case and fills target/caches.

    Raises Skipped where another mode does the same, InputError that names the construct that cannot
    be compiled.
    """
    mode = kind.partition(":")[2]
    expect_distinct(mode, settings)
    caches = target / "caches"
    inductor.use_caches(caches, warm=False)
    inductor.start_making()
    workload = compiled(mode, settings, model)
    workload.compile()
    with workload.turn():
        for index in range(STEPS):
            workload.step(index)
    if isinstance(workload, CompiledTraining) and dropouts(workload.module):
        workload.values()  # parity is checked at dropout 0, which is another graph
    workload.synchronize()
    shutil.rmtree(caches / "locks", ignore_errors=True)
    # Triton's files name this folder, which gets another name. The graph cache holds the kernels
    # too, and writes them where a worker uses them.
    shutil.rmtree(caches / "triton", ignore_errors=True)
    return caches


def expect_distinct(mode: str, settings: Settings) -> None:
    """Raises Skipped for a mode that is another one's name on the case's device."""
    if device_of(settings).type == "cpu" and mode in SAME_ON_CPU:
        raise Skipped(f"same as py-compile:{SAME_ON_CPU[mode]} on a CPU: CUDA graphs need CUDA")


def compiled(mode: str, settings: Settings, model: ModuleType) -> Any:
    kind = CompiledTraining if case_phase(settings).trains else CompiledInference
    return kind(mode, settings, model)


class _Compiled:
    """What training and inference share: the compiler's options, and the compile."""

    settings: Settings
    compiled_kernels = True

    def __init__(self, mode: str, settings: Settings, model: ModuleType):
        super().__init__(settings, model)  # type: ignore[call-arg]
        self.graphs = mode in GRAPHS and device_of(settings).type == "cuda"
        self.dynamic = settings.flag("dynamic", False)
        options = {"mode": mode, "fullgraph": settings.flag("fullgraph", False)}
        self.compiled = torch.compile(self.graph(), **options)
        if self.dynamic:
            for tensor in self.tensors():
                torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def compile(self) -> None:
        try:
            self.compile_step()
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            raise refused("torch.compile: expected a module that it can compile", error) from None
        if not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
            raise InputError(
                "torch.compile: expected a module that it compiles, found that it ran eager: no "
                "graph was captured; is a part of it marked with torch.compiler.disable?"
            )
        breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
        if breaks:
            reason = next(iter(torch._dynamo.utils.counters["graph_break"])).splitlines()[0]
            self.note = f"{breaks} graph breaks: parts run eager; the first: {reason[:160]}"
        misses = torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"]
        if misses and not torch._inductor.config.cpp_cache_precompile_headers:
            note = f"{misses} graphs were not in the caches of its artifact: compiled again"
            self.note = "; ".join(filter(None, (self.note, note)))

    def mark_step(self) -> None:
        # Without it CUDA graphs may take a step's outputs for inputs of the next.
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()


class CompiledInference(_Compiled, EagerInference):
    def graph(self) -> Any:
        return self.module

    def tensors(self) -> list[Tensor]:
        return [x for inputs in self.inputs for x in inputs]

    def compile_step(self) -> None:
        with self.turn():
            self.step(0)

    def step(self, index: int) -> Any:
        self.mark_step()
        with self.autocast:
            return self.compiled(*self.inputs[index % len(self.inputs)])


class CompiledTraining(_Compiled, EagerTraining):
    def graph(self) -> Any:
        return lambda inputs, target: loss_of(self.model, self.module(*inputs), target)

    def tensors(self) -> list[Tensor]:
        return [x for inputs, target in self.batches for x in (*inputs, target)]

    def compile_step(self) -> None:
        """Forward and backward: the backward is compiled when it is first called."""
        with self.turn():
            self.forward(*self.batches[0]).backward()
            self.zero_grad()

    def forward(self, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        self.mark_step()
        with self.autocast:
            return self.compiled(tuple(inputs), target)
