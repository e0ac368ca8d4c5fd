"""py-openvino: the exported program converted to OpenVINO's graph and run by its CPU plugin.

Twin: include/torchpace/runtimes/openvino.hpp, which loads the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchpace.errors import InputError
from torchpace.exporter.artifacts import refused
from torchpace.runtimes.detail.engine import (
    EngineInference,
    cores_of_team,
    expect_case,
    expect_inputs,
    expect_usable,
)
from torchpace.runtimes.detail.inference_workload import Source, artifact_of
from torchpace.settings import Settings
from torchpace.workload import Workload

RUNTIMES = {"py-openvino": "OpenVINO from Python"}
ARTIFACTS = {"py-openvino": "openvino"}
NEEDS = ("openvino",)


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings or files, Skipped for what OpenVINO does not take.
    """
    expect_case("OpenVINO", NEEDS, settings)
    return OpenVinoInference(settings, model)


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes model.xml and model.bin: weights in the case's dtype, sizes fixed unless the batch is
    dynamic.

    Raises Skipped for what OpenVINO does not take, InputError that names the construct that cannot
    be converted.
    """
    expect_case("OpenVINO", NEEDS, settings)
    import openvino

    source = Source(settings, model)
    program = source.export()
    try:
        graph = openvino.convert_model(program)
    except Exception as error:
        raise refused("OpenVINO: expected a program that it can convert", error) from None
    expect_inputs("OpenVINO", graph.inputs, source)
    if not settings.flag("dynamic", False):
        sizes = {
            port: list(x.shape) for port, x in zip(graph.inputs, source.inputs[0], strict=True)
        }
        graph.reshape(sizes)
    path = target / "model.xml"
    openvino.save_model(graph, path, compress_to_fp16=False)
    return path


# Element types of OpenVINO.
_DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "boolean": torch.bool,
}


class OpenVinoInference(EngineInference):
    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        import openvino

        self.path = artifact_of(settings, ".xml")
        self.core = openvino.Core()
        with expect_usable(self.path, "a graph of OpenVINO"):
            self.graph = self.core.read_model(self.path)

    def start(self) -> None:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision is torch.bfloat16 else "f32",
        }
        with expect_usable(self.path, "a graph of OpenVINO"), cores_of_team():
            self.compiled = self.core.compile_model(self.graph, "CPU", options)

    def bind(self, inputs: tuple[Tensor, ...]) -> Callable[[], list[Tensor]]:
        request = self.compiled.create_infer_request()
        request.set_input_tensors([_shared(x) for x in inputs])
        request.infer(share_outputs=True)  # shows the sizes
        outputs = []
        for index, port in enumerate(self.compiled.outputs):
            sizes = list(request.get_output_tensor(index).shape)
            outputs.append(torch.empty(sizes, dtype=_dtype(port.element_type)))
            request.set_output_tensor(index, _shared(outputs[-1]))

        def run() -> list[Tensor]:
            request.infer(share_outputs=True)
            return outputs

        return run


def _dtype(element_type: Any) -> torch.dtype:
    name = element_type.to_string()
    if name not in _DTYPES:
        raise InputError(f"OpenVINO: expected an output of {', '.join(_DTYPES)}, found {name}")
    return _DTYPES[name]


def _shared(x: Tensor) -> Any:
    """The memory of a tensor as one of OpenVINO's."""
    import openvino

    if x.dtype is torch.bfloat16:  # which numpy lacks
        numbers = x.view(torch.int16).numpy()
        return openvino.Tensor(numbers, list(x.shape), openvino.Type.bf16)
    return openvino.Tensor(x.numpy(), shared_memory=True)
