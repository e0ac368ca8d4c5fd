"""float32 linear layers of compiled inference on the CPU: chains of them as calls of linear.h.

Why and how much: docs/inference.md.
"""

from __future__ import annotations

import contextlib
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
_FUNCTIONS = (
    *(lambda y: y, F.relu, F.gelu),
    *(lambda y: F.gelu(y, approximate="tanh"), F.silu),
)

_aten = torch.ops.aten
_LIBRARY = torch.library.Library("torchpace", "DEF")
_SCHEMAS = {
    "pack_linear": "(Tensor weight, int columns) -> Tensor",
    "linear_chain": (
        "(Tensor x, Tensor[] packed, Tensor?[] biases, int[] sizes, int[] activations) -> Tensor"
    ),
}

_GLUE = """
namespace {
inline float* torchpace_values(AtenTensorHandle tensor) {
  void* data = nullptr;
  if (tensor) AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
  return static_cast<float*>(data);
}

struct TorchpaceLayer {
  AtenTensorHandle weight, bias;
  int64_t in, out;
  int activation;
  operator torchpace_linear::Layer() const {
    return {torchpace_values(weight), torchpace_values(bias), in, out,
            static_cast<torchpace_linear::Activation>(activation)};
  }
};

template <int Count>
inline void torchpace_linear_chain(AtenTensorHandle out, AtenTensorHandle x,
                                   const TorchpaceLayer (&layers)[Count]) {
  torchpace_linear::Layer all[Count];
  for (int i = 0; i < Count; ++i) all[i] = layers[i];
  int64_t count = 0;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(x, &count));
  torchpace_linear::run({all, Count, torchpace_values(x), count / layers[0].in,
                         torchpace_values(out)});
}

}  // namespace
"""


def usable() -> bool:
    """Whether there are tiles for this processor."""
    return gemm.has_isa("VecAVX512", "VecAVX2")


def fused(program: Any) -> Any:
    """An exported program with its linear layers as operators of torchpace, for `lowered`.

    None where it has none that can be taken: float32 on the CPU, with weights that are the module's
    own and that no step changes.
    """
    found = program.run_decompositions({})  # into functions: nothing in place is left
    graph = found.graph_module.graph
    constants = _constants(found.graph_signature)
    layers = [layer for node in graph.nodes if (layer := _linear(node, constants))]
    now: dict[fx.Node, fx.Node] = {}  # what stands in the place of what
    for chain in _chains(layers):
        _replace_chain(graph, chain, now)
    graph.eliminate_dead_code()
    found.graph_module.recompile()
    return found if layers else None


def _constants(signature: Any) -> set[str]:
    """Names of the placeholders that stand for the module's own tensors, which no step changes."""
    buffers = signature.inputs_to_buffers
    changed = set(signature.buffers_to_mutate.values())
    return {
        *signature.inputs_to_parameters,
        *signature.inputs_to_lifted_tensor_constants,
        *(name for name, buffer in buffers.items() if buffer not in changed),
    }


@dataclass(frozen=True)
class _Linear:
    node: fx.Node
    x: fx.Node
    weight: fx.Node
    transposed: bool  # the weight is [in, out]
    bias: fx.Node | None
    size: int
    activation: int
    result: fx.Node  # of the layer with its activation


def _linear(node: fx.Node, constants: set[str]) -> _Linear | None:
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
    if not _is_plain(x) or not all(_is_own(each, constants) for each in (weight, bias) if each):
        return None
    shape = weight.meta["val"].shape
    if len(shape) != 2 or 0 in shape:
        return None
    size = shape[1 if transposed else 0]
    if bias is not None and bias.meta["val"].shape != (size,):
        return None
    activation, result = _activation(node)
    return _Linear(node, x, weight, transposed, bias, size, activation, result)


