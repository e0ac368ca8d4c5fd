"""Where the time of a step goes: what the worker's probes measure (docs/worker-protocol.md).

They disturb the step, so none runs while steps are timed. Both languages take torch's own profiler
(Kineto), so that it adds the same to both. Twin: include/torchpace/profiling.hpp.
"""

from __future__ import annotations

import bisect
import contextlib
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from torchpace import timing
from torchpace.case_phase import CASE_PHASES
from torchpace.errors import InputError
from torchpace.workload import Workload

WARM_UPS = 2  # unrecorded steps before a probe
GEMM_TILE = 1024  # drawn on the host; as in C++
DISPATCH_CALLS = 500  # of an empty operator in one sample
PART_MARK = "torchpace part: "  # before the name of a part, in a profile
MATMUL_WARM_UP_S = 0.1  # what clocks and libraries need, which choose a kernel at the first call
# at::RecordScope
FUNCTION, BACKWARD_FUNCTION = 0, 1


@dataclass
class Call:
    """One call of an operator in a profile."""

    name: str
    part: str
    self_ns: float
    device_ns: float
    outer: bool  # inside of nothing else recorded: neither another operator nor the engine


def time_parts(workload: Workload, steps: int) -> dict[str, list[float]]:
    """Times of the parts of `steps` steps in ns, synchronized between them.

    What a part does in several pieces is added up. Raises InputError where a step has no parts.
    """
    if not workload.parts(0):
        raise InputError(
            "parts: expected a step with parts that can be told apart, found one piece; ask for "
            "its operators"
        )
    times: dict[str, list[float]] = defaultdict(lambda: [0.0] * steps)
    now = time.perf_counter_ns
    with timing.without_collector(), workload.turn():
        _warm_up(workload)
        for step in range(steps):
            parts = workload.parts(WARM_UPS + step)
            for name, run in parts:
                started = now()
                run()
                workload.synchronize()
                times[name][step] += now() - started
    return dict(times)


def profile_operators(workload: Workload, steps: int) -> dict[str, Any]:
    """The answer to `operators`: `steps` steps under the profiler, part by part where there are
    parts.
    """
    times = []
    with timing.without_collector(), workload.turn(), _synchronizations(workload) as warned:
        with _profiler(workload.device):
            # The first profile of a process takes memory between the tensors' own, and the page
            # faults of that make its steps half as long again: it is thrown away.
            _warm_up(workload, steps)
        warned.clear()
        with _profiler(workload.device) as profile:
            for index in range(WARM_UPS, WARM_UPS + steps):
                started = time.perf_counter_ns()
                for name, run in workload.parts(index) or _whole(workload, index):
                    with profiler.record_function(PART_MARK + name):
                        run()
                workload.synchronize()
                times.append(time.perf_counter_ns() - started)
    totals: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * 4)
    for call in _calls(profile):
        total = totals[call.part, call.name]
        for i, value in enumerate((1, call.outer, call.self_ns, call.device_ns)):
            total[i] += value
    keys = ("calls", "outer_calls", "self_ns", "device_ns")
    return {
        "operators": [
            {"name": name, "part": part, **_per_step(keys, total, steps)}
            for (part, name), total in sorted(totals.items())
        ],
        "step_ns": times,
        "synchronizations": len(warned) / steps,
        "compiled": workload.compiled_kernels,
    }


def time_dispatch(workload: Workload, samples: int) -> dict[str, list[float]]:
    """What `add_` of a tensor without elements costs in ns, on the workload's device and in its
    mode of autograd: without a profiler, with it, and what it then says.
    """
    with timing.without_collector(), torch.inference_mode(not workload.phase.trains):
        empty, other = (torch.empty(0, device=workload.device) for _ in range(2))

        def sample() -> float:
            started = time.perf_counter_ns()
            for _ in range(DISPATCH_CALLS):
                empty.add_(other)
            workload.synchronize()
            return (time.perf_counter_ns() - started) / DISPATCH_CALLS

        sample()
        plain = [sample() for _ in range(samples)]
        with _profiler(workload.device) as profile:
            sample()
            profiled = [sample() for _ in range(samples)]
    selfs = [call.self_ns for call in _calls(profile)]
    said = [
        sum(selfs[begin : begin + DISPATCH_CALLS]) / DISPATCH_CALLS
        for begin in range(DISPATCH_CALLS, len(selfs), DISPATCH_CALLS)
    ]
    return {"operator_ns": plain, "profiled_ns": profiled, "profiled_self_ns": said}


