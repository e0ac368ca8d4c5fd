"""float32 linear layers of compiled inference on the CPU, chains of them at once, by linear.h.

Why and how much: docs/inference.md.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from torchpace.aot.patches import gemm

SOURCE = gemm.SOURCE.with_name("linear.h")
# As `Activation` in linear.h, by position.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")

_aten = torch.ops.aten
_LIBRARY = torch.library.Library("torchpace", "DEF")
_LIBRARY.define("pack_linear(Tensor weight, int columns) -> Tensor")
_LIBRARY.define(
    "linear_chain(Tensor x, Tensor[] packed, Tensor?[] biases, int[] sizes, int[] activations)"
    " -> Tensor"
)

_GLUE = """
namespace {
struct TorchpaceLayer {
  AtenTensorHandle weight, bias;
  int64_t in, out;
  int activation;
};

template <int Count>
inline void torchpace_linear_chain(AtenTensorHandle out, AtenTensorHandle x,
                                   const TorchpaceLayer (&layers)[Count]) {
  const auto values = [](AtenTensorHandle tensor) {
    void* data = nullptr;
    if (tensor) AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
    return static_cast<float*>(data);
  };
  torchpace_linear::Layer all[Count];
  for (int i = 0; i < Count; ++i)
    all[i] = {values(layers[i].weight), values(layers[i].bias), layers[i].in, layers[i].out,
              static_cast<torchpace_linear::Activation>(layers[i].activation)};
  int64_t count = 0;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(x, &count));
  torchpace_linear::run({all, Count, values(x), count / layers[0].in, values(out)});
}
}  // namespace
"""


def usable() -> bool:
    """Whether linear.h has tiles for this processor."""
    return gemm.has_isa("VecAVX512", "VecAVX2")


def fused(program: Any) -> Any:
    """A copy of an exported program with its linear layers as chains, for `lowered`.

    None where it has no layer that linear.h can take: float32 on the CPU, with a weight and a bias
    that are the module's own.
    """
    found = copy.copy(program)
    found._graph_module = copy.deepcopy(program.graph_module)
    graph = found.graph_module.graph
    constants = _constants(program.graph_signature)
    layers = [layer for node in graph.nodes if (layer := _layer(node, constants))]
    for chain in _chains(layers):
        _replace(graph, chain)
    gone = {layer.result for layer in layers}  # in place or not
    graph.eliminate_dead_code(lambda node: node not in gone and node.is_impure())
    found.graph_module.recompile()
    return found if layers else None


@dataclass(frozen=True)
class _Layer:
    node: fx.Node
    x: fx.Node
    weight: fx.Node
    transposed: bool  # the weight is [in, out]
    bias: fx.Node | None
    size: int
    activation: int
    result: fx.Node  # of the layer with its activation


def _constants(signature: Any) -> set[str]:
    """Names of the placeholders that stand for the module's own tensors, which no step changes."""
    buffers = signature.inputs_to_buffers
    changed = set(signature.buffers_to_mutate.values())
    return {
        *signature.inputs_to_parameters,
        *signature.inputs_to_lifted_tensor_constants,
        *(name for name, buffer in buffers.items() if buffer not in changed),
    }


def _layer(node: fx.Node, constants: set[str]) -> _Layer | None:
    bias, transposed = None, True
    if node.target is _aten.linear.default:
        x, weight, bias = (*node.args, None)[:3]
        transposed = False
    elif node.target is _aten.addmm.default and not node.kwargs:
        bias, x, weight = node.args
    elif node.target in (_aten.mm.default, _aten.matmul.default):
        x, weight = node.args
    else:
        return None
    given = [x, weight] + ([bias] if bias is not None else [])
    if not all(_is_plain(each) for each in given) or weight.name not in constants:
        return None
    shape = weight.meta["val"].shape
    if len(shape) != 2 or 0 in shape:
        return None
    size = shape[1 if transposed else 0]
    if bias is not None and (bias.name not in constants or bias.meta["val"].shape != (size,)):
        return None
    activation, result = _activation(node)
    return _Layer(node, x, weight, transposed, bias, size, activation, result)


