"""What runtimes of compiled files share: inference by a function of tensors, not by a module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchpace import outputs
from torchpace.case_phase import case_phase
from torchpace.errors import InputError, Skipped
from torchpace.refusal import refused
from torchpace.settings import Settings
from torchpace.workload import State, Workload, build, grad_mode_of, output_values

T = TypeVar("T")
# Twin: operators_advice in include/torchpace/libraries.hpp.
_MISSING_OPERATOR = ("Unknown builtin op", "Could not find schema for", "No such operator")


class Inference(Workload):
    """One forward in inference mode by `forward`, which a subclass sets."""

    forward: Callable[..., Any]

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        self.inputs = self.inputs_of(State(settings))
        self.grad_mode, self.note = grad_mode_of(settings)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with self.grad_mode():
            yield

    def step(self, index: int) -> Any:
        return self.forward(*self.inputs[index % len(self.inputs)])

    def values(self) -> dict[str, Tensor]:
        return output_values(self, len(self.inputs))

    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        raise InputError(f"losses: expected a case of phase train, got {self.phase.name}")


class Source(Inference):
    """The case as an artifact is made from it: the module in eval mode, and its inputs."""

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        self.module = build(settings, model, State(settings)).eval()

    def forward(self, *inputs: Tensor) -> Any:
        with self.autocast:
            return self.module(*inputs)

    def flat(self) -> outputs.Flat:
        """The module with all its outputs in one tuple, computed under the case's autocast. A scope
        of its own: what autocast has cached is no part of a trace.
        """
        return outputs.Flat(self.module, self.execution.autocast_scope(self.device)).eval()

    def export(self) -> Any:
        """`flat` as torch.export sees it, for any size of the batch where the case says `dynamic`.

        Raises InputError that names the construct that cannot be exported.
        """
        return self.exported(self.flat())

    def exported(self, module: torch.nn.Module) -> Any:
        """As `export`, of another module that takes the case's `*inputs`."""
        example, shapes = self.inputs[0], None
        if self.settings.flag("dynamic", False):
            batch = torch.export.Dim("batch")
            size = batch_of(example)
            shapes = {"inputs": tuple({0: batch} if has_batch(x, size) else None for x in example)}
            if size == 1:  # an example of 1 would be taken for a constant
                example = tuple(torch.cat([x, x]) if has_batch(x, size) else x for x in example)
        try:
            return torch.export.export(module, example, dynamic_shapes=shapes)
        except Exception as error:
            raise refused("torch.export: expected a module that it can export", error) from None


def batch_of(inputs: Sequence[Tensor]) -> int:
    """The size of the batch, by the first input; -1 where that is a scalar."""
    return inputs[0].size(0) if inputs[0].dim() else -1


def has_batch(x: Tensor, size: int) -> bool:
    return x.dim() > 0 and x.size(0) == size


def expect_inference(settings: Settings, what: str) -> None:
    """Raises Skipped for training, before anything is compiled."""
    if case_phase(settings).trains:
        raise Skipped(f"{what} here is for inference: its file has no backward")


def with_operators(load: Callable[[], T], settings: Settings, model: ModuleType) -> T:
    """What `load` returns. Where it lacks operators, those of the packages that the model's factory
    imports (torchvision::nms) are registered first.
    """
    try:
        return load()
    except RuntimeError as error:
        if hasattr(model, "no_golden") or not any(said in str(error) for said in _MISSING_OPERATOR):
            raise
    model.make(settings)
    return load()


def artifact_of(settings: Settings, suffix: str) -> Path:
    """The case's compiled file. Raises InputError where there is none."""
    path = Path(settings.text("artifact"))
    if (path.suffix != suffix and not is_given(settings)) or not path.is_file():
        raise InputError(
            f"artifact: expected a file *{suffix} at {path}, found none; make it again"
        )
    return path


def is_given(settings: Settings) -> bool:
    """Whether the artifact is a file that the user gave (models/file.py), and no one made here."""
    path = settings.text("artifact", "")
    return bool(path) and settings.text("stamp", "").partition(" ")[2] == path
