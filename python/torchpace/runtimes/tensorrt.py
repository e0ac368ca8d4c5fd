"""py-tensorrt: the exported program compiled by Torch-TensorRT. What TensorRT does not take runs in
PyTorch's kernels.

It has no C++ twin: its file is a program of torch.export, which Python loads.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from torchpace.errors import Note, Skipped
from torchpace.exporter.artifacts import refused
from torchpace.runtimes.detail.engine import expect_case, expect_usable
from torchpace.runtimes.detail.inference_workload import Inference, Source, artifact_of
from torchpace.settings import Settings
from torchpace.workload import Workload, dtype_of

RUNTIMES = {"py-tensorrt": "Torch-TensorRT from Python, on CUDA"}
ARTIFACTS = {"py-tensorrt": "tensorrt"}
NEEDS = ("torch-tensorrt",)


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings or files, Skipped for what TensorRT does not take.
    """
    expect_case("TensorRT", NEEDS, settings, device="cuda")
    return TensorRtInference(settings, model)


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes model.pt2, a program of torch.export with the engines inside.

    Raises Skipped for what TensorRT does not take, InputError that names the construct that cannot
    be compiled.
    """
    expect_case("TensorRT", NEEDS, settings, device="cuda")
    if settings.flag("dynamic", False):
        raise Skipped("TensorRT tunes an engine for a range of sizes, and dynamic=1 names none")
    if dtype_of(settings) is torch.float64:
        raise Skipped("TensorRT has no products in float64")
    import torch_tensorrt

    source = Source(settings, model)
    program = source.export()
    inputs = list(source.inputs[0])
    timings = target / "timings.bin"
    path = target / "model.pt2"
    try:
        with torch.no_grad():
            compiled = torch_tensorrt.dynamo.compile(
                program,
                arg_inputs=inputs,
                device=source.device,
                disable_tf32=not source.execution.tf32,
                use_explicit_typing=True,  # dtypes as the program has them; since 2.13 always
                min_block_size=1,  # TensorRT gets all that it takes, however small
                timing_cache_path=str(timings),  # by default in a folder that no one removes
            )
            engines, others = _parts(compiled)
            if engines:
                torch_tensorrt.save(compiled, str(path), arg_inputs=inputs)
    except Exception as error:
        raise refused("Torch-TensorRT: expected a program that it can compile", error) from None
    timings.unlink(missing_ok=True)
    if not engines:
        raise Skipped("TensorRT takes no operator of this module")
    if others:
        note = (
            f"{engines} engines of TensorRT; {others} parts between them run in PyTorch's kernels"
        )
        warnings.warn(note, Note, stacklevel=1)
    return path


def _parts(compiled: Any) -> tuple[int, int]:
    """How many parts of a module run in TensorRT, and how many in PyTorch: by the names that its
    partitioner gives them.
    """
    names = [name for name, _ in compiled.named_children()]
    engines = sum("_run_on_acc" in name for name in names)
    return engines, sum("_run_on_gpu" in name for name in names)


class TensorRtInference(Inference):
    compiled_kernels = True

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        self.inputs = [tuple(x.contiguous() for x in inputs) for inputs in self.inputs]
        path = artifact_of(settings, ".pt2")
        import torch_tensorrt  # registers the operator that runs an engine

        with expect_usable(path, "a program with engines of TensorRT"):
            self.forward = torch_tensorrt.load(str(path)).module()
