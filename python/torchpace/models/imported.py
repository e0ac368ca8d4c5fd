"""A model of your own: what `factory=module:callable` returns, imported from `path`.

The factory takes no argument and returns an nn.Module, or a dictionary with `module` and any of
`inputs` (a tensor or several, of one batch), `target`, `loss` (output, target -> scalar) and
`name`. Rules: docs/design.md, "A model of your own". No twin: C++ knows such a model only through
its artifacts. Dimensions: B batch, the first of every input and of the target.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchpace.errors import InputError, Skipped
from torchpace.models import COST_KEYS, Cost, element_bytes, minimum_bytes
from torchpace.settings import Settings, SettingsError

KEYS = ("module", "inputs", "target", "loss", "name")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool")


@dataclass(frozen=True)
class Given:
    """What a factory gives beside the module."""

    inputs: tuple[Tensor, ...]  # none: they are drawn
    target: Tensor | None
    loss: Callable[[Any, Tensor], Tensor] | None
    name: str
    vocabulary: int  # integers are drawn below it: rows of the first embedding


def of(settings: Settings) -> Imported:
    """Imports the factory, once a process. Raises InputError where there is none."""
    return _imported(settings.text("factory"), settings.text("path", ""))


@functools.cache
def _imported(label: str, path: str) -> Imported:
    return Imported(label, path)


class Imported:
    """The functions that a file in models/ defines, for one factory."""

    def __init__(self, label: str, path: str = ""):
        self.label = label
        self.factory, self.file = _find(label, path)
        self._given: Given | None = None
        self._measured: dict[str, dict[str, float | int]] = {}

    @property
    def name(self) -> str:
        return self._known().name

    def identity(self) -> bytes:
        """What decides what the factory makes: its file and those imported from the same folder,
        and the version of every installed package.
        """
        folder = self.file.parent
        loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        files = {self.file} | {
            Path(file) for file in loaded if file and Path(file).parent == folder
        }
        versions = {f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}
        sources = [file.read_bytes() for file in sorted(files) if file.suffix == ".py"]
        return b"".join([*sources, *(version.encode() for version in sorted(versions))])

    def make(self, settings: Settings) -> nn.Module:
        """Calls the factory. Raises InputError if it does not give a module, Skipped if the case
        trains and it gives no loss.
        """
        try:
            made = self.factory()
        except (Exception, SystemExit) as error:
            traceback.print_exception(error, file=sys.stderr)
            raise self._error("it to return a module", f"that it raised {_reason(error)}") from None
        module, self._given = self._check(made)
        if settings.text("phase", "inference") == "train":
            if self._given.loss is None:
                raise Skipped(
                    f"factory {self.label} gives no loss, so it cannot be trained; return a "
                    "dictionary with 'module', 'loss' and 'target'"
                )
            if self._given.target is None:
                raise self._error("a 'target' beside 'loss'", "none")
        return module

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """`output` is what the module returned, whatever it is."""
        loss = self._known().loss
        assert loss is not None  # make() has refused to train without
        return loss(output, target)

    def inputs(
        self, settings: Settings, generator: torch.Generator, tokens: Tensor | None
    ) -> tuple[Tensor, ...]:
        """One batch: the factory's, or drawn as `input` says: normal, integers uniform below the
        vocabulary, bool true.

        `batch`, and 1 in phase latency, cuts or repeats the rows. Without a target it is zeros [B].
        """
        given = self._known()
        if "input" in settings:
            inputs = tuple(
                _draw(shape, dtype, given.vocabulary, generator)
                for shape, dtype in parse_inputs(settings.text("input"))
            )
        elif given.inputs:
            inputs = given.inputs
        else:
            raise self._error(
                "'inputs' of the factory or --input 1x3x224x224:float32", "neither of them"
            )
        target = given.target if given.target is not None else torch.zeros(len(inputs[0])).long()
        batch = settings.integer("batch", self._batch(settings, inputs), minimum=1)
        return tuple(_with_rows(x, batch) for x in (*inputs, target))

    def cost(self, settings: Settings) -> Cost:
        """As the settings state it (COST_KEYS), else measured: see `measure`."""
        stated = settings
        if any(key not in settings for key in COST_KEYS):
            stated = Settings(self.measure(settings))
        return Cost(
            forward_flops=stated.number("flops"),
            training_flops=stated.number("training_flops"),
            parameter_bytes=stated.integer("parameter_bytes"),
            minimum_bytes=stated.integer("minimum_bytes"),
            items=stated.integer("items"),
            item="samples",
        )

    def measure(self, settings: Settings) -> dict[str, float | int]:
        """COST_KEYS by running the model once, in float32 on the CPU, in `train` with a backward;
        once a process for the same case.

        flops are those that torch counts in matrix products and convolutions, attention as full
        T^2; training_flops is 0 unless the case trains. Raises InputError where the module or the
        loss cannot be run.
        """
        keys = ("phase", "batch", "input", "dtype")
        key = " ".join(settings.text(name, "") for name in keys)
        if key not in self._measured:
            self._measured[key] = self._measure(settings)
        return self._measured[key]

    def _measure(self, settings: Settings) -> dict[str, float | int]:
        from torchpace.workload import output_of

        training = settings.text("phase") == "train"
        module = self.make(settings).float().train(training)
        *inputs, target = (
            x.float() if x.is_floating_point() else x
            for x in self.inputs(settings, torch.Generator().manual_seed(0), None)
        )
        element = element_bytes(settings)
        shapes = ", ".join(f"{list(x.shape)} {_dtype(x)}" for x in inputs)
        try:
            with counted_flops() as forward, torch.set_grad_enabled(training):
                result = module(*inputs)
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            raise self._error(
                f"a module that takes {shapes}", f"that it raised {_reason(error)}"
            ) from None
        output = output_of(result)
        forward_flops, training_flops = forward.get_total_flops(), 0
        if training:
            training_flops = forward_flops + self._backward_flops(result, target)
        parameter_bytes = element * sum(p.numel() for p in module.parameters())
        moved = minimum_bytes(
            settings,
            parameter_bytes,
            sum(element * x.numel() if x.is_floating_point() else x.nbytes for x in inputs),
            element * output.numel(),
            target.nbytes,
        )
        return {
            "flops": float(forward_flops),
            "training_flops": float(training_flops),
            "items": len(inputs[0]),
            "parameter_bytes": parameter_bytes,
            "minimum_bytes": moved,
        }

    def _backward_flops(self, result: Any, target: Tensor) -> int:
        try:
            with counted_flops() as backward:
                loss = self.loss(result, target)
                loss.backward()
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            raise self._error(
                "a loss(output, target) that gives a scalar to train on",
                f"that it raised {_reason(error)}",
            ) from None
        return backward.get_total_flops()

    def _known(self) -> Given:
        if self._given is None:
            self.make(Settings())
        assert self._given is not None
        return self._given

    def _check(self, made: Any) -> tuple[nn.Module, Given]:
        parts = made if isinstance(made, dict) else {"module": made}
        unknown = [key for key in parts if key not in KEYS]
        if unknown:
            raise self._error(f"a dictionary with keys of {', '.join(KEYS)}", f"'{unknown[0]}'")
        module = parts.get("module")
        if not isinstance(module, nn.Module):
            found = (
                f"'module' a {type(module).__name__}" if made is parts else type(module).__name__
            )
            raise self._error("it to return an nn.Module or a dictionary with 'module'", found)
        loss = parts.get("loss")
        if loss is not None and not callable(loss):
            raise self._error("'loss' a function of output and target", type(loss).__name__)
        inputs = self._tensors("inputs", parts.get("inputs", ()))
        target = self._tensors("target", parts["target"]) if "target" in parts else ()
        if len(target) > 1:
            raise self._error("'target' one tensor", f"{len(target)}")
        rows = {len(x) for x in (*inputs, *target)}
        if inputs and len(rows) > 1:
            raise self._error(
                "inputs and target of one batch, their first dimension", f"{sorted(rows)} rows"
            )
        embeddings = (m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding))
        name = str(parts.get("name") or self.label.rpartition(":")[2].rpartition(".")[2])
        return module, Given(inputs, target[0] if target else None, loss, name, next(embeddings, 2))

    def _tensors(self, key: str, value: Any) -> tuple[Tensor, ...]:
        tensors = (value,) if isinstance(value, Tensor) else value
        if not isinstance(tensors, (tuple, list)) or any(
            not isinstance(x, Tensor) or x.dim() == 0 or len(x) == 0 for x in tensors
        ):
            found = type(value).__name__
            if isinstance(value, (tuple, list)):
                found += " of " + ", ".join(
                    f"{type(x).__name__}{list(x.shape) if isinstance(x, Tensor) else ''}"
                    for x in value
                )
            raise self._error(f"'{key}' a tensor [B, ...] or a tuple of such", found)
        return tuple(x.detach().cpu() for x in tensors)

    def _batch(self, settings: Settings, inputs: tuple[Tensor, ...]) -> int:
        return 1 if settings.text("phase", "inference") == "latency" else len(inputs[0])

    def _error(self, expected: str, found: str) -> InputError:
        return InputError(f"factory {self.label}: expected {expected}, found {found}")


@contextlib.contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Counts the FLOPs of a block, with the fused kernels off that torch does not count:
    attention, recurrent layers and the fast path of nn.MultiheadAttention are then the matrix
    products that they consist of.
    """
    kept = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(kept[0])
        torch.backends.mkldnn.enabled = kept[1]


