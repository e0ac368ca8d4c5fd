"""One line of JSON an answer on a standard output that nothing else can write to.

Protocol: docs/worker.md.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable

from torchpace.errors import InputError

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


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies, even while it is stopped
    (PR_SET_PDEATHSIG).
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


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
