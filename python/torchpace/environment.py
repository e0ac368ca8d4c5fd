"""What the numbers depend on, read from the running process.

Twin: include/torchpace/environment.hpp.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path

import torch

import torchpace
from torchpace.case_phase import case_phase
from torchpace.optim import factory
from torchpace.settings import Settings

_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
_OPENMP = ("libgomp", "libiomp5", "libomp")
_BLAS = ("libmkl", "libopenblas", "libblas", "libcublas.so")


def describe(settings: Settings | None) -> dict[str, str | int | float | bool]:
    """A flat object; the keys are those of the C++ worker. `settings` is the loaded case, if there
    is one.
    """
    config = torch.__config__.show()
    libraries = mapped_libraries()
    found: dict[str, str | int | float | bool] = {
        "language": "python",
        "torchpace": torchpace.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_git": str(torch.version.git_version),
        "compiler": _first(
            r"(GCC [\d.]+|clang[^\n]*)", config
        ),  # of torch: Python compiles nothing
        "build_type": _first(r"BUILD_TYPE=(\w+)", config),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "affinity": len(os.sched_getaffinity(0)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": _first(r"BLAS_INFO=(\w+)", config),
        "blas_library": _library(libraries, _BLAS),
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "openmp": _library(libraries, _OPENMP),
        "allocator": _allocator(libraries),
        "malloc_settings": _malloc_settings(),
        "openmp_settings": _variables(r"(OMP|GOMP|KMP|MKL)_"),
        "tf32": _tf32(),
        "autocast": "none",
        "memory_format": "contiguous",
        "flush_denormal": _flushes_denormals(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "optimizer": "",
        "cuda": str(torch.version.cuda or ""),
        "cudnn": "",
        "device": "cpu",
        "dtype": "",
    }
    if settings is not None:
        found["dtype"] = settings.text("dtype", "float32")
        found["device"] = settings.text("device", "cpu")
        found["autocast"] = settings.text("autocast", "none")
        found["memory_format"] = settings.text("memory_format", "contiguous")
        if case_phase(settings).trains:
            found["optimizer"] = factory.name(settings)
    # Only in a process that has a case there: a question to the driver before a fork would take
    # CUDA from the child.
    if str(found["device"]).startswith("cuda"):
        found["cudnn"] = str(torch.backends.cudnn.version() or "")
    found["device_name"] = _device_name(str(found["device"]))
    return found


class DriverMemory:
    """Bytes of device memory in use, on the word of the driver, since this object was made.

    The driver counts the device, not the process, and a process in a container does not know its
    own number there. So this is what was taken since a moment before the process's first use of
    CUDA: its context, kernels and whatever lies outside of torch's allocator are in it. It is right
    while no other process takes or frees memory of the device, as in the preflight. 0 on
    the CPU, and where the driver's library (NVML) cannot be asked.
    """

    def __init__(self, device: str):
        self.device = device
        self.before = _device_bytes(device)

    def held(self) -> int:
        return max(0, _device_bytes(self.device) - self.before)


def memory(driver: DriverMemory) -> dict[str, int]:
    """Bytes: of the process now and at most (VmRSS, VmHWM), and on CUDA of torch's allocator at
    most and of the driver now.
    """
    status = Path("/proc/self/status").read_text()
    allocated = reserved = 0
    if driver.device.startswith("cuda"):
        allocated = torch.cuda.max_memory_allocated(driver.device)
        reserved = torch.cuda.max_memory_reserved(driver.device)
    return {
        "resident_bytes": 1024 * int(_first(r"VmRSS:\s*(\d+)", status)),
        "resident_peak_bytes": 1024 * int(_first(r"VmHWM:\s*(\d+)", status)),
        "device_allocated_peak_bytes": allocated,
        "device_reserved_peak_bytes": reserved,
        "device_driver_bytes": driver.held(),
    }


class _NvmlMemory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def _device_bytes(device: str) -> int:
    """Bytes in use on a CUDA device, by all processes; makes no CUDA context. 0 where not known."""
    if not re.fullmatch(r"cuda(:\d+)?", device):
        return 0
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    handle, found = ctypes.c_void_p(), _NvmlMemory()
    try:  # of those that CUDA_VISIBLE_DEVICES leaves
        index = torch.cuda._get_nvml_device_index(torch.device(device).index or 0)
    except (IndexError, RuntimeError, ValueError):
        return 0
    failed = (
        nvml.nvmlInit_v2()
        or nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(found))
    )
    return 0 if failed else found.used


def mapped_libraries() -> list[str]:
    """Paths of the shared libraries that this process has loaded, in order."""
    paths = re.findall(r"\s(/\S*\.so\S*)$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return sorted(set(paths))


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""


def _library(libraries: list[str], stems: tuple[str, ...]) -> str:
    return " ".join(p for p in libraries if os.path.basename(p).startswith(stems))


def _allocator(libraries: list[str]) -> str:
    for name in _ALLOCATORS:
        path = next((p for p in libraries if name in os.path.basename(p)), "")
        if path:
            return f"{name} {path}"
    return " ".join(platform.libc_ver())


def _malloc_settings() -> str:
    return _variables(r"MALLOC_|MIMALLOC_|(GLIBC_TUNABLES|LD_PRELOAD|PYTORCH_(CUDA_)?ALLOC_CONF)$")


def _variables(pattern: str) -> str:
    """The environment variables whose name matches from its start, sorted."""
    found = (
        f"{key}={value}" for key, value in sorted(os.environ.items()) if re.match(pattern, key)
    )
    return " ".join(found)


def _tf32() -> str:
    on = {True: "on", False: "off"}
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return f"matmul {on[matmul]}, cudnn {on[cudnn]}"


def _flushes_denormals() -> bool:
    """torch can set this and not read it: half of the smallest normal number is a denormal, or
    zero.
    """
    return (torch.tensor([1.17549435e-38]) * 0.5).item() == 0.0


def _device_name(device: str) -> str:
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(torch.device(device))
    cpu = _first(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return cpu or platform.machine()
