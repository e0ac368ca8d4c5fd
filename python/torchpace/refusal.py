"""What a compiler of torch could not do, in one line that names the line of the model.

Free of torch.
"""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

from torchpace.errors import InputError


def refused(what: str, error: BaseException) -> InputError:
    """One line of what a compiler says it could not do, and the line of the model that stopped it.

    Compilers of torch report over many lines: the reason comes first, and the frames of the model's
    code in the order of calls.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return InputError(f"{what}: {_reason(error, text)[:400]}{_place(error, text)}")


def _reason(error: BaseException, text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if isinstance(error, (LookupError, AttributeError, AssertionError)) and lines:
        first = f"{type(error).__name__}: {first}"  # else "'name'" is all of it
    # Where the first line is a headline: a C++ compiler's own words, those of Dynamo.
    for pattern in (r"(\S+: (?:fatal )?error: .*)", r"got (\w+Error\(.*)", r"Explanation: (.*)"):
        if len(lines) > 1 and (found := re.search(pattern, text)):
            return f"{first[:200].rstrip(':')}: {found[1]}"
    return f"{first} {lines[1]}" if len(lines) > 1 and first.endswith(":") else first


def _place(error: BaseException, text: str) -> str:
    """` at FILE:LINE: CODE` of the innermost frame outside torch, '' if none is named: by what the
    compiler says, else by where the error was raised.
    """
    frames = re.findall(r'File "([^"]+)", line (\d+)[^\n]*\n([^\n]*)((?:\n[^\n]*){0,6})', text)
    for file, number, code, rest in reversed(frames):
        if _is_of_tools(file):
            continue
        # TorchScript prints the lines around the one that it marks
        marked = re.search(r"([^\n]*)\n[^\n]*~+ <--- HERE", f"{code}{rest}")
        shown = (marked[1] if marked else code).strip()
        return f" at {Path(file).name}:{number}: {shown[:160]}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _is_of_tools(frame.filename):
            return f" at {Path(frame.filename).name}:{frame.lineno}: {(frame.line or '')[:160]}"
    inner = error.__cause__ or error.__context__
    return _place(inner, str(inner)) if inner else ""


def _is_of_tools(file: str) -> bool:
    """Whether a frame's file is torch's, Python's or this package's own, and no model's."""
    own = str(Path(__file__).parent) + os.sep
    libraries = (own, str(Path(os.__file__).parent) + os.sep)
    of_python = file.startswith(libraries) and f"{os.sep}site-packages{os.sep}" not in file
    models = str(Path(own, "models")) + os.sep
    return (
        f"{os.sep}torch{os.sep}" in file
        or f"{os.sep}sympy{os.sep}" in file
        or file.startswith("<")
        or (of_python and not file.startswith(models))
    )
