"""What a worker answers to each command.

Protocol: docs/worker-protocol.md. Twin: include/torchpace/detail/worker_commands.hpp.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchpace import environment, models, parity, runtimes, timing
from torchpace.data import text
from torchpace.errors import InputError
from torchpace.io import tensor_file
from torchpace.settings import Settings, decode
from torchpace.workload import Workload, load_libraries

_M_MMAP_THRESHOLD = -3  # of malloc.h


class Worker:
    """Answers commands with one runtime. A command is a method that gets the rest of its line."""

    def __init__(self, runtime: str, slow: float = 0.0):
        self.name, self.slow = runtime, slow
        self.runtime = runtimes.find(runtime)
        self.workload: Workload | None = None
        self.stepped = self.warmed_up = False
        self.imports_s: dict[str, float] = {}
        self.driver = environment.DriverMemory("cpu")
        self.tokens: tuple[str, Tensor] | None = None  # the file's path and what it holds
        self.commands = {
            "load": self.load,
            "run": self.run,
            "first": self.first,
            "write": self.write,
            "check": self.check,
            "losses": self.losses,
            "memory": self.memory,
            "environment": self.environment,
            "parts": self.parts,
            "operators": self.operators,
            "dispatch": self.dispatch,
            "gemm_peak": self.gemm_peak,
        }

    def answer(self, line: str) -> dict:
        """Raises InputError on an unknown command or wrong arguments."""
        command, _, rest = line.strip().partition(" ")
        if command not in self.commands:
            known = ", ".join((*self.commands, "quit"))
            raise InputError(f"command: expected one of {known}, got '{command[:40]}'")
        return self.commands[command](rest)

    def prepare(self, line: str) -> None:
        """What a `load` imports on top of torch, before the worker forks: what the runtime asks
        for and, for a training case, the optimizers (0.7 s).

        The first load pays; its time counts in every load that needs it, as in a fresh process.
        """
        # torch's compiler, which optimizers import too, makes its folder of caches at once.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
        self._import("runtime", getattr(self.runtime, "prepare", lambda: None))
        if is_training(line):
            self._import(
                "optimizer", lambda: torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
            )

    def _import(self, what: str, run: Callable[[], Any]) -> None:
        if what in self.imports_s:
            return
        started = time.perf_counter()
        run()
        self.imports_s[what] = time.perf_counter() - started

    def load(self, rest: str) -> dict:
        settings = Settings.parse(rest)
        imports_s = self.imports_s.get("runtime", 0.0)
        if is_training(rest):
            imports_s += self.imports_s.get("optimizer", 0.0)
        self.driver = environment.DriverMemory(settings.text("device", "cpu"))
        started = time.perf_counter() - imports_s
        self.workload = None
        set_threads(settings)
        load_libraries(settings)
        with mapped_blocks():
            loaded = self.runtime.load(self.name, settings, models.of(settings))
        loaded.synchronize()
        load_s = time.perf_counter() - started
        compile_s = 0.0
        if loaded.compile is not None:
            started = time.perf_counter()
            loaded.compile()
            loaded.synchronize()
            compile_s = time.perf_counter() - started
        if self.slow:
            timing.slow_down(loaded, self.slow)
        self.workload = loaded
        self.stepped = self.warmed_up = False
        cost = loaded.cost
        return {
            "load_s": load_s,
            "compile_s": compile_s,
            "flops": cost.flops(loaded.phase),
            "items": cost.items,
            "item": cost.item,
            "parameter_bytes": cost.parameter_bytes,
            "minimum_bytes": cost.minimum_bytes,
            "note": loaded.note,
        }

    def run(self, rest: str) -> dict:
        workload = self._loaded("run")
        words = rest.split()
        if not 2 <= len(words) <= 3:
            raise InputError(f"run: expected K W [B], got '{rest}'")
        samples, warmup = _integer("run: K", words[0], 1), _integer("run: W", words[1], 0)
        steps = _integer("run: B", words[2], 1) if len(words) == 3 else 1
        self._warm_up(workload)
        return timing.measure(workload, samples, warmup, steps).json()

    def first(self, rest: str) -> dict:
        workload = self._loaded("first")
        if self.stepped:
            raise InputError("first: expected no step since load, found some; load the case again")
        steps = _integer("first: N", rest.strip(), 1) if rest.strip() else 0
        self.stepped = True
        return timing.first(workload, steps)

    def write(self, rest: str) -> dict:
        workload = self._loaded("write")
        (path,) = _paths("write PATH", rest, 1, 1)
        self.stepped = True
        values = workload.values()
        tensor_file.write_tensors(path, values)
        return {"written": len(values)}

    def check(self, rest: str) -> dict:
        workload = self._loaded("check")
        reference, *golden = _paths("check REFERENCE [GOLDEN]", rest, 1, 2)
        expected = tensor_file.read_tensors(reference, "reference")
        exact = tensor_file.read_tensors(golden[0], "golden") if golden else None
        self.stepped = True
        own = {name: tensor.detach().cpu() for name, tensor in workload.values().items()}
        approximate = getattr(self.runtime, "APPROXIMATE", False)
        compare = parity.measure_parity if approximate else parity.check_parity
        result = compare(own, expected, exact, workload.precision)
        notes = [workload.note, result.note]
        return result.json() | {"note": "; ".join(note for note in notes if note)}

    def losses(self, rest: str) -> dict:
        workload = self._loaded("losses")
        steps = _integer("losses: N", rest.strip(), 1)
        tokens = self._text(workload.settings)
        self.stepped = True
        started = time.perf_counter()
        return {"losses": workload.losses(steps, tokens), "seconds": time.perf_counter() - started}

    def memory(self, rest: str) -> dict:
        return environment.memory(self.driver)

    def environment(self, rest: str) -> dict:
        if self.workload is None:
            return environment.describe(None)
        found = environment.describe(self.workload.settings)
        return found | {
            "optimizer": self.workload.optimizer_name,
            "gemm": self.workload.gemm,
            "engine": runtimes.versions(self.runtime),
        }

    def parts(self, rest: str) -> dict:
        workload = self._loaded("parts")
        (steps,) = _counts("parts K", rest)
        self._warm_up(workload)
        return {"parts": _profiling().time_parts(workload, steps)}

    def operators(self, rest: str) -> dict:
        workload = self._loaded("operators")
        (steps,) = _counts("operators K", rest)
        self._warm_up(workload)
        return _profiling().profile_operators(workload, steps)

    def dispatch(self, rest: str) -> dict:
        workload = self._loaded("dispatch")
        (samples,) = _counts("dispatch K", rest)
        return _profiling().time_dispatch(workload, samples)

    def gemm_peak(self, rest: str) -> dict:
        workload = self._loaded("gemm_peak")
        size, samples = _counts("gemm_peak N K", rest)
        return {"gemm_peak_ns": _profiling().time_matmul(workload, size, samples)}

    def _warm_up(self, workload: Workload) -> None:
        self.stepped = True
        if not self.warmed_up:
            workload.warm_up()
            self.warmed_up = True

    def _loaded(self, command: str) -> Workload:
        if self.workload is None:
            raise InputError(f"{command}: expected a loaded case, found none; load one first")
        return self.workload

    def _text(self, settings: Settings) -> Tensor | None:
        path = settings.text("tokens", "")
        if not path or settings.text("data", "normal") != "text":
            return None
        if self.tokens is None or self.tokens[0] != path:
            self.tokens = (path, text.read_tokens(path))
        return self.tokens[1]


@contextlib.contextmanager
def mapped_blocks() -> Iterator[None]:
    """Within the block, blocks from glibc's own threshold on get pages for themselves, as in any
    program, where the environment keeps large blocks in the heap (`--allocator tuned`).

    For steps that is right: no page is taken twice. But weights would lie anywhere in a page, drawn
    once for each process, and a product of one row with 4 MB takes 3 % more or less with that place
    alone.
    """
    named = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
    for_steps = int(named) if named.isdecimal() else 0
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not for_steps or mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, 128 << 10)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, for_steps)


def is_training(line: str) -> bool:
    """Whether a `load` is of a training case, before its settings are checked."""
    return "phase=train" in line.split()


def _profiling() -> ModuleType:
    """Imported only when asked for, in the fork."""
    from torchpace import profiling

    return profiling


def set_threads(settings: Settings) -> None:
    """Threads of one operator.

    Without `threads` torch's own choice stays. Raises SettingsError on less than one.
    """
    if "threads" in settings:
        torch.set_num_threads(settings.integer("threads", minimum=1))


def _counts(usage: str, rest: str) -> list[int]:
    """The numbers of a command with such a usage, each at least 1."""
    command, *names = usage.split()
    words = rest.split()
    if len(words) != len(names):
        raise InputError(f"{command}: expected {' '.join(names)}, got '{rest}'")
    return [
        _integer(f"{command}: {name}", word, 1) for name, word in zip(names, words, strict=True)
    ]


def _integer(name: str, word: str, minimum: int) -> int:
    if not word.isdecimal() or int(word) < minimum:
        raise InputError(f"{name}: expected an integer of at least {minimum}, got '{word}'")
    return int(word)


def _paths(usage: str, rest: str, minimum: int, maximum: int) -> list[str]:
    words = rest.split()
    if not minimum <= len(words) <= maximum:
        raise InputError(
            f"expected {usage}, paths percent-encoded as in a settings line, got '{rest}'"
        )
    return [decode(word) for word in words]
