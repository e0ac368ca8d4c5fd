"""A model that comes as a file: TorchScript, an AOTInductor package or a program of torch.export.

Settings: `file`, its path; `others`, further files of the same model, a line with the path and one
with the stamp of each; `stamp` of the file that a row loads, so that a file that is replaced during
a run is noticed; `refused`, files that cost only their own rows, a line with the path and one with
the reason of each; `input`, and `below` for integers. What a file takes and returns is found out by
running it (torchpace.trial).

A program is a module like one of your own. The other two are only code: a case of theirs has inputs
and no state, and no float64 run. Twin: include/torchpace/models/file.hpp. Dimensions: B batch, the
first of every input.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchpace.case_phase import case_phase
from torchpace.errors import InputError, Skipped
from torchpace.execution_options import ExecutionOptions
from torchpace.io.tensor_spec import parse_spec
from torchpace.models import ELEMENT_BYTES, Cost
from torchpace.models.imported import Imported, draw
from torchpace.settings import Settings, SettingsError
from torchpace.trial import (
    Tried,
    does_not_load,
    expect_whole,
    is_embedding,
    is_package,
    is_program,
    load_script,
    try_file,
)

NO_GOLDEN = "a compiled file computes in its own precision only"


def of(settings: Settings) -> File | Program:
    """The model of a case, or of a row that has a file of its own. Raises InputError where the file
    is not the one that the case was planned with, or was refused when the case was made.
    """
    _expect_same(settings)
    path = Path(settings.text("file"))
    return _program(path) if is_program(path) else File(path)


def _expect_same(settings: Settings) -> None:
    stamp, _, path = settings.text("stamp", "").partition(" ")
    if not path:
        return
    if (found := _stamp(Path(path))) != stamp:
        what = "another one" if found else "none"
        raise InputError(f"{path}: expected the file that the run began with, found {what}")
    refused = settings.text("refused", "").splitlines()
    for name, reason in zip(refused[::2], refused[1::2], strict=False):
        if name == path:
            raise InputError(reason)


def _stamp(path: Path) -> str:
    """Size and time of the last change, as plan/model_files.cpp writes it; empty without a file."""
    try:
        status = path.stat()
    except OSError:
        return ""
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    return f"{status.st_size}-{seconds}.{nanoseconds:09}"


@functools.cache
def _program(path: Path) -> Program:
    return Program(path)


class ProgramModule(nn.Module):
    """A program's module, whose modes were chosen when it was exported."""

    def __init__(self, program: nn.Module):
        super().__init__()
        self.program = program

    def forward(self, *inputs: Tensor) -> Any:
        return self.program(*inputs)

    def train(self, mode: bool = True) -> ProgramModule:
        self.training = mode  # of this module alone: that of a program refuses
        return self


class Program(Imported):
    """A program of torch.export.save, as if a factory had returned its module and inputs."""

    def __init__(self, path: Path):
        super().__init__(path.name, str(path))

    def _find(self, label: str, path: str) -> tuple[Callable[[], Any], Path]:
        return self._load, Path(path)

    def _load(self) -> dict[str, Any]:
        expect_whole(self.file)
        try:
            program = torch.export.load(self.file)
        except Exception as error:
            raise InputError(does_not_load(self.file, error)) from None
        inputs, keywords = program.example_inputs or ((), {})
        if keywords or not all(isinstance(x, Tensor) for x in inputs):
            raise InputError(
                f"{self.file}: expected a program whose inputs are tensors by position, found "
                "others; export a module whose forward takes such"
            )
        module = ProgramModule(program.module())
        return {"module": module, **({"inputs": inputs} if inputs else {})}

    def identity(self) -> bytes:
        return str(self.file).encode()  # its digest is in the entry's `sources`

    def sources(self) -> list[Path]:
        return [self.file]

    def _measure(self, settings: Settings) -> dict[str, Any]:
        self._expect_batch(settings)
        measured = super()._measure(settings)
        others = paths_of(settings)[1:]
        if not others:
            return measured
        inputs = _inputs_of(self, settings)
        return measured | _refusals([try_file(path, inputs, settings) for path in others])

    def _expect_batch(self, settings: Settings) -> None:
        """Raises Skipped where there is no such case: a program may be exported for one batch."""
        given = self._known().inputs
        if "input" in settings or not given:
            return
        batch, latency = len(given[0]), case_phase(settings).batch_of_one
        if not latency and batch == 1 and "batch" not in settings:
            raise Skipped(f"{self.label}: its batch is 1, which is the case of phase latency")
        if latency and batch != 1:
            one = [x[:1] for x in given]
            try:
                with torch.no_grad():
                    self._load()["module"](*one)
            except Exception:
                raise Skipped(
                    f"{self.label}: it was exported for a batch of {batch} only"
                ) from None


