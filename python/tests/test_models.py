import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from torchpace import models
from torchpace.models import dnn, gptlite
from torchpace.settings import SettingsError, expand_case


def build(name, **overrides):
    settings = expand_case(name, **overrides)
    model = models.find(settings["model"])
    torch.manual_seed(0)
    tokens = torch.randint(0, 65, (5000,), dtype=torch.uint8)
    return (
        settings,
        model,
        model.make(settings),
        model.inputs(settings, torch.Generator().manual_seed(0), tokens),
    )


def test_the_paper_size_has_86701121_parameters():
    with torch.device("meta"):
        module = gptlite.Gptlite()
    assert sum(p.numel() for p in module.parameters()) == 86_701_121
    cost = gptlite.cost(expand_case("gptlite_train/size:paper", dropout=0.1))
    assert cost.parameter_bytes == 4 * 86_701_121


def test_parameter_names():
    module = gptlite.Gptlite(gptlite.GptliteOptions(layers=1, width=8, heads=2, context=4))
    assert {name: list(p.shape) for name, p in module.named_parameters()} == {
        "token_embedding.weight": [65, 8],
        "position_embedding.weight": [4, 8],
        "blocks.0.norm1.weight": [8],
        "blocks.0.norm1.bias": [8],
        "blocks.0.attention.qkv.weight": [24, 8],
        "blocks.0.attention.projection.weight": [8, 8],
        "blocks.0.attention.projection.bias": [8],
        "blocks.0.norm2.weight": [8],
        "blocks.0.norm2.bias": [8],
        "blocks.0.feed_forward.expand.weight": [32, 8],
        "blocks.0.feed_forward.expand.bias": [32],
        "blocks.0.feed_forward.contract.weight": [8, 32],
        "blocks.0.feed_forward.contract.bias": [8],
        "norm.weight": [8],
        "norm.bias": [8],
        "head.weight": [65, 8],
        "head.bias": [65],
    }
    names = [name for name, _ in dnn.Dnn(dnn.DnnOptions(2, 4)).named_parameters()]
    assert names == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("scale", [0, 0.3])
def test_explicit_attention_equals_sdpa(causal, scale):
    outputs = []
    for attention in ("sdpa", "explicit"):
        _, _, module, (x, _) = build(
            "gptlite_train/size:smoke", attention=attention, causal=causal, scale=scale
        )
        outputs.append(module.double()(x))
    torch.testing.assert_close(*outputs)


def test_causal_output_does_not_see_the_future():
    _, _, module, (x, _) = build("gptlite_train/size:smoke")
    changed = x.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 65
    torch.testing.assert_close(module(x)[:, :-1], module(changed)[:, :-1])


def test_a_mask_made_in_inference_mode_serves_training():
    _, model, module, (x, y) = build("gptlite_train/size:smoke", attention="explicit")
    with torch.inference_mode():
        module(x[:, :4])  # a smaller mask first: it must grow
        module(x)
    model.loss(module(x), y).backward()
    assert "mask" not in str(module.state_dict().keys())


@pytest.mark.parametrize(
    "name", ["gptlite_train/size:smoke", "dnn_deep_train/size:smoke", "dnn_wide_train/size:quick"]
)
def test_flops_equal_those_that_torch_counts(name):
    settings, model, module, (x, y) = build(name, attention="explicit")
    cost = model.cost(settings)
    with FlopCounterMode(display=False) as forward:
        output = module(x)
    with FlopCounterMode(display=False) as backward:
        model.loss(output, y).backward()
    assert forward.get_total_flops() == cost.forward_flops
    assert forward.get_total_flops() + backward.get_total_flops() == cost.training_flops
    assert sum(p.nbytes for p in module.parameters()) == cost.parameter_bytes


def test_costs_by_hand():
    cost = gptlite.cost(expand_case("gptlite_inference/size:smoke"))  # L 2, C 64, T 16, V 65, B 1
    per_token = 2 * (2 * 64 * 192 + 2 * 64 * 64 + 2 * 2 * 64 * 256 + 2 * 2 * 16 * 64) + 2 * 64 * 65
    assert cost.forward_flops == 16 * per_token
    assert (cost.items, cost.item) == (16, "tokens")
    assert cost.minimum_bytes == cost.parameter_bytes + 16 * 8 + 16 * 65 * 4
    cost = dnn.cost(expand_case("dnn_deep_train/size:smoke"))  # L 8, W 32, B 4
    assert cost.forward_flops == 8 * 2 * 4 * 32 * 32
    assert cost.training_flops == 3 * cost.forward_flops - 2 * 4 * 32 * 32
    assert cost.minimum_bytes == 6 * cost.parameter_bytes + 4 * 32 * 4 + 4 * 8
    assert (
        dnn.cost(expand_case("dnn_deep_train/size:smoke", dtype="bfloat16")).parameter_bytes
        == 8 * 1056 * 2
    )


@pytest.mark.parametrize(
    "name",
    [
        "gptlite_train/size:smoke",
        "gptlite_train/size:quick",
        "dnn_deep_train/size:smoke",
        "dnn_deep_train/size:quick",
        "dnn_wide_train/size:smoke",
        "dnn_wide_train/size:quick",
        "dnn_deep_train/size:paper/batch:2",
    ],
)
def test_gradients_are_alive_and_logits_do_not_explode(name):
    _, model, module, (x, y) = build(name)
    output = module(x)
    model.loss(output, y).backward()
    assert output.isfinite().all() and output.abs().max() < 100
    assert next(module.parameters()).grad.abs().max() > 1e-8
    dead = [n for n, p in module.named_parameters() if not p.grad.abs().max() > 1e-8]
    assert not dead


def test_wrong_shapes_and_options_are_refused():
    _, _, module, (x, _) = build("gptlite_train/size:smoke")
    with pytest.raises(ValueError, match=r"expected tokens \[B, T <= 16\], got \[1, 17\]"):
        module(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected x \[B, 8\], got \[2, 9\]"):
        dnn.Dnn(dnn.DnnOptions(1, 8))(torch.zeros(2, 9))
    for wrong in (
        {"heads": 5},
        {"dropout": 1},
        {"attention": "magic"},
        {"layers": 0},
        {"dtype": "int8"},
    ):
        with pytest.raises(SettingsError, match="expected"):
            gptlite.cost(expand_case("gptlite_train/size:smoke", **wrong))
    with pytest.raises(SettingsError, match="model: expected one of dnn, file, gptlite"):
        models.find("nothing")