def _is_plain(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.device.type == "cpu"


def _is_own(node: fx.Node, constants: set[str]) -> bool:
    return node.name in constants and _is_plain(node)


def _activation(node: fx.Node) -> tuple[int, fx.Node]:
    """What alone uses `node`, where linear.h has it, and otherwise nothing."""
    after = _only_user(node)
    name = "none"
    if after is not None and after.target is _aten.gelu.default:
        name = {"none": "gelu", "tanh": "gelu_tanh"}[after.kwargs.get("approximate", "none")]
    elif after is not None:
        name = {_aten.relu.default: "relu", _aten.silu.default: "silu"}.get(after.target, "none")
    return ACTIVATIONS.index(name), after if name != "none" else node


def _only_user(node: fx.Node) -> fx.Node | None:
    """Passing by copies, which is what dropout leaves in eval mode."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if not _is_copy(user):
            return user
        node = user
    return None


def _is_copy(node: fx.Node) -> bool:
    return node.target is _aten.clone.default and not node.kwargs


def _copied(node: fx.Node) -> fx.Node:
    while _is_copy(node):
        node = node.args[0]
    return node


def _chains(layers: Sequence[_Linear]) -> list[list[_Linear]]:
    """Layers of which each reads what the one before it returns and nothing else reads."""
    chains: dict[fx.Node, list[_Linear]] = {}  # by what the last layer returns
    for layer in layers:
        before = _copied(layer.x)
        alone = before in chains and _only_user(before) is layer.node
        chains[layer.result] = [*(chains.pop(before) if alone else []), layer]
    return list(chains.values())


def _replace_chain(graph: fx.Graph, chain: Sequence[_Linear], now: dict[fx.Node, fx.Node]) -> None:
    operators, columns = torch.ops.torchpace, _columns()
    result = chain[-1].result
    with graph.inserting_before(result):
        packed = []
        for layer in chain:
            weight = layer.weight
            if layer.transposed:
                weight = graph.call_function(_aten.t.default, (weight,))
            packed.append(graph.call_function(operators.pack_linear.default, (weight, columns)))
        biases = [layer.bias for layer in chain]
        sizes = [layer.size for layer in chain]
        activations = [layer.activation for layer in chain]
        x = now.get(chain[0].x, chain[0].x)
        arguments = (x, packed, biases, sizes, activations)
        now[result] = graph.call_function(operators.linear_chain.default, arguments)
    now[result].meta.update(result.meta)
    result.replace_all_uses_with(now[result])


def _columns() -> int:
    """kColumns of gemm.h."""
    return 32 if gemm.has_isa("VecAVX512") else 16


def _pack_linear(weight: Tensor, columns: int) -> Tensor:
    """[panels, in, columns] of [out, in], filled up with zeros."""
    size, depth = weight.shape
    panels = -(-size // columns)
    full = F.pad(weight, (0, 0, 0, panels * columns - size))
    return full.view(panels, columns, depth).transpose(1, 2).contiguous()


def _unpacked(packed: Tensor, size: int) -> Tensor:
    return packed.transpose(1, 2).flatten(0, 1)[:size]


def _linear_chain(
    x: Tensor,
    packed: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    sizes: Sequence[int],
    activations: Sequence[int],
) -> Tensor:
    for weight, bias, size, activation in zip(packed, biases, sizes, activations, strict=True):
        x = _FUNCTIONS[activation](F.linear(x, _unpacked(weight, size), bias))
    return x


_FAKES = {
    "pack_linear": lambda weight, columns: weight.new_empty(
        -(-weight.shape[0] // columns), weight.shape[1], columns
    ),
    "linear_chain": lambda x, packed, biases, sizes, activations: x.new_empty(
        *x.shape[:-1], sizes[-1]
    ),
}


for _name, _schema in _SCHEMAS.items():
    _LIBRARY.define(_name + _schema)
    _LIBRARY.impl(_name, globals()["_" + _name], "CPU")
    torch.library.register_fake(f"torchpace::{_name}", _FAKES[_name], lib=_LIBRARY)


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
    tensors = [x, *packed, *(bias for bias in biases if bias is not None)]
    inputs = [own.require_contiguous(own.realize_input(each)) for each in tensors]
    layout = ir.FixedLayout(x.get_device(), torch.float32, [*x.get_size()[:-1], sizes[-1]])
    depths = [int(x.get_size()[-1]), *sizes[:-1]]
    shapes = [", ".join(map(str, each)) for each in zip(depths, sizes, activations, strict=True)]
    return ir.TensorBox.create(_call(layout, inputs, shapes, [b is not None for b in biases]))


def _call(layout: Any, inputs: list[Any], shapes: Sequence[str], has_bias: Sequence[bool]) -> Any:
    """Inductor's node of torchpace_linear_chain. Inputs: x, the weights, the biases there are."""
    from torch._inductor import ir

    class Call(ir.ExternKernelOut):
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

    return Call(
        layout,
        inputs,
        python_kernel_name="torchpace.linear_chain",
        cpp_kernel_name="torchpace_linear_chain",
        op_overload=torch.ops.torchpace.linear_chain.default,
    )
