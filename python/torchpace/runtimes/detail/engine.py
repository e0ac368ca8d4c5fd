"""What the runtimes share that are other engines than PyTorch: they have threads of their own, and
inputs and outputs that are bound once.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from torchpace import runtimes
from torchpace.errors import InputError, Skipped
from torchpace.runtimes.detail.inference_workload import Inference, Source, expect_inference
from torchpace.settings import Settings
from torchpace.workload import device_of


def expect_case(name: str, needs: tuple[str, ...], settings: Settings, device: str = "cpu") -> None:
    """Raises Skipped where an engine, which is for one type of device, is not installed or does
    not take the case.
    """
    expect_inference(settings, name)
    if absent := runtimes.missing(needs):
        raise Skipped(absent)
    if device_of(settings).type != device:
        raise Skipped(f"{name} here is for {'the CPU' if device == 'cpu' else 'CUDA devices'}")
    if settings.text("memory_format", "contiguous") != "contiguous":
        raise Skipped(f"{name} takes contiguous inputs; channels_last is a layout of PyTorch's")


def expect_inputs(name: str, found: Sequence[object], source: Source) -> None:
    """Raises InputError where a conversion has lost or added an input."""
    if len(found) != len(source.inputs[0]):
        raise InputError(
            f"{name}: expected a graph with the {len(source.inputs[0])} inputs of the module, "
            f"found one with {len(found)}: does it use them all?"
        )


class EngineInference(Inference):
    """One forward of an engine. Each batch is bound to a run of its own."""

    compiled_kernels = True

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        self.inputs = [tuple(x.contiguous() for x in inputs) for inputs in self.inputs]
        self.threads = torch.get_num_threads()
        self.bound: list[Callable[[], list[Tensor]]] = []

    @abstractmethod
    def start(self) -> None:
        """Compiles the graph in this process."""

    @abstractmethod
    def bind(self, inputs: tuple[Tensor, ...]) -> Callable[[], list[Tensor]]:
        """What runs a step on `inputs` and returns its outputs, which the next may overwrite."""

    def compile(self) -> None:
        self.start()
        self.bound = [self.bind(inputs) for inputs in self.inputs]

    def step(self, index: int) -> list[Tensor]:
        return self.bound[index % len(self.bound)]()


@contextlib.contextmanager
def expect_usable(path: Path, what: str) -> Iterator[None]:
    """Raises InputError, in one line, for whatever an engine raises in the block."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"artifact: {path}: expected {what}, found one that does not load: {reason}; make it "
            "again"
        ) from None


@contextlib.contextmanager
def cores_of_team() -> Iterator[None]:
    """Within the block this thread may run on the cores of all of its OpenMP team.

    OMP_PROC_BIND binds it to one, and the threads that an engine starts would all inherit that.
    """
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, team_cores())
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def team_cores() -> set[int]:
    """The cores that the threads of torch's operators may run on."""
    torch.zeros(torch.get_num_threads() << 16).add_(1)  # starts them
    cores: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            cores |= os.sched_getaffinity(int(thread))
    return cores
