"""A line of standard input a command, a line of JSON on standard output an answer. Nothing else in
the process, a model's code above all, can read the commands or write among the answers.

Protocol: docs/worker-protocol.md.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

from torchpace.errors import InputError, Skipped

PROTOCOL = 1


_commands = 0  # the file descriptor that they come from


class Stopped(BaseException):
    """SIGTERM: the controller ends early, and what has been begun is to be put away."""


def open_protocol() -> Callable[[dict], None]:
    """Takes standard input for commands and standard output for answers. Whoever else reads finds
    the end of input; what else is written, by libraries too, goes to standard error.

    Where the process dies of a signal, and where SIGUSR1 asks, its Python frames go there too.
    """
    global _commands
    expect_warnings()
    _commands = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape")
    os.dup2(2, 1)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=False)

    def answer(value: dict) -> None:
        answers.write(json.dumps(value, allow_nan=False) + "\n")
        answers.flush()

    return answer


def expect_warnings() -> None:
    """Undoes PYTHONWARNINGS=error for this process and its children: torch itself warns where it
    is imported.
    """
    os.environ.pop("PYTHONWARNINGS", None)
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)


def answer_lines(obey: Callable[[str], dict], answer: Callable[[dict], None]) -> None:
    """Answers each command that is not empty, until there are no more or SIGTERM arrives, with what
    `answer_of` says.
    """
    signal.signal(signal.SIGTERM, _stop)
    lines = os.fdopen(_commands, encoding="utf-8", errors="surrogateescape")
    try:
        for line in lines:
            if line.strip():
                answer(answer_of(obey, line))
    except Stopped:
        return


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would break off the putting away
    raise Stopped


def answer_of(obey: Callable[[str], dict], line: str) -> dict:
    """What `obey` says, or {"skipped": reason} or {"error": one line} of what it raises: SystemExit
    too, for it is a model's code that raises it. `mendable` says that the error is one of input.
    """
    try:
        return obey(line)
    except Stopped:
        raise
    except Skipped as skipped:
        return {"skipped": str(skipped)}
    except InputError as error:
        return {"error": one_line(error), "mendable": True}
    except BaseException as error:
        return {"error": one_line(error)}


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
        byte = os.read(_commands, 1)
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
        os.close(handed_back)
        die_with_parent()
        while True:
            respond(line)
            line = read_line()
            if line == "quit" or line.partition(" ")[0] == "load":
                os.write(handing_back, line.encode("utf-8", errors="surrogateescape"))
                os._exit(0)
    os.close(handing_back)
    faulthandler.unregister(signal.SIGUSR1)  # where the case is, the fork says
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Not until its end: what the case has started may hold the other end, and live on.
    os.set_blocking(handed_back, False)
    with os.fdopen(handed_back, "rb") as pipe:
        next_line = (pipe.read() or b"").decode("utf-8", errors="surrogateescape")
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=False)
    if code < 0:
        if -code != signal.SIGKILL:  # which has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    if code == 0 and not next_line:
        print("the model's code ended the process with exit code 0", file=sys.stderr, flush=True)
        code = 1
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