def _is_plain(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.device.type == "cpu"


def _activation(node: fx.Node) -> tuple[int, fx.Node]:
    """What alone uses `node`, where linear.h has it, and otherwise nothing."""
    after = _only_user(node)
    if after is None:
        return 0, node
    name = {
        _aten.relu.default: "relu",
        _aten.relu_.default: "relu",
        _aten.silu.default: "silu",
        _aten.silu_.default: "silu",
    }.get(after.target, "none")
    if after.target is _aten.gelu.default:
        name = {"none": "gelu", "tanh": "gelu_tanh"}[after.kwargs.get("approximate", "none")]
    return ACTIVATIONS.index(name), after if name != "none" else node


def _only_user(node: fx.Node) -> fx.Node | None:
    """Passing by what does nothing in eval mode."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target is not _aten.dropout.default or user.args[2]:
            return user
        node = user
    return None


def _chains(layers: Sequence[_Layer]) -> list[list[_Layer]]:
    """Layers of which each reads what the one before it returns and nothing else reads."""
    chains: dict[fx.Node, list[_Layer]] = {}  # by what the last layer returns
    for layer in layers:
        before = _without_dropout(layer.x)
        alone = before in chains and _only_user(before) is layer.node
        chains[layer.result] = [*(chains.pop(before) if alone else []), layer]
    return list(chains.values())


def _without_dropout(node: fx.Node) -> fx.Node:
    while node.target is _aten.dropout.default and not node.args[2]:
        node = node.args[0]
    return node


def _replace(graph: fx.Graph, chain: Sequence[_Layer]) -> None:
    operators, columns = torch.ops.torchpace, _columns()
    with graph.inserting_before(chain[0].node):  # of what it reads, some may be changed after it
        packed = []
        for layer in chain:
            weight = layer.weight
            if layer.transposed:
                weight = graph.call_function(_aten.t.default, (weight,))
            packed.append(graph.call_function(operators.pack_linear.default, (weight, columns)))
        biases = [layer.bias for layer in chain]
        sizes = [layer.size for layer in chain]
        activations = [layer.activation for layer in chain]
        arguments = (chain[0].x, packed, biases, sizes, activations)
        chained = graph.call_function(operators.linear_chain.default, arguments)
    chained.meta.update(chain[-1].result.meta)
    chain[-1].result.replace_all_uses_with(chained)


def _columns() -> int:
    """kColumns of gemm.h."""
    return 32 if gemm.has_isa("VecAVX512") else 16


def _pack(weight: Tensor, columns: int) -> Tensor:
    """[panels, in, columns] of [out, in], filled up with zeros."""
    size, depth = weight.shape
    panels = -(-size // columns)
    full = F.pad(weight, (0, 0, 0, panels * columns - size))
    return full.view(panels, columns, depth).transpose(1, 2).contiguous()


def _packed_like(weight: Tensor, columns: int) -> Tensor:
    size, depth = weight.shape
    return weight.new_empty(-(-size // columns), depth, columns)


def _run(
    x: Tensor,
    packed: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    sizes: Sequence[int],
    activations: Sequence[int],
) -> Tensor:
    functions = (
        *(lambda y: y, F.relu, F.gelu),
        *(lambda y: F.gelu(y, approximate="tanh"), F.silu),
    )
    for weight, bias, size, activation in zip(packed, biases, sizes, activations, strict=True):
        plain = weight.transpose(1, 2).flatten(0, 1)[:size]
        x = functions[activation](F.linear(x, plain, bias))
    return x


def _like(
    x: Tensor, packed: Sequence[Tensor], biases: Sequence[Any], sizes: Sequence[int], _: Any
) -> Tensor:
    return x.new_empty(*x.shape[:-1], sizes[-1])


_LIBRARY.impl("pack_linear", _pack, "CPU")
_LIBRARY.impl("linear_chain", _run, "CPU")
torch.library.register_fake("torchpace::pack_linear", _packed_like, lib=_LIBRARY)
torch.library.register_fake("torchpace::linear_chain", _like, lib=_LIBRARY)


@contextlib.contextmanager
def lowered() -> Iterator[None]:
    """In the block Inductor compiles the chains of `fused` to linear.h."""
    from torch._inductor import lowering

    operator = torch.ops.torchpace.linear_chain.default
    lowering.lowerings[operator] = _lower
    try:
        yield
    finally:
        del lowering.lowerings[operator]


def _lower(
    x: Any,
    packed: Sequence[Any],
    biases: Sequence[Any],
    sizes: Sequence[int],
    activations: Sequence[int],
) -> Any:
    from torch._inductor import ir

    own = ir.ExternKernel
    depths = [int(x.get_size()[-1]), *sizes[:-1]]
    tensors = [x, *packed, *(bias for bias in biases if bias is not None)]
    inputs = [own.require_contiguous(own.realize_input(each)) for each in tensors]
    layout = ir.FixedLayout(x.get_device(), torch.float32, [*x.get_size()[:-1], sizes[-1]])
    shapes = [", ".join(map(str, each)) for each in zip(depths, sizes, activations, strict=True)]
    return ir.TensorBox.create(_node(layout, inputs, shapes, [b is not None for b in biases]))


def _node(layout: Any, inputs: list[Any], shapes: Sequence[str], has_bias: Sequence[bool]) -> Any:
    from torch._inductor import ir

    class Chain(ir.ExternKernelOut):
        def codegen(self, wrapper: Any) -> None:
            if not getattr(wrapper, "has_torchpace_linear", False):
                wrapper.has_torchpace_linear = True
                wrapper.header.splice(gemm.source() + SOURCE.read_text() + _GLUE)
            x, *others = (each.codegen_reference() for each in self.inputs)
            weights, biases = others[: len(shapes)], iter(others[len(shapes) :])
            layers = [
                f"{{{weight}, {next(biases) if bias else 'nullptr'}, {shape}}}"
                for weight, bias, shape in zip(weights, has_bias, shapes, strict=True)
            ]
            arguments = f"{self.codegen_reference()}, {x}, {{{', '.join(layers)}}}"
            wrapper.writeline(f"torchpace_linear_chain({arguments});")

    return Chain(
        layout,
        inputs,
        python_kernel_name="torchpace.linear_chain",
        cpp_kernel_name="torchpace_linear_chain",
        op_overload=torch.ops.torchpace.linear_chain.default,
    )
