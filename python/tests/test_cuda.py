"""What can be told of the CUDA path on a machine without a GPU."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from torchpace import profiling, timing
from torchpace.case_phase import CASE_PHASES

PYTHON = Path(__file__).resolve().parents[1]
FORK = """
import os, torch
{before}
child = os.fork()
if child == 0:
    os._exit(torch.cuda._is_in_bad_fork())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
BEFORE_THE_FORK = {
    "the compiler": "from torchpace.aot import inductor; inductor.prepare()",
    "the optimizers": "torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])",
    "the environment": "from torchpace import environment; environment.describe(None)",
    "a question to the driver": "torch.cuda.is_available()",
}


@pytest.mark.parametrize("what", BEFORE_THE_FORK)
def test_a_child_may_use_cuda_after(what):
    """CUDA that is initialized before a fork is lost to the child; the last is what that means."""
    if not torch.backends.cuda.is_built():
        pytest.skip("a torch without CUDA")
    code = FORK.format(before=BEFORE_THE_FORK[what])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PYTHON, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == ("1" if what == "a question to the driver" else "0")


class Recorder:
    """Takes the place of torch.cuda, and writes down what is called."""

    def __init__(self):
        self.calls: list[str] = []

    def Event(self, enable_timing=False):  # noqa: N802
        self.calls.append("new event")
        return SimpleNamespace(
            record=lambda stream: self.calls.append("record"),
            synchronize=lambda: self.calls.append("wait for event"),
            elapsed_time=lambda end: 1.0,
        )

    def current_stream(self):
        self.calls.append("current_stream")
        return SimpleNamespace(synchronize=lambda: self.calls.append("wait for stream"))

    def device(self, device):
        return contextlib.nullcontext()

    def synchronize(self):
        self.calls.append("synchronize")


@pytest.fixture
def cuda(monkeypatch):
    recorder = Recorder()
    for name in ("Event", "current_stream", "device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(recorder, name))
    return recorder


def measured(cuda, phase, samples, steps):
    """The calls of a block, from its first step to its last."""
    workload = SimpleNamespace(
        phase=CASE_PHASES[phase],
        device=torch.device("cuda"),
        step=lambda index: cuda.calls.append("step"),
        turn=contextlib.nullcontext,
    )
    block = timing.measure(workload, samples, 0, steps)
    calls = cuda.calls
    first = calls.index("step")
    last = len(calls) - calls[::-1].index("step")
    return block, calls[:first], calls[first:last]


def test_a_latency_sample_is_a_step_and_a_wait(cuda):
    block, before, within = measured(cuda, "latency", samples=4, steps=2)
    assert before.count("current_stream") == 1 and before.count("new event") == 2
    assert within[:16] == ["step", "wait for stream"] * 8
    assert within[16:] == ["record", "step"]
    assert (len(block.step_ns), len(block.enqueue_ns), len(block.device_ns)) == (4, 1, 1)


def test_a_throughput_sample_makes_no_event_and_looks_up_no_stream(cuda):
    block, before, within = measured(cuda, "inference", samples=3, steps=2)
    assert before.count("current_stream") == 1 and before.count("new event") == 8
    # Each event was recorded before, which makes the driver's; then the warm-up's end, and a start.
    assert before.count("record") == 8 + 2
    sample = ["step", "step", "record"]
    assert within == [*sample, "wait for event", "record", *sample, "wait for event", "record"] + [
        "step",
        "step",
    ]
    assert len(block.step_ns) == len(block.device_ns) == 3


def test_the_matrices_of_the_gemm_peak_are_not_drawn_whole(monkeypatch):
    drawn = []
    real = torch.randn

    def randn(*sizes, **options):
        drawn.append(sizes)
        return real(*sizes, **options)

    monkeypatch.setattr(torch, "randn", randn)
    workload = SimpleNamespace(device=torch.device("cpu"), precision=torch.float32)
    product = profiling._Product(workload, 1500)
    assert set(drawn) == {(1024, 1024)}
    assert product.a.shape == product.b.shape == product.product.shape == (1500, 1500)
    torch.testing.assert_close(product.a[1024:, :476], product.a[:476, :476])