class File:
    """The functions that a file in models/ defines, for files that are only code."""

    no_golden = NO_GOLDEN
    note = ""

    def __init__(self, path: Path):
        self.path = path
        self._measured: dict[str, dict[str, Any]] = {}

    def identity(self) -> bytes:
        return str(self.path).encode()  # the digests are in the entry's `sources`

    def sources(self) -> list[Path]:
        return self._files

    def make(self, settings: Settings) -> nn.Module:
        raise Skipped(f"{self.path.name} is compiled: it runs in *-torchscript or *-aot, as it is")

    def cost(self, settings: Settings) -> Cost:
        """As the settings state it; 0 is not known."""
        return Cost(
            forward_flops=settings.number("flops", 0),
            training_flops=0,
            parameter_bytes=settings.integer("parameter_bytes", 0),
            minimum_bytes=settings.integer("minimum_bytes", 0),
            items=settings.integer("items", 1),
            item="samples",
        )

    def inputs(
        self, settings: Settings, generator: torch.Generator, tokens: Tensor | None
    ) -> tuple[Tensor, ...]:
        """One batch as `input` says, and zeros for a target: floating-point numbers normal,
        integers uniform below `below`.
        """
        below = settings.integer("below", 2, minimum=1)
        drawn = [draw(s, dtype, below, generator) for s, dtype in self._specs(settings)]
        rows = len(drawn[0]) if drawn[0].dim() else 1
        return *drawn, torch.zeros(rows, dtype=torch.int64)

    def _specs(self, settings: Settings) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """`input` with the batch of the case: that of the key `batch`, 1 in phase latency."""
        specs = parse_specs(settings.text("input"))
        batch = given_batch(specs)
        if case_phase(settings).batch_of_one:
            batch = 1
        elif "batch" in settings:
            batch = settings.integer("batch", minimum=1)
        if batch is None:
            return [(tuple(1 if n is None else n for n in sizes), dtype) for sizes, dtype in specs]
        return [((batch, *(n or 1 for n in sizes[1:])), dtype) for sizes, dtype in specs]

    def measure(self, settings: Settings) -> dict[str, Any]:
        """What only a run of the files can tell, as settings. Raises InputError where none of them
        can be run, Skipped where they are for another batch.
        """
        key = settings.line()
        if key not in self._measured:
            self._measured[key] = self._measure(settings)
        return self._measured[key]

    def _measure(self, settings: Settings) -> dict[str, Any]:
        paths = paths_of(settings)
        self._files = paths
        self._expect_batch(settings)
        settings = settings.replace(below=_below(settings, paths))
        inputs = _inputs_of(self, settings)
        tried = [try_file(path, inputs, settings) for path in paths]
        good = next((t for t in tried if not t.refused), None)
        if case_phase(settings).batch_of_one:
            self._expect_batch_of_one(settings, tried)
        if good is None:
            raise InputError(tried[0].refused)
        moved = sum(x.nbytes for x in (*inputs, *good.values))
        return {
            "flops": next((t.flops for t in tried if t.flops), 0.0),
            "training_flops": 0.0,
            "items": len(inputs[0]) if inputs[0].dim() else 1,
            "parameter_bytes": next((t.weight_bytes for t in tried if t.weight_bytes), 0),
            "minimum_bytes": moved,
            "output_bytes": sum(x.nbytes for x in good.values),
            "outputs": ",".join(good.names),
            "dtype": _dtype(settings, inputs, good.values),
            "below": settings.text("below"),
            **_refusals(tried),
        }

    def _expect_batch(self, settings: Settings) -> None:
        specs = parse_specs(settings.text("input"))
        if case_phase(settings).batch_of_one and given_batch(specs) is None:
            raise Skipped(
                f"{self.path.name}: its inputs have no batch, one first dimension of all, to be 1"
            )

    def _expect_batch_of_one(self, settings: Settings, tried: list[Tried]) -> None:
        """Raises Skipped where a file was made for another batch: it refuses one row, or gives
        outputs of the batch for it.
        """
        batch = given_batch(parse_specs(settings.text("input")))
        if batch in (None, 1):
            return
        whole = settings.replace(phase="inference", batch=None)  # the batch that `input` has
        for one in tried:
            if one.refused and not try_file(one.path, _inputs_of(self, whole), whole).refused:
                raise Skipped(f"it takes no batch of 1: {one.refused}")
        if any(x.dim() and len(x) == batch for t in tried for x in t.values):
            raise Skipped(f"{self.path.name}: it returns {batch} rows for one: its batch is fixed")


