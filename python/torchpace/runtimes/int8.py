"""py-int8: the model compiled by AOTInductor with linear layers in 8-bit integers, which oneDNN
multiplies: weights per output channel, inputs by their range in each step (dynamic quantization).

It is approximate: its outputs differ from those of the case by more than rounding.
Twin: include/torchpace/runtimes/int8.hpp, which loads the same packages.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from torchpace import runtimes
from torchpace.aot import inductor
from torchpace.errors import InputError, Skipped
from torchpace.exporter.artifacts import refused
from torchpace.runtimes.aot import AotInference, package_metadata
from torchpace.runtimes.detail.inference_workload import Source, expect_inference
from torchpace.settings import Settings
from torchpace.workload import Workload, device_of

RUNTIMES = {"py-int8": "AOTInductor with linear layers in int8, from Python; approximate"}
ARTIFACTS = {"py-int8": "int8"}
NEEDS = ("torchao",)
APPROXIMATE = True


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings and files, Skipped for what is not quantized.
    """
    _expect_case(settings)
    return AotInference(settings, model)


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes model.pt2, which returns all tensors that the module returns, in their order.

    Raises Skipped for what is not quantized, InputError that names the construct that cannot be
    exported.
    """
    _expect_case(settings)
    inductor.use_caches(target / "caches", warm=False)
    inductor.start_making()
    source = Source(settings, model)
    path = target / "model.pt2"
    metadata = package_metadata(source) | {"torchpace.gemm": "torch", "torchpace.aot": "int8"}
    # Only freezing packs the weights: without it each step would quantize them.
    configs = {"freezing": True, "max_autotune": False, "aot_inductor.metadata": metadata}
    with torch.no_grad():
        try:
            program = source.exported(_Inputs(_quantized(source.export().module(), source)))
            _fuse_one_operation()
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=configs
            )
        except (InputError, Skipped):
            raise
        except Exception as error:
            raise refused("AOTInductor: expected a program that it can compile", error) from None
    shutil.rmtree(target / "caches")
    return path


def _expect_case(settings: Settings) -> None:
    expect_inference(settings, "int8")
    if absent := runtimes.missing(NEEDS):
        raise Skipped(absent)
    if device_of(settings).type != "cpu":
        raise Skipped("int8 here is for the CPU")
    if (
        settings.text("dtype", "float32") != "float32"
        or settings.text("autocast", "none") != "none"
    ):
        raise Skipped("int8 here quantizes float32, without autocast")
    if not settings.flag("freezing", True):
        raise Skipped("int8 needs frozen weights, and freezing=0 has none")


class _Inputs(nn.Module):
    """A program of the case's inputs as a module that takes `*inputs`."""

    def __init__(self, program: nn.Module):
        super().__init__()
        self.program = program

    def forward(self, *inputs: Tensor) -> Any:
        return self.program(*inputs)


def _quantized(program: Any, source: Source) -> nn.Module:
    """The program with what quantizes the inputs and the weights of its linear layers.

    Not torchao's X86InductorQuantizer: it finds no layers in what torch.export gives, and registers
    passes of its own beside torch's.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    inputs, weights = _input_spec(), _weight_spec()

    class LinearLayers(Quantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in _linear_layers(model):
                specs = {node.args[0]: inputs, node.args[1]: weights}
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    input_qspec_map=specs, _annotated=True
                )
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

    if not _linear_layers(program):
        raise Skipped("int8 here quantizes linear layers, and the module has none")
    prepared = prepare_pt2e(program, LinearLayers())
    prepared(*source.inputs[0])  # shows the ranges of the weights
    return convert_pt2e(prepared)


def _linear_layers(program: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """Products with a weight of the module's own."""
    return [
        node
        for node in program.graph.nodes
        if node.target is torch.ops.aten.linear.default and node.args[1].op == "get_attr"
    ]


def _input_spec() -> Any:
    from torchao.quantization.pt2e import PlaceholderObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    # Without VNNI two products are added in 16 bits, which 8 bits of both would overflow.
    has_vnni = torch.cpu._is_vnni_supported()
    return QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255 if has_vnni else 127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=True,
        observer_or_fake_quant_ctr=PlaceholderObserver.with_args(eps=2**-12),
    )


def _weight_spec() -> Any:
    from torchao.quantization.pt2e import PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
    )


def _fuse_one_operation() -> None:
    """Keeps Inductor from fusing a sum into a layer that has its activation already, as in
    relu(linear(x)) + x, at which its pass fails an assertion (torch 2.11). It registers its passes
    at the first compile of this process: call it before.
    """
    from torch._inductor.fx_passes import quantization

    is_valid: Callable = quantization._is_valid_qlinear_post_op_fusion_pattern

    def without_activation(*arguments: Any) -> Callable:
        check = is_valid(*arguments)
        return lambda match: match.kwargs.get("postop_name", "none") == "none" and check(match)

    quantization._is_valid_qlinear_post_op_fusion_pattern = without_activation
