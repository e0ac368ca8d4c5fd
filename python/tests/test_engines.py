"""Runtimes of other engines: their files, their threads, and what is said of a missing one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PYTHON
from test_artifacts import check, made, runtime  # noqa: F401  (fixtures)

from torchpace import runtimes
from torchpace.errors import Skipped
from torchpace.io import tensor_file
from torchpace.runtimes.detail import engine
from torchpace.settings import encode, expand_case

ENGINES = {"py-openvino": "openvino", "py-onnxruntime": "onnx", "py-executorch": "executorch"}


def installed(name: str):
    absent = runtimes.list_runtimes()[name].absent
    return pytest.param(name, marks=pytest.mark.skipif(bool(absent), reason=absent))


@pytest.fixture(params=[installed(name) for name in ENGINES])
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("case", ["gptlite_inference", "dnn_deep_latency"])
def test_all_batches_agree_with_eager(name, case, made, exported, runtime, tmp_path):  # noqa: F811
    settings, answer = exported(f"{case}/size:smoke")
    settings, made_answer = made(f"{case}/size:smoke", ENGINES[name])
    assert "artifact" in made_answer, made_answer
    eager, reference = runtime("py-eager"), tmp_path / "reference.pt"
    eager.ask("load " + settings.line())
    eager.ask(f"write {encode(str(reference))}")
    process = runtime(name)
    checked = check(process, settings, answer, reference)
    assert checked["passed"], checked
    assert checked["loaded"]["compile_s"] > 0
    assert process.ask("environment")["engine"].startswith(runtimes.list_runtimes()[name].needs[0])
    # Each batch has outputs of its own, also after others have run.
    own = tmp_path / "own.pt"
    process.ask("run 5 1")
    process.ask(f"write {encode(str(own))}")
    values = tensor_file.read_tensors(own, "own")
    expected = tensor_file.read_tensors(reference, "reference")
    assert len(values) > 1 and values.keys() == expected.keys()
    for key, value in values.items():
        assert (value - expected[key]).abs().max() < 1e-4, key


def test_a_dynamic_batch_serves_another_one(name, made, exported, runtime, tmp_path):  # noqa: F811
    _, answer = made("gptlite_latency/size:smoke", ENGINES[name], dynamic=1)
    if "skipped" in answer:
        assert name == "py-executorch" and "largest batch" in answer["skipped"]
        return
    larger, case = exported("gptlite_inference/size:smoke", batch=3)
    eager, reference = runtime("py-eager"), tmp_path / "reference.pt"
    eager.ask("load " + larger.line())
    eager.ask(f"write {encode(str(reference))}")
    process = runtime(name)
    checked = check(process, larger.replace(artifact=answer["artifact"]), case, reference)
    assert checked["passed"], checked


def test_a_damaged_file_is_one_line(name, made, runtime, tmp_path):  # noqa: F811
    settings, answer = made("dnn_deep_latency/size:smoke", ENGINES[name])
    damaged = tmp_path / Path(answer["artifact"]).name
    damaged.write_bytes(b"\x08garbage")
    process = runtime(name)
    error = process.ask("load " + settings.replace(artifact=damaged).line())["error"]
    assert "\n" not in error and "make it again" in error and str(damaged) in error


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"phase": "train"}, "for inference"),
        ({"device": "cuda"}, "CUDA"),
        ({"memory_format": "channels_last"}, "contiguous"),
    ],
)
def test_what_an_engine_does_not_take_is_skipped(changes, reason):
    settings = expand_case("dnn_deep_inference/size:smoke").replace(**changes)
    with pytest.raises(Skipped, match=reason):
        engine.expect_case("An engine", (), settings)


def test_a_missing_package_is_a_reason():
    assert runtimes.missing(("torch", "no-such-engine", "nor_this")) == (
        "pip install no-such-engine nor_this"
    )
    with pytest.raises(Skipped, match="^pip install no-such-engine$"):
        engine.expect_case("An engine", ("no-such-engine",), expand_case("dnn_deep_inference"))


def test_the_list_says_what_is_absent_and_imports_no_engine():
    command = [sys.executable, "-X", "importtime", "-m", "torchpace.worker", "--list"]
    environment = os.environ | {"PYTHONPATH": str(PYTHON)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    listed = {entry["runtime"]: entry for entry in map(json.loads, result.stdout.splitlines())}
    for name in ENGINES:
        assert listed[name]["absent"] == runtimes.list_runtimes()[name].absent
    assert listed["py-eager"]["absent"] == ""
    assert not {"openvino", "onnxruntime", "torch"} & {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines()
    }


BOUND = """
import os, sys
from torchpace.runtimes.detail.engine import cores_of_team, team_cores
own = os.sched_getaffinity(0)
assert len(own) == 1, own
with cores_of_team():
    assert os.sched_getaffinity(0) == team_cores() and len(team_cores()) == 2
assert os.sched_getaffinity(0) == own
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_an_engine_gets_the_cores_of_the_openmp_team():
    """OMP_PROC_BIND binds this thread to one core, which threads made by it would share."""
    environment = os.environ | {"OMP_PROC_BIND": "true", "OMP_NUM_THREADS": "2"}
    environment["PYTHONPATH"] = str(PYTHON)
    subprocess.run([sys.executable, "-c", BOUND], env=environment, check=True)