def parse_inputs(text: str) -> list[tuple[list[int], torch.dtype]]:
    """Shapes and dtypes of `1x3x224x224:float32;...`; without a dtype float32.

    Raises SettingsError on another form, or where the batches, the first dimensions, differ.
    """
    parsed = []
    for part in text.split(";"):
        shape, _, dtype = part.partition(":")
        sizes = (
            [int(size) for size in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
        )
        if not sizes or min(sizes) < 1 or (dtype or "float32") not in DTYPES:
            raise SettingsError(
                "settings: input: expected sizes and a dtype, such as 1x3x224x224:float32, joined "
                f"by ';', got '{part}'"
            )
        parsed.append((sizes, getattr(torch, dtype or "float32")))
    if len({sizes[0] for sizes, _ in parsed}) > 1:
        raise SettingsError(f"settings: input: expected one batch size for all, got '{text}'")
    return parsed


def _draw(
    shape: list[int], dtype: torch.dtype, vocabulary: int, generator: torch.Generator
) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    highest = min(vocabulary, torch.iinfo(dtype).max + 1)
    return torch.randint(0, highest, shape, generator=generator, dtype=dtype)


def _with_rows(x: Tensor, rows: int) -> Tensor:
    """The first `rows` rows, from the start again where there are too few."""
    return x if len(x) == rows else x[torch.arange(rows) % len(x)]


def _find(label: str, path: str) -> tuple[Callable[[], Any], Path]:
    """The factory and the file that defines its module."""
    module_name, colon, attribute = label.partition(":")
    if not module_name or not colon or not attribute:
        raise SettingsError(f"settings: factory: expected module:callable, got '{label}'")
    if path:
        if not Path(path).is_dir():
            raise SettingsError(f"settings: path: expected a folder, found none at '{path}'")
        sys.path[:] = [path, *(p for p in sys.path if p != path)]
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        if not missing:
            traceback.print_exception(error, file=sys.stderr)
        found = "none; name its folder with path=" if missing else f"{_reason(error)}"
        raise InputError(
            f"factory {label}: expected a module {module_name}, found {found}"
        ) from None
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise InputError(
                f"factory {label}: expected '{attribute}' in {module_name}, found none"
            )
        found = getattr(found, name)
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(
            f"factory {label}: expected a function without arguments that returns a module, found "
            f"a {type(found).__name__}"
        )
    return found, Path(getattr(module, "__file__", None) or __file__).absolute()


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
