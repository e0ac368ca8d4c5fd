"""torchpace: which way of running this PyTorch model is fastest on this machine, and by how much.

The Python half: the models and runtimes that serve as baselines, the worker that the controller
commands, the exporter of initial weights, inputs and golden (float64) values, the text loader and
the report. Importing it imports no torch; its public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "export_training": "torchpace.aot.export_training",
    "CompiledTraining": "torchpace.aot.compiled_training",
}
__all__ = ["__version__", "cmake_prefix_path", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "cmake_prefix_path":
        return _cmake_prefix_path()
    if name not in _PUBLIC:
        raise AttributeError(f"module 'torchpace' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def _cmake_prefix_path() -> str:
    """For find_package(torchpace): cmake -D CMAKE_PREFIX_PATH=... as torch.utils has it."""
    folder = Path(__file__).parent / "native"
    if not folder.is_dir():
        raise AttributeError(
            f"torchpace.cmake_prefix_path: expected the headers in {folder}, found none: this is a "
            "source tree; use add_subdirectory, or pip install ./python"
        )
    return str(folder)
