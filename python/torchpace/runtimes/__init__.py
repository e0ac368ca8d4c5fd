"""The runtimes, one a file. A file x.py defines `RUNTIMES = {"py-x": "one line"}`, a literal, and
`load(name, settings, model) -> Workload`, where `model` has the functions that torchpace.models
names. If it loads a compiled file it has a literal `ARTIFACTS = {"py-x": "kind"}`, and if it
imports more than torch a `prepare()`, called before the worker forks: it must start no thread.
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torchpace.errors import InputError


@dataclass(frozen=True)
class Listed:
    description: str
    module: str
    artifact: str  # the kind of compiled file that it loads, or empty


def list_runtimes() -> dict[str, Listed]:
    """By name, read from the sources without importing them or torch."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        literals = {"RUNTIMES": {}, "ARTIFACTS": {}}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for target in node.targets if isinstance(node, ast.Assign) else []:
                if isinstance(target, ast.Name) and target.id in literals:
                    literals[target.id] = ast.literal_eval(node.value)
        for name, description in literals["RUNTIMES"].items():
            found[name] = Listed(description, path.stem, literals["ARTIFACTS"].get(name, ""))
    return found


def find(name: str) -> ModuleType:
    """Imports the module of the runtime `name`. Raises InputError naming the known ones."""
    known = list_runtimes()
    if name not in known:
        raise InputError(f"runtime: expected one of {', '.join(known)}, got '{name}'")
    return module(known[name].module)


def module(file: str) -> ModuleType:
    """The module of one of this folder's files, named without suffix."""
    return importlib.import_module(f"{__name__}.{file}")
