"""What the runtimes share whose artifact is what torch.compile made, saved to a file: Python calls
it with the module, whose parameters are inputs of the compiled code and not a part of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from torchpace import runtimes
from torchpace.aot import inductor
from torchpace.errors import Skipped
from torchpace.runtimes.detail.inference_workload import artifact_of
from torchpace.settings import Settings
from torchpace.workload import dropouts, loss_module, loss_of

CACHES = "caches"  # beside the file: Inductor's, with the kernels that it compiled


class Loss(nn.Module):
    """A module and its loss as one module, which leaves each layer in the mode that it is in."""

    def __init__(self, module: nn.Module, model: ModuleType):
        super().__init__()
        self.module = module
        self.loss = loss_module(model)
        self.model = model

    def forward(self, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        return loss_of(self.model, self.module(*inputs), target)


def expect_case(what: str, needs_torch: str, settings: Settings) -> None:
    """Raises Skipped where torch is too old, or the case asks for sizes that may change."""
    if reason := runtimes.too_old(needs_torch):
        raise Skipped(reason)
    if settings.flag("dynamic", False):
        raise Skipped(f"{what} compiles for the sizes of its example; py-aot has dynamic=1")


def expect_no_dropout(module: nn.Module) -> None:
    """Raises Skipped where a step that is compiled once would drop."""
    if dropouts(module):
        raise Skipped(
            "dropout is compiled into the step, so parity, which is checked at dropout 0, cannot "
            "check it; take dropout=0"
        )


def start_making(target: Path) -> None:
    inductor.use_caches(target / CACHES, warm=False)
    inductor.start_making()


def end_making(target: Path, load: Callable[[], object]) -> None:
    """Loads the file as a worker does: what that compiles is in the caches then. What names this
    folder, which gets another name, is removed from them.
    """
    inductor.use_caches(target / CACHES, warm=True)
    load()
    for folder in ("locks", "triton"):
        shutil.rmtree(target / CACHES / folder, ignore_errors=True)


def file_of(settings: Settings, suffix: str) -> Path:
    """The case's file. From here on this process uses the caches beside it. Raises InputError."""
    path = artifact_of(settings, suffix)
    inductor.use_caches(path.parent / CACHES, warm=True)
    return path


def laid_out(x: Tensor, example: Tensor) -> Tensor:
    """A tensor with the strides of the example that was compiled, which are checked at each call:
    a batch that is drawn may be a view.
    """
    return x if x.stride() == example.stride() else torch.empty_like(example).copy_(x)
