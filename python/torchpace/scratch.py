"""Folders for a compiler's files, and a janitor that removes them however this process ends.

No handler sees SIGKILL, by which a controller ends its exporter and the kernel a process that has
lost its parent. So a child waits for the end of a pipe that only this process and its forks hold,
and then ends what they started and removes what they made. Free of torch.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchpace.errors import InputError

# torch splits its command lines at spaces and quotes, and linkers what follows -Wl at commas.
_PLAIN = re.compile(r"[\w/.+@=~-]+")
_OTHERS = ("/tmp", "/var/tmp", "/dev/shm")
_janitor = -1  # the writing end of the pipe


def fault_of(folder: Path) -> str:
    """Why compilers cannot work in `folder`, as `/a b (has a space)`; '' where they can.

    The folder, or the first above it that exists, must be one that code can be loaded from.
    """
    found = next(path for path in (folder, *folder.parents) if path.exists())
    if wrong := re.sub(_PLAIN, "", str(folder)):
        return f"{folder} (has '{wrong[0]}' in its path)"
    if os.statvfs(found).f_flag & os.ST_NOEXEC:
        return f"{folder} (is mounted noexec)"
    if not os.access(found, os.W_OK | os.X_OK):
        return f"{folder} (cannot be written)"
    return ""


def own(preferred: Path | None = None) -> Path:
    """Makes a new folder this process's and its children's TMPDIR, until all of them end.

    It lies in `preferred`, else in the first of TMPDIR, /tmp, /var/tmp and /dev/shm where
    compilers can work. Also removes what killed processes left there. Raises InputError where
    there is no such folder.
    """
    usual = os.environ.get("TMPDIR")
    given = [preferred, Path(usual).absolute() if usual else None, *map(Path, _OTHERS)]
    faults = []
    for parent in filter(None, given):
        fault = fault_of(parent)
        if not fault:
            with contextlib.suppress(OSError):
                return _make_own(parent, hidden=parent is preferred)
            fault = f"{parent} (cannot be written)"
        faults.append(fault)
    raise InputError(
        "expected a folder for compilers: writable, not noexec and without spaces, quotes or "
        f"commas in its path; found {', '.join(faults)}; set TMPDIR to one"
    )


def _make_own(parent: Path, *, hidden: bool) -> Path:
    stem = ".temporary-" if hidden else "torchpace-temporary-"
    _remove_left(parent, stem)
    folder = parent / f"{stem}{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    watch(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return folder


def _remove_left(parent: Path, stem: str) -> None:
    for left in parent.glob(f"{stem}*"):
        with contextlib.suppress(OSError):
            ended = not Path("/proc", left.name.rpartition("-")[2]).exists()
            if ended and left.stat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)


def start_janitor() -> None:
    """Starts the janitor. Call it early: it is a fork, and holds what this process holds."""
    global _janitor
    reading, _janitor = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            _clean_at_the_end(reading)
        os._exit(0)
    os.close(reading)


def watch(folder: Path, lock: Path | None = None) -> None:
    """Has the janitor remove `folder`, or a file, unless another process then holds `lock`."""
    _tell({"folder": str(folder), "lock": str(lock or "")})


def watch_group(group: int) -> None:
    """Has the janitor kill a group of processes."""
    _tell({"group": group})


def forget(what: Path | int) -> None:
    """Leaves alone a folder or group that the janitor was told of."""
    _tell({"done": what if isinstance(what, int) else str(what)})


@contextlib.contextmanager
def watched(folder: Path, lock: Path) -> Iterator[None]:
    """Has the janitor remove `folder` where this process ends within the block."""
    watch(folder, lock)
    try:
        yield
    finally:
        forget(folder)


def _tell(what: dict[str, Any]) -> None:
    if _janitor >= 0:
        with contextlib.suppress(OSError):  # it was killed
            os.write(_janitor, json.dumps(what).encode() + b"\n")


def _clean_at_the_end(reading: int) -> None:
    """The janitor's life."""
    os.setsid()  # what ends the group of its parent must not end it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):  # whoever reads them must see their end
        os.dup2(nothing, standard)
    os.dup2(reading, 3)
    os.closerange(4, 1 << 16)
    folders: dict[str, str] = {}
    groups: set[int] = set()
    with os.fdopen(3) as told:
        for line in told:
            what = json.loads(line)
            if "folder" in what:
                folders[what["folder"]] = what["lock"]
            groups |= {what["group"]} if "group" in what else set()
            folders.pop(what.get("done"), None)
            groups.discard(what.get("done"))
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    for folder, lock in folders.items():
        _remove(folder, lock)


def _remove(folder: str, lock: str) -> None:
    with contextlib.ExitStack() as held:
        if lock:
            try:
                file = held.enter_context(open(lock, "w"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # another process makes the same
        for _ in range(20):  # a compiler that has just been killed may still write a file
            if os.path.isfile(folder):
                os.unlink(folder)
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                return
            time.sleep(0.05)
