"""Drives a package of a compiled training step: docs/training.md.

    training = CompiledTraining("x.pt2")
    loss = training.step(x, y, lr=2e-4)

Twin: include/torchpace/aot/compiled_training.hpp.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from torchpace.aot.training_package import INITIAL, TrainingPackage
from torchpace.aot.training_step import deterministic_algorithms
from torchpace.errors import InputError
from torchpace.io import tensor_file
from torchpace.io.tensor_spec import parse_spec, spec_of
from torchpace.runtimes import aot

_UNALIGNED = 16  # bytes; compiled code may assume that a tensor begins at a multiple


class CompiledTraining:
    """A training step with its state, which is on the package's device.

    Raises InputError on a damaged package, and on one that was made for another torch, device, GPU,
    instruction set or number of threads: all before anything of it is opened.
    """

    def __init__(self, path: str | os.PathLike[str], device: str | torch.device | None = None):
        self.path = Path(path)
        metadata = aot.read_metadata(self.path)
        self.contents = TrainingPackage.parse(self.path, metadata)
        self.device = self._device(device)
        if wrong := aot.unmet(self.device, metadata, {}):
            raise self._error(*wrong)
        self.recipe, self.layout = self.contents.recipe, self.contents.layout
        self._inputs = [parse_spec(spec) for spec in self.contents.inputs]
        self._target = parse_spec(self.contents.target)
        self._initial = self._read_initial()
        self.state = {name: tensor.clone() for name, tensor in self._initial.items()}
        self._arguments = list(self.state.values())
        self._rate = torch.full((), math.nan, dtype=torch.float32, device=self.device)
        self._last_rate = math.nan
        try:
            self._loader = aot.Loader(self.path, self.device)
        except RuntimeError as error:
            raise self._error("code that loads", str(error).splitlines()[0][:160]) from None

    def step(self, inputs: Tensor | Sequence[Tensor], target: Tensor, lr: float) -> Tensor:
        """One step on one batch; its loss, a scalar on the device. Does not synchronize.

        Raises InputError on tensors of other shapes, dtypes or devices than the package takes, and
        on a learning rate that is negative or not finite; the state is then as it was.
        """
        given = (inputs,) if isinstance(inputs, Tensor) else inputs
        if len(given) != len(self._inputs):
            raise InputError(f"step: expected {len(self._inputs)} inputs, got {len(given)}")
        batch = [
            self._checked(f"input {i}", x, s)
            for i, (x, s) in enumerate(zip(given, self._inputs, strict=True))
        ]
        batch.append(self._checked("target", target, self._target))
        if lr != self._last_rate:
            if not 0 <= lr < math.inf:
                raise InputError(f"step: lr: expected a finite number of 0 or more, got {lr}")
            self._rate.fill_(lr)
            self._last_rate = lr
        with torch.no_grad(), self._algorithms():
            return self._loader.run([*self._arguments, self._rate, *batch])[0]

    def parameters(self) -> dict[str, Tensor]:
        """By name, as views of the state: a step changes them, and what changes them counts in the
        next step. A tied parameter is there under each of its names.
        """
        trained = self._views("parameters")
        return trained | self._named("parameter.")

    def buffers(self) -> dict[str, Tensor]:
        """The persistent ones by name, the state's own tensors."""
        return self._named("buffer.")

    def share_with(self, module: nn.Module) -> None:
        """Makes the module's parameters and buffers the state's own memory, without a copy.

        Raises InputError where names or shapes differ; nothing is shared then.
        """
        own = self.parameters()
        theirs = dict(module.named_parameters(remove_duplicate=False))
        buffers = dict(module.named_buffers(remove_duplicate=False))
        state = self.buffers() | self._named("transient.")
        self.expect_same(own, theirs, "the module")
        pairs = [(t, own[n]) for n, t in theirs.items()]
        pairs += [(t, state[n]) for n, t in buffers.items() if n in state]
        for tensor, view in pairs:
            tensor.data = view

    def save(self, path: str | os.PathLike[str]) -> None:
        """Parameters and buffers as a plain dictionary for load_state_dict."""
        _write(Path(path), self.parameters() | self.buffers())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Parameters and buffers of a plain dictionary (torch.save). The optimizer's state is left
        as it is. Raises InputError where names, shapes or dtypes differ; nothing is changed then.
        """
        content = _read(Path(path))
        own = self.parameters() | self.buffers()
        self.expect_same(own, content, str(path))
        self._copy(own, content)

    def save_checkpoint(self, path: str | os.PathLike[str], position: int = 0) -> None:
        """All that a run needs to go on, and `position`, the caller's place in its data."""
        content = self._checkpoint() | {
            "position": torch.tensor(position),
            "optimizer": torch.tensor(list(self.recipe.line().encode()), dtype=torch.uint8),
            "random.cpu": torch.get_rng_state(),
            tensor_file.FORMAT_KEY: torch.tensor(tensor_file.TENSOR_FORMAT),
        }
        if self.device.type == "cuda":
            content["random.cuda"] = torch.cuda.get_rng_state(self.device)
        _write(Path(path), content)

    def resume(self, path: str | os.PathLike[str]) -> int:
        """Takes the state of a checkpoint, and torch's random state; returns its position.

        Raises InputError where it is another model's or another optimizer's; nothing is changed
        then.
        """
        content = tensor_file.read_tensors(path, "checkpoint")
        found = bytes(content.pop("optimizer", torch.zeros(0, dtype=torch.uint8)).tolist()).decode()
        if found != self.recipe.line():
            raise InputError(
                f"checkpoint: {path}: expected one of {self.recipe.line()}, found "
                f"{found or 'no optimizer'}"
            )
        random = {n: content.pop(n) for n in ("random.cpu", "random.cuda") if n in content}
        position = content.pop("position", torch.tensor(0))
        own = self._checkpoint()
        self.expect_same(own, content, str(path))
        self._copy(own, content)
        if "random.cpu" in random:
            torch.set_rng_state(random["random.cpu"])
        if "random.cuda" in random and self.device.type == "cuda":
            torch.cuda.set_rng_state(random["random.cuda"], self.device)
        return int(position)

    def restart(self) -> None:
        """The initial state of the package, in place. Leaves the random state."""
        self._copy(self.state, self._initial)

    def first_gradients(self) -> dict[str, Tensor]:
        """The gradients of the first update, after weight decay and clipping: of the first moment,
        which began at zero. Raises InputError unless there was exactly one update.
        """
        if int(self.state["steps"]) != 1:
            raise InputError(f"gradients: expected one update, found {int(self.state['steps'])}")
        moments = self._views(self.recipe.moments[0])
        found = {name: self.recipe.first_gradient(m) for name, m in moments.items()}
        untrained = self._named("parameter.")
        return found | {name: torch.zeros_like(p) for name, p in untrained.items()}

    def _views(self, flat: str) -> dict[str, Tensor]:
        return {view.name: view.of(self.state[flat]) for view in self.layout.parameters}

    def _named(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.state.items()
            if name.startswith(prefix)
        }

    def _checkpoint(self) -> dict[str, Tensor]:
        """Every number of the state by name: flat tensors parameter by parameter."""
        content = {}
        for name, tensor in self.state.items():
            if name in ("parameters", "gradient", *self.recipe.moments):
                key = name.removesuffix("s")
                content |= {f"{key}.{n}": view for n, view in self._views(name).items()}
            else:
                content[name] = tensor
        return content

    def _checked(self, what: str, x: Tensor, spec: tuple[tuple[int, ...], torch.dtype]) -> Tensor:
        shape, dtype = spec
        if tuple(x.shape) != shape or x.dtype != dtype or x.device != self.device:
            expected = torch.empty(shape, dtype=dtype, device="meta")
            raise InputError(
                f"step: {what}: expected {spec_of(expected)} on {self.device}, got {spec_of(x)} on "
                f"{x.device}"
            )
        if not x.is_contiguous() or x.data_ptr() % _UNALIGNED:
            return x.clone(memory_format=torch.contiguous_format)
        return x

    @contextlib.contextmanager
    def _algorithms(self) -> Iterator[None]:
        """Deterministic algorithms during a step of a package that was made with them."""
        if not self.contents.deterministic:
            yield
            return
        with deterministic_algorithms(True):
            yield

    def _device(self, device: str | torch.device | None) -> torch.device:
        wanted = torch.device(device or self.contents.device)
        if wanted.type != self.contents.device:
            raise self._error(f"one for {wanted.type}", f"one for {self.contents.device}")
        if wanted.type == "cuda":
            if not torch.cuda.is_available():
                raise self._error("a package for the CPU: no CUDA device is here", "one for cuda")
            return torch.device("cuda", wanted.index or 0)
        return wanted

    def _read_initial(self) -> dict[str, Tensor]:
        with zipfile.ZipFile(self.path) as package:
            name = next((n for n in package.namelist() if n.endswith(INITIAL)), None)
            content = bytearray(package.read(name) if name else b"")
        end = max((t.offset or 0) + t.bytes for t in self.layout.state if t.offset is not None)
        if len(content) < end:
            raise self._error(f"{end} bytes of initial state", f"{len(content)}")
        initial = {}
        for tensor in self.layout.state:
            if tensor.offset is None or not tensor.bytes:
                value = torch.zeros(tensor.shape, dtype=tensor.dtype)
            else:
                count = math.prod(tensor.shape)
                value = torch.frombuffer(
                    content, dtype=tensor.dtype, count=count, offset=tensor.offset
                ).view(tensor.shape)
            initial[tensor.name] = value.to(self.device, copy=True)
        return initial

    def expect_same(
        self, own: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str
    ) -> None:
        for missing, where, has in (
            (own.keys() - other.keys(), what, "the package"),
            (other.keys() - own.keys(), "the package", what),
        ):
            if missing:
                raise InputError(
                    f"{what}: expected the names of the package {self.path}; {where} lacks "
                    f"{min(missing)} ({len(missing)} such), which {has} has"
                )
        for name, tensor in own.items():
            if tensor.shape != other[name].shape or tensor.dtype != other[name].dtype:
                raise InputError(
                    f"{what}: {name}: expected {spec_of(tensor)}, found {spec_of(other[name])}"
                )

    @staticmethod
    def _copy(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(other[name])

    def _error(self, expected: str, found: str) -> InputError:
        return InputError(
            f"package: {self.path}: expected {expected}, found {found}; make it again for this "
            "machine"
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # EOFError, RuntimeError, UnpicklingError, OSError, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: expected a dictionary of tensors (torch.save), found: {reason[:160]}"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path}: expected a dictionary of tensors, found something else")
    return content


def _write(path: Path, content: Mapping[str, Tensor]) -> None:
    """Whole on the disk, under a temporary name, before it gets its own. Raises InputError."""
    # clone: a view would drag its whole storage into the file
    copies = {name: tensor.detach().cpu().clone() for name, tensor in content.items()}
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save(copies, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"cannot write {path}: {reason}") from None
