"""Compiled files of a case, each made once for all runtimes that load it.

    python -m torchpace.exporter.artifacts --cache DIR

Each line of standard input is a case's settings line with its files (`state`, ...), `make=KIND` and
`compile_timeout=SECONDS`. Each is answered with one line of JSON: `{"artifact", "compile_s",
"cached", "seconds", "note"}` or `{"error": "one line"}` or `{"skipped": "reason"}`. The exporter
starts this program when it is first asked for an artifact (Maker), and passes questions on to it.

A program of its own, because every artifact is made in a fork, and the exporter must not fork: its
float64 steps have started OpenMP threads, and libgomp waits for ever for those that a fork has not.
Nothing here starts a thread or CUDA, and torch's compiler is imported once for all.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torchpace import runtimes, scratch
from torchpace.aot import inductor
from torchpace.errors import InputError, Note, Skipped
from torchpace.exporter import cache
from torchpace.refusal import refused as refused  # for the runtimes
from torchpace.settings import Settings
from torchpace.worker.protocol import answer_lines, die_with_parent, one_line, open_protocol

LIMIT_S = 120.0  # where the line names no compile_timeout
# Keys of a settings line that change no artifact, unless its runtime says so by RELATED: few hold
# an optimizer, and `torchscript` and `runners` are obeyed by what loads it.
UNRELATED = (
    *("case", "family", "state", "golden", "tokens", "artifact", "make", "compile_timeout"),
    *("optimizer", "lr", "eps", "torchscript", "runners", "gemm"),
)


class Maker:
    """The program that makes artifacts, started when it is first asked."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, settings: Settings) -> dict[str, Any]:
        """Its answer. Raises InputError where it has died."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(settings.line() + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            raise InputError(
                f"make={settings.text('make')}: the process that makes artifacts died ({code}); "
                "its output is above"
            )
        return json.loads(line)

    def close(self) -> None:
        """Ends it, also where it makes something, which is given up."""
        if self.process is not None:
            self.process.terminate()
            self.process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        # Bound to a core by OMP_PROC_BIND, it would hand that one core down to every compiler.
        environment = {k: v for k, v in os.environ.items() if k != "OMP_PROC_BIND"}
        command = [
            sys.executable,
            "-m",
            "torchpace.exporter.artifacts",
            "--cache",
            str(self.folder),
        ]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )


def makers() -> dict[str, str]:
    """Kind -> the module of torchpace.runtimes that makes it, read from the sources."""
    found: dict[str, str] = {}
    for listed in runtimes.list_runtimes().values():
        if listed.artifact:
            found.setdefault(listed.artifact, listed.module)
    return found


def make(folder: Path, settings: Settings, started: Callable[[Path], None]) -> dict[str, Any]:
    """Finds or makes the artifact that `make` names.

    `started` is told the entry when its making begins. Raises InputError or Skipped. Runs torch:
    call it in a fork.
    """
    from torchpace import models
    from torchpace.worker.commands import set_threads
    from torchpace.workload import load_libraries

    begun = time.perf_counter()
    load_libraries(settings)
    kind, known = settings.text("make"), makers()
    if kind not in known:
        raise InputError(f"make: expected one of {', '.join(known)}, got '{kind}'")
    runtime, model = runtimes.module(known[kind]), models.of(settings)
    set_threads(settings)
    path = folder / "artifacts" / key_of(kind, settings, model, runtime)

    def fill(target: Path) -> dict[str, Any]:
        refuse_what_was_stopped(path, settings)
        started(path)
        before = time.perf_counter()
        with noted_warnings() as notes:
            file = runtime.make_artifact(kind, target, settings, model)
        return {
            "kind": kind,
            "settings": settings.line(),
            "artifact": file.name,
            "compile_s": time.perf_counter() - before,
            "note": "; ".join(notes),
            "sources": models.sources(model) | models.library_digests(settings),
        }

    entry = cache.get_or_make(path, fill)
    stop_record(path).unlink(missing_ok=True)
    return {
        "artifact": str(entry.path / entry.manifest["artifact"]),
        "compile_s": entry.manifest["compile_s"],
        "cached": entry.cached,
        "seconds": time.perf_counter() - begun,
        "note": "; ".join(
            filter(
                None,
                (entry.manifest["note"], f"rebuilt: {entry.rebuilt}" if entry.rebuilt else ""),
            )
        ),
    }


@contextlib.contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """Collects the notes of the block, and what torch warns of there about the model itself: that a
    trace holds only one of its branches, say.
    """
    import torch

    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", torch.jit.TracerWarning)
        warnings.simplefilter("always", Note)
        yield notes
    for warning in caught:
        if issubclass(warning.category, Note):
            notes.append(str(warning.message))
        elif issubclass(warning.category, torch.jit.TracerWarning):
            text = str(warning.message).partition(". ")[0].splitlines()[0]
            file = Path(warning.filename)
            inside = file.is_relative_to(Path(torch.__file__).parent)  # of a program's own module
            where = "" if inside else f" at {file.name}:{warning.lineno}"
            note = f"TracerWarning{where}: {text[:160]}"
            if note not in notes:
                notes.append(note)


def stop_record(path: Path) -> Path:
    """Where the entry `path` is said to have taken longer than a limit: {"limit_s", "date"}."""
    return path.with_name(f".{path.name}.stopped")


def refuse_what_was_stopped(path: Path, settings: Settings) -> None:
    """Raises InputError where the same compile was stopped before, by no smaller limit."""
    try:
        record = json.loads(stop_record(path).read_text())
        limit, date = float(record["limit_s"]), str(record["date"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if limit_of(settings) <= limit:
        raise InputError(
            f"make={settings.text('make')}: took longer than {limit:g} s on {date}; "
            "--compile-timeout to try longer"
        )


def limit_of(settings: Settings) -> float:
    return settings.number("compile_timeout", LIMIT_S)


def key_of(kind: str, settings: Settings, model: ModuleType, runtime: ModuleType) -> str:
    """The entry's name: kind, model, phase and a hash of all that the artifact depends on."""
    import torch

    from torchpace import models, workload

    device = workload.device_of(settings)
    unrelated = {*UNRELATED, *models.MEASURED_KEYS, *models.FILE_KEYS}
    unrelated -= {*getattr(runtime, "RELATED", ())}
    code = models.identity(model) + cache.package_digest()
    parts = [
        settings.replace(**dict.fromkeys(unrelated, None)).line(),
        cache.digest(Path(settings.text("state")))["sha256"],
        torch.__version__,
        str(torch.get_num_threads()),
        torch.backends.cpu.get_cpu_capability(),
        compiler(),
        gpu(device),
        runtimes.versions(runtime),
        *inductor.compiler_variables(),
    ]
    digest = hashlib.sha256("\n".join(parts).encode() + code).hexdigest()[:16]
    stem = f"{kind}-{models.label(settings)}-{settings.text('phase')}".replace(":", "-")
    return f"{stem}-{digest}"


