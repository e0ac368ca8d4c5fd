"""Folders of files that are made once: whole and checked, or not there. Free of torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torchpace import scratch
from torchpace.errors import InputError

MANIFEST = "manifest.json"


class Entry:
    """What get_or_make found or made. `rebuilt` says what was wrong with an entry that had to be
    made again.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], cached: bool, rebuilt: str):
        self.path, self.manifest, self.cached, self.rebuilt = path, manifest, cached, rebuilt


def get_or_make(path: Path, make: Callable[[Path], dict[str, Any]]) -> Entry:
    """The folder `path`, checked against its manifest, or made by `make(folder)`, which returns
    facts to keep.

    It is made in a temporary folder beside `path`, under a lock, and renamed: a second process
    waits and finds it whole. Raises InputError where the cache cannot be written; nothing
    half-written stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_lock(path)):
            manifest, problem = verify(path)
            if not problem:
                return Entry(path, manifest, True, "")
            broken = problem if path.exists() else ""
            temporary = _temporary(path)
            shutil.rmtree(
                temporary, ignore_errors=True
            )  # of a process that was killed: we hold the lock
            try:
                scratch.watch(temporary, _lock(path))
                temporary.mkdir()
                manifest = {"version": 1, **make(temporary)}
                sources = manifest.get("sources", {})  # without what was generated on the way
                manifest["sources"] = {
                    name: value
                    for name, value in sources.items()
                    if not Path(name).is_relative_to(temporary)
                }
                manifest["files"] = {
                    str(file.relative_to(temporary)): digest(file)
                    for file in sorted(temporary.rglob("*"))
                    if file.is_file()
                }
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
                if path.exists():
                    shutil.rmtree(path)
                os.rename(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                scratch.forget(temporary)
            return Entry(path, manifest, False, broken)
    except OSError as error:
        if not _is_of_cache(error, path):  # of what `make` runs, such as a model's own code
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else "name another folder with --cache"
        reason = error.strerror or error
        raise InputError(f"cache: cannot write {path}: {reason}; {advice}") from None


def _is_of_cache(error: OSError, path: Path) -> bool:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    files = [
        os.fsdecode(f) for f in (error.filename, error.filename2) if isinstance(f, (str, bytes))
    ]
    return any(Path(file).absolute().is_relative_to(path.parent.absolute()) for file in files) or (
        any(path.absolute().is_relative_to(Path(file).absolute()) for file in files)
    )


def discard_unfinished(path: Path) -> None:
    """Removes what a process that was killed had made of the entry `path`."""
    with _locked(_lock(path)):
        shutil.rmtree(_temporary(path), ignore_errors=True)


def verify(path: Path) -> tuple[dict[str, Any], str]:
    """The manifest of an entry, and what is wrong with the entry: '' if every size and checksum is
    right, also those of the `sources` outside that it was made from.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = dict(manifest["files"])
        sources = dict(manifest.get("sources", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return {}, "its manifest is missing or damaged"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return {}, f"{name} is missing"
        if file.stat().st_size != expected["bytes"] or digest(file) != expected:
            return {}, f"the checksum of {name} is wrong"
    for name, expected in sources.items():
        if not Path(name).is_file() or digest(Path(name)) != expected:
            return {}, f"{Path(name).name} has changed since"
    return manifest, ""


@functools.cache
def package_digest() -> bytes:
    """Of the code that makes and checks what is cached: this package without its report."""
    package = Path(__file__).parents[1]
    hashed = hashlib.sha256()
    for file in sorted(file for kind in ("*.py", "*.h") for file in package.rglob(kind)):
        name = file.relative_to(package)
        if name.parts[0] != "report":
            hashed.update(f"{name}\n".encode() + file.read_bytes())
    return hashed.digest()


def digest(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": sha256}


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.making")


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The lock's file stays: were it removed, a waiter and a newcomer could hold two locks of one
    # name.
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
