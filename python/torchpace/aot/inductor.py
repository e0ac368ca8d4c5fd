"""What the runtimes on Inductor, torch's compiler, share."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchpace import scratch
from torchpace.errors import InputError

# What torch's compilers, its JIT and its libraries of kernels read, beside paths and processes.
_COMPILER_VARIABLES = re.compile(
    r"(TORCH_?DYNAMO|TORCH_COMPILE|TORCH_?INDUCTOR|AOT_INDUCTOR|AOTINDUCTOR|AOTI|PYTORCH_JIT"
    r"|PYTORCH_TENSOREXPR|TRITON|MKL|DNNL|ONEDNN|OPENBLAS)_"
    r"|(PYTORCH_JIT|NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE)$"
)
_WITHOUT_EFFECT = {
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"),
    *("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),  # as the number of threads that torch tells
}


def compiler_variables() -> list[str]:
    """NAME=VALUE of the variables in force that change what is compiled or which kernels run,
    sorted: what is made under one set of them is not what is made under another.

    Without those that this package sets itself and those that say where or by how many processes.
    """
    return sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if _COMPILER_VARIABLES.match(name) and name not in _WITHOUT_EFFECT
    )


def work_in_own_folder(preferred: Path | None = None) -> None:
    """Gives this process and its children a TMPDIR and a folder of caches of their own, which are
    removed when they have ended in whatever way. TORCHINDUCTOR_CACHE_DIR, where it is set, stays.

    Compilers that are killed leave files behind, and Inductor keeps headers there that it compiled
    (200 MB). See scratch.own.
    """
    scratch.start_janitor()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch.own(preferred)))


@contextlib.contextmanager
def caches_in(folder: str | None) -> Iterator[None]:
    """Within the block torch makes its folder of caches, which it does where its compiler is
    imported, in `folder`. Nothing changes with None, or where TORCHINDUCTOR_CACHE_DIR names one.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    if folder is None or name in os.environ:
        yield
        return
    os.environ[name] = folder
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def asking_nvml() -> Iterator[None]:
    """Within the block `torch.cuda.is_available()` asks the management library, not the driver.

    The driver would be initialized in this process, after which no child may use CUDA: torch counts
    devices in this way where its compiler is imported.
    """
    import torch

    asked = torch.cuda.is_available
    # Negative where the library cannot tell.
    torch.cuda.is_available = lambda: torch.cuda._device_count_nvml() > 0
    try:
        yield
    finally:
        torch.cuda.is_available = asked


def prepare() -> None:
    """Imports the compiler, before a process forks: starts no thread, no process and no CUDA."""
    # With more than one, the import starts a pool of processes. start_making sets the number again.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with asking_nvml():
        import torch._dynamo
        import torch._functorch.aot_autograd
        import torch._inductor.compile_fx  # noqa: F401
        from torch._inductor import config
        from torch._inductor.cpu_vec_isa import VecISA

    # that there is no CUDA, said by every process that compiles for the CPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    VecISA.check_build = _known_to_compiler
    # Of no effect on what is compiled, so that workers can do without them: see use_caches.
    if "cpp_cache_precompile_headers" not in config._cache_config_ignore_prefix:
        config._cache_config_ignore_prefix.append("cpp_cache_precompile_headers")


def _known_to_compiler(isa: Any, code: str) -> bool:
    """Whether the C++ compiler has the flags of an instruction set that this processor has.

    Inductor instead compiles `code` and loads it in a program that imports torch, for each set, in
    every process that compiles: 32 s of the 50 s that the package of a small net took on a busy
    processor, and 6.6 s of 8.8 s with warm caches.
    """
    command = [os.environ.get("CXX", "g++"), *isa._arch_flags.split(), "-E", "-x", "c++", "-"]
    return not subprocess.run(command, input=b"", capture_output=True).returncode


def start_making() -> None:
    """Compiles with all processors, as torch.compile does by default, and without its tables of
    what tuning has tried, which are thousands of lines.
    """
    from torch._inductor import config, select_algorithm

    select_algorithm.PRINT_AUTOTUNE = False
    select_algorithm._log_autotune_choices_stats = lambda *_: None
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # its own use of it
    config.compile_threads = len(os.sched_getaffinity(0))


def use_caches(folder: Path, *, warm: bool) -> None:
    """Names the folder of the compiler's caches, for this process and what it starts.

    `warm`: nothing is left to compile. Then headers need not be compiled either, whose preprocessed
    text Inductor hashes first, warm caches or not. Raises InputError where no code can be loaded
    from the folder.
    """
    from torch._inductor import config

    fault = scratch.fault_of(folder)
    if "noexec" in fault:
        raise InputError(
            f"cache: no compiled code can be loaded from {fault}; name another folder with --cache"
        )
    if fault and not warm:
        folder = _reached_by_another_path(folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    config.cpp_cache_precompile_headers = not warm


def _reached_by_another_path(folder: Path) -> Path:
    """A link to `folder` in this process's own temporary folder: torch splits command lines at the
    spaces of a path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    link = Path(tempfile.mkdtemp(prefix="caches-")) / "link"
    link.symlink_to(folder)
    return link
