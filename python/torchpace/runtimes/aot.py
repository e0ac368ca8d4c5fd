"""py-aot: the model exported and compiled ahead of time by AOTInductor, loaded from Python.

Twin: include/torchpace/runtimes/aot.hpp, which loads the same packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchpace.aot import inductor, tuning
from torchpace.aot.patches import linear
from torchpace.errors import InputError, Note
from torchpace.exporter.artifacts import gpu, refused
from torchpace.io.tensor_spec import spec_of
from torchpace.runtimes.detail.inference_workload import (
    Inference,
    Source,
    artifact_of,
    batch_of,
    expect_inference,
    has_batch,
    is_given,
    with_operators,
)
from torchpace.settings import Settings
from torchpace.workload import Workload

# Keys of the settings line that its artifact depends on, beside those that all do.
RELATED = ("gemm",)
RUNTIMES = {"py-aot": "torch.export and AOTInductor, the package loaded from Python"}
ARTIFACTS = {"py-aot": "aot"}
FORMAT = "1"
GEMM = ("best", "torchpace", "torch")  # values of the setting `gemm`
# Of deflated entries, which hold code and never weights; deflate itself ends at 1032.
MAX_RATIO, MAX_DEFLATED_BYTES = 1000, 1 << 30


def load(name: str, settings: Settings, model: ModuleType) -> Workload:
    """Loads the case's artifact.

    Raises InputError on unusable settings, on a damaged package and on one that was made for other
    conditions, Skipped for training.
    """
    expect_inference(settings, "AOTInductor")
    return AotInference(settings, model)


def make_artifact(kind: str, target: Path, settings: Settings, model: ModuleType) -> Path:
    """Writes model.pt2, which returns all tensors that the module returns, in their order.

    Raises Skipped for training, InputError that names the construct that cannot be exported.
    """
    expect_inference(settings, "AOTInductor")
    inductor.use_caches(target / "caches", warm=False)
    inductor.start_making()
    source = Source(settings, model)
    path = target / "model.pt2"
    packages = {}
    with torch.no_grad(), linear.lowered():
        metadata = package_metadata(source)
        for way in _ways(source):
            packages[way.name] = target / f"{way.name}.pt2"
            try:
                torch._inductor.aoti_compile_and_package(
                    way.program,
                    package_path=str(packages[way.name]),
                    inductor_configs=_configs(source, way, metadata),
                )
            except Exception as error:
                raise refused(
                    "AOTInductor: expected a program that it can compile", error
                ) from None
    packages.pop(_fastest(packages, source)).rename(path)
    for other in packages.values():
        other.unlink()
    shutil.rmtree(target / "caches")
    return path


@dataclass(frozen=True)
class _Way:
    """Of compiling: which program, with which of Inductor's options, and whose products it has."""

    name: str
    gemm: str
    program: Any  # of torch.export
    configs: Mapping[str, Any]


def _ways(source: Source) -> list[_Way]:
    """Those that are compiled, of which the fastest is kept."""
    asked = source.settings.text("gemm", "best", GEMM)
    exported = source.export()
    untuned = {"max_autotune": False}
    # Kernels that Inductor times one by one, on weights that are packed for them.
    autotune = _Way("autotune", "torch", exported, {"max_autotune": True})
    # Products by the library that eager mode calls.
    libraries = _Way("libraries", "torch", exported, {**untuned, "cpp.weight_prepack": False})
    if source.device.type != "cpu":
        return [autotune if asked == "best" else libraries]
    usable = asked != "torch" and linear.usable() and source.settings.flag("freezing", True)
    if usable and (own := linear.fused(exported)):
        ours = _Way("linear", "torchpace", own, untuned)
        return [ours] if asked == "torchpace" else [ours, libraries]
    return [libraries] if asked == "torchpace" else [autotune, libraries]


def _fastest(packages: Mapping[str, Path], source: Source) -> str:
    if len(packages) == 1:
        return next(iter(packages))
    inputs = list(source.inputs[0])
    loaded = {way: Loader(path, source.device) for way, path in packages.items()}
    with source.turn():
        choice = tuning.choose(
            {way: lambda loader=loader: loader.run(inputs) for way, loader in loaded.items()}
        )
    if choice.name != next(iter(packages)) or choice.others > tuning.OTHERS:
        warnings.warn(str(choice), Note, stacklevel=1)
    return choice.name


