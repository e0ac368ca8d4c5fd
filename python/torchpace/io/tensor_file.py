"""Files of tensors: a plain dictionary of tensors, readable in both languages with
weights_only=True.

Twin: include/torchpace/io/tensor_file.hpp. Layout: docs/worker-protocol.md.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import torch
from torch import Tensor

from torchpace.errors import InputError

FORMAT_KEY = "torchpace.format"
TENSOR_FORMAT = 1


def write_tensors(path: str | Path, tensors: dict[str, Tensor]) -> None:
    """Writes `tensors`, moved to the CPU, and the format's number to a temporary name beside
    `path`, then renames it.

    Raises InputError where that fails (no folder, no permission, disk full); nothing half-written
    stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    content = {FORMAT_KEY: torch.tensor(TENSOR_FORMAT)}
    # clone: a view would drag its whole storage into the file
    content |= {name: tensor.detach().to("cpu").clone() for name, tensor in tensors.items()}
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    # torch reports a failed write as RuntimeError, with the OSError of the file as its context
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {_write_reason(error)}") from None


def _write_reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
    return f"{reason.splitlines()[0]}; free some space or name another folder"


def read_tensors(path: str | Path, what: str) -> dict[str, Tensor]:
    """Reads a file of tensors to the CPU. `what` names it in errors (state, golden, reference,
    tokens).

    Raises InputError if the file is missing, unreadable, truncated, no dictionary of tensors or of
    another format.
    """
    path = Path(path)
    advice = "export the case again"
    if not path.is_file():
        raise InputError(f"{what}: expected a file at {path}, found none; {advice}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch.load raises many kinds: EOFError, RuntimeError, UnpicklingError, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{what}: cannot read {path} ({path.stat().st_size} bytes): expected a dictionary of "
            f"tensors (torch.save), found a damaged or foreign file: {reason[:160]}; {advice}"
        ) from None
    tensors = isinstance(content, dict) and all(isinstance(v, Tensor) for v in content.values())
    if not tensors or FORMAT_KEY not in content:
        raise InputError(
            f"{what}: {path}: expected a dictionary of tensors with '{FORMAT_KEY}', found "
            f"{'no such key' if tensors else type(content).__name__}; {advice}"
        )
    found = content.pop(FORMAT_KEY)
    if found.numel() != 1 or found.item() != TENSOR_FORMAT:
        raise InputError(
            f"{what}: {path}: expected format {TENSOR_FORMAT}, found {found.tolist()}; "
            f"{advice} with this version"
        )
    return content
