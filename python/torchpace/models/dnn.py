"""Dnn: L linear layers of width W, each but the last followed by ReLU.

Source: He et al. 2015, arXiv:1502.01852: Kaiming-uniform weights (ReLU) and zero biases. With
PyTorch's default initialization a deep one is dead: at 2048 layers almost every gradient is exactly
0, and its timing would be that of zeros and denormals. Twin: include/torchpace/models/dnn.hpp.
Dimensions: B batch, W width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchpace.models import Cost, element_bytes, minimum_bytes
from torchpace.settings import Settings


@dataclass(frozen=True)
class DnnOptions:
    layers: int = 64  # L
    width: int = 64  # W

    @staticmethod
    def of(settings: Settings) -> DnnOptions:
        """Raises SettingsError on a missing or unusable value."""
        return DnnOptions(
            settings.integer("layers", minimum=1), settings.integer("width", minimum=2)
        )


class Dnn(nn.Module):
    """Logits of W classes.

    >>> Dnn(DnnOptions(layers=3, width=8))(torch.zeros(4, 8)).shape
    torch.Size([4, 8])
    """

    def __init__(self, options: DnnOptions | None = None):
        super().__init__()
        self.options = o = options or DnnOptions()
        self.layers = nn.ModuleList(nn.Linear(o.width, o.width) for _ in range(o.layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in self.layers:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, W] in the parameters' dtype.

        Returns logits [B, W]. Raises ValueError on another shape.
        """
        # A trace would hold the answer, and warn of it.
        tracing = torch.jit.is_tracing()
        if not tracing and (x.dim() != 2 or x.size(1) != self.options.width):
            raise ValueError(f"Dnn: expected x [B, {self.options.width}], got {list(x.shape)}")
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == last else F.relu(layer(x))
        return x


def make(settings: Settings) -> Dnn:
    return Dnn(DnnOptions.of(settings))


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy in nats. output: [B, W]; target: [B], int64 class indices."""
    return F.cross_entropy(output, target)


def cost(settings: Settings) -> Cost:
    """forward_flops = 2 B L W^2; training_flops = 3 forward_flops - 2 B W^2: the input needs no
    gradient.

    parameters = L (W^2 + W). Input and output: B W elements each; target: 8 B bytes.
    """
    o = DnnOptions.of(settings)
    batch = settings.integer("batch", minimum=1)
    B, L, W = batch, o.layers, o.width
    forward = float(2 * B * L * W * W)
    element = element_bytes(settings)
    parameter_bytes = element * L * (W * W + W)
    moved = minimum_bytes(settings, parameter_bytes, element * B * W, element * B * W, 8 * B)
    return Cost(forward, 3 * forward - 2 * B * W * W, parameter_bytes, moved, B, "samples")


def inputs(
    settings: Settings, generator: torch.Generator, tokens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One batch: input [B, W] standard normal, float32; target [B] uniform classes, int64. Uses no
    text.
    """
    batch, width = settings.integer("batch", minimum=1), settings.integer("width", minimum=2)
    x = torch.randn(batch, width, generator=generator)
    return x, torch.randint(0, width, (batch,), generator=generator)
