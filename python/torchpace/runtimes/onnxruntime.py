"""py-onnxruntime: the exported program converted to ONNX and run by ONNX Runtime's CPU provider.

Twin: include/torchpace/runtimes/onnxruntime.hpp, which loads the same files.
"""

from __future__ import annotations

import os
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
    expect_case,
    expect_inputs,
    expect_usable,
    team_cores,
)
from torchpace.runtimes.detail.inference_workload import Source, artifact_of
from torchpace.settings import Settings
from torchpace.workload import Workload

RUNTIMES = {"py-onnxruntime": "ONNX Runtime from Python"}
ARTIFACTS = {"py-onnxruntime": "onnx"}
NEEDS = ("onnxruntime", "onnx", "onnxscript")
# Element types of ONNX, with their numbers.
_DTYPES = {
    "float": (torch.float32, 1),
    "double": (torch.float64, 11),
    "float16": (torch.float16, 10),
    "bfloat16": (torch.bfloat16, 16),
    "int64": (torch.int64, 7),
    "int32": (torch.int32, 6),
    "int16": (torch.int16, 5),
    "int8": (torch.int8, 3),
    "uint8": (torch.uint8, 2),
    "bool": (torch.bool, 9),
}


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings or files, Skipped for what ONNX Runtime does not take.
    """
    expect_case("ONNX Runtime", NEEDS, settings)
    return OnnxInference(settings, model)


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes model.onnx, in the newest opset that torch's exporter writes by default; its weights
    lie beside it in model.onnx.data.

    Raises Skipped for what ONNX Runtime does not take, InputError that names the construct that
    cannot be converted.
    """
    expect_case("ONNX Runtime", NEEDS, settings)
    source = Source(settings, model)
    program = source.export()
    try:
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        raise refused("ONNX: expected a program that torch.onnx can convert", error) from None
    assert converted is not None
    expect_inputs("ONNX", converted.model.graph.inputs, source)
    path = target / "model.onnx"
    converted.save(path, external_data=True)
    return path


class OnnxInference(EngineInference):
    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        # Else the import starts to report home, and leaves a file in TMPDIR.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self.onnxruntime = onnxruntime
        self.path = artifact_of(settings, ".onnx")

    def start(self) -> None:
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # no warnings of the host's devices
        if others := _other_cores():
            options.add_session_config_entry("session.intra_op_thread_affinities", others)
        with expect_usable(self.path, "a graph of ONNX"):
            self.session = self.onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )

    def bind(self, inputs: tuple[Tensor, ...]) -> Callable[[], list[Tensor]]:
        binding = self.session.io_binding()
        for port, x in zip(self.session.get_inputs(), inputs, strict=True):
            _bind(binding.bind_input, port, x)
        for port in self.session.get_outputs():
            binding.bind_output(port.name)
        self.session.run_with_iobinding(binding)  # shows the sizes
        sizes = [value.shape() for value in binding.get_outputs()]
        binding.clear_binding_outputs()
        outputs = []
        for port, size in zip(self.session.get_outputs(), sizes, strict=True):
            outputs.append(torch.empty(size, dtype=_element(port)[0]))
            _bind(binding.bind_output, port, outputs[-1])

        def run() -> list[Tensor]:
            self.session.run_with_iobinding(binding)
            return outputs

        return run


def _element(port: Any) -> tuple[torch.dtype, int]:
    name = port.type.removeprefix("tensor(").removesuffix(")")
    if name not in _DTYPES:
        raise InputError(f"ONNX: {port.name}: expected {', '.join(_DTYPES)}, found {name}")
    return _DTYPES[name]


def _bind(bind: Callable[..., Any], port: Any, x: Tensor) -> None:
    bind(port.name, "cpu", 0, _element(port)[1], list(x.shape), x.data_ptr())


def _other_cores() -> str:
    """Where the threads beside this one belong, `2;3` for cores 1 and 2: one each, as OpenMP has
    bound its own. Empty where nothing is bound.
    """
    others = team_cores() - os.sched_getaffinity(0)
    return ";".join(str(core + 1) for core in sorted(others))