def time_matmul(workload: Workload, size: int, samples: int) -> list[float]:
    """Times of products of two size x size matrices in ns: in the dtype that the workload's own
    products have, on its device, with the threads of this process. On CUDA between events.
    """
    product = _Product(workload, size)
    started = time.perf_counter()
    while time.perf_counter() - started < MATMUL_WARM_UP_S:
        product.step(0)
        workload.synchronize()
    block = timing.measure(product, samples, 0, 1)  # type: ignore[arg-type]
    return block.step_ns if workload.device.type == "cpu" else block.device_ns


class _Product:
    """As much of a workload as the timed loop needs; a step is a product of two matrices."""

    phase = CASE_PHASES["inference"]

    def __init__(self, workload: Workload, size: int):
        self.device = workload.device
        # Numbers of its own: the workload's random state stays as it is. A tile of them, repeated:
        # all would take the host longer than the device takes for the products.
        generator = torch.Generator().manual_seed(0)
        tile = min(size, GEMM_TILE)
        times = -(-size // tile)
        self.a, self.b = (
            torch.randn(tile, tile, generator=generator)
            .to(self.device, workload.precision)
            .repeat(times, times)[:size, :size]
            .contiguous()
            for _ in range(2)
        )
        self.product = torch.empty_like(self.a)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def step(self, index: int) -> Tensor:
        return torch.mm(self.a, self.b, out=self.product)


def _per_step(keys: Sequence[str], totals: Sequence[float], steps: int) -> dict[str, float]:
    return {key: total / steps for key, total in zip(keys, totals, strict=True)}


def _whole(workload: Workload, index: int) -> list[tuple[str, Callable[[], Any]]]:
    return [("step", lambda: workload.step(index))]


def _warm_up(workload: Workload, steps: int = WARM_UPS) -> None:
    for index in range(steps):
        workload.step(index)
    workload.synchronize()


def _profiler(device: torch.device) -> profiler.profile:
    return profiler.profile(use_device="cuda" if device.type == "cuda" else None, use_kineto=True)


@contextlib.contextmanager
def _synchronizations(workload: Workload) -> Iterator[list[warnings.WarningMessage]]:
    """Collects a warning for each operator that waits for the device. The CPU has none."""
    if workload.device.type != "cuda":
        yield []
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _calls(profile: profiler.profile) -> list[Call]:
    """The calls of operators, in the order of their begin."""
    recorded, parts = [], []
    device_ns: dict[int, float] = defaultdict(float)  # by the call that enqueued it
    for event in profile.kineto_results.events():
        if event.device_type() != torch.autograd.DeviceType.CPU:
            device_ns[event.linked_correlation_id()] += event.duration_ns()
        elif event.name().startswith(PART_MARK):
            parts.append((event.start_ns(), event.name().removeprefix(PART_MARK)))
        # CUDA's runtime is linked to the operator that called it.
        elif not event.linked_correlation_id() and event.scope() in (FUNCTION, BACKWARD_FUNCTION):
            recorded.append(event)
    parts.sort()
    begins = [begin for begin, _ in parts]
    recorded.sort(key=lambda event: (event.start_ns(), -event.end_ns()))

    calls: list[Call] = []
    open_frames: dict[int, list[tuple[int, Call | None]]] = defaultdict(list)  # by thread
    for event in recorded:
        begin, end, name = event.start_ns(), event.end_ns(), event.name()
        stack = open_frames[event.start_thread_id()]
        while stack and stack[-1][0] <= begin:
            stack.pop()
        if not _is_operator(event, name):
            stack.append((end, None))
            continue
        caller = next((call for _, call in reversed(stack) if call), None)
        if caller:
            caller.self_ns -= end - begin
        # Of the part that began last, on whatever thread: parts end synchronized.
        index = bisect.bisect_right(begins, begin) - 1
        part = parts[index][1] if index >= 0 else ""
        device = device_ns.get(event.correlation_id(), 0.0)
        calls.append(Call(name, part, end - begin, device, not stack))
        stack.append((end, calls[-1]))
    return calls


def _is_operator(event: Any, name: str) -> bool:
    """The autograd engine records what it does as functions too."""
    return event.scope() == FUNCTION and "::" in name and not name.startswith("autograd::")
