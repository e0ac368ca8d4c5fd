"""Chains of linear layers: linear.h compiled alone, which layers it is given, and a package."""

from __future__ import annotations

import copy
import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchpace.aot.patches import gemm, linear

PROGRAM = """
#include <omp.h>
#define TORCHPACE_MATMUL_THREADS {threads}
#include "{gemm}"
#include "{linear}"
extern "C" int64_t columns() {{ return torchpace_matmul::kColumns; }}
extern "C" void run(int count, const float** weights, const float** biases, const int64_t* sizes,
                    const int* activations, const float* x, int64_t rows, float* out) {{
  torchpace_linear::Layer layers[8];
  for (int i = 0; i < count; ++i)
    layers[i] = {{weights[i], biases[i], sizes[i], sizes[i + 1],
                  static_cast<torchpace_linear::Activation>(activations[i])}};
  torchpace_linear::run({{layers, count, x, rows, out}});
}}
"""
FUNCTIONS = (lambda y: y, F.relu, F.gelu, lambda y: F.gelu(y, approximate="tanh"), F.silu)


@pytest.fixture(
    scope="module", params=[(i, t) for i in ("avx512f", "avx2") for t in (1, 3)], ids=str
)
def compiled(request, tmp_path_factory):
    isa, threads = request.param
    if f" {isa} " not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"the processor has no {isa}")
    library = tmp_path_factory.mktemp("linear") / "linear.so"
    flags = ["-O1", "-mfma", f"-m{isa}", "-fopenmp", "-std=c++17", "-Wall", "-Werror"]
    command = [os.environ.get("CXX", "g++"), *flags, "-shared", "-fPIC", "-x", "c++", "-"]
    program = PROGRAM.format(threads=threads, gemm=gemm.SOURCE, linear=linear.SOURCE)
    subprocess.run([*command, "-o", str(library)], input=program.encode(), check=True)
    return ctypes.CDLL(str(library))


def pointers(tensors):
    return (ctypes.c_void_p * len(tensors))(*(pointer(tensor).value for tensor in tensors))


def pointer(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@pytest.fixture(scope="module")
def chain(compiled):
    columns = compiled.columns()

    def run(x, layers):
        """layers: of (weight [out, in], bias or None, activation)."""
        packed = [linear._pack_linear(weight, columns) for weight, _, _ in layers]
        sizes = [x.shape[1], *(weight.shape[0] for weight, _, _ in layers)]
        out = torch.full((x.shape[0], sizes[-1]), float("nan"))
        compiled.run(
            len(layers),
            pointers(packed),
            pointers([bias for _, bias, _ in layers]),
            (ctypes.c_int64 * len(sizes))(*sizes),
            (ctypes.c_int * len(layers))(*(activation for _, _, activation in layers)),
            pointer(x),
            ctypes.c_int64(x.shape[0]),
            pointer(out),
        )
        return out

    return run


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 13, 200, 700])
@pytest.mark.parametrize(
    "sizes", [(1, 1), (5, 33, 2), (64, 64, 64, 64), (300, 65), (1024, 17, 40), (257, 600, 31)]
)
def test_chains_are_exact_on_integers(chain, rows, sizes):
    torch.manual_seed(rows)
    layers = [
        (integers(m, n), integers(m) if i % 2 == 0 else None, i % 2)
        for i, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False))
    ]
    x = integers(rows, sizes[0])
    expected = x.double()
    for weight, bias, activation in layers:
        bias = None if bias is None else bias.double()
        expected = FUNCTIONS[activation](F.linear(expected, weight.double(), bias))
    assert torch.equal(chain(x, layers).double(), expected)


@pytest.mark.parametrize("rows", [1, 50])
@pytest.mark.parametrize("activation", range(len(linear.ACTIVATIONS)), ids=linear.ACTIVATIONS)
def test_activations_are_those_of_torch(chain, activation, rows):
    # Products of one term: what is left is the error of the activation.
    x = torch.ones(rows, 1)
    weight = torch.cat([torch.linspace(-100, 100, 4001), torch.linspace(-9, 9, 4000)])[:, None]
    expected = FUNCTIONS[activation](weight.double()).T.expand(rows, -1)
    of_torch = FUNCTIONS[activation](weight).T.double()
    found = chain(x, [(weight, None, activation)]).double()
    scale = weight.T.double().abs().clamp(min=1e-3)
    error = ((found - expected).abs() / scale).max()
    assert error < max(2 * ((of_torch - expected).abs() / scale).max(), 1.2e-7)


@pytest.mark.parametrize("activation", range(len(linear.ACTIVATIONS)), ids=linear.ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 4])
def test_what_is_not_a_number_stays(chain, activation, rows):
    x = torch.ones(rows, 2)
    x[0, 1] = float("nan")
    found = chain(x, [(torch.ones(40, 2), None, activation)])
    assert found[0].isnan().all() and not found[1:].isnan().any()


class Net(nn.Module):
    def __init__(self, forward, *sizes, **more):
        super().__init__()
        for i, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
            setattr(self, f"l{i}", nn.Linear(n, m))
        for name, value in more.items():
            setattr(self, name, value)
        self.function = forward

    def forward(self, *inputs):
        return self.function(self, *inputs)


