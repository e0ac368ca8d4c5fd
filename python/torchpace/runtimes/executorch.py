"""py-executorch: the exported program lowered to ExecuTorch with its XNNPACK backend, run by the
package's own runtime. What XNNPACK does not take runs in ExecuTorch's portable kernels.

It has no C++ twin: the package has neither headers nor a library to link.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import Tensor

from torchpace.errors import Skipped
from torchpace.exporter.artifacts import refused
from torchpace.runtimes.detail.engine import (
    EngineInference,
    cores_of_team,
    expect_case,
    expect_usable,
)
from torchpace.runtimes.detail.inference_workload import Source, artifact_of
from torchpace.settings import Settings
from torchpace.workload import Workload

RUNTIMES = {"py-executorch": "ExecuTorch with XNNPACK, from Python"}
ARTIFACTS = {"py-executorch": "executorch"}
NEEDS = ("executorch",)


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings or files, Skipped for what ExecuTorch does not take.
    """
    expect_case("ExecuTorch", NEEDS, settings)
    return ExecutorchInference(settings, model)


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes model.pte.

    Raises Skipped for what ExecuTorch does not take, InputError that names the construct that
    cannot be lowered.
    """
    expect_case("ExecuTorch", NEEDS, settings)
    if settings.flag("dynamic", False):
        raise Skipped("ExecuTorch plans memory for the largest batch, and dynamic=1 has none")
    # It starts the program flatc, which lies beside the interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    source = Source(settings, model)
    program = source.export()
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        buffer = lowered.to_executorch().buffer
    except Exception as error:
        raise refused("ExecuTorch: expected a program that it can lower", error) from None
    path = target / "model.pte"
    path.write_bytes(buffer)
    return path


class ExecutorchInference(EngineInference):
    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        self.path = artifact_of(settings, ".pte")
        with cores_of_team():
            portable_lib._unsafe_reset_threadpool(self.threads)
        with expect_usable(self.path, "a program of ExecuTorch"):
            self.program = Runtime.get().load_program(self.path)

    def start(self) -> None:
        with expect_usable(self.path, "a program of ExecuTorch"):
            self.method = self.program.load_method("forward")

    def bind(self, inputs: tuple[Tensor, ...]) -> Callable[[], list[Tensor]]:
        taken = list(inputs)
        return lambda: self.method.execute(taken)
