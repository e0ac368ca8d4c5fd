"""The optimizers that a training case may name, in each implementation that PyTorch has of them.

Table: docs/worker-protocol.md. Twin: include/torchpace/optim/factory.hpp.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from torchpace.optim.algorithms import (
    ADAM_BETAS,
    ADAM_EPS,
    IMPLEMENTATIONS,
    LEARNING_RATE,
    OPTIMIZER_ALGORITHMS,
    SGD_MOMENTUM,
    OptimizerAlgorithm,
)
from torchpace.settings import Settings


def optimizer_choice(settings: Settings) -> tuple[OptimizerAlgorithm, str]:
    """The algorithm and the implementation. Raises SettingsError on an unknown name."""
    known = {}
    for algorithm in OPTIMIZER_ALGORITHMS.values():
        for way in IMPLEMENTATIONS:
            suffix = "" if way == "per-tensor" else f"-{way}"
            known[algorithm.name + suffix] = (algorithm, way)
    return known[settings.text("optimizer", "adam", tuple(known))]


def name(settings: Settings) -> str:
    """As it is recorded: "adam per-tensor", "adamw fused"."""
    algorithm, implementation = optimizer_choice(settings)
    return f"{algorithm.name} {implementation}"


def moments(settings: Settings) -> int:
    """Tensors of a parameter's size that the optimizer keeps beside it."""
    return len(optimizer_choice(settings)[0].moments)


def make_optimizer(settings: Settings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Exactly the implementation that is named: by default Python would take foreach on CUDA."""
    algorithm, implementation = optimizer_choice(settings)
    return algorithm.optimizer(
        parameters,
        lr=settings.number("lr", LEARNING_RATE),
        weight_decay=algorithm.weight_decay,
        foreach=implementation == "foreach",
        fused=implementation == "fused",
        **(
            {"betas": ADAM_BETAS, "eps": settings.number("eps", ADAM_EPS)}
            if algorithm.is_adam
            else {"momentum": SGD_MOMENTUM}
        ),
    )


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


def update_direction(settings: Settings, gradient: Tensor, before: Tensor) -> Tensor:
    """What the first step subtracts from `before`, divided by the learning rate, in float64.

    With an eps of 1e-8 and not the case's, so that parity sees a wrong one.
    """
    algorithm, _ = optimizer_choice(settings)
    g = gradient.double()
    moved = g / (g.abs() + ADAM_EPS) if algorithm.is_adam else g
    return moved + algorithm.weight_decay * before.double()
