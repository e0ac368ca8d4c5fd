"""Models that come as files: what they take and return, and what is refused, each in one line."""

from __future__ import annotations

import json
import os
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, Process
from test_run import program
from torch import Tensor, nn

from torchpace import trial
from torchpace.errors import InputError
from torchpace.io import tensor_file
from torchpace.models import file
from torchpace.settings import Settings, SettingsError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mixed = self.embedding(x).mean(1) + y
        return self.head(mixed), {"best": mixed.argmax(1)}


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class ChangesInput(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mul_(2))


class ChangesBuffer(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) + self.calls


class Drops(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(self.layer(x), 0.5, True)


class FixedBatch(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).expand(4, 4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for module in (Net, Plain, ChangesInput, ChangesBuffer, Drops, FixedBatch):
        torch.jit.script(module().eval()).save(folder / f"{module.__name__}.pt")
    net, x = Plain().eval(), torch.randn(4, 8)
    torch.jit.save(torch.jit.freeze(torch.jit.script(net)), folder / "frozen.pt")
    torch.export.save(torch.export.export(net, (x,)), folder / "fixed.pt2")
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (x,), dynamic_shapes=shapes)
    torch.export.save(program, folder / "any.pt2")
    return folder


@pytest.fixture(scope="module")
def package(saved) -> Path:
    program = torch.export.load(saved / "fixed.pt2")
    path = saved / "package.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return path


def case(path: Path, phase: str = "inference", **more: object) -> Settings:
    identity = {"model": "file", "family": path.stem, "case": f"{path.stem}_{phase}"}
    where = {"file": path, "stamp": f"{file._stamp(path)} {path}", "threads": 1}
    return Settings({**identity, **where, "phase": phase, "dtype": "float32", **more})


def test_a_script_is_measured_as_it_is(exporter, saved):
    line = case(saved / "Net.pt", input="6x5:int64;6x8:float32").line()
    answer = exporter.ask(line)
    assert answer["golden"] == "" and "own precision" in answer["no_golden"]
    measured = answer["set"]
    assert measured["outputs"] == "output.0,output.1.best"
    assert (measured["items"], measured["below"], measured["dtype"]) == (6, "50", "float32")
    assert measured["flops"] == 2 * 6 * 8 * 3
    assert measured["parameter_bytes"] == 4 * (8 * 3 + 3)  # all of an embedding is not read
    state = tensor_file.read_tensors(answer["state"], "state")
    assert set(state) == {"input", "input.1", "target"}  # its weights are in the file
    assert state["input"].shape == (8, 6, 5) and state["input"].max() > 40
    assert state["input.1"].dtype == torch.float32
    latency = exporter.ask(case(saved / "Net.pt", "latency", input="6x5:int64;6x8:float32").line())
    assert tensor_file.read_tensors(latency["state"], "state")["input"].shape == (8, 1, 5)
    bounded = exporter.ask(case(saved / "Net.pt", input="6x5:int64;6x8", below=3).line())
    assert tensor_file.read_tensors(bounded["state"], "state")["input"].max() == 2


def test_a_frozen_script_is_one(exporter, saved):
    answer = exporter.ask(case(saved / "frozen.pt", input="4x8").line())
    assert answer["set"]["outputs"] == "output" and answer["set"]["flops"] == 2 * 4 * 8 * 4


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_a_file_keeps_the_dtype_of_its_inputs(exporter, worker, saved, tmp_path, dtype):
    path = tmp_path / f"{dtype}.pt"
    torch.jit.script(Plain().eval().to(getattr(torch, dtype))).save(path)
    settings = case(path, input=f"4x8:{dtype}")
    answer = exporter.ask(settings.line())
    assert answer["set"]["dtype"] == dtype
    assert tensor_file.read_tensors(answer["state"], "state")["input"].dtype == getattr(
        torch, dtype
    )
    error = exporter.ask(case(path, input="4x8").line())["error"]
    assert "expected a model that takes 4x8:float32 (it" in error and "\n" not in error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ChangesInput", "the model changes its input 0 in place, so every step would see another"),
        ("ChangesBuffer", "the model changes its buffer 'calls' in place"),
        ("Drops", "with random numbers; save it in eval mode"),
    ],
)
def test_what_would_do_other_work_in_each_step_is_refused(exporter, saved, name, message):
    error = exporter.ask(case(saved / f"{name}.pt", input="4x8").line())["error"]
    assert message in error and "\n" not in error and f"{name}.pt" in error


