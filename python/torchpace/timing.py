"""The timed loop: the one place in Python that reads a clock around a step.

Twin: include/torchpace/timing.hpp.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from torchpace.workload import Workload


@dataclass
class Block:
    """The recorded steps of one turn. Times are per step, in ns; counts are of the whole block."""

    step_ns: list[float]
    device_ns: list[float] = field(default_factory=list)
    enqueue_ns: list[float] = field(default_factory=list)
    page_faults: int = 0
    involuntary_switches: int = 0

    def json(self) -> dict:
        return asdict(self)


def measure(workload: Workload, samples: int, warmup: int, steps: int) -> Block:
    """Runs one turn: `warmup` unrecorded steps, then `samples` samples of `steps` steps each.

    On the CPU the samples share one chain of clock reads. On CUDA, in phase `latency`, every step
    is synchronized; in the other phases the device is kept busy and a sample lasts from one
    completion to the next, by events.
    """
    with without_collector(), workload.turn():
        for index in range(warmup):
            workload.step(index)
        if workload.device.type == "cpu":
            return _on_cpu(workload, samples, warmup, steps)
        if workload.phase.batch_of_one:
            return _synchronized(workload, samples, warmup, steps)
        return _throughput(workload, samples, warmup, steps)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """It would run inside a sample, on garbage that another sample made."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def first(workload: Workload, steps: int) -> dict[str, float]:
    """One turn from its first step, synchronized after it, in seconds: `first_step_s`, and with
    `steps` `steps_s`, until that many steps are done.
    """
    with workload.turn():
        started = time.perf_counter()
        workload.step(0)
        workload.synchronize()
        times = {"first_step_s": time.perf_counter() - started}
        if steps:
            for index in range(1, steps):
                workload.step(index)
            workload.synchronize()
            times["steps_s"] = time.perf_counter() - started
    return times


def _on_cpu(workload: Workload, samples: int, index: int, steps: int) -> Block:
    now, step = time.perf_counter_ns, workload.step
    times = [0] * (samples + 1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    times[0] = now()
    for k in range(1, samples + 1):
        for _ in range(steps):
            step(index)
            index += 1
        times[k] = now()
    block = _counted(before)
    block.step_ns = [(times[k + 1] - times[k]) / steps for k in range(samples)]
    return block


def _synchronized(workload: Workload, samples: int, index: int, steps: int) -> Block:
    """step_ns ends with the device's completion. Without events, which would cost a share of a
    short step, and another one in C++; device_ns and enqueue_ns are of further steps, one for four
    samples, each between two events.
    """
    now, step = time.perf_counter_ns, workload.step
    walls, enqueues, devices = [], [], []
    with torch.cuda.device(workload.device):
        stream = torch.cuda.current_stream()
        (start, end), wait = _events(stream, 2), stream.synchronize
        wait()
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(samples):
            wall = 0
            for _ in range(steps):
                started = now()
                step(index)
                wait()
                wall += now() - started
                index += 1
            walls.append(wall / steps)
        block = _counted(before)
        for _ in range(0, samples, 4):
            start.record(stream)
            started = now()
            step(index)
            enqueues.append(now() - started)
            end.record(stream)
            end.synchronize()
            devices.append(start.elapsed_time(end) * 1e6)
            index += 1
    block.step_ns, block.enqueue_ns, block.device_ns = walls, enqueues, devices
    return block


def _throughput(workload: Workload, samples: int, index: int, steps: int) -> Block:
    """step_ns: from the completion of the sample before to this one's, which is wall time, gaps of
    the device in it.

    device_ns: from a sample's own first event to its last, which leaves out what the host does
    between samples. The host stays at most one sample ahead, so that enqueue_ns is its own work and
    not the wait for a full queue.
    """
    now, step = time.perf_counter_ns, workload.step
    with torch.cuda.device(workload.device):
        stream = torch.cuda.current_stream()
        starts, ends = _events(stream, samples + 1), _events(stream, samples + 1)
        enqueues = [0.0] * samples
        before = resource.getrusage(resource.RUSAGE_SELF)
        ends[0].record(stream)  # the warm-up's completion
        for k in range(samples):
            if k > 0:
                ends[k - 1].synchronize()
            started = now()
            starts[k].record(stream)
            for _ in range(steps):
                step(index)
                index += 1
            ends[k + 1].record(stream)
            enqueues[k] = (now() - started) / steps
        torch.cuda.synchronize()
        block = _counted(before)
        block.step_ns = [ends[k].elapsed_time(ends[k + 1]) * 1e6 / steps for k in range(samples)]
        block.device_ns = [
            starts[k].elapsed_time(ends[k + 1]) * 1e6 / steps for k in range(samples)
        ]
    block.enqueue_ns = enqueues
    return block


def _events(stream: torch.cuda.Stream, count: int) -> list[torch.cuda.Event]:
    """Events that have been recorded once: torch makes the driver's event in the first record."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
    for event in events:
        event.record(stream)
    return events


def _counted(before: resource.struct_rusage) -> Block:
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    return Block([], page_faults=faults, involuntary_switches=after.ru_nivcsw - before.ru_nivcsw)


def slow_down(workload: Workload, fraction: float) -> None:
    """Makes steps, and the parts of one, last (1 + fraction) of their own time: for tests of the
    verdicts and of explanations.
    """
    now, parts = time.perf_counter_ns, workload.parts

    def slowed(run: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            started = now()
            result = run(*arguments)
            workload.synchronize()
            until = now() + fraction * (now() - started)
            while now() < until:
                pass
            return result

        return slow

    workload.step = slowed(workload.step)  # type: ignore[method-assign]
    workload.parts = lambda index: [  # type: ignore[method-assign]
        (name, slowed(run)) for name, run in parts(index)
    ]
