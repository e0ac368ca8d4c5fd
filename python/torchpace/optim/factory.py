"""The optimizers that a training case may name, in each implementation that PyTorch has of them.

Table: docs/worker-protocol.md. Twin: include/torchpace/optim/factory.hpp.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from torchpace.settings import Settings

LR = 2e-4
ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
WEIGHT_DECAY = 0.01  # of adamw
MOMENTUM = 0.9  # of sgd

KINDS = ("adam", "adamw", "sgd")
IMPLEMENTATIONS = ("per-tensor", "foreach", "fused")


def parse(settings: Settings) -> tuple[str, str]:
    """The kind and the implementation. Raises SettingsError on an unknown name."""
    known = {}
    for kind in KINDS:
        for way in IMPLEMENTATIONS:
            known[kind if way == "per-tensor" else f"{kind}-{way}"] = (kind, way)
    return known[settings.text("optimizer", "adam", tuple(known))]


def name(settings: Settings) -> str:
    """As it is recorded: "adam per-tensor", "adamw fused"."""
    return " ".join(parse(settings))


def moments(settings: Settings) -> int:
    """Tensors of a parameter's size that the optimizer keeps beside it."""
    return 1 if parse(settings)[0] == "sgd" else 2


def make(settings: Settings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Exactly the implementation that is named: by default Python would take foreach on CUDA."""
    kind, implementation = parse(settings)
    lr = settings.number("lr", LR)
    how = {"foreach": implementation == "foreach", "fused": implementation == "fused"}
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, **how)
    eps = settings.number("eps", ADAM_EPS)
    if kind == "adamw":
        return torch.optim.AdamW(
            parameters, lr=lr, betas=ADAM_BETAS, eps=eps, weight_decay=WEIGHT_DECAY, **how
        )
    return torch.optim.Adam(parameters, lr=lr, betas=ADAM_BETAS, eps=eps, **how)


def restore(optimizer: torch.optim.Optimizer) -> None:
    """Back to the state before the first step, in place: moments and step counts are zero.

    SGD makes its momentum of the first gradient; without dampening, a zero momentum becomes the
    same.
    """
    with torch.no_grad():
        for state in optimizer.state.values():
            for tensor in state.values():
                if isinstance(tensor, Tensor):
                    tensor.zero_()


def direction(settings: Settings, gradient: Tensor, before: Tensor) -> Tensor:
    """What the first step subtracts from `before`, divided by the learning rate, in float64.

    With an eps of 1e-8 and not the case's, so that parity sees a wrong one.
    """
    kind, _ = parse(settings)
    g = gradient.double()
    if kind == "sgd":
        return g
    adam = g / (g.abs() + ADAM_EPS)
    return adam + WEIGHT_DECAY * before.double() if kind == "adamw" else adam