def test_wrong_inputs_are_one_line(exporter, saved):
    for change, message in (
        ({"input": "4x9"}, "its forward takes Tensor x), found that it raised: mat1 and mat2"),
        ({"input": "4x8;4x8"}, "forward() expected at most 2 argument(s) but received 3"),
        ({"input": "4x8:int64"}, "expected a model that takes 4x8:int64"),
        ({"input": "4x8:floaty"}, "expected sizes and a dtype"),
        ({"input": "4x8:float64"}, "expected a model that takes 4x8:float64"),
        ({"input": "4x8", "dtype": "bfloat16"}, "leave --dtype out"),
    ):
        answer = exporter.ask(case(saved / "Plain.pt", **change).line())
        assert message in answer["error"] and "\n" not in answer["error"], answer


def test_a_batch_that_is_fixed_has_no_latency(exporter, saved):
    skipped = exporter.ask(case(saved / "FixedBatch.pt", "latency", input="4x8").line())["skipped"]
    assert "its batch is fixed" in skipped
    plain, fixed = saved / "Plain.pt", saved / "FixedBatch.pt"
    both = {"input": "4x8", "others": f"{fixed}\n{file._stamp(fixed)} {fixed}\n"}
    assert "refused" not in exporter.ask(case(plain, **both).line())["set"]
    assert "skipped" in exporter.ask(case(plain, "latency", **both).line())  # for all of them
    assert "only" in exporter.ask(case(saved / "fixed.pt2", "latency").line())["skipped"]
    assert exporter.ask(case(saved / "any.pt2", "latency").line())["set"]["items"] == 1


def test_a_program_is_a_model_of_ones_own(exporter, saved):
    answer = exporter.ask(case(saved / "any.pt2").line())
    assert answer["golden"] and answer["set"]["outputs"] == "output"
    state = tensor_file.read_tensors(answer["state"], "state")
    assert "parameter.program.layer.weight" in state and state["input"].shape == (1, 4, 8)


def test_a_damaged_file_is_refused(exporter, saved):
    whole = bytearray((saved / "Plain.pt").read_bytes())
    place = whole.find(b"PK\x01\x02") // 2
    whole[place] ^= 1
    (saved / "damaged.pt").write_bytes(whole)
    error = exporter.ask(case(saved / "damaged.pt", input="4x8").line())["error"]
    assert "damaged.pt: expected" in error and "\n" not in error


def test_a_file_that_is_replaced_is_noticed(saved):
    path = saved / "replaced.pt"
    path.write_bytes((saved / "Plain.pt").read_bytes())
    planned = case(path)
    file.of(planned)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    with pytest.raises(InputError, match="expected the file that the run began with, found anothe"):
        file.of(planned)
    path.unlink()
    with pytest.raises(InputError, match="the file that the run began with, found none"):
        file.of(planned)


def test_a_wrong_file_among_several_costs_its_own_rows(exporter, saved):
    good, bad = saved / "Plain.pt", saved / "Net.pt"
    others = f"{bad}\n{file._stamp(bad)} {bad}\n"
    answer = exporter.ask(case(good, input="4x8", others=others).line())
    path, reason = answer["set"]["refused"].splitlines()
    assert path == str(bad) and "expected a model that takes 4x8:float32" in reason
    row = case(good, stamp=f"{file._stamp(bad)} {bad}", refused=answer["set"]["refused"])
    with pytest.raises(InputError, match="expected a model that takes 4x8:float32"):
        file.of(row)
    file.of(case(good, refused=answer["set"]["refused"]))


def test_a_folder_of_code_makes_no_program(tmp_path):
    for inside, found in (("code/torchvision/models/a.py", False), ("models/model.json", True)):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr(f"a/{inside}", "")
        assert trial.is_program(tmp_path / "a.pt") == found


