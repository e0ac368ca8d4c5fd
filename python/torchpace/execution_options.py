"""Choices that every case has beside its model: autocast, TF32 and the memory format.

Table: docs/worker-protocol.md. Twin: include/torchpace/execution_options.hpp.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchpace.errors import InputError, Skipped
from torchpace.settings import Settings

AUTOCAST = {"none": None, "bfloat16": torch.bfloat16}
_MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class ExecutionOptions:
    autocast: torch.dtype | None = None
    tf32: bool = False
    memory_format: torch.memory_format = torch.contiguous_format

    @staticmethod
    def of(settings: Settings) -> ExecutionOptions:
        """Raises SettingsError on an unknown value, Skipped for TF32 without CUDA."""
        device = settings.text("device", "cpu")
        tf32 = settings.flag("tf32", False)
        if tf32 and not device.startswith("cuda"):
            raise Skipped(f"tf32=1: TF32 is a mode of CUDA devices, the case is for {device}")
        return ExecutionOptions(
            AUTOCAST[settings.text("autocast", "none", tuple(AUTOCAST))],
            tf32,
            _MEMORY_FORMATS[settings.text("memory_format", "contiguous", tuple(_MEMORY_FORMATS))],
        )

    def apply(self) -> None:
        """Sets both TF32 switches of this process, so that 0 means IEEE float32 everywhere.

        By default torch has them off for matrix products and on for convolutions. These switches
        and not the newer fp32_precision: torch refuses to read the one after a write to the other,
        and its compiler reads these.
        """
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32

    def autocast_scope(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """For forward and loss; may be entered again after it was left."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype whose rounding parity must allow, where parameters are in `dtype`."""
        return self.autocast or dtype

    def place(self, tensor: Tensor) -> Tensor:
        """A 4-D tensor in the memory format, any other as it is."""
        if self.memory_format is torch.channels_last and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def place_module(self, module: nn.Module) -> nn.Module:
        if self.memory_format is torch.channels_last:
            return module.to(memory_format=torch.channels_last)
        return module

    def check_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Raises InputError where the memory format means nothing for these inputs."""
        if self.memory_format is torch.channels_last and all(x.dim() != 4 for x in inputs):
            shapes = ", ".join(str(list(x.shape)) for x in inputs)
            raise InputError(
                "memory_format=channels_last: expected a case with a 4-D input, found "
                f"{shapes}; take memory_format=contiguous"
            )
