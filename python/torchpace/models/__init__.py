"""The models, one a file. A file x.py defines, for the registry and the runtimes:

- `XOptions` and the module `X`, whose parameter names equal those of
  include/torchpace/models/x.hpp;
- `make(settings) -> nn.Module`, initialized from torch's global generator;
- `loss(output, target) -> Tensor`, a scalar;
- `cost(settings) -> Cost`, without building the model;
- `inputs(settings, generator, tokens) -> (input, ..., target)` for one batch, on the CPU: what the
  module is called with, and the target.

A file whose model is given by the settings defines `of(settings)` instead, whose result has these
functions, and `measure(settings)`: what the exporter adds to a case's line (MEASURED_KEYS).
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torchpace.case_phase import CasePhase, case_phase
from torchpace.exporter import cache
from torchpace.settings import Settings, SettingsError

# Bytes of one element; also the dtypes that a case may name.
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
AS_GIVEN = ("float16", "float64")  # for files alone, which are run as they are

# Settings that state a case's cost, for a model whose file cannot: see Exporter, `set`.
COST_KEYS = ("flops", "training_flops", "items", "parameter_bytes", "minimum_bytes")
# All that running such a model tells; a case's files do not depend on these lines of its settings.
MEASURED_KEYS = (*COST_KEYS, "outputs", "output_bytes", "computes_in", "grad_mode")
MEASURED_KEYS += ("refused",)
# Which files of a case are run, and not what its own file is (models/file.py).
FILE_KEYS = ("others", "stamp")


@dataclass(frozen=True)
class Cost:
    """What one step costs at least.

    A multiply-add counts as two FLOPs, element-wise work as none.
    """

    forward_flops: float  # one forward over the batch
    training_flops: float  # forward and backward; the optimizer is element-wise
    parameter_bytes: int
    minimum_bytes: int  # bytes that a step of the case's phase moves at least
    items: int  # items of one batch
    item: str  # what an item is: tokens, samples

    def flops(self, phase: CasePhase) -> float:
        return self.training_flops if phase.trains else self.forward_flops


def minimum_bytes(
    settings: Settings, parameter_bytes: int, input_bytes: int, output_bytes: int, target_bytes: int
) -> int:
    """Bytes that one step moves at least; activations and gradients may stay in caches.

    Inference: every parameter read once, the input read, the output written. Training with Adam:
    parameters and both moments read once and written once (6 x parameter_bytes), the input and the
    target read.
    """
    if case_phase(settings, "inference").trains:
        return 6 * parameter_bytes + input_bytes + target_bytes
    return parameter_bytes + input_bytes + output_bytes


def element_bytes(settings: Settings) -> int:
    return ELEMENT_BYTES[settings.text("dtype", "float32", tuple(ELEMENT_BYTES))]


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType:
    """The module of the model `name`. Raises SettingsError naming the known ones."""
    if name not in names():
        raise SettingsError(f"settings: model: expected one of {', '.join(names())}, got '{name}'")
    return importlib.import_module(f"{__name__}.{name}")


def of(settings: Settings) -> ModuleType:
    """The functions of the case's model. Raises SettingsError on an unknown one."""
    module = find(settings.text("model"))
    return module.of(settings) if hasattr(module, "of") else module


def label(settings: Settings) -> str:
    """The model in the name of a folder: for one of your own the factory's or the file's name."""
    factory = settings.text("factory", "").rpartition(":")[2]
    name = factory or Path(settings.text("file", "")).stem
    return re.sub(r"\W+", "-", name) or settings.text("model")


def sources(model: ModuleType) -> dict[str, dict]:
    """Path and digest of every file of the user's own that the model has been made from, by the
    time it has run: an entry of a cache that was made from others is no longer right.
    """
    found = model.sources() if hasattr(model, "sources") else []
    return {str(file): cache.digest(file) for file in found}


def library_digests(settings: Settings) -> dict[str, dict]:
    """The same of the libraries of operators that a case names."""
    paths = filter(None, settings.text("libraries", "").split(","))
    return {path: cache.digest(Path(path)) for path in paths}


def identity(model: ModuleType) -> bytes:
    """What decides what the model is: its source, and for one of the user's own also theirs."""
    if isinstance(model, ModuleType):
        return Path(model.__file__).read_bytes()  # type: ignore[arg-type]
    return Path(sys.modules[type(model).__module__].__file__).read_bytes() + model.identity()