def test_specs():
    assert file.parse_specs("?x8:int64;3") == [((None, 8), torch.int64), ((3,), torch.float32)]
    assert file.given_batch(file.parse_specs("4x8;4:int64")) == 4
    assert file.given_batch(file.parse_specs("?x8;?")) == 1
    assert file.given_batch(file.parse_specs("5x1x8;1x8")) is None
    with pytest.raises(SettingsError, match="expected sizes and a dtype"):
        file.parse_specs("4x8:floaty")


def test_a_package_of_others_is_tried_in_a_process_of_its_own(exporter, saved, package):
    answer = exporter.ask(case(package, input="4x8").line())
    assert answer["set"]["outputs"] == "output" and answer["set"]["flops"] == 0
    error = exporter.ask(case(package, input="4x9").line())["error"]
    assert "unmatched dim value at 1, expected: 8, but got: 9" in error and "\n" not in error
    for more in ({}, {"batch": 1}):  # which the program says of every case of this phase
        latency = case(package, "latency", input="4x8", **more)
        assert "takes no batch of 1" in exporter.ask(latency.line())["skipped"]
    row = case(package, input="4x8", state=answer["state"], artifact=package, **answer["set"])
    worker = Process("torchpace.worker", "--runtime", "py-aot", greets=True)
    assert "load_s" in worker.ask(f"load {row.line()}")
    assert worker.ask(f"write {saved / 'values.pt'}") == {"written": 8}
    script = row.replace(
        artifact=saved / "Plain.pt", stamp=f"{file._stamp(saved / 'Plain.pt')} {saved / 'Plain.pt'}"
    )
    assert worker.close() == 0
    worker = Process("torchpace.worker", "--runtime", "py-torchscript", greets=True)
    assert "load_s" in worker.ask(f"load {script.line()}")
    assert not worker.ask(f"check {saved / 'values.pt'}")["passed"]  # other weights
    assert worker.close() == 0


def test_a_package_of_channels_last_inputs(exporter, saved):
    net, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(net, (x.to(memory_format=torch.channels_last),))
    path = saved / "image.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    error = exporter.ask(case(path, input="2x3x8x8").line())["error"]
    assert "unmatched stride" in error and "2x3x8x8:float32:channels_last" in error
    fits = case(path, input="2x3x8x8", memory_format="channels_last")
    answer = exporter.ask(fits.line())
    row = fits.replace(state=answer["state"], artifact=path, **answer["set"])
    worker = Process("torchpace.worker", "--runtime", "py-aot", greets=True)
    assert "load_s" in worker.ask(f"load {row.line()}")
    assert worker.close() == 0


def test_a_file_that_kills_its_process_is_refused_alone(exporter, saved, tmp_path, monkeypatch):
    """The code behind a custom operator may do anything."""
    kills = tmp_path / "sitecustomize.py"
    kills.write_text(
        "import os, sys\nif 'torchpace.trial' in sys.orig_argv:\n    os.kill(os.getpid(), 11)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{PYTHON}")
    tried = trial.try_file(saved / "Plain.pt", [torch.randn(4, 8)], case(saved / "Plain.pt"))
    assert tried.refused.endswith("expected a file that runs, it died of SIGSEGV; make it again")


@pytest.mark.skipif(program() is None, reason="torchpace is not built")
def test_one_file_in_both_languages(saved, tmp_path):
    """The smallest whole run: every mode in both languages, checked against plain Python."""
    done = subprocess.run(
        [
            *(program(), "compare", "--model", "Plain.pt", "--input", "1x8", "--no-html"),
            *("--invocations", "1", "--rounds", "3", "--threads", "1", "--device", "cpu"),
            *("--cache", tmp_path / "cache", "--output", tmp_path / "report"),
        ],
        cwd=saved,
        env=os.environ | {"TORCHPACE_PYTHON_PATH": str(PYTHON)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "report" / "results.json").read_text())["cases"]
    assert result["case"] == "Plain_latency" and result["reference"] == "py-torchscript"
    rows = {row["runtime"]: row for row in result["runtimes"]}
    languages, modes = ("py-torchscript", "cpp-torchscript"), ("", "@freeze", "@optimize")
    expected = {language + mode for language in languages for mode in modes}
    assert {name for name in rows if "(" not in name and "#" not in name} == expected
    assert all(row["status"] == "ok" for row in rows.values()), rows
