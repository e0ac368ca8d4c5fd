"""The runtimes, one a file. A file x.py defines `RUNTIMES = {"py-x": "one line"}`, a literal, and
`load(name, settings, model) -> Workload`, where `model` is a module of torchpace.models.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

from torchpace.errors import InputError


def list_runtimes() -> dict[str, tuple[str, str]]:
    """Name -> (description, module), read from the sources without importing them or torch."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(t, ast.Name) and t.id == "RUNTIMES" for t in targets):
                for name, description in ast.literal_eval(node.value).items():
                    found[name] = (description, path.stem)
    return found


def find(name: str) -> ModuleType:
    """Imports the module of the runtime `name`. Raises InputError naming the known ones."""
    known = list_runtimes()
    if name not in known:
        raise InputError(f"runtime: expected one of {', '.join(known)}, got '{name}'")
    return importlib.import_module(f"{__name__}.{known[name][1]}")
