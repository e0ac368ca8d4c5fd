"""Runs a compiled file a few times: what it takes and returns, and what is wrong with it.

    python -m torchpace.trial LINE    # one file, in a process of its own: a line of JSON

A file's code may bring its process down; that of a package checks nothing, so AOTInductor's checks
of inputs are on here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchpace import outputs, parity
from torchpace.errors import InputError, Skipped
from torchpace.io import tensor_file
from torchpace.io.tensor_spec import spec_of
from torchpace.models.imported import counted_flops
from torchpace.settings import Settings
from torchpace.worker.protocol import die_with_parent

LIMIT_S = 300.0  # for a few runs of a package
LOAD_LIBRARY = "its operators are in a library of their own: --load-library FILE.so"


def is_program(path: Path) -> bool:
    """Whether a file is of torch.export.save. Raises InputError where it is no whole archive."""
    return not is_package(path) and _has_folder(path, "models/")


def is_package(path: Path) -> bool:
    """Whether a file is of AOTInductor. Raises InputError where it is no whole archive."""
    return _has_folder(path, "data/aotinductor/")


def _has_folder(path: Path, folder: str) -> bool:
    """In the archive's own folder: deeper ones have any name, as code of torchvision.models."""
    return any(name.partition("/")[2].startswith(folder) for name in _entries(path))


