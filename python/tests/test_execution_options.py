import pytest
import torch

from torchpace import environment, models, parity
from torchpace.errors import InputError, Skipped
from torchpace.execution_options import ExecutionOptions
from torchpace.io import tensor_file
from torchpace.runtimes import eager
from torchpace.settings import Settings, SettingsError


def load(settings):
    return eager.load("py-eager", settings, models.of(settings))


def test_defaults_and_bad_values():
    assert ExecutionOptions.of(Settings()) == ExecutionOptions(None, False, torch.contiguous_format)
    named = Settings(autocast="bfloat16", tf32=1, memory_format="channels_last", device="cuda")
    assert ExecutionOptions.of(named) == ExecutionOptions(torch.bfloat16, True, torch.channels_last)
    for wrong in ({"autocast": "float16"}, {"tf32": "on"}, {"memory_format": "nhwc"}):
        with pytest.raises(SettingsError, match="expected"):
            ExecutionOptions.of(Settings(**wrong))
    with pytest.raises(Skipped, match="TF32 is a mode of CUDA devices, the case is for cpu"):
        ExecutionOptions.of(Settings(tf32=1))


@pytest.mark.parametrize("on", [False, True])
def test_both_tf32_switches_are_always_set(on):
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not on
        ExecutionOptions(tf32=on).apply()
        word = "on" if on else "off"
        assert environment.describe(None)["tf32"] == f"matmul {word}, cudnn {word}"
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@pytest.mark.parametrize("phase", ["train", "inference"])
@pytest.mark.parametrize("family", ["gptlite", "dnn_deep"])
def test_autocast_passes_its_own_parity_and_sees_a_swap(exported, family, phase):
    name = f"{family}_{phase}/size:smoke"
    settings, answer = exported(name, autocast="bfloat16")
    golden = tensor_file.read_tensors(answer["golden"], "golden")
    workload = load(settings)
    assert workload.precision == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in workload.module.parameters())
    reference = workload.values()
    if phase == "inference":
        assert reference["batch0.output"].dtype == torch.bfloat16
    plain = load(settings.replace(autocast="none")).values()
    value = {"train": "losses", "inference": "batch0.output"}[phase]
    assert not torch.equal(plain[value].double(), reference[value].double())
    # what float32 computes is as right as what bfloat16 computes
    assert parity.check_parity(plain, reference, golden, torch.bfloat16).passed
    swap = {
        "gptlite": "blocks.0.attention.qkv.weight,blocks.1.attention.qkv.weight",
        "dnn_deep": "layers.0.weight,layers.7.weight",
    }[family]
    swapped = load(settings.replace(swap=swap)).values()
    assert not parity.check_parity(swapped, reference, golden, torch.bfloat16).passed


def test_the_truth_is_float64_without_autocast_and_its_spread_is_of_bfloat16(exported):
    goldens = [
        tensor_file.read_tensors(
            exported("gptlite_inference/size:smoke", **execution)[1]["golden"], "golden"
        )
        for execution in ({}, {"autocast": "bfloat16"})
    ]
    assert torch.equal(goldens[0]["batch0.output"], goldens[1]["batch0.output"])
    assert (goldens[1]["spread.batch0.output"] > 1000 * goldens[0]["spread.batch0.output"]).all()


def test_axes_that_do_not_change_the_truth_share_it(exported):
    paths = {
        exported("dnn_deep_train/size:smoke", **execution)[1]["golden"]
        for execution in ({}, {"memory_format": "channels_last"}, {"tf32": 0}, {"runners": 2})
    }
    assert len(paths) == 1


def test_channels_last_needs_an_image(exported):
    settings, _ = exported("dnn_deep_inference/size:smoke", memory_format="channels_last")
    with pytest.raises(InputError, match=r"expected a case with a 4-D input, found \[4, 32\]"):
        load(settings)


def test_the_environment_says_what_is_in_force(worker, exported):
    settings, _ = exported("dnn_deep_train/size:smoke", autocast="bfloat16", optimizer="sgd-fused")
    worker.ask("load " + settings.line())
    found = worker.ask("environment")
    expected = {
        "autocast": "bfloat16",
        "memory_format": "contiguous",
        "optimizer": "sgd fused",
        "dtype": "float32",
        "threads": 1,
        "tf32": "matmul off, cudnn off",
    }
    assert {key: found[key] for key in expected} == expected
    settings, _ = exported("dnn_deep_inference/size:smoke", optimizer="sgd-fused")
    worker.ask("load " + settings.line())
    found = worker.ask("environment")
    assert (found["optimizer"], found["autocast"]) == ("", "none")