def _configs(source: Source, way: _Way, metadata: Mapping[str, str]) -> dict[str, Any]:
    freezing = source.settings.flag("freezing", True) and source.device.type == "cpu"
    metadata = {**metadata, "torchpace.gemm": way.gemm, "torchpace.aot": way.name}
    return {"freezing": freezing, "aot_inductor.metadata": metadata, **way.configs}


def package_metadata(source: Source) -> dict[str, str]:
    """What a loader checks; all that is not checked is for people."""
    dynamic = source.settings.flag("dynamic", False)
    with source.turn():
        returned = source.flat()(*source.inputs[0])
    size = batch_of(source.inputs[0])

    def spec(x: Tensor) -> str:
        return _any_batch(spec_of(x)) if dynamic and has_batch(x, size) else spec_of(x)

    return conditions(source.device) | {
        "torchpace.inputs": ";".join(spec(x) for x in source.inputs[0]),
        "torchpace.outputs": ";".join(map(spec, returned)),
        "torchpace.model": source.settings.text("model"),
        "torchpace.case": source.settings.text("case", ""),
    }


def _any_batch(spec: str) -> str:
    return re.sub(r"^\d+", "?", spec)


def conditions(device: torch.device) -> dict[str, str]:
    """What must be the same where a package is made and where it runs.

    A package for the CPU holds the number of threads in its loops, one for CUDA the code of one
    kind of GPU.
    """
    return {
        "torchpace.format": FORMAT,
        "torchpace.torch": torch.__version__,
        "torchpace.device": device.type,
        "torchpace.threads": str(torch.get_num_threads()),
        "torchpace.isa": torch.backends.cpu.get_cpu_capability(),
        "torchpace.gpu": gpu(device),
    }


def unmet(device: torch.device, found: Mapping[str, str], more: Mapping[str, str]) -> tuple | None:
    """The first (expected, found) of the metadata that do not agree, as words for a message: what
    this process and `more` ask for. None where a package may be loaded.
    """
    expected = conditions(device)
    if device.type == "cuda":
        del expected["torchpace.threads"]
    for key, value in {**expected, **more}.items():
        if found.get(key, "") != value:
            return f"{key} {value or 'empty'}", found.get(key) or "none"
    return None


def expect_conditions(path: Path, device: torch.device, found: Mapping[str, str]) -> None:
    """Raises InputError where a package of the user's was made for another torch, device or number
    of threads. What it does not say is taken on trust.
    """
    advice = "make it again on this machine"
    made_for = found.get("AOTI_DEVICE_KEY", device.type)
    if made_for != device.type:
        raise InputError(
            f"{path}: expected a package for {device.type}, found one for {made_for}; --device"
        )
    for key, value in conditions(device).items():
        if key == "torchpace.threads":
            if device.type == "cuda":
                continue
            advice = f"the number is compiled in: --threads {found.get(key)}, or make it again"
        if key in found and found[key] != value:
            what = key.removeprefix("torchpace.")
            raise InputError(
                f"{path}: expected a package for {what} {value}, found one for "
                f"{found[key] or 'none'}; {advice}"
            )


class Loader:
    """A package's code, loaded. `runners` threads may run it at the same time."""

    def __init__(self, path: Path, device: torch.device, runners: int = 1):
        """Raises RuntimeError where the code does not load, InputError where a mount is why."""
        index = device.index if device.index is not None else -1
        # Without the locks that several runners need.
        alone = runners == 1
        with _temporary_folder() as folder:
            try:
                self.loader = torch._C._aoti.AOTIModelPackageLoader(
                    str(path), "model", alone, runners, index
                )
            except RuntimeError as error:
                _expect_no_noexec(error)
                raise
            self.unpacked = _unpacked_folder(folder)
        if device.type == "cpu":
            self.remove_unpacked()
        elif not alone:  # each runner loads its kernels from there in a first step of its own
            self.unpacked = None

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        outputs = self.loader.run(inputs)
        if self.unpacked:  # on CUDA, where the first step loads kernels from there
            self.remove_unpacked()
        return outputs

    def remove_unpacked(self) -> None:
        """The loader unpacks into a folder that it removes when it is destroyed: a worker's process
        ends without that. What it has opened stays open.
        """
        if self.unpacked:
            shutil.rmtree(self.unpacked, ignore_errors=True)
            self.unpacked = None


