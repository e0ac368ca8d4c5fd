"""What torch's compilers are asked for, and where they work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from torchpace.aot import inductor
from torchpace.errors import InputError
from torchpace.runtimes import aot


def test_variables_that_change_what_is_compiled_are_told(monkeypatch):
    for name in inductor.compiler_variables():
        monkeypatch.delenv(name.partition("=")[0])
    changing = ("DNNL_MAX_CPU_ISA", "MKL_CBWR", "PYTORCH_JIT", "TORCHDYNAMO_DISABLE")
    changing += ("TORCHINDUCTOR_FREEZING", "TORCH_COMPILE_STANCE_MODE")
    without = ("MKL_NUM_THREADS", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
    for name in (*reversed(changing), *without, "PYTORCH_JITTER", "MY_MKL_CBWR"):
        monkeypatch.setenv(name, "1")
    assert inductor.compiler_variables() == [f"{name}=1" for name in changing]


def test_caches_lie_in_the_folder_that_is_named(monkeypatch):
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.delenv(name, raising=False)
    with inductor.caches_in("/x"):
        assert os.environ[name] == "/x"
    with inductor.caches_in(None):
        assert name not in os.environ
    monkeypatch.setenv(name, "/own")
    with inductor.caches_in("/x"):
        assert os.environ[name] == "/own"


def test_a_folder_with_spaces_is_reached_by_another_path(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "a b" / "caches"
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "usual"))
    inductor.use_caches(folder, warm=False)
    used = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert " " not in str(used) and used.resolve() == folder.resolve()
    inductor.use_caches(folder, warm=True)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)


def test_a_folder_that_no_code_can_be_loaded_from_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    with pytest.raises(InputError, match="is mounted noexec.*--cache"):
        inductor.use_caches(tmp_path, warm=True)


def test_a_package_that_a_mount_keeps_from_loading_names_the_folder():
    unpacked = Path("/tmp/xYz012")
    library = unpacked / "model/data/aotinductor/model/code.so"
    library.parent.mkdir(parents=True)
    error = RuntimeError(f"Error in dlopen: {library}: failed to map segment from shared object")
    with pytest.raises(InputError, match=f"^{unpacked}.* noexec; mount it with exec"):
        aot._expect_no_noexec(error)
    assert not unpacked.exists()
    aot._expect_no_noexec(RuntimeError("Error in dlopen: /x.so: undefined symbol: f"))
