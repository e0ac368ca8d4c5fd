"""What a training step must keep in memory, counted from its tensors."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from torchpace import module_state
from torchpace.optim import factory
from torchpace.runtimes import eager
from torchpace.settings import Settings
from torchpace.workload import loss_of


def count_memory(settings: Settings, model: ModuleType) -> dict[str, int]:
    """Bytes that one step must keep: parameters, their gradients, the optimizer's moments, and the
    activations that autograd keeps from one forward and loss for the backward.

    Activations are what is saved in storages of their own: parameters, buffers, inputs and target
    are not counted again, and of several views of one storage only one.
    """
    twin = eager.load("py-eager", settings.replace(tf32=None, memory_format=None), model)
    assert isinstance(twin, (eager.EagerInference, eager.EagerTraining))
    parameters = list(twin.module.parameters())
    counted = {"parameters": sum(p.nbytes for p in parameters)}
    if isinstance(twin, eager.EagerInference):
        return counted | {"gradients": 0, "optimizer": 0, "activations": 0}
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    inputs, target = twin.batches[0]
    own = {_storage(x) for x in (*module_state.state_of(twin.module).values(), *inputs, target)}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself could be the node's own output: a cycle

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), twin.autocast:
        # held until all is counted: a freed storage's address would be taken again
        loss = loss_of(model, twin.module(*inputs), target)  # noqa: F841
    return counted | {
        "gradients": trained,
        "optimizer": factory.moments(settings) * trained,
        "activations": sum(saved.values()),
    }


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