class AotInference(Inference):
    compiled_kernels = True

    def __init__(self, settings: Settings, model: ModuleType):
        super().__init__(settings, model)
        path = artifact_of(settings, ".pt2")
        found = read_metadata(path)  # reads the whole file, for its checksums
        self._expect_made_for(path, settings, found)
        self._gemm = found.get("torchpace.gemm", "torch")
        runners = settings.integer("runners", 1, minimum=1)
        self.loader = with_operators(lambda: Loader(path, self.device, runners), settings, model)

    def _expect_made_for(self, path: Path, settings: Settings, found: Mapping[str, str]) -> None:
        """Raises InputError where the package was made for other conditions or inputs."""
        if is_given(settings):  # which may say less; it has run with these inputs
            expect_conditions(path, self.device, found)
            return
        # With other inputs its code would read past their end.
        inputs = [spec_of(x) for x in self.inputs[0]]
        taken = found.get("torchpace.inputs", "").split(";")
        if len(taken) == len(inputs):
            inputs = [
                _any_batch(i) if t.startswith("?") else i
                for i, t in zip(inputs, taken, strict=True)
            ]
        if wrong := unmet(self.device, found, {"torchpace.inputs": ";".join(inputs)}):
            raise InputError(
                f"artifact: {path}: expected {wrong[0]}, found {wrong[1]}; make it again for this "
                "case on this machine"
            )

    @property
    def gemm(self) -> str:
        return self._gemm

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return self.loader.run(list(inputs))


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """TMPDIR in the block, for a loader that leaves its folder behind where it throws."""
    folder, usual = Path(tempfile.mkdtemp(prefix="torchpace-")), os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if usual is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = usual


def _expect_no_noexec(error: RuntimeError) -> None:
    """Raises InputError where the mount is the reason why unpacked code does not load, and removes
    what torch's loader then leaves behind: 2.11 unpacks in /tmp/XXXXXX.
    """
    if found := re.search(r"dlopen: (/\S+): failed to map segment", str(error)):
        if left := re.match(r"/tmp/\w{6}(?=/(\w+/)?data/aotinductor/)", found[1]):
            shutil.rmtree(left[0], ignore_errors=True)
        raise InputError(
            f"{found[1]}: expected a folder that code can be loaded from, where torch unpacks "
            "packages, found it mounted noexec; mount it with exec"
        ) from None


def _unpacked_folder(temporary: Path) -> Path:
    """What goes when the loader's folder goes. torch 2.15 makes it in `temporary`; 2.11 in /tmp,
    where it is found by the library that was loaded from there.
    """
    if any(temporary.iterdir()):
        return temporary
    maps = Path("/proc/self/maps").read_text()
    library = r"\s(/tmp/[^/\s]+)/(?:\S+/)?data/aotinductor/model/\S+\.so$"
    found = re.findall(library, maps, re.MULTILINE)
    temporary.rmdir()
    return Path(found[-1]) if found else temporary


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a whole, undamaged package. Runs nothing of it.

    Raises InputError where it is none: the loader itself opens a library with flipped bytes.
    """
    try:
        with zipfile.ZipFile(path) as package:
            _expect_harmless(package)
            damaged = package.testzip()
            if damaged:
                raise InputError(
                    f"artifact: {path}: the checksum of {damaged} is wrong; make it again"
                )
            for name in package.namelist():
                if name.endswith("_metadata.json"):
                    return _names_and_texts(json.loads(package.read(name)))
    # RuntimeError: an unknown method, an encrypted entry, JSON that is nested too deep
    except (
        *(OSError, ValueError, EOFError, RuntimeError),
        *(zipfile.BadZipFile, zlib.error, struct.error),
    ) as error:
        raise InputError(
            f"artifact: {path}: expected a package of AOTInductor, found a damaged or foreign "
            f"file: {str(error)[:160]}; make it again"
        ) from None
    raise InputError(
        f"artifact: {path}: expected a package of AOTInductor, found an archive without metadata; "
        "make it again"
    )


def _expect_harmless(package: zipfile.ZipFile) -> None:
    """Raises ValueError on names that torch's loader would unpack outside its folder, and on what
    would fill the disk. As include/torchpace/io/zip_archive.hpp.
    """
    entries = package.infolist()
    names = [entry.filename for entry in entries]
    deflated = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ValueError(f"expected names inside the archive's own folder, found {name!r}")
    if len(set(names)) < len(names):
        raise ValueError("expected every name once")
    for entry in deflated:
        if entry.file_size > MAX_RATIO * entry.compress_size:
            raise ValueError(
                f"{entry.filename} unpacks to {entry.file_size} bytes from {entry.compress_size}: "
                "a zip bomb"
            )
    if sum(entry.file_size for entry in deflated) > MAX_DEFLATED_BYTES:
        raise ValueError("more than 1 GiB after unpacking: a zip bomb")


def _names_and_texts(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("expected metadata of names and texts")
    return metadata
