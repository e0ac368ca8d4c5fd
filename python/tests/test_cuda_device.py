"""What only a GPU can show of workers and programs: they skip without one.

TORCHPACE_TEST_DEVICE=cpu tries the tests themselves on a CPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, Process

from torchpace.settings import encode

DEVICE = os.environ.get("TORCHPACE_TEST_DEVICE", "cuda:0")
BUILD = Path(os.environ.get("TORCHPACE_BUILD", PYTHON.parent / "build" / "release"))
PROGRAMS = Path(os.environ.get("TORCHPACE_PROGRAMS", BUILD / "bin"))

pytestmark = [
    pytest.mark.skipif(
        DEVICE != "cpu" and not torch.backends.cuda.is_built(), reason="a torch without CUDA"
    ),
    # Not torch.cuda.is_available(): it would initialize CUDA in the process that collects tests.
    pytest.mark.skipif(
        "TORCHPACE_TEST_DEVICE" not in os.environ and not Path("/dev/nvidiactl").exists(),
        reason="no CUDA device here",
    ),
    pytest.mark.skipif(
        not (PROGRAMS / "torchpace_worker").exists(), reason=f"no program in {PROGRAMS}"
    ),
]


@pytest.fixture
def worker_of():
    """runtime -> a process that serves it, in a group of its own as under `torchpace compare`."""
    processes = []

    def start(runtime: str) -> Process:
        arguments = ["torchpace.worker", "--runtime", runtime]
        program = None
        if runtime.startswith("cpp-"):
            program, arguments = PROGRAMS / "torchpace_worker", arguments[1:]
        processes.append(Process(*arguments, program=program, greets=True, start_new_session=True))
        return processes[-1]

    yield start
    for process in processes:
        os.killpg(process.process.pid, signal.SIGCONT)
        assert process.close() == 0


@pytest.mark.parametrize("runtime", ["cpp-eager", "py-eager"])
def test_cuda_worker_loads_runs_and_loads_again(runtime, worker_of, exported, tmp_path):
    """Each load is a fork, which may use the device although another one did before."""
    worker = worker_of(runtime)
    for name in ("dnn_wide_train/size:smoke", "gptlite_inference/size:smoke"):
        settings, answer = exported(name, device=DEVICE)
        assert "error" not in worker.ask("load " + settings.line())
        assert worker.ask("first")["first_step_s"] > 0
        reference = encode(str(tmp_path / "reference.pt"))
        worker.ask(f"write {reference}")
        found = worker.ask(f"check {reference} {encode(answer['golden'])}")
        assert found["passed"], found
        block = worker.ask("run 5 1")
        assert len(block["step_ns"]) == 5
        if DEVICE != "cpu":
            assert block["device_ns"] and min(block["device_ns"]) > 0
            memory = worker.ask("memory")
            assert 0 < memory["device_allocated_peak_bytes"] <= memory["device_driver_bytes"]


def test_cuda_worker_steps_beside_one_that_is_stopped(worker_of, exported):
    settings, _ = exported("dnn_wide_train/size:smoke", device=DEVICE)
    workers = [worker_of("cpp-eager"), worker_of("py-eager")]
    for worker in workers:
        assert "error" not in worker.ask("load " + settings.line())
    for turn in range(4):
        running, stopped = workers[turn % 2], workers[1 - turn % 2]
        os.killpg(stopped.process.pid, signal.SIGSTOP)
        assert len(running.ask("run 5 1")["step_ns"]) == 5
        os.killpg(stopped.process.pid, signal.SIGCONT)


@pytest.mark.skipif(DEVICE == "cpu", reason="of a device's memory")
@pytest.mark.parametrize("runtime", ["cpp-eager", "py-eager"])
def test_cuda_worker_outlives_what_does_not_fit(runtime, worker_of, exported, monkeypatch):
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    mebibytes = float(subprocess.check_output(query, text=True).splitlines()[0])
    # More than cuBLAS's workspace, less than two layers.
    limit = f"per_process_memory_fraction:{90 / mebibytes:.6f}"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", limit)
    worker = worker_of(runtime)
    large, _ = exported("dnn_wide_inference/size:smoke", device=DEVICE, layers=2, width=4096)
    assert "out of memory" in worker.ask("load " + large.line())["error"]
    small, _ = exported("dnn_wide_inference/size:smoke", device=DEVICE)
    assert "error" not in worker.ask("load " + small.line())
    assert len(worker.ask("run 2 0")["step_ns"]) == 2


def test_cuda_google_benchmark_program():
    program = PROGRAMS / "dnn_bench"
    if not program.exists():
        pytest.skip("built without Google Benchmark")
    done = subprocess.run(
        [
            program,
            f"--device={DEVICE}",
            "--benchmark_filter=dnn_(train|latency)/layers:2/",
            "--benchmark_min_time=0.05",
            "--benchmark_format=json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    benchmarks = json.loads(done.stdout)["benchmarks"]
    assert benchmarks and not any(each.get("error_occurred") for each in benchmarks), benchmarks
    if DEVICE != "cpu":
        assert all(each["peak_bytes"] > 0 for each in benchmarks), benchmarks


def test_cuda_every_runtime_agrees(tmp_path):
    """One comparison: outputs, losses, gradients and parameters of every row are checked there."""
    on_gpu = ["cpp-cuda-graph", "cpp-cuda-graph:aot"] if DEVICE != "cpu" else []
    compiled = ["py-aot", "cpp-aot", "cpp-torchscript", "cpp-compiled-train", *on_gpu]
    cases = "gptlite_inference,gptlite_train,dnn_wide_inference,dnn_wide_train"
    output = tmp_path / "report"
    command = [
        PROGRAMS / "torchpace", "compare", "--preset", "smoke", "--device", DEVICE,
        "--cases", cases, "--runtimes", ",".join(["py-eager", "cpp-eager", *compiled]),
        "--set", "optimizer=adam-fused,gemm=torch", "--threads", "2", "--invocations", "1",
        "--rounds", "1", "--no-html", "--output", output, "--cache", tmp_path / "cache",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads((output / "results.json").read_text())
    rows = [row | {"case": case["case"]} for case in results["cases"] for row in case["runtimes"]]
    bad = [(r["case"], r["runtime"], r.get("reason")) for r in rows if r["status"] == "failed"]
    assert not bad, bad
    assert {row["runtime"] for row in rows if row["status"] == "ok"} >= {
        "py-eager", "cpp-eager", *compiled
    }  # fmt: skip