def rewritten(module, *inputs, **options):
    """The nodes that are torchpace's; the program returns what it returned before."""
    with torch.no_grad():
        program = torch.export.export(module.eval(), inputs, **options)
        found = linear.fused(program)
        if found is None:
            return []
        results = (each.graph_module(*_flat(program, inputs)) for each in (found, program))
        torch.testing.assert_close(*results)
    return [node for node in found.graph.nodes if str(node.target).startswith("torchpace.")]


def _flat(program, inputs):
    names = [spec.target for spec in program.graph_signature.input_specs if spec.target]
    state = {**program.state_dict, **program.constants}
    return [*(copy.deepcopy(state[name]) for name in names), *inputs]


def chains_of(module, *inputs):
    return [
        (len(node.args[1]), [linear.ACTIVATIONS[a] for a in node.args[4]])
        for node in rewritten(module, *inputs)
        if node.target is torch.ops.torchpace.linear_chain.default
    ]


X = torch.randn(6, 8)
CASES = {
    "in a row": (lambda s, x: s.l1(F.relu(s.l0(x))), [(2, ["relu", "none"])]),
    "with other activations": (
        lambda s, x: F.silu(s.l1(F.gelu(s.l0(x), approximate="tanh"))),
        [(2, ["gelu_tanh", "silu"])],
    ),
    "erf": (lambda s, x: F.gelu(s.l0(x)), [(1, ["gelu"])]),
    "an unknown activation": (
        lambda s, x: s.l1(torch.tanh(s.l0(x))),
        [(1, ["none"]), (1, ["none"])],
    ),
    "dropout at rest": (
        lambda s, x: s.l1(F.dropout(F.relu(F.dropout(s.l0(x), 0.5, False)), 0.5, False)),
        [(2, ["relu", "none"])],
    ),
    "in place": (lambda s, x: s.l1(s.l0(x).relu_()), [(2, ["relu", "none"])]),
    "read twice": (
        lambda s, x: (y := F.relu(s.l0(x))) + s.l1(y),
        [(1, ["relu"]), (1, ["none"])],
    ),
    "returned too": (
        lambda s, x: (y := s.l0(x), s.l1(y)),
        [(1, ["none"]), (1, ["none"])],
    ),
    "an input that changes after it": (
        lambda s, x: (y := x * 2, a := s.l0(y), y.add_(1), F.relu(a) + y)[3],
        [(1, ["relu"])],
    ),
    "of one that is read twice": (
        lambda s, x: (y := s.l0(x), s.l1(F.relu(s.l1(y)))),
        [(1, ["none"]), (2, ["relu", "none"])],
    ),
    "the same layer twice": (lambda s, x: s.l0(F.relu(s.l0(x))), [(2, ["relu", "none"])]),
    "addmm": (lambda s, x: F.relu(torch.addmm(s.b, x, s.w)), [(1, ["relu"])]),
    "matmul": (lambda s, x: (x.view(2, 3, 8) @ s.w).relu(), [(1, ["relu"])]),
    "a computed weight": (lambda s, x: F.linear(x, s.w * 2), []),
    "a bias of another shape": (lambda s, x: torch.addmm(s.wide, x, s.w), []),
    "a vector": (lambda s, x: s.l0(x[0]), [(1, ["none"])]),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_that_follow_each_other_are_a_chain(name):
    forward, expected = CASES[name]
    torch.manual_seed(0)
    parameters = {
        "w": nn.Parameter(torch.randn(8, 8)),
        "b": nn.Parameter(torch.randn(8)),
        "wide": nn.Parameter(torch.randn(6, 8)),
    }
    assert chains_of(Net(forward, 8, 8, 8, **parameters), X) == expected


def test_other_dtypes_are_left_alone():
    assert chains_of(Net(lambda s, x: s.l0(x), 8, 8).double(), X.double()) == []


def test_a_package_of_any_batch_agrees_with_eager(tmp_path):
    from torchpace.aot import inductor
    from torchpace.runtimes import aot

    if not linear.usable():
        pytest.skip("the processor has neither AVX-512 nor AVX2")
    torch.manual_seed(0)

    net = Net(lambda s, x: (s.l2(y := s.l1(F.gelu(s.l0(x)))), y.mean(-1)), 8, 40, 24, 3).eval()
    inductor.use_caches(tmp_path / "caches", warm=False)
    batch = {"inputs": ({0: torch.export.Dim("batch")},)}
    with torch.no_grad():
        program = torch.export.export(net, (X,), dynamic_shapes=batch)
        with linear.lowered():
            torch._inductor.aoti_compile_and_package(
                linear.fused(program),
                package_path=str(tmp_path / "model.pt2"),
                inductor_configs={"freezing": True},
            )
        loader = aot.Loader(tmp_path / "model.pt2", torch.device("cpu"))
        for rows in (1, 6, 131):
            x = torch.randn(rows, 8)
            torch.testing.assert_close(loader.run([x]), list(net(x)))
