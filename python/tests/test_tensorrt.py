"""py-tensorrt without a GPU: what it asks of Torch-TensorRT, whose place a stand-in takes."""

from __future__ import annotations

import importlib.machinery
import sys
import types
import warnings

import pytest
import torch

from torchpace import models, runtimes
from torchpace.errors import InputError, Note, Skipped
from torchpace.runtimes import eager, tensorrt
from torchpace.runtimes.detail import engine
from torchpace.settings import expand_case


class Compiled(torch.nn.Module):
    """As Torch-TensorRT returns it: one child for each part, by its partitioner's names."""

    def __init__(self, program, parts):
        super().__init__()
        self.program = program
        for name in parts:
            self.add_module(name, torch.nn.Identity())


@pytest.fixture
def stand_in(monkeypatch):
    """A module torch_tensorrt, which keeps the program as it is, and what it was asked."""
    module = types.ModuleType("torch_tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec("torch_tensorrt", None)
    module.asked, module.parts = {}, ["_run_on_acc_0"]

    def compile_program(program, **options):
        module.asked = options
        with open(options["timing_cache_path"], "wb") as file:
            file.write(b"timings")
        return Compiled(program, module.parts)

    module.dynamo = types.SimpleNamespace(compile=compile_program)
    module.save = lambda compiled, path, arg_inputs: torch.export.save(compiled.program, path)
    module.load = torch.export.load
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    # Where a GPU is needed, the case's own device is enough here.
    monkeypatch.setattr(tensorrt, "expect_case", lambda *_, device: None)
    return module


@pytest.mark.parametrize("options", [{}, {"autocast": "bfloat16"}])
def test_the_program_is_saved_and_loaded(stand_in, exported, tmp_path, options):
    settings, _ = exported("gptlite_inference/size:smoke", **options)
    model = models.of(settings)
    path = tensorrt.make_artifact("tensorrt", tmp_path, settings, model)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    asked = stand_in.asked
    assert asked["disable_tf32"] and asked["use_explicit_typing"] and asked["min_block_size"] == 1
    assert asked["device"] == torch.device("cpu") and len(asked["arg_inputs"]) == 1
    loaded = tensorrt.load("py-tensorrt", settings.replace(artifact=path), model)
    expected = eager.load("py-eager", settings, model).values()
    values = loaded.values()
    assert len(values) > 1 and values.keys() == expected.keys()
    assert loaded.precision is (torch.bfloat16 if options else torch.float32)
    for name, value in values.items():
        assert torch.allclose(value.float(), expected[name].float(), rtol=0.05, atol=0.05), name


def test_the_case_says_whether_tf32_is_used(stand_in, exported, monkeypatch, tmp_path):
    settings, _ = exported("dnn_deep_latency/size:smoke")
    source = tensorrt.Source

    def with_tf32(settings, model):
        made = source(settings, model)
        made.execution = types.SimpleNamespace(tf32=True, autocast_scope=lambda _: made.autocast)
        return made

    monkeypatch.setattr(tensorrt, "Source", with_tf32)
    tensorrt.make_artifact("tensorrt", tmp_path, settings, models.of(settings))
    assert stand_in.asked["disable_tf32"] is False


def test_parts_that_run_elsewhere_are_told(stand_in, exported, tmp_path):
    settings, _ = exported("dnn_deep_latency/size:smoke")
    make = (tmp_path, settings, models.of(settings))
    stand_in.parts = ["_run_on_acc_0", "_run_on_gpu_1", "_run_on_acc_2"]
    with pytest.warns(Note, match="2 engines of TensorRT; 1 parts between them"):
        tensorrt.make_artifact("tensorrt", *make)
    stand_in.parts = ["_run_on_acc_0"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        tensorrt.make_artifact("tensorrt", *make)
    stand_in.parts = []
    with pytest.raises(Skipped, match="no operator"):
        tensorrt.make_artifact("tensorrt", *make)


def test_what_fails_is_one_line(stand_in, exported, tmp_path):
    settings, _ = exported("dnn_deep_latency/size:smoke")
    model = models.of(settings)
    path = tmp_path / "model.pt2"
    path.write_bytes(b"garbage")
    with pytest.raises(InputError, match="make it again") as caught:
        tensorrt.load("py-tensorrt", settings.replace(artifact=path), model)
    assert "\n" not in str(caught.value)

    def fail(program, **_):
        raise RuntimeError("no converter\nfor this")

    stand_in.dynamo.compile = fail
    with pytest.raises(InputError, match="Torch-TensorRT: .*no converter") as caught:
        tensorrt.make_artifact("tensorrt", tmp_path, settings, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"), [({"dynamic": 1}, "dynamic=1"), ({"dtype": "float64"}, "float64")]
)
def test_what_it_does_not_take_is_skipped(stand_in, changes, reason, tmp_path):
    settings = expand_case("dnn_deep_inference/size:smoke").replace(**changes)
    with pytest.raises(Skipped, match=reason):
        tensorrt.make_artifact("tensorrt", tmp_path, settings, models.of(settings))


def test_it_needs_the_package_and_a_gpu():
    settings = expand_case("dnn_deep_inference/size:smoke")
    with pytest.raises(Skipped, match="^TensorRT here is for CUDA devices$"):
        engine.expect_case("TensorRT", (), settings, device="cuda")
    if runtimes.list_runtimes()["py-tensorrt"].absent:
        with pytest.raises(Skipped, match="^pip install torch-tensorrt$"):
            tensorrt.load("py-tensorrt", settings, models.of(settings))
