import ctypes
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, Process

from torchpace.io import tensor_file
from torchpace.settings import encode

MUTATIONS = {
    "gptlite": [
        {"causal": 0},
        {"scale": 0.2},  # right are 1 / 4 at size smoke and 0.177 at size quick
        {"swap": "blocks.0.attention.qkv.weight,blocks.1.attention.qkv.weight"},
        {"swap": "blocks.0.feed_forward.expand.weight,blocks.1.feed_forward.expand.weight"},
    ],
    "dnn": [
        {"swap": "layers.{first}.weight,layers.{middle}.weight"},
        {"swap": "layers.{middle}.weight,layers.{last}.weight"},
        {"swap": "layers.{last}.weight,layers.{first}.weight"},
    ],
}


@pytest.mark.parametrize("size", ["smoke", "quick"])
@pytest.mark.parametrize("family", ["gptlite", "dnn_deep", "dnn_wide"])
@pytest.mark.parametrize("phase", ["train", "inference"])
def test_parity_passes_and_every_mutation_fails(worker, exported, tmp_path, size, family, phase):
    settings, answer = exported(f"{family}_{phase}/size:{size}")
    reference = encode(str(tmp_path / "a reference.pt"))

    def check(**changes):
        loaded = worker.ask("load " + settings.replace(**changes).line())
        assert "error" not in loaded, loaded
        return worker.ask(f"check {reference} {encode(answer['golden'])}")

    worker.ask("load " + settings.line())
    written = worker.ask(f"write {reference}")["written"]
    found = check()
    assert found["passed"] and found["compared"] == written, found
    assert 0 < found["max_abs_error"] < found["tolerance"], found
    mutations = list(MUTATIONS[settings["model"]])
    if phase == "train":
        mutations.append({"eps": 1e-6})
    if family == "gptlite":
        assert check(attention="explicit")["passed"]
    last = settings.integer("layers") - 1
    for mutation in mutations:
        if "swap" in mutation:
            swap = mutation["swap"].format(first=0, middle=(last + 1) // 2, last=last)
            if len(set(swap.split(","))) == 1:
                continue  # of two layers, the middle one is the last
            mutation = {"swap": swap}
        found = check(**mutation)
        assert not found["passed"], (mutation, found)
        assert (
            found["max_abs_error"] > found["tolerance"]
            or found["rms_error"] > found["rms_tolerance"]
        )


def test_load_states_the_cost_and_every_command_answers(worker, exported, tmp_path):
    assert worker.greeting == {"protocol": 1, "runtime": "py-eager", "cases": ["*"]}
    settings, _ = exported("dnn_deep_train/size:smoke")
    loaded = worker.ask("load " + settings.line())
    assert (
        loaded["flops"] == 3 * 65536 - 8192 and loaded["items"] == 4 and loaded["item"] == "samples"
    )
    assert loaded["parameter_bytes"] == 33792 and loaded["note"] == "" and loaded["load_s"] > 0
    assert loaded["compile_s"] == 0  # nothing is compiled
    assert worker.ask("first").keys() == {"first_step_s"}
    assert "expected no step since load" in worker.ask("first")["error"]
    worker.ask("load " + settings.line())
    found = worker.ask("first 10")
    assert 0 < found["first_step_s"] < found["steps_s"]
    block = worker.ask("run 5 2")
    assert len(block["step_ns"]) == 5 and min(block["step_ns"]) > 0
    assert block["device_ns"] == block["enqueue_ns"] == []
    assert block["page_faults"] >= 0 and block["involuntary_switches"] >= 0
    assert len(worker.ask("run 3 0 4")["step_ns"]) == 3
    memory = worker.ask("memory")
    assert 0 < memory["resident_bytes"] <= memory["resident_peak_bytes"]
    assert memory["device_driver_bytes"] == memory["device_allocated_peak_bytes"] == 0
    environment = worker.ask("environment")
    assert (
        environment["language"] == "python"
        and environment["threads"] == 1 == environment["interop_threads"]
    )
    assert (
        environment["torch"] == torch.__version__ and environment["optimizer"] == "adam per-tensor"
    )
    assert all(not isinstance(value, (dict, list)) for value in environment.values())
    losses = worker.ask("losses 12")
    assert len(losses["losses"]) == 12 and losses["seconds"] > 0


def test_every_turn_starts_from_the_same_state(worker, exported, tmp_path):
    settings, _ = exported("gptlite_train/size:smoke", dropout=0.1)
    assert worker.ask("load " + settings.line())["note"] == "checked at dropout 0"
    first = worker.ask("losses 6")["losses"]
    worker.ask("run 4 1")
    assert worker.ask("losses 6")["losses"] == first
    before, after = tmp_path / "before.pt", tmp_path / "after.pt"
    worker.ask(f"write {before}")
    worker.ask("run 4 1")
    worker.ask(f"write {after}")
    one, other = (tensor_file.read_tensors(path, "values") for path in (before, after))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_losses_take_fresh_batches_and_fall(worker, exported):
    settings, _ = exported("gptlite_train/size:smoke", lr=1e-2)
    worker.ask("load " + settings.line())
    losses = worker.ask("losses 60")["losses"]
    assert losses[0] == pytest.approx(math.log(65), abs=0.2) and losses[-1] < 3
    assert len(set(losses)) == 60
    settings, _ = exported("gptlite_inference/size:smoke")
    worker.ask("load " + settings.line())
    assert "phase train" in worker.ask("losses 3")["error"]


def test_bfloat16_passes_its_own_parity_and_sees_a_swap(worker, exported, tmp_path):
    settings, answer = exported("dnn_deep_train/size:smoke", dtype="bfloat16")
    assert worker.ask("load " + settings.line())["parameter_bytes"] == 16896
    reference = tmp_path / "reference.pt"
    worker.ask(f"write {reference}")
    assert (
        tensor_file.read_tensors(reference, "values")["gradient.layers.0.weight"].dtype
        == torch.bfloat16
    )
    assert worker.ask(f"check {reference} {answer['golden']}")["passed"]
    worker.ask("load " + settings.replace(swap="layers.0.weight,layers.7.weight").line())
    assert not worker.ask(f"check {reference} {answer['golden']}")["passed"]


def test_errors_are_one_line_and_the_worker_stays(worker, exported, tmp_path):
    settings, answer = exported("dnn_deep_train/size:smoke")
    state = tensor_file.read_tensors(settings["state"], "state")

    def with_state(change) -> str:
        changed = dict(state)
        change(changed)
        tensor_file.write_tensors(tmp_path / "changed.pt", changed)
        return worker.ask("load " + settings.replace(state=tmp_path / "changed.pt").line())["error"]

    def of_file(content: bytes) -> str:
        (tmp_path / "damaged.pt").write_bytes(content)
        return worker.ask("load " + settings.replace(state=tmp_path / "damaged.pt").line())["error"]

    whole = Path(settings["state"]).read_bytes()
    torch.save({"torchpace.format": torch.tensor(2)}, tmp_path / "version.pt")
    version = (tmp_path / "version.pt").read_bytes()
    errors = {
        "expected parameter layers.0.weight": with_state(
            lambda s: s.pop("parameter.layers.0.weight")
        ),
        "found also parameter extra (1 extra)": with_state(
            lambda s: s.update({"parameter.extra": torch.zeros(1)})
        ),
        "expected shape [32], found [33]": with_state(
            lambda s: s.update({"parameter.layers.2.bias": torch.zeros(33)})
        ),
        "expected 'input' [N, ...], found none": with_state(lambda s: s.pop("input")),
        "damaged or foreign file": of_file(whole[: len(whole) // 2]),
        "found a damaged": of_file(b"not a file of tensors"),
        "expected format 1, found 2": of_file(version),
        "found none": worker.ask("load " + settings.replace(state="/nowhere.pt").line())["error"],
        "expected a value for 'state'": worker.ask("load " + settings.replace(state=None).line())[
            "error"
        ],
        "threads: expected at least 1": worker.ask("load " + settings.replace(threads=0).line())[
            "error"
        ],
        "two parameters": worker.ask("load " + settings.replace(swap="a,b").line())["error"],
        "equal shapes": worker.ask(
            "load " + settings.replace(swap="layers.0.weight,layers.0.bias").line()
        )["error"],
        "expected a loaded case": worker.ask("run 3 1")["error"],  # a failed load leaves none
        "command: expected one of": worker.ask("dance")["error"],
    }
    for expected, error in errors.items():
        assert expected in error, (expected, error)
        assert "\n" not in error
    assert "load_s" in worker.ask("load " + settings.line())
    for command in (
        "run",
        "run 0 1",
        "run 1 -1",
        "run 1 1 0",
        "run x 1",
        "first 0",
        "first x",
        "losses",
        "losses 0",
        "check",
        "write",
    ):
        assert "expected" in worker.ask(command)["error"], command
    assert "cannot write" in worker.ask("write /nowhere/values.pt")["error"]
    assert "reference: expected a file" in worker.ask("check /nowhere/values.pt")["error"]
    if not torch.cuda.is_available():
        assert (
            "no CUDA device"
            in worker.ask("load " + settings.replace(device="cuda:0").line())["skipped"]
        )


def test_a_reference_of_another_model_fails_with_names(worker, exported, tmp_path):
    small, _ = exported("dnn_deep_inference/size:smoke")
    other, answer = exported("dnn_deep_train/size:smoke")
    worker.ask("load " + small.line())
    worker.ask(f"write {tmp_path / 'other.pt'}")
    worker.ask("load " + other.line())
    found = worker.ask(f"check {tmp_path / 'other.pt'} {answer['golden']}")
    assert not found["passed"] and found["max_abs_error"] is None and "lacks" in found["note"]


def test_standard_output_carries_answers_only():
    """A library that prints to file descriptor 1 must not break the protocol."""
    code = (
        "import os, sys; from torchpace.worker.protocol import open_protocol; "
        "answer = open_protocol(); "
        "print('noise', flush=True); os.write(1, b'more noise\\n'); answer({'a': 1})"
    )
    environment = os.environ | {"PYTHONPATH": str(PYTHON)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == '{"a": 1}\n' and done.stderr == "noise\nmore noise\n"


def test_list_and_bad_options():
    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(PYTHON)}
        command = [sys.executable, "-m", "torchpace.worker", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    listed = run("--list")
    assert listed.returncode == 0
    found = {line["runtime"]: line for line in map(json.loads, listed.stdout.splitlines())}
    assert found["py-eager"]["description"] and found["py-eager"]["artifact"] == ""
    wrong = run("--runtime", "py-magic")
    assert wrong.returncode == 2 and "got 'py-magic'" in wrong.stderr and "py-eager" in wrong.stderr
    assert run("--runtime", "py-eager", "--fail", "explode@load").returncode == 2


def test_slow_and_fail_are_what_the_controllers_tests_need(exported):
    settings, _ = exported("dnn_wide_inference/size:quick")
    process = Process(
        "torchpace.worker",
        "--runtime",
        "py-eager",
        "--slow",
        "3",
        "--fail",
        "memory@first",
        greets=True,
    )
    process.ask("load " + settings.line())
    assert len(process.ask("run 3 1")["step_ns"]) == 3
    assert "out of memory" in process.ask("first")["error"]
    assert process.close() == 0
    process = Process(
        "torchpace.worker", "--runtime", "py-eager", "--fail", "die@load", greets=True
    )
    process.say("load x=1")
    assert process.process.wait(timeout=30) == 3
    process.process.stdout.close()


def test_a_slowed_step_lasts_longer_by_its_fraction(monkeypatch):
    from torchpace import timing

    now = [0]
    monkeypatch.setattr(
        timing.time, "perf_counter_ns", lambda: now.__setitem__(0, now[0] + 1) or now[0]
    )

    class Step:
        def work(self, index):
            now[0] += 1000
            return index

        def step(self, index):
            return self.work(index)

        def parts(self, index):
            return [("forward", lambda: self.work(index))]

        def synchronize(self):
            pass

    workload = Step()
    timing.slow_down(workload, 0.5)
    ((name, forward),) = workload.parts(7)
    assert name == "forward"
    for run in (lambda: workload.step(7), forward):
        started = now[0]
        assert run() == 7
        assert now[0] - started == pytest.approx(1500, abs=10)


def test_artifacts_and_preparation_of_a_runtime(monkeypatch, tmp_path):
    from torchpace import runtimes
    from torchpace.worker.commands import Worker

    (tmp_path / "x.py").write_text(
        'import nothing\nARTIFACTS = {"py-x": "kind"}\nRUNTIMES = {"py-x": "a", "py-y": "b"}\n'
    )
    monkeypatch.setattr(runtimes, "__file__", str(tmp_path / "__init__.py"))
    found = runtimes.list_runtimes()
    assert (found["py-x"].artifact, found["py-y"].artifact) == ("kind", "")
    assert found["py-x"].module == "x" and found["py-x"].description == "a"
    monkeypatch.undo()

    prepared = []
    worker = Worker("py-eager")
    monkeypatch.setattr(worker.runtime, "prepare", lambda: prepared.append(1), raising=False)
    worker.prepare("load phase=inference")
    worker.prepare("load phase=inference")
    assert prepared == [1] and worker.imports_s["runtime"] > 0
    assert "optimizer" not in worker.imports_s
    worker.prepare("load phase=train")
    assert worker.imports_s["optimizer"] > 0


def test_every_load_counts_the_imports_that_a_fresh_process_would_pay(exported):
    from torchpace.worker.commands import Worker

    worker = Worker("py-eager")
    worker.imports_s = {"runtime": 1000.0, "optimizer": 2000.0}
    for phase, least in [("inference", 1000), ("train", 3000)] * 2:
        settings, _ = exported(f"dnn_deep_{phase}/size:smoke")
        assert least <= worker.answer("load " + settings.line())["load_s"] < least + 900


def test_a_workload_compiles_at_load_and_settles_before_it_is_timed(exported, monkeypatch):
    from torchpace.worker.commands import Worker

    settings, _ = exported("dnn_deep_inference/size:smoke")
    worker, called = Worker("py-eager"), []
    load = worker.runtime.load

    def load_recorded(*arguments):
        workload = load(*arguments)
        workload.compile = lambda: (time.sleep(0.05), called.append("compile"))
        workload.warm_up = lambda: called.append("warm_up")
        return workload

    monkeypatch.setattr(worker.runtime, "load", load_recorded)
    loaded = worker.answer("load " + settings.line())
    assert called == ["compile"] and loaded["compile_s"] >= 0.05
    worker.answer("first 2")
    assert called == ["compile"]
    worker.answer("run 1 0")
    worker.answer("run 1 0")
    assert called == ["compile", "warm_up"]
    worker.answer("load " + settings.line())
    worker.answer("run 1 0")
    assert called == ["compile", "warm_up"] * 2


MAPPING = """
import ctypes, os
import torch
from torchpace.worker.commands import mapped_blocks

class Info(ctypes.Structure):
    _fields_ = [(f"field_{i}", ctypes.c_size_t) for i in range(10)]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info

def maps_a_block():
    before = mallinfo2().field_3  # hblks: blocks that are mapped
    block = torch.empty(6 << 20)
    return mallinfo2().field_3 > before and block.numel() > 0

with mapped_blocks():
    at_load = maps_a_block()
print(at_load, maps_a_block())
"""


def test_large_weights_are_mapped_where_steps_keep_the_heap():
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("no glibc of 2.33 or later here")
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "33554432", "PYTHONPATH": str(PYTHON)}
    told = subprocess.run(  # of a heap that no other test has used
        [sys.executable, "-c", MAPPING], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "True False"
