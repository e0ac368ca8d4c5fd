"""py-torchscript: a module that TorchScript compiled or traced, run by its interpreter.

TorchScript is deprecated upstream. Twin: include/torchpace/runtimes/torchscript.hpp.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from torchpace import outputs
from torchpace.errors import InputError
from torchpace.exporter.artifacts import refused
from torchpace.runtimes.detail.inference_workload import (
    Inference,
    Source,
    artifact_of,
    expect_inference,
    with_operators,
)
from torchpace.settings import Settings
from torchpace.workload import Workload

RUNTIMES = {"py-torchscript": "TorchScript from Python; deprecated upstream since torch 2.9"}
ARTIFACTS = {"py-torchscript": "torchscript"}
DEPRECATED = "TorchScript is deprecated upstream since torch 2.9"
HOW = "torchpace.how"  # a file in the archive: scripted or traced
# The executor specializes in the first runs of a shape; after them a step's time is steady.
SETTLE_LEAST, SETTLE_MOST, STEADY = 10, 50, 0.05


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings or files, Skipped for training.
    """
    expect_inference(settings, "TorchScript")
    return TorchScriptInference(settings, model)


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes model.pt: the module scripted, or traced where it cannot be, or where it autocasts:
    only a trace holds the casts.

    Raises Skipped for training, InputError that names the construct that neither can take.
    """
    expect_inference(settings, "TorchScript")
    source = Source(settings, model)
    with _without_deprecations(), torch.no_grad():
        compiled = None if source.execution.autocast else _script(source)
        how = "scripted" if compiled else "traced"
        if compiled is None:
            compiled = _trace(source)
        path = target / "model.pt"
        torch.jit.save(compiled, path, _extra_files={HOW: how})
    return path


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Without hearing in every call that TorchScript is deprecated."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def _script(source: Source) -> Any:
    """The scripted module, None where TorchScript does not take it or returns something else."""
    try:
        scripted = torch.jit.script(source.module)
        with source.autocast:
            found = outputs.flat(scripted(*source.inputs[0]))
        return scripted if len(found) == len(outputs.flat(source.step(0))) else None
    except Exception:
        return None


def _trace(source: Source) -> Any:
    try:
        return torch.jit.trace(source.flat(), source.inputs[0], check_trace=False)
    except Exception as error:
        raise refused("TorchScript: expected a module that it can script or trace", error) from None


class TorchScriptInference(Inference):
    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        mode = settings.text("torchscript", "freeze", ("freeze", "plain", "optimize"))
        path = artifact_of(settings, ".pt")
        files = {HOW: ""}
        try:
            with _without_deprecations():
                module = with_operators(
                    lambda: torch.jit.load(path, map_location=self.device, _extra_files=files),
                    settings,
                    model,
                ).eval()
                if mode != "plain":
                    module = torch.jit.freeze(module)
                if mode == "optimize":
                    module = torch.jit.optimize_for_inference(module)
        except RuntimeError as error:
            raise InputError(
                f"artifact: {path}: expected a TorchScript file, found one that does not load: "
                f"{str(error).strip().splitlines()[0][:160]}; make it again"
            ) from None
        self.forward = module
        of_cpu = self.device.type == "cpu"
        self.compiled_kernels = (
            torch._C._jit_can_fuse_on_cpu() if of_cpu else torch._C._jit_can_fuse_on_gpu()
        )
        how = files[HOW]
        how = how.decode() if isinstance(how, bytes) else how  # a file of others does not say
        self.note = "; ".join(filter(None, (self.note, how, DEPRECATED)))

    def warm_up(self) -> None:
        """Runs it until the last steps take the same time: at least 10 times, at most 50."""
        times: list[float] = []
        with self.turn():
            while len(times) < SETTLE_MOST:
                started = time.perf_counter()
                self.step(len(times))
                self.synchronize()
                times.append(time.perf_counter() - started)
                last, before = statistics.median(times[-3:]), statistics.median(times[-6:])
                if len(times) >= SETTLE_LEAST and last > (1 - STEADY) * before:
                    return
