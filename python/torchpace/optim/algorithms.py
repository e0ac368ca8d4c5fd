"""The optimizers that a case may name, in one table.

Twin: include/torchpace/optim/algorithms.hpp.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

LEARNING_RATE = 2e-4
ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
SGD_MOMENTUM = 0.9
IMPLEMENTATIONS = ("per-tensor", "foreach", "fused")


class OptimizerAlgorithm(NamedTuple):
    name: str
    optimizer: type[torch.optim.Optimizer]
    # Flat tensors that a compiled step keeps; the first is of the gradient itself.
    moments: tuple[str, ...] = ("first_moment", "second_moment")
    weight_decay: float = 0.0  # unless another is asked for

    @property
    def is_adam(self) -> bool:
        return issubclass(self.optimizer, torch.optim.Adam)


OPTIMIZER_ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        OptimizerAlgorithm("adam", torch.optim.Adam),
        OptimizerAlgorithm("adamw", torch.optim.AdamW, weight_decay=0.01),
        OptimizerAlgorithm("sgd", torch.optim.SGD, moments=("momentum",)),
    )
}