def gpu(device: Any) -> str:
    """Name and capability, `NVIDIA H200 9.0`; empty for the CPU."""
    import torch

    if device.type != "cuda":
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} {major}.{minor}"


@functools.cache
def compiler() -> str:
    """First line of the C++ compiler's version; empty where there is none."""
    command = [os.environ.get("CXX", "g++"), "--version"]
    try:
        output = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ""
    return output.partition("\n")[0]


class Fork:
    """One artifact made in a fork of this process, which leads a session of its own."""

    def __init__(self, folder: Path, settings: Settings):
        self.kind = settings.text("make", "")
        self.limit = limit_of(settings)
        self.making: Path | None = None  # the entry, once its making has begun
        receiving, sending = os.pipe()
        sys.stderr.flush()
        self.process = os.fork()
        if self.process == 0:
            os.close(receiving)
            _work(folder, settings, sending)
        scratch.watch_group(self.process)
        os.close(sending)
        self.pipe = receiving

    def answer(self) -> dict[str, Any]:
        """Waits for it, and kills it with all that it started when it makes for longer than the
        limit. Finding a cached entry, or waiting for a process that makes the same, does not count.
        """
        answer: dict[str, Any] = {}
        try:
            answer = self._await()
        finally:
            os.close(self.pipe)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process, signal.SIGKILL)  # also a compiler that outlives it
            os.waitpid(self.process, 0)
            scratch.forget(self.process)
            if self.making and "artifact" not in answer:
                cache.discard_unfinished(self.making)
        return answer

    def _await(self) -> dict[str, Any]:
        received, deadline = b"", math.inf
        while True:
            wait = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            if not select.select([self.pipe], [], [], wait)[0]:
                self._remember()
                return self._failed(
                    f"expected a compile within {self.limit:g} s, it was stopped; "
                    "--compile-timeout raises it"
                )
            chunk = os.read(self.pipe, 65536)
            if not chunk:
                return self._failed("the process that compiled died; its output is above")
            received += chunk
            while b"\n" in received:
                line, _, received = received.partition(b"\n")
                answer = json.loads(line)
                if "making" not in answer:
                    return answer
                self.making = Path(answer["making"])
                deadline = time.monotonic() + self.limit

    def _remember(self) -> None:
        assert self.making  # there is a deadline since then
        record = {"limit_s": self.limit, "date": time.strftime("%Y-%m-%d")}
        with contextlib.suppress(OSError):  # only the next run's time is lost
            stop_record(self.making).write_text(json.dumps(record) + "\n")

    def _failed(self, reason: str) -> dict[str, Any]:
        return {"error": f"make={self.kind}: {reason}"}


def _work(folder: Path, settings: Settings, sending: int) -> None:
    """The fork's life: one artifact, one answer, no return."""
    os.setsid()
    die_with_parent()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the lines are not a compiler's to read

    def send(value: dict[str, Any]) -> None:
        os.write(sending, json.dumps(value).encode() + b"\n")

    try:
        answer = make(folder, settings, lambda path: send({"making": str(path)}))
    except Skipped as skipped:
        answer = {"skipped": str(skipped)}
    except BaseException as error:
        answer = {"error": one_line(error)}
    send(answer)
    sys.stderr.flush()
    os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torchpace.exporter.artifacts", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder of the cache")
    folder = parser.parse_args(arguments).cache.absolute()
    answers = open_protocol()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the janitor cleans up; no traceback
    inductor.work_in_own_folder(folder / "artifacts")
    inductor.prepare()
    answer_lines(lambda line: Fork(folder, Settings.parse(line)).answer(), answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
