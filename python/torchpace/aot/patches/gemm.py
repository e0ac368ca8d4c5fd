"""float32 matrix products of compiled code on the CPU, by gemm.h instead of at::mm.

Why and how much: docs/training.md, "Where the time goes".
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("gemm.h")
CHOICES = ("torchpace", "torch")  # values of the setting `gemm`
# Each thread packs its operands for itself: measured with few, expected to lose with many.
MOST_THREADS = 8
# Multiply-adds of a product where the processor has AVX2 alone: there MKL is faster at large ones.
MOST_ON_AVX2 = 1 << 20

_GLUE = """
namespace {
inline torchpace_matmul::Matrix torchpace_matrix(AtenTensorHandle tensor) {
  void* data;
  int64_t* strides;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  return {static_cast<const float*>(data), strides[0], strides[1]};
}

inline AOTITorchError aoti_torch_cpu_torchpace_addmm_out(
    AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle a, AtenTensorHandle b,
    double /*beta: 1*/, double /*alpha: 1*/) {
  void *to, *added = nullptr;
  int64_t *sizes, *inner;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(out, &to));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(out, &sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(b, &inner));
  if (bias) AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(bias, &added));
  torchpace_matmul::multiply({torchpace_matrix(a), torchpace_matrix(b), static_cast<float*>(to),
                               sizes[1], sizes[0], sizes[1], inner[0],
                               static_cast<const float*>(added)});
  return AOTI_TORCH_SUCCESS;
}

inline AOTITorchError aoti_torch_cpu_torchpace_mm_out(
    AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b) {
  return aoti_torch_cpu_torchpace_addmm_out(out, nullptr, a, b, 1, 1);
}
}  // namespace
"""


def choice(asked: str, device: torch.device) -> str:
    """What compiled code for `device` gets where `asked` is asked for: gemm.h only on a CPU with
    AVX-512 or AVX2 that is not Intel's, for few threads.
    """
    usable = (
        device.type == "cpu"
        and _threads() <= MOST_THREADS
        and not _is_intel()
        and has_isa("VecAVX512", "VecAVX2")
    )
    return asked if usable else "torch"


@contextlib.contextmanager
def gemm_of(chosen: str) -> Iterator[None]:
    """In the block, with "torchpace", Inductor compiles float32 mm and addmm of static shapes on
    the CPU to gemm.h.
    """
    if chosen == "torch":
        yield
        return
    from torch._inductor import lowering

    aten = torch.ops.aten
    replaced = {
        aten.mm.default: _lowered(lowering.lowerings[aten.mm.default], _mm),
        aten.addmm.default: _lowered(lowering.lowerings[aten.addmm.default], _addmm),
    }
    before = {op: lowering.lowerings[op] for op in replaced}
    lowering.lowerings.update(replaced)
    try:
        yield
    finally:
        lowering.lowerings.update(before)


def _lowered(usual: Any, own: Any) -> Any:
    def lower(*arguments: Any, **options: Any) -> Any:
        found = own(*arguments, **options)
        return usual(*arguments, **options) if found is None else found

    return lower


def _mm(a: Any, b: Any, *, layout: Any = None, **others: Any) -> Any:
    if layout is not None or others:
        return None
    return _product(None, a, b)


def _addmm(
    bias: Any, a: Any, b: Any, *, alpha: float = 1, beta: float = 1, layout: Any = None
) -> Any:
    whole = [*a.get_size()[:1], *b.get_size()[1:]]
    if layout is not None or (alpha, beta) != (1, 1) or list(bias.get_size()) != whole[1:]:
        return None
    return _product(bias, a, b)


def _product(bias: Any, a: Any, b: Any) -> Any:
    """The node of Inductor's, or None where gemm.h cannot do it."""
    from torch._inductor import ir

    tensors = [x for x in (bias, a, b) if x is not None]
    if any(
        x.get_device().type != "cpu"
        or x.get_dtype() != torch.float32
        or not all(isinstance(size, int) or size.is_Integer for size in x.get_size())
        for x in tensors
    ):
        return None
    sizes = [a.get_size()[0], b.get_size()[1]]
    count = math.prod(int(size) for size in (*sizes, b.get_size()[0]))
    if count == 0 or (count > MOST_ON_AVX2 and not has_isa("VecAVX512")):
        return None
    own = ir.ExternKernel
    inputs = [own.realize_input(x) for x in tensors]
    if bias is not None:
        inputs[0] = own.require_contiguous(inputs[0])
    layout = ir.FixedLayout(a.get_device(), torch.float32, sizes)
    return ir.TensorBox.create(_node(layout, inputs))


def _node(layout: Any, inputs: list[Any]) -> Any:
    from torch._inductor import ir

    class Product(ir.ExternKernelOut):
        def codegen(self, wrapper: Any) -> None:
            if not getattr(wrapper, "has_torchpace_matmul", False):
                wrapper.has_torchpace_matmul = True
                wrapper.header.splice(source())
            super().codegen(wrapper)

    name = "mm" if len(inputs) == 2 else "addmm"
    return Product(
        layout,
        inputs,
        python_kernel_name=f"torchpace.{name}",
        cpp_kernel_name=f"aoti_torch_cpu_torchpace_{name}_out",
        op_overload=getattr(torch.ops.aten, name).default,
    )


def source() -> str:
    threads = f"#define TORCHPACE_MATMUL_THREADS {_threads()}\n"
    return f"#include <omp.h>\n{threads}{SOURCE.read_text()}{_GLUE}"


@functools.cache
def _is_intel() -> bool:
    """There at::mm is MKL's own AVX-512 kernel, which this has not been measured against."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def has_isa(*names: str) -> bool:
    """Whether Inductor compiles for one of these: VecAVX512, VecAVX2."""
    from torch._inductor import cpu_vec_isa

    isa = cpu_vec_isa.pick_vec_isa()
    return any(isinstance(isa, getattr(cpu_vec_isa, name)) for name in names)


def _threads() -> int:
    from torch._inductor import config

    return config.cpp.threads if config.cpp.threads > 0 else torch.get_num_threads()
