"""The products of gemm.h, compiled alone: exact on small integers, at the edges of its blocks."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch

from torchpace.aot.patches import gemm

PROGRAM = """
#include <omp.h>
#define TORCHPACE_MATMUL_THREADS 3
#include "{source}"
extern "C" void multiply(const float* a, const int64_t* a_strides, const float* b,
                         const int64_t* b_strides, float* out, int64_t rows, int64_t columns,
                         int64_t depth, const float* bias) {{
  torchpace_matmul::multiply({{{{a, a_strides[0], a_strides[1]}}, {{b, b_strides[0], b_strides[1]}},
                               out, columns, rows, columns, depth, bias}});
}}
"""


@pytest.fixture(scope="module", params=["avx512f", "avx2"])
def multiply(request, tmp_path_factory):
    if f" {request.param} " not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"the processor has no {request.param}")
    library = tmp_path_factory.mktemp("gemm") / "gemm.so"
    flags = ["-O0", "-mfma", f"-m{request.param}", "-fopenmp", "-std=c++17", "-Wall", "-Werror"]
    command = [os.environ.get("CXX", "g++"), *flags, "-shared", "-fPIC", "-x", "c++", "-"]
    program = PROGRAM.format(source=gemm.SOURCE).encode()
    subprocess.run([*command, "-o", str(library)], input=program, check=True)
    function = ctypes.CDLL(str(library)).multiply

    def product(a, b, bias):
        out = torch.full((a.shape[0], b.shape[1]), float("nan"))
        strides = [(ctypes.c_int64 * 2)(*x.stride()) for x in (a, b)]
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (a, b, out)]
        sizes = map(ctypes.c_int64, (*out.shape, a.shape[1]))
        last = ctypes.c_void_p(None if bias is None else bias.data_ptr())
        function(pointers[0], strides[0], pointers[1], strides[1], pointers[2], *sizes, last)
        return out

    return product


@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    "rows, depth, columns",
    [(1, 1, 1), (7, 5, 33), (9, 257, 64), (300, 600, 65), (129, 1100, 17), (8, 16, 600)],
)
def test_products_are_exact_on_integers(multiply, rows, depth, columns, transposed):
    torch.manual_seed(0)
    a = torch.randint(-8, 9, (depth, rows) if transposed[0] else (rows, depth)).float()
    b = torch.randint(-8, 9, (columns, depth) if transposed[1] else (depth, columns)).float()
    bias = torch.randint(-8, 9, (columns,)).float()
    a, b = (x.t() if t else x for x, t in zip((a, b), transposed, strict=True))
    assert torch.equal(multiply(a, b, None), a @ b)
    assert torch.equal(multiply(a, b, bias), a @ b + bias)


def test_a_stride_of_zero_and_rows_far_apart(multiply):
    a = torch.randint(-8, 9, (40, 4096)).float()[:, :96]
    b = torch.randint(-8, 9, (96, 1)).float().expand(96, 40)
    assert torch.equal(multiply(a, b, None), a @ b)
