"""Which parameters a run of a module must read: no step can take less time than that does."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that read of their first argument only what the others point at.
LOOKUPS = {
    *("embedding", "_embedding_bag", "_embedding_bag_forward_only", "embedding_renorm_"),
    *("index", "index_select", "gather", "take", "masked_select"),
}


class ParameterReads(TorchDispatchMode):
    """Counts, within its block, the elements of each parameter that are read for sure: the most
    that one operator reads of it. A view reads nothing, and looking up rows of a table counts as
    nothing, since nobody knows which ones other inputs need.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self._read = {_storage(p): 0 for p in parameters}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_view(func):
            skipped = 1 if func._opname in LOOKUPS else 0
            for x in tree_leaves((args[skipped:], kwargs)):
                if isinstance(x, Tensor) and (key := _storage(x)) in self._read:
                    self._read[key] = max(self._read[key], x.numel())
        return func(*args, **kwargs)

    def elements(self, parameter: nn.Parameter) -> int:
        """Of this parameter, those that were read."""
        return min(parameter.numel(), self._read[_storage(parameter)])


def minimum_parameter_bytes(
    module: nn.Module, reads: ParameterReads, element: int, training: bool
) -> int:
    """Bytes of parameters that one step moves at least: what it reads and, where it trains with
    Adam, each parameter with a gradient and both of its moments, read and written."""
    elements = 0
    for parameter in module.parameters():
        trained = training and parameter.grad is not None and not parameter.grad.is_sparse
        elements += 6 * parameter.numel() if trained else reads.elements(parameter)
    return element * elements


def _storage(tensor: Tensor) -> int:
    """What all views of a tensor share; 0 of one that has no memory of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, opaque
        return 0


def _is_view(func: Any) -> bool:
    aliases = [x.alias_info for x in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
