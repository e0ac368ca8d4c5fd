"""One line of JSON an answer on a standard output that nothing else can write to.

Protocol: docs/worker.md.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable

from torchpace.errors import InputError, Skipped

PROTOCOL = 1


def open_protocol() -> Callable[[dict], None]:
    """Takes standard output for answers; whatever else writes to it, libraries included, goes to
    standard error.
    """
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape")
    os.dup2(2, 1)

    def answer(value: dict) -> None:
        answers.write(json.dumps(value, allow_nan=False) + "\n")
        answers.flush()

    return answer


def answer_lines(obey: Callable[[str], dict], answer: Callable[[dict], None]) -> None:
    """Answers each line of standard input that is not empty, until its end: with what `obey` says,
    or with {"skipped": reason} or {"error": one line} of what it raises.
    """
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            said = obey(line)
        except Skipped as skipped:
            said = {"skipped": str(skipped)}
        except Exception as error:
            said = {"error": one_line(error)}
        answer(said)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies, even while it is stopped
    (PR_SET_PDEATHSIG).
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def read_line() -> str:
    """The next command without its newline, "quit" at the end of input.

    Byte by byte: what a buffer held would be lost to the process that reads after this one.
    """
    line = bytearray()
    while True:
        byte = os.read(0, 1)
        if not byte and not line:
            return "quit"
        if not byte or byte == b"\n":
            text = line.decode("utf-8", errors="surrogateescape").strip()
            if text or not byte:
                return text
            line.clear()
        line += byte.strip(b"\n")


def serve(respond: Callable[[str], None], prepare: Callable[[str], None]) -> None:
    """Obeys commands until `quit` or the end of input.

    Each `load`, with what follows it, runs in a fork of this process as it is after its start: no
    case finds the heap, the threads or the caches that another one left. A fork that dies takes
    this process with it, in the same way. `prepare` runs here before a fork: imports that many
    cases need are paid once.
    """
    line = read_line()
    while line != "quit":
        if line.partition(" ")[0] == "load":
            prepare(line)
            line = _serve_case(line, respond)
        else:
            respond(line)
            line = read_line()


def _serve_case(line: str, respond: Callable[[str], None]) -> str:
    """Obeys a `load` and what follows in a fork; returns the command that ended it."""
    gc.collect()
    gc.freeze()  # the fork's collector must not touch, and so copy, the pages that it shares
    handed_back, handing_back = os.pipe()
    child = os.fork()
    if child == 0:
        die_with_parent()
        while True:
            respond(line)
            line = read_line()
            if line == "quit" or line.partition(" ")[0] == "load":
                os.write(handing_back, line.encode("utf-8", errors="surrogateescape"))
                os._exit(0)
    os.close(handing_back)
    with os.fdopen(handed_back, "rb") as pipe:
        next_line = pipe.read().decode("utf-8", errors="surrogateescape")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        if -code != signal.SIGKILL:  # which has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    if code != 0:
        os._exit(code)
    return next_line


def one_line(error: BaseException) -> str:
    """The error as one line.

    What is no InputError is a surprise: its traceback goes to standard error.
    """
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else ""
    if isinstance(error, InputError):
        return " ".join(line.strip() for line in lines)
    traceback.print_exception(error, file=sys.stderr)
    if (
        isinstance(error, MemoryError)
        or "out of memory" in first.lower()
        or "allocate memory" in first
    ):
        return f"out of memory: {first[:300]}; take a smaller batch or size"
    return f"{type(error).__name__}: {first[:300]}"