def _inputs_of(model: File | Program, settings: Settings) -> list[Tensor]:
    """One batch of a case without its target, in the memory format of the case."""
    *inputs, _ = model.inputs(settings, torch.Generator().manual_seed(0), None)
    execution = ExecutionOptions.of(settings)
    execution.check_inputs(inputs)
    return [execution.place(x) for x in inputs]


def paths_of(settings: Settings) -> list[Path]:
    """The file of the case and the others, each with its stamp checked."""
    others = settings.text("others", "").splitlines()
    for path, stamp in zip(others[::2], others[1::2], strict=True):
        _expect_same(Settings({"stamp": stamp}))
        assert stamp.endswith(path)
    return [Path(path) for path in (settings.text("file"), *others[::2])]


def parse_specs(text: str) -> list[tuple[tuple[int | None, ...], torch.dtype]]:
    """`4x8:float32;?x8:int64`, `?` as None; without a dtype float32. Raises SettingsError."""
    specs = []
    for part in text.split(";"):
        sizes, _, dtype = part.partition(":")
        try:
            _, kind = parse_spec(f"{sizes.replace('?', '1')}:{dtype or 'float32'}")
        except ValueError as error:
            raise SettingsError(
                f"settings: input: expected sizes and a dtype, such as 1x3x224x224:float32, joined "
                f"by ';', got {error} in '{part}'"
            ) from None
        numbers = sizes.split("x") if sizes else []
        specs.append((tuple(None if n == "?" else int(n) for n in numbers), kind))
    return specs


def given_batch(specs: list[tuple[tuple[int | None, ...], torch.dtype]]) -> int | None:
    """The first dimension of all inputs, 1 where it is `?`; None where they have none in common."""
    first = {sizes[0] if sizes else 0 for sizes, _ in specs}
    if len(first) > 1 or first == {0}:
        return None
    return first.pop() or 1


def _below(settings: Settings, paths: list[Path]) -> int:
    """What integers are drawn below: as given, else the rows of the first embedding of a
    TorchScript file, else 2.
    """
    if "below" in settings:
        return settings.integer("below", minimum=1)
    for path in paths:
        if is_package(path) or is_program(path):
            continue
        with contextlib.suppress(Exception):  # try_file says why it does not load
            for module in load_script(path).modules():
                if is_embedding(module):
                    return len(module.weight)
    return 2


def _dtype(settings: Settings, inputs: list[Tensor], values: list[Tensor]) -> str:
    """The case's, which is that of the floating-point inputs, else of the outputs: nothing is
    cast. Raises InputError.
    """
    for found in (inputs, values):
        dtypes = {str(x.dtype).removeprefix("torch.") for x in found if x.is_floating_point()}
        if not dtypes:
            continue
        asked = settings.text("dtype", "float32")
        if found is inputs and (len(dtypes) > 1 or not dtypes <= set(ELEMENT_BYTES)):
            raise InputError(
                f"--input: expected floating-point inputs of one dtype of "
                f"{', '.join(ELEMENT_BYTES)}, found {', '.join(sorted(dtypes))}"
            )
        if found is inputs and asked not in ("float32", *dtypes):
            raise InputError(
                f"--dtype {asked}: expected the dtype of the file's inputs, "
                f"{', '.join(dtypes)}: a file is run as it is; leave --dtype out"
            )
        if len(dtypes) == 1 and dtypes <= set(ELEMENT_BYTES):
            return dtypes.pop()
    return settings.text("dtype", "float32")


def _refusals(tried: list[Tried]) -> dict[str, str]:
    lines = [f"{t.path}\n{t.refused}" for t in tried if t.refused]
    return {"refused": "\n".join(lines)} if lines else {}
