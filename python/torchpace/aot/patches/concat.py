"""Kernels that write at once where torch.cat would copy their outputs: gradients into the flat one.

Why and how much: docs/training.md, "Compile time".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def joined_in_place() -> Iterator[None]:
    """In the block, Inductor gives a kernel of a library, a matrix product say, the place in a
    torch.cat's output that a view of its output takes. Inductor does that only without a view.
    """
    from torch._inductor import ir

    usual = ir.ConcatKernel.realize_into

    def realize_into(source: Any, place: Any, *flag: bool, **named: bool) -> Any:
        may_alias = all((*flag, *named.values()))  # allow_alias of later versions than 2.11
        kernel = _kernel(source) if may_alias else None
        if kernel is None or not isinstance(place, ir.ReinterpretView):
            return usual(source, place, *flag, **named)
        own, offset = kernel.layout, place.layout.offset
        layout = ir.FixedLayout(own.device, own.dtype, own.size, own.stride, offset)
        kernel.layout = ir.NonOwningLayout(ir.ReinterpretView(data=place.data, layout=layout))
        return kernel

    with mock.patch.object(ir.ConcatKernel, "realize_into", realize_into):
        yield


def _kernel(source: Any) -> Any:
    """The kernel whose whole contiguous output `source` views and whose place is still its own;
    else None.
    """
    from torch._inductor import ir

    view = source.data if isinstance(source, ir.TensorBox) else source
    if not isinstance(view, ir.ReinterpretView) or not isinstance(view.data, ir.StorageBox):
        return None
    kernel = view.data.data
    if not isinstance(kernel, ir.ExternKernelOut) or not isinstance(kernel.layout, ir.FixedLayout):
        return None
    layouts = (view.layout, kernel.layout)
    whole = view.get_numel() == kernel.get_numel()
    contiguous = all(layout.offset == 0 and layout.is_contiguous() for layout in layouts)
    same = view.get_dtype() == kernel.get_dtype()
    return kernel if whole and contiguous and same else None