def _entries(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected a whole zip archive, found: {error}") from None


def expect_whole(path: Path) -> None:
    """Raises InputError where the bytes of an entry are not those that were written: torch's own
    reader looks at no checksum.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # also what deflate says of damaged bytes
        raise InputError(
            f"{path}: expected a whole archive, found: {error}; save it again"
        ) from None
    if damaged:
        raise InputError(
            f"{path}: expected the bytes of its checksum in {damaged}, found others; save it again"
        )


@dataclass
class Tried:
    """What came of a file that was run once: either its outputs or why not."""

    path: Path
    names: list[str]  # of the outputs
    values: list[Tensor]
    flops: float = 0.0  # 0: not known
    weight_bytes: int = 0  # that every run reads
    refused: str = ""


def is_embedding(module: Any) -> bool:
    return getattr(module, "original_name", "") == "Embedding" and hasattr(module, "weight")


def try_file(path: Path, inputs: list[Tensor], settings: Settings) -> Tried:
    """Runs a compiled file on these inputs, a few times, in a process of its own. AOTInductor's
    checks of inputs are on: without them its code reads past the end of a tensor that is too small.
    Never raises: what is wrong with a file costs only its own rows.
    """
    try:
        expect_whole(path)
        return _try_in_process(path, inputs, settings)
    except (InputError, Skipped) as error:
        return Tried(path, [], [], refused=" ".join(str(error).split()))


def _try_in_process(path: Path, inputs: list[Tensor], settings: Settings) -> Tried:
    with tempfile.TemporaryDirectory(prefix="torchpace-") as folder:
        asked, answered = Path(folder, "inputs.pt"), Path(folder, "outputs.pt")
        tensor_file.write_tensors(asked, {str(i): x for i, x in enumerate(inputs)})
        line = settings.replace(file=path, state=asked, values=answered).line()
        environment = os.environ | {"AOTI_RUNTIME_CHECK_INPUTS": "1", "TMPDIR": folder}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "torchpace.trial", line],
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                stdin=subprocess.DEVNULL,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{path}: expected a file that runs, found no end within {LIMIT_S:g} s"
            ) from None
        sys.stderr.write(done.stderr)  # the exporter's log has the traceback
        answer = done.stdout.strip().splitlines()[-1:]
        if done.returncode == 0 and answer:
            content = tensor_file.read_tensors(answered, "outputs")
            values = [content[str(i)] for i in range(len(content))]
            return Tried(path, values=values, **json.loads(answer[0]))
    refused_input = re.findall(r"^Error: (input_handles.*)$", done.stderr, re.MULTILINE)
    if refused_input:
        others = "others with --input"
        if "unmatched stride" in refused_input[0]:
            others += ", channels_last ones as 2x3x8x8:float32:channels_last"
        raise InputError(
            f"{path}: expected the inputs that the package was made for, found {_shapes(inputs)}: "
            f"{refused_input[0]}; give {others}"
        )
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise InputError(f"{path}: expected a file that runs, it died of {name}; make it again")
    raise InputError(answer[0] if answer else f"{path}: it does not run: {_last(done.stderr)}")


def _run(settings: Settings) -> dict[str, Any]:
    """The life of that process: writes the outputs, returns what it has found out otherwise. Raises
    InputError.
    """
    from torchpace.worker.commands import set_threads
    from torchpace.workload import device_of, load_libraries

    load_libraries(settings)
    set_threads(settings)
    path, device = Path(settings.text("file")), device_of(settings)
    content = tensor_file.read_tensors(settings.text("state"), "inputs")
    inputs = [content[str(i)] for i in range(len(content))]
    with torch.no_grad():
        result, found = (
            _run_package(path, [x.to(device) for x in inputs], device)
            if is_package(path)
            else _run_script(path, inputs)
        )
    names, values = outputs.names_of(result), outputs.flat(result)
    if not values:
        raise InputError(f"{path}: expected a forward that returns tensors, found none")
    tensor_file.write_tensors(
        settings.text("values"), {str(i): outputs.plain(x) for i, x in enumerate(values)}
    )
    return {"names": names, **found}


def _run_script(path: Path, inputs: list[Tensor]) -> tuple[Any, dict[str, Any]]:
    """What its forward returns, and what else is known of it."""
    module = load_script(path)
    if not hasattr(module, "forward"):
        raise InputError(f"{path}: expected a file with a method forward, found none")
    with _running(path, inputs, _takes(module)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = _watched(path, module, inputs, dict(module.named_buffers()))
        flops = _flops_of(module, inputs)
    weights = {
        id(p): p.nbytes
        for m in module.modules()
        for p in m.parameters(recurse=False)
        if not is_embedding(m)
    }
    return result, {"flops": flops, "weight_bytes": sum(weights.values())}


def _run_package(
    path: Path, inputs: list[Tensor], device: torch.device
) -> tuple[Any, dict[str, Any]]:
    """As _run_script."""
    from torchpace.runtimes.aot import Loader, expect_conditions, read_metadata

    expect_conditions(path, device, read_metadata(path))
    try:
        loader = Loader(path, device)
    except Exception as error:
        raise InputError(does_not_load(path, error)) from None
    with _running(path, inputs, ""):
        values = _watched(path, lambda *x: loader.run(list(x)), inputs, {})
    return values[0] if len(values) == 1 else values, {}


@contextlib.contextmanager
def _running(path: Path, inputs: list[Tensor], takes: str) -> Iterator[None]:
    """Turns what a forward raises into one line."""
    try:
        yield
    except (InputError, Skipped):
        raise
    except Exception as error:
        raise InputError(_does_not_run(path, error, inputs, takes)) from None


def load_script(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.jit.load(path, map_location="cpu").eval()
        except Exception as error:
            raise InputError(does_not_load(path, error)) from None


def _flops_of(module: Any, inputs: list[Tensor]) -> float:
    """0 where they cannot be counted, such as below fused kernels."""
    with contextlib.suppress(Exception), counted_flops() as counter:
        module(*inputs)
        return float(counter.flops)
    return 0.0


def _watched(path: Path, function: Any, inputs: list[Tensor], buffers: dict[str, Tensor]) -> Any:
    """What a forward returns. Raises InputError where it changes what it is given or keeps, and
    where it does not return the same again: no two runtimes could be compared.
    """
    kept = {f"its input {i}": (x, x.clone()) for i, x in enumerate(inputs)}
    kept |= {f"its buffer '{name}'": (b, b.clone()) for name, b in buffers.items()}
    found: list[Any] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        result = function(*inputs)
        found.append([outputs.plain(x) for x in outputs.flat(result)])
        for name, (x, before) in kept.items():
            if not torch.equal(torch.nan_to_num(x), torch.nan_to_num(before)):
                advice = (
                    "clone it first (x = x.clone())"
                    if "input" in name
                    else "keep what a call leaves behind out of the file that is measured"
                )
                raise InputError(
                    f"{path}: the model changes {name} in place, so every step would see another "
                    f"one; {advice}"
                )
    for other, why, advice in (
        (found[1], "what it keeps from one call to the next", "save it without"),
        (found[2], "random numbers", "save it in eval mode: module.eval() before it is traced"),
    ):
        for index, (x, y) in enumerate(zip(found[0], other, strict=True)):
            moved, size = parity.norms(y, x)[0], parity.norms(x)[0]
            if moved > parity.REPEATABLE * size:
                raise InputError(
                    f"{path}: expected the same output from the same inputs, found that "
                    f"output {index} moves by {moved:.1g} with {why}; {advice}"
                )
    return result


def _takes(module: Any) -> str:
    """Its forward's arguments, `(Tensor x, Tensor? mask=None)`."""
    with contextlib.suppress(Exception):
        return ", ".join(
            f"{a.type} {a.name}" + (f"={a.default_value}" if a.has_default_value() else "")
            for a in module.forward.schema.arguments[1:]
        )
    return ""


def does_not_load(path: Path, error: Exception) -> str:
    traceback.print_exception(error, file=sys.stderr)
    text, cause = str(error), error.__cause__ or error.__context__
    while cause:  # a loader of programs says it there only
        text, cause = f"{text}\n{cause}", cause.__cause__ or cause.__context__
    unknown = re.search(
        r"(?:Unknown builtin op: |Could not find schema for |operator )(\w+::\w+)", text
    )
    if unknown and ("Unknown builtin op" in text or "schema" in text or "does not exist" in text):
        return f"{path}: expected operators that torch knows, found {unknown[1]}; {LOAD_LIBRARY}"
    return (
        f"{path}: expected a file that loads, found: {_first(text)}; save it again with this torch"
    )


def _does_not_run(path: Path, error: Exception, inputs: list[Tensor], takes: str) -> str:
    traceback.print_exception(error, file=sys.stderr)
    wants = f" (its forward takes {takes})" if takes else ""
    return (
        f"{path}: expected a model that takes {_shapes(inputs)}{wants}, found that it raised: "
        f"{_raised(str(error))}; give others with --input, integers with --below"
    )


def _raised(text: str) -> str:
    """What TorchScript says at the end of its traceback, else the first line."""
    found = re.findall(r"^\s*(?:\w+Error|builtins\.\w+): (.+)$", text, re.MULTILINE)
    return found[-1][:200] if found else _first(text)


def _first(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else "no reason"


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason"


def _shapes(inputs: list[Tensor]) -> str:
    return ", ".join(spec_of(x) for x in inputs)


def main() -> int:
    """A settings line; a line of JSON, or with exit code 1 one of what is wrong."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the file's code prints is no answer
    try:
        found = _run(Settings.parse(sys.argv[1]))
    except (InputError, Skipped) as error:
        print(" ".join(str(error).split()), file=answers)
        return 1
    print(json.dumps(found), file=answers)
    answers.flush()
    os._exit(0)  # without the destructors of a package's library


if __name__ == "__main__":
    sys.exit(main())
