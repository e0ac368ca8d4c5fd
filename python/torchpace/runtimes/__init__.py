"""The runtimes, one a file. A file x.py defines `RUNTIMES = {"py-x": "one line"}`, a literal, and
`load(name, settings, model) -> Workload`, where `model` has the functions that torchpace.models
names. If it loads a compiled file it has a literal `ARTIFACTS = {"py-x": "kind"}`, and if it
imports more than torch a `prepare()`, called before the worker forks: it must start no thread. If
it needs packages beside torch it names them in a literal, `NEEDS = ("openvino",)`, and the oldest
torch that it runs in, if that is newer than ours, in another: `NEEDS_TORCH = "2.13"`. Where its
arithmetic is coarser than the case's it has a literal `APPROXIMATE = True`: its errors are reported
and no tolerance judges them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torchpace.errors import InputError


@dataclass(frozen=True)
class Listed:
    description: str
    module: str
    artifact: str  # the kind of compiled file that it loads, or empty
    needs: tuple[str, ...]  # distributions, beside torch
    needs_torch: str  # the oldest release, or empty
    approximate: bool  # its errors are reported, and no tolerance judges them

    @property
    def absent(self) -> str:
        """Why it cannot run in this environment, or empty."""
        return too_old(self.needs_torch) or missing(self.needs)


def list_runtimes() -> dict[str, Listed]:
    """By name, read from the sources without importing them or torch."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        literals: dict = {
            **{"RUNTIMES": {}, "ARTIFACTS": {}},
            **{"NEEDS": (), "NEEDS_TORCH": "", "APPROXIMATE": False},
        }
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for target in node.targets if isinstance(node, ast.Assign) else []:
                if isinstance(target, ast.Name) and target.id in literals:
                    literals[target.id] = ast.literal_eval(node.value)
        for name, description in literals["RUNTIMES"].items():
            artifact = literals["ARTIFACTS"].get(name, "")
            traits = (literals[key] for key in ("NEEDS", "NEEDS_TORCH", "APPROXIMATE"))
            found[name] = Listed(description, path.stem, artifact, *traits)
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


def missing(needs: tuple[str, ...]) -> str:
    """`pip install a b` for those that are not installed; empty where all are. Imports none."""
    names = [name for name in needs if importlib.util.find_spec(name.replace("-", "_")) is None]
    return f"pip install {' '.join(names)}" if names else ""


def too_old(needed: str) -> str:
    """`needs torch 2.13 or newer, found 2.11.0`; empty where torch is new enough. Imports none."""
    try:
        found = importlib.metadata.version("torch") if needed else ""
    except importlib.metadata.PackageNotFoundError:  # not installed, but on the path
        return ""
    if _release(found) >= _release(needed):
        return ""
    return f"needs torch {needed} or newer, found {found}"


def _release(version: str) -> tuple[int, ...]:
    """Major and minor, (2, 13) of `2.13.0+cpu`."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def versions(runtime: ModuleType) -> str:
    """`openvino 2026.4.1`: the packages that a runtime's module needs beside torch."""
    needs = getattr(runtime, "NEEDS", ())
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in needs)
