import pytest
import torch

from torchpace import models, parity
from torchpace.io import tensor_file
from torchpace.optim import factory
from torchpace.optim.algorithms import IMPLEMENTATIONS, OPTIMIZER_ALGORITHMS
from torchpace.runtimes import eager
from torchpace.settings import Settings, SettingsError

WRONG = {
    "adam": [{"eps": 1e-6}, {"betas": (0.8, 0.999)}],
    "adamw": [{"eps": 1e-6}, {"weight_decay": 0.0}],
    "sgd": [{"momentum": 0.8}, {"nesterov": True}],
}


def load(settings):
    return eager.load("py-eager", settings, models.of(settings))


@pytest.mark.parametrize("family", ["gptlite", "dnn_deep", "dnn_wide"])
@pytest.mark.parametrize("kind", OPTIMIZER_ALGORITHMS)
def test_all_implementations_agree_and_a_wrong_one_fails(exported, family, kind):
    settings, answer = exported(f"{family}_train/size:smoke", optimizer=kind)
    golden = tensor_file.read_tensors(answer["golden"], "golden")
    reference = load(settings).values()

    def check(suffix="", **wrong):
        workload = load(settings.replace(optimizer=kind + suffix))
        workload.optimizer.param_groups[0].update(wrong)
        return parity.check_parity(workload.values(), reference, golden, torch.float32)

    for suffix in ("", "-foreach", "-fused"):
        assert check(suffix).passed, suffix
        for wrong in WRONG[kind]:
            assert not check(suffix, **wrong).passed, (suffix, wrong)
    for name, value in golden.items():
        if name.startswith("update."):
            torch.testing.assert_close(value, torch.ones_like(value), msg=name)


def test_kinds_differ_from_each_other(exported):
    settings, _ = exported("dnn_deep_train/size:smoke")
    found = [load(settings.replace(optimizer=kind)).values() for kind in OPTIMIZER_ALGORITHMS]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert not torch.equal(one["losses"], other["losses"])


@pytest.mark.parametrize("way", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", OPTIMIZER_ALGORITHMS)
def test_each_turn_starts_from_the_first_state(exported, kind, way):
    name = kind if way == "per-tensor" else f"{kind}-{way}"
    settings, _ = exported("dnn_deep_train/size:smoke", optimizer=name)
    workload = load(settings)
    group = workload.optimizer.param_groups[0]
    assert (group["foreach"], group["fused"]) == (way == "foreach", way == "fused")
    assert factory.name(settings) == f"{kind} {way}"
    first, again = workload.values(), workload.values()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_all_implementations_share_one_entry_of_the_cache(exported):
    paths = {
        name: exported("dnn_deep_train/size:smoke", optimizer=name)[1]["golden"]
        for name in ("adam", "adam-fused", "adamw", "adamw-foreach", "sgd")
    }
    assert paths["adam"] == paths["adam-fused"] and paths["adamw"] == paths["adamw-foreach"]
    assert len(set(paths.values())) == 3


def test_unknown_names_are_refused():
    for name in ("lamb", "adam-", "adam-per-tensor", "fused"):
        with pytest.raises(SettingsError, match="optimizer: expected one of adam, adam-foreach"):
            factory.make_optimizer(Settings(optimizer=name), [])
