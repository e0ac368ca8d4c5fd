"""What a package of a compiled training step says of itself: its optimizer, its state, its names.

Rules: docs/training.md. Twin: include/torchpace/aot/training_package.hpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from torchpace.errors import InputError
from torchpace.io.tensor_spec import parse_sizes, parse_spec, spec
from torchpace.optim import algorithms
from torchpace.optim.algorithms import OPTIMIZER_ALGORITHMS
from torchpace.settings import Settings, decode, encode

KIND = "training"
INITIAL = "extra/torchpace/initial"  # the archive's entry that holds the initial state
ALIGNMENT = 64  # bytes, of every tensor in a flat one and in INITIAL


@dataclass(frozen=True)
class Recipe:
    """The optimizer with its numbers, and what happens to gradients before it. A checkpoint
    resumes only with the same one.
    """

    kind: str = "adam"
    beta1: float = algorithms.ADAM_BETAS[0]
    beta2: float = algorithms.ADAM_BETAS[1]
    eps: float = algorithms.ADAM_EPS
    momentum: float = algorithms.SGD_MOMENTUM
    weight_decay: float = 0.0
    clip_norm: float = math.inf
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Raises InputError on an unknown optimizer or a number outside its range."""
        ranges = {
            "kind": (self.kind in OPTIMIZER_ALGORITHMS, " or ".join(OPTIMIZER_ALGORITHMS)),
            "beta1": (0 <= self.beta1 < 1, "0 to below 1"),
            "beta2": (0 <= self.beta2 < 1, "0 to below 1"),
            "eps": (0 <= self.eps < math.inf, "0 or more"),
            "momentum": (0 < self.momentum < math.inf, "above 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "clip_norm": (self.clip_norm > 0, "above 0"),
            "accumulate": (self.accumulate >= 1, "1 or more"),
        }
        for name, (good, expected) in ranges.items():
            if not good:
                raise InputError(f"{name}: expected {expected}, got {getattr(self, name)}")

    @property
    def is_adam(self) -> bool:
        return OPTIMIZER_ALGORITHMS[self.kind].is_adam

    @property
    def moments(self) -> tuple[str, ...]:
        return OPTIMIZER_ALGORITHMS[self.kind].moments

    def line(self) -> str:
        return Settings({f.name: getattr(self, f.name) for f in fields(self)}).line()

    def first_gradient(self, moment: Tensor) -> Tensor:
        """The gradient of the first update, of the first moment after it, which began at zero."""
        factor = 1 - self.beta1 if self.is_adam else 1.0
        return (moment.double() / factor).to(moment.dtype)


@dataclass(frozen=True)
class StateTensor:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int | None  # in bytes in INITIAL; none for zeros

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def line(self) -> str:
        where = "-" if self.offset is None else self.offset
        return f"{_word(self.name)} {spec(self.shape, self.dtype)} {where}"

    @staticmethod
    def parse(line: str) -> StateTensor:
        name, what, where = line.split(" ")
        shape, dtype = parse_spec(what)
        return StateTensor(decode(name), shape, dtype, None if where == "-" else int(where))


@dataclass(frozen=True)
class View:
    """A parameter in the flat tensors."""

    name: str
    shape: tuple[int, ...]
    offset: int  # in elements

    def of(self, flat: Tensor) -> Tensor:
        return flat[self.offset : self.offset + math.prod(self.shape)].view(self.shape)

    def line(self) -> str:
        return f"{_word(self.name)} {'x'.join(map(str, self.shape))}: {self.offset}"

    @staticmethod
    def parse(line: str) -> View:
        name, sizes, offset = line.split(" ")
        return View(decode(name), parse_sizes(sizes.removesuffix(":")), int(offset))


@dataclass(frozen=True)
class Layout:
    """All state tensors, in the order of the code's arguments, and the trained parameters."""

    state: tuple[StateTensor, ...]
    parameters: tuple[View, ...]

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError where the parts do not fit each other: the code reads and writes the
        state without a look at its size.
        """
        if not self.state or self.state[0].name != "parameters" or self.state[0].offset is None:
            raise ValueError("no flat state")
        flat = self.state[0]
        known = {tensor.name: tensor for tensor in self.state}
        if len(known) < len(self.state):
            raise ValueError("a name twice in the state")
        for tensor in self.state:
            # Zeros cost no byte of the file: without a limit a line could ask for any memory.
            if (tensor.offset or 0) < 0 or (tensor.offset is None and tensor.bytes > flat.bytes):
                raise ValueError(f"the state {tensor.line()}")
        for name in (*recipe.moments, *(("gradient",) if recipe.accumulate > 1 else ())):
            if name not in known or known[name].shape != flat.shape:
                raise ValueError(f"no {name} of the size of the parameters")
        if "steps" not in known:
            raise ValueError("no steps in the state")
        if not self.parameters:
            raise ValueError("no parameters")
        for view in self.parameters:
            if view.offset < 0 or view.offset + math.prod(view.shape) > math.prod(flat.shape):
                raise ValueError(f"a parameter outside the flat state, {view.line()}")

    def index(self, name: str) -> int:
        return next(i for i, tensor in enumerate(self.state) if tensor.name == name)


def _word(name: str) -> str:
    """A name as one word of ASCII, which is all that C++ reads of the metadata."""
    return "".join(
        c if c.isascii() else "".join(f"%{byte:02X}" for byte in c.encode()) for c in encode(name)
    )


@dataclass(frozen=True)
class TrainingPackage:
    """A package's metadata, read."""

    recipe: Recipe
    layout: Layout
    inputs: tuple[str, ...]  # specs
    target: str
    device: str  # type
    autocast: str
    deterministic: bool
    gemm: str  # whose matrix products: torchpace, torch

    def metadata(self) -> dict[str, str]:
        return {
            "torchpace.kind": KIND,
            "torchpace.inputs": ";".join(self.inputs),
            "torchpace.target": self.target,
            "torchpace.state": "\n".join(t.line() for t in self.layout.state),
            "torchpace.parameters": "\n".join(v.line() for v in self.layout.parameters),
            "torchpace.optimizer": self.recipe.line(),
            "torchpace.autocast": self.autocast,
            "torchpace.deterministic": str(int(self.deterministic)),
            "torchpace.gemm": self.gemm,
        }

    @staticmethod
    def parse(path: Path, metadata: dict[str, str]) -> TrainingPackage:
        """Raises InputError on a package that is no compiled training step."""
        if metadata.get("torchpace.kind") != KIND:
            raise InputError(
                f"package: {path}: expected a compiled training step of torchpace, found another "
                "package; make one with python -m torchpace.aot.export_training"
            )
        try:
            values = Settings.parse(metadata["torchpace.optimizer"])
            recipe = Recipe(**{f.name: _typed(values[f.name], f.default) for f in fields(Recipe)})
            layout = Layout(
                tuple(map(StateTensor.parse, metadata["torchpace.state"].splitlines())),
                tuple(map(View.parse, metadata["torchpace.parameters"].splitlines())),
            )
            layout.check(recipe)
            inputs = tuple(metadata["torchpace.inputs"].split(";"))
            for text in (*inputs, metadata["torchpace.target"]):
                parse_spec(text)
            if metadata["torchpace.deterministic"] not in ("0", "1"):
                raise ValueError("deterministic: not 0 or 1")
            if metadata["torchpace.gemm"] not in ("torchpace", "torch"):
                raise ValueError("gemm: not torchpace or torch")
            return TrainingPackage(
                recipe,
                layout,
                inputs,
                metadata["torchpace.target"],
                metadata["torchpace.device"],
                metadata["torchpace.autocast"],
                metadata["torchpace.deterministic"] == "1",
                metadata["torchpace.gemm"],
            )
        except (KeyError, ValueError, InputError) as error:
            raise InputError(
                f"package: {path}: expected the metadata of a training package, found "
                f"{type(error).__name__} {error}; make it again"
            ) from None


def _typed(text: str, default: object) -> object:
    return type(default)(text)
