"""Where compilers work, and what is left of it: nothing, however a process ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from torchpace import scratch
from torchpace.errors import InputError
from torchpace.exporter import cache

PYTHON = Path(__file__).resolve().parents[1]
PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from torchpace import scratch
from torchpace.exporter import cache
folder = Path(sys.argv[1])
scratch.start_janitor()
own = scratch.own(folder)
(own / "headers").mkdir()
(own / "headers" / "x.h").touch()
child = os.fork()
if child == 0:
    os.setsid()
    compiler = subprocess.Popen(["sleep", "600"])
    def make(entry):
        (entry / "x.o").touch()
        print(compiler.pid, flush=True)
        sys.stdin.read()
    cache.get_or_make(folder / "entry", make)
scratch.watch_group(child)
sys.stdin.read()
"""


def wait_until(true) -> bool:
    deadline = time.monotonic() + 120  # on a busy machine
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_process_that_a_signal_ends(tmp_path, ending):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PYTHON)},
        start_new_session=True,
    )
    compiler = int(process.stdout.readline())
    assert {file.name for file in tmp_path.iterdir()} == {
        *(f".temporary-{process.pid}", ".entry.making", ".entry.lock")
    }
    os.killpg(process.pid, ending)  # its fork, which leads a session of its own, reads the end
    process.stdin.close()
    process.wait()
    assert wait_until(lambda: [file.name for file in tmp_path.iterdir()] == [".entry.lock"])

    def ended() -> bool:
        status = Path(f"/proc/{compiler}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    assert wait_until(ended)


def test_what_another_process_makes_is_not_removed(tmp_path):
    lock, folder = tmp_path / ".lock", tmp_path / "making"
    folder.mkdir()
    with open(lock, "w") as file:
        scratch.fcntl.flock(file, scratch.fcntl.LOCK_EX)
        scratch._remove(str(folder), str(lock))
        assert folder.exists()
    scratch._remove(str(folder), str(lock))
    assert not folder.exists()


@pytest.fixture
def mounted_noexec(monkeypatch):
    """Folders of which code can be loaded no more."""
    folders, real = [], os.statvfs

    def statvfs(path):
        noexec = any(folder in (Path(path), *Path(path).parents) for folder in folders)
        return SimpleNamespace(f_flag=os.ST_NOEXEC) if noexec else real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return folders


def test_compilers_work_where_they_can(tmp_path, mounted_noexec, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", None)
    noexec, plain = tmp_path / "noexec", tmp_path / "plain-ä"
    for folder in (noexec, plain):
        folder.mkdir()
    mounted_noexec.append(noexec)
    for preferred in (tmp_path / "a b" / "cache", tmp_path / "it's", tmp_path / "a,b", noexec):
        monkeypatch.setenv("TMPDIR", str(plain))
        found = scratch.own(preferred)
        assert found == plain / f"torchpace-temporary-{os.getpid()}" and found.is_dir()
        assert os.environ["TMPDIR"] == scratch.tempfile.gettempdir() == str(found)
        assert not preferred.exists() or preferred == noexec
    assert scratch.own(plain / "new") == plain / "new" / f".temporary-{os.getpid()}"


def test_where_compilers_can_work_nowhere_each_folder_has_its_reason(
    tmp_path, mounted_noexec, monkeypatch
):
    monkeypatch.setattr(scratch.tempfile, "tempdir", None)
    mounted_noexec.append(tmp_path / "noexec")
    (tmp_path / "noexec").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "noexec"))
    monkeypatch.setattr(scratch, "_OTHERS", ("/proc/none",))
    with pytest.raises(InputError) as caught:
        scratch.own(tmp_path / "a b")
    line = str(caught.value)
    assert "a b (has ' ' in its path)" in line and "noexec (is mounted noexec)" in line, line
    assert "/proc/none (cannot be written)" in line and "set TMPDIR" in line, line


@pytest.mark.parametrize(
    "number,advice",
    [(errno.EROFS, "name another folder with --cache"), (errno.ENOSPC, "free some space")],
)
def test_a_cache_that_cannot_be_written_is_said_with_what_helps(tmp_path, number, advice):
    def make(folder):
        raise OSError(number, os.strerror(number))

    with pytest.raises(InputError) as caught:
        cache.get_or_make(tmp_path / "entry", make)
    assert str(caught.value).endswith(f"{os.strerror(number)}; {advice}")
    assert [path.name for path in tmp_path.iterdir()] == [".entry.lock"]


def test_an_entry_does_not_depend_on_what_was_generated_on_the_way(tmp_path):
    source = tmp_path / "model.py"
    source.write_text("x = 1")

    def make(folder):
        (folder / "generated.py").write_text("y = 2")
        files = (source, folder / "generated.py")
        return {"sources": {str(file): cache.digest(file) for file in files}}

    first = cache.get_or_make(tmp_path / "cache" / "entry", make)
    assert list(first.manifest["sources"]) == [str(source)]
    assert cache.get_or_make(tmp_path / "cache" / "entry", make).cached
    source.write_text("x = 2")
    assert "model.py has changed" in cache.get_or_make(tmp_path / "cache" / "entry", make).rebuilt
