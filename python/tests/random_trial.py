"""Takes drawn modules through the exporter, the maker and the workers, and compares what they say
with what plain torch finds: a row may only pass where its values are those of the user's module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import random_modules
import torch
from torch import Tensor

from torchpace.settings import Settings, encode

TESTS = Path(__file__).resolve().parent
CPP_WORKER = TESTS.parents[1] / "build" / "release" / "bin" / "torchpace_worker"
COMPILE_LIMIT_S = 300
# Plain torch has the same operators, so only rounding in another order is between the two.
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
TOLERANCE_FLOAT = 2e-4  # of the largest magnitude


@dataclass
class Row:
    """What became of a drawn module in a runtime.

    verdict: `ok` passed and right, `invalid`, `refused`, `wrong` passed and not right, `false
    invalid` right and yet called invalid, `dead` where the process ended.
    """

    seed: int
    trap: str
    phase: str
    runtime: str
    verdict: str
    reason: str = ""


class Line:
    """A program of lines, started again where it has died."""

    def __init__(self, command: list[str], greets: bool = False):
        self.command, self.greets = command, greets
        self.process: subprocess.Popen[str] | None = None

    def ask(self, line: str) -> dict:
        """Its answer; {"dead": code} where it ends instead."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        assert self.process and self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else {"dead": self.process.wait()}

    def close(self) -> None:
        if self.process:
            self.process.communicate()

    def _start(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if self.greets:
            assert self.process.stdout
            self.process.stdout.readline()


class Trial:
    """The processes of a trial; `folder` gets the modules, the cache and all values."""

    def __init__(self, folder: Path, languages: tuple[str, ...] = ("cpp",)):
        """Rows of compiled files in `languages`, the reference in Python."""
        self.folder, self.languages = folder, languages
        folder.mkdir(parents=True, exist_ok=True)
        python = [sys.executable, "-m"]
        self.exporter = Line([*python, "torchpace.exporter", "--cache", str(folder / "cache")])
        self.plain = Line([sys.executable, str(TESTS / "plain_torch.py")])
        self.workers: dict[str, Line] = {}

    def close(self) -> None:
        for line in (self.exporter, self.plain, *self.workers.values()):
            line.close()

    def run(self, seed: int, *, aot: bool, train: bool, infer: bool = True) -> Iterator[Row]:
        """The rows of a seed: inference, and training where the module has a loss."""
        file = random_modules.write(seed, self.folder)
        drawn = random_modules.drawn(seed)
        phases = {}
        if infer:
            phases["inference"] = ["torchscript", "aot"] if aot else ["torchscript"]
        if train and drawn.trains:
            phases["train"] = ["compiled-train"]
        for phase, kinds in phases.items():
            artifacts = {f"{own}-{kind}": kind for kind in kinds for own in self.languages}
            settings = Settings(
                model="imported",
                factory=f"{file.stem}:make",
                path=self.folder,
                phase=phase,
                threads=1,
                device="cpu",
                **({"input": drawn.input} if drawn.input else {}),
            )
            for runtime, verdict, reason in self._rows(file, settings, artifacts):
                yield Row(seed, drawn.trap, phase, runtime, verdict, reason)

    def _rows(
        self, file: Path, settings: Settings, artifacts: dict[str, str]
    ) -> Iterator[tuple[str, str, str]]:
        phase = settings.text("phase")
        files = self.exporter.ask(settings.line())
        if "state" not in files:
            yield "py-eager", *_refusal(files)
            return
        case = settings.replace(state=files["state"], **files["set"])
        golden = encode(files["golden"])
        expected = self._plain(file, files["state"], phase)
        reference = self.folder / f"{file.stem}.{phase}.py-eager.pt"
        valid: bool | None = None  # the reference, which is the first row
        for runtime, kind in {"py-eager": "", **artifacts}.items():
            line = case
            if kind:
                # Tuning and freezing take minutes, and are the subject of other tests.
                quick = settings.replace(make=kind, aot="default", freezing=0)
                made = self.exporter.ask(quick.replace(compile_timeout=COMPILE_LIMIT_S).line())
                if "artifact" not in made:
                    yield runtime, *_refusal(made)
                    continue
                line = case.replace(artifact=made["artifact"], aot="default", freezing=0)
            worker = self.workers.setdefault(runtime, _worker(runtime))
            loaded = worker.ask(f"load {line.line()}")
            if "load_s" not in loaded:
                yield runtime, *_refusal(loaded)
                continue
            own = reference.with_name(f"{file.stem}.{phase}.{runtime}.pt")
            written = worker.ask(f"write {encode(str(own))}")
            check = written
            if "written" in written:
                check = worker.ask(f"check {encode(str(reference))} {golden}".strip())
            if "passed" not in check:
                yield runtime, *_refusal(check)
                continue
            valid = check["passed"] if valid is None else valid
            wrong = difference(torch.load(own, weights_only=True), expected, phase)
            if check["passed"] and valid:
                yield runtime, "wrong" if wrong else "ok", wrong
            else:
                right = not wrong and not check["passed"]
                yield runtime, "false invalid" if right else "invalid", _why(check, wrong)

    def _plain(self, file: Path, state: str, phase: str) -> dict[str, Tensor] | str:
        """What plain torch finds, or the reason why it finds nothing."""
        out = self.folder / f"{file.stem}.{phase}.plain.pt"
        question = {"file": str(file), "state": state, "out": str(out), "train": phase == "train"}
        answer = self.plain.ask(json.dumps(question))
        return torch.load(out, weights_only=True) if not answer else f"plain torch: {answer}"


def _worker(runtime: str) -> Line:
    of_cpp = [str(CPP_WORKER), "--runtime", runtime]
    of_python = [sys.executable, "-m", "torchpace.worker", "--runtime", runtime]
    return Line(of_cpp if runtime.startswith("cpp") else of_python, greets=True)


def _why(check: dict, wrong: str) -> str:
    if check["max_abs_error"] is None:
        reason = check["note"]
    else:
        reason = f"{check['worst']} by {check['max_abs_error']:.2g}, {check['tolerance']:.2g}"
    return f"{reason} allowed; {wrong or 'as in plain torch'}"


def _refusal(answer: dict) -> tuple[str, str]:
    if "dead" in answer:
        return "dead", f"ended with {answer['dead']}"
    return "refused", answer.get("error") or answer.get("skipped") or str(answer)


def difference(own: dict[str, Tensor], plain: dict[str, Tensor] | str, phase: str) -> str:
    """The first value that is not that of plain torch; '' if there is none."""
    if isinstance(plain, str):
        return plain
    ours = {name for name in own if phase != "train" or not name.startswith(("gradient", "update"))}
    ours -= {"torchpace.format"}
    if ours != plain.keys():
        return f"expected {sorted(plain)}, found {sorted(ours)}"
    for name, expected in plain.items():
        found = own[name]
        if found.shape != expected.shape:
            return f"{name}: expected shape {list(expected.shape)}, found {list(found.shape)}"
        if wrong := _differs(found, expected, trained=name.startswith(("parameter", "buffer"))):
            return f"{name}: {wrong}"
    return ""


def _differs(found: Tensor, expected: Tensor, *, trained: bool) -> str:
    if expected.is_complex() != found.is_complex():
        return f"expected {expected.dtype}, found {found.dtype}"
    if expected.is_complex():
        found, expected = (torch.view_as_real(x.resolve_conj()) for x in (found, expected))
    if not expected.is_floating_point():
        return "" if torch.equal(found, expected) else "other integers or bools"
    tolerance = TOLERANCE.get(expected.dtype, TOLERANCE_FLOAT)
    a, b = found.double(), expected.double()
    special = ~b.isfinite()
    if not torch.equal(a.isfinite(), b.isfinite()) or not torch.equal(
        a[special].nan_to_num(7.0), b[special].nan_to_num(7.0)
    ):
        return "NaN or infinities in other places"
    error = (a - b)[~special].abs().amax().item() if (~special).any() else 0.0
    size = b[~special].abs().amax().item() if (~special).any() else 0.0
    # Adam divides a gradient by its own size: of one that is 0 but for rounding, the sign is drawn.
    allowed = tolerance * size + (2 * 10 * 2e-4 if trained else 1e-6)
    return f"off by {error:.2g} of {size:.2g}" if error > allowed else ""


def as_line(row: Row) -> str:
    return json.dumps(asdict(row))
