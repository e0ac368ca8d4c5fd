"""Artifacts of torch.compile itself: those that need a newer torch are skipped and say which."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from test_artifacts import check, made, runtime  # noqa: F401  (fixtures)

from torchpace import runtimes
from torchpace.errors import Skipped
from torchpace.io import tensor_file
from torchpace.runtimes.detail import saved_compile
from torchpace.settings import Settings, encode, expand_case

KINDS = {"py-aot-compile": "aot-compile", "py-precompile": "precompile"}


def usable(name: str):
    absent = runtimes.list_runtimes()[name].absent
    return pytest.param(name, marks=pytest.mark.skipif(bool(absent), reason=absent))


@pytest.fixture(params=[usable(name) for name in KINDS])
def name(request) -> str:
    return request.param


@pytest.fixture
def reference(runtime, tmp_path):  # noqa: F811
    """settings -> the file that py-eager writes of the case."""
    eager = runtime("py-eager")

    def write(settings) -> Path:
        path = tmp_path / "reference.pt"
        eager.ask("load " + settings.line())
        eager.ask(f"write {encode(str(path))}")
        return path

    return write


@pytest.mark.parametrize("case", ["gptlite_inference", "dnn_deep_latency"])
def test_inference_agrees_with_eager(
    name,
    case,
    made,  # noqa: F811
    exported,
    runtime,  # noqa: F811
    reference,
    tmp_path,
):
    _, answer = exported(f"{case}/size:smoke")
    settings, artifact = made(f"{case}/size:smoke", KINDS[name])
    assert artifact["compile_s"] > 0, artifact
    expected = reference(settings)
    process = runtime(name)
    checked = check(process, settings, answer, expected)
    assert checked["passed"], checked
    assert process.ask("operators 2")["compiled"]
    assert len(process.ask("run 3 1")["step_ns"]) == 3
    own = tmp_path / "own.pt"
    process.ask(f"write {encode(str(own))}")
    values, exact = (tensor_file.read_tensors(path, "values") for path in (own, expected))
    assert len(values) > 1 and values.keys() == exact.keys()
    for key, value in values.items():
        assert (value - exact[key]).abs().max() < 1e-4, key


@pytest.mark.parametrize("case", ["gptlite_train", "dnn_deep_train"])
def test_training_agrees_with_eager(name, case, made, exported, runtime, reference):  # noqa: F811
    _, answer = exported(f"{case}/size:smoke")
    settings, artifact = made(f"{case}/size:smoke", KINDS[name])
    assert artifact["compile_s"] > 0, artifact
    expected = reference(settings)
    process = runtime(name)
    checked = check(process, settings, answer, expected)
    assert checked["passed"], checked
    assert len(process.ask("run 3 1")["step_ns"]) == 3
    losses = process.ask("losses 5")["losses"]
    eager = runtime("py-eager")
    eager.ask("load " + settings.line())
    assert losses == pytest.approx(eager.ask("losses 5")["losses"], rel=1e-4)
    # The file holds no parameters: those that the worker has are the ones that it uses.
    first = "token_embedding.weight,head.weight" if "gptlite" in case else None
    swap = first or "layers.0.weight,layers.7.weight"
    assert not check(process, settings.replace(swap=swap), answer, expected)["passed"]


def test_autocast_is_in_the_file(name, made, exported, runtime, reference):  # noqa: F811
    for case in ("dnn_deep_inference", "dnn_deep_train"):
        _, answer = exported(f"{case}/size:smoke", autocast="bfloat16")
        settings, artifact = made(f"{case}/size:smoke", KINDS[name], autocast="bfloat16")
        assert "artifact" in artifact, artifact
        checked = check(runtime(name), settings, answer, reference(settings))
        assert checked["passed"], checked


MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.heads = nn.ModuleDict({"policy": nn.Linear(8, 3), "value": nn.Linear(8, 1)})

    def forward(self, x, scale):
        h = self.norm(self.trunk(x)).relu() * scale
        return {name: head(h) for name, head in self.heads.items()}


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, output, target):
        value = output["value"].square().mean()
        return value + nn.functional.cross_entropy(output["policy"], target, self.weight)


def net():
    return {
        "module": Net(),
        "inputs": (torch.randn(5, 6), torch.rand(5, 1)),
        "target": torch.arange(5) % 3,
        "loss": Weighted(),
    }
"""


@pytest.mark.parametrize("phase", ["inference", "train"])
def test_a_model_of_ones_own(name, phase, exporter, runtime, reference, tmp_path):  # noqa: F811
    """Several inputs, a dictionary of outputs, buffers that a step changes, a loss with one."""
    (tmp_path / "own_net.py").write_text(MODEL)
    settings = Settings(
        case=f"net_{phase}", model="imported", factory="own_net:net", path=tmp_path, phase=phase
    ).replace(device="cpu", threads=1, seed=0)
    answer = exporter.ask(settings.line())
    assert "error" not in answer, answer
    settings = settings.replace(state=answer["state"], **answer["set"])
    artifact = exporter.ask(settings.replace(make=KINDS[name], compile_timeout=300).line())
    assert "artifact" in artifact, artifact
    loaded = settings.replace(artifact=artifact["artifact"])
    checked = check(runtime(name), loaded, answer, reference(settings))
    assert checked["passed"], checked


DROPS = """
from torch import nn, zeros


def net():
    return {
        "module": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
        "inputs": zeros(2, 4),
        "target": zeros(2, 4),
        "loss": nn.MSELoss(),
    }
"""


def test_training_with_dropout_is_skipped(name, exporter, tmp_path):
    (tmp_path / "drops.py").write_text(DROPS)
    settings = Settings(
        case="drops", model="imported", factory="drops:net", path=tmp_path, phase="train"
    ).replace(device="cpu", threads=1, seed=0)
    answer = exporter.ask(settings.line())
    settings = settings.replace(state=answer["state"], **answer["set"])
    artifact = exporter.ask(settings.replace(make=KINDS[name], compile_timeout=300).line())
    assert "take dropout=0" in artifact["skipped"]


def test_a_damaged_file_is_one_line(name, made, runtime, tmp_path):  # noqa: F811
    settings, answer = made("dnn_deep_latency/size:smoke", KINDS[name])
    damaged = tmp_path / Path(answer["artifact"]).name
    damaged.write_bytes(b"garbage")
    error = runtime(name).ask("load " + settings.replace(artifact=damaged).line())["error"]
    assert "\n" not in error and "make it again" in error and str(damaged) in error


def test_an_older_torch_is_a_reason(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.12.1+cpu")
    reason = "needs torch 2.13 or newer, found 2.12.1+cpu"
    assert runtimes.list_runtimes()["py-aot-compile"].absent == reason
    assert runtimes.list_runtimes()["py-eager"].absent == ""
    for needed in ("2.2", "2.12", ""):
        assert runtimes.too_old(needed) == ""
    settings = expand_case("dnn_deep_train/size:smoke")
    with pytest.raises(Skipped, match=f"^{re.escape(reason)}$"):
        saved_compile.expect_case("aot_compile", "2.13", settings)
    with pytest.raises(Skipped, match="dynamic=1"):
        saved_compile.expect_case("aot_compile", "2.12", settings.replace(dynamic=1))
