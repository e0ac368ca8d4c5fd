"""A model of your own: what `factory=module:callable` returns, imported from `path`.

The factory takes no argument and returns an nn.Module, or a dictionary with `module` and any of
`inputs` (a tensor or several, of one batch), `target` and `loss` (output, target -> scalar). Rules:
docs/guides/your-own-model.md. No twin: C++ knows such a model only through its artifacts.
Dimensions: B batch, the first of every input and of the target.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import re
import site
import sys
import sysconfig
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from torchpace import module_state, outputs
from torchpace.case_phase import case_phase
from torchpace.errors import InputError, Skipped
from torchpace.models import COST_KEYS, Cost, element_bytes
from torchpace.reads import ParameterReads, minimum_parameter_bytes
from torchpace.settings import Settings, SettingsError

KEYS = ("module", "inputs", "target", "loss")
DTYPES = (
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


@dataclass(frozen=True)
class Given:
    """What a factory gives beside the module."""

    inputs: tuple[Tensor, ...]  # none: they are drawn
    target: Tensor | None
    loss: Callable[[Any, Tensor], Tensor] | None
    note: str  # on what the module is
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
        self.factory, self.file = self._find(label, path)
        self._given: Given | None = None
        self._last: weakref.ref[nn.Module] | None = None
        self._measured: dict[str, dict[str, Any]] = {}

    def _find(self, label: str, path: str) -> tuple[Callable[[], Any], Path]:
        return _find(label, path)

    @property
    def note(self) -> str:
        return self._known().note

    @property
    def loss_module(self) -> nn.Module | None:
        """The loss of the module that was made last, where it is a module too."""
        loss = self._given.loss if self._given else None
        return loss if isinstance(loss, nn.Module) else None

    def identity(self) -> bytes:
        """What decides what the factory makes, as far as it is known before it is called: its file
        and the version of every installed package. What it imports is in the entry's `sources`.
        """
        versions = {f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}
        return self.file.read_bytes() + "".join(sorted(versions)).encode()

    def sources(self) -> list[Path]:
        """The files of all modules that this process has loaded from outside of installed packages:
        after the model has run, also those that it imports late.
        """
        loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        files = {self.file} | {Path(file).absolute() for file in loaded if file}
        return sorted(
            file
            for file in files
            if file.is_file() and not any(file.is_relative_to(root) for root in _installed())
        )

    def has_fixed_inputs(self, settings: Settings) -> bool:
        """Whether every batch is the one that the factory gives."""
        return "input" not in settings and bool(self._known().inputs)

    def make(self, settings: Settings) -> nn.Module:
        """Calls the factory. Raises InputError if it does not give a module, Skipped if the case
        trains and it gives no loss.
        """
        try:
            made = self.factory()
        except InputError:  # of a file that is loaded as a program
            raise
        except (Exception, SystemExit) as error:
            raise self._error("it to return a module", f"that it raised {_reason(error)}") from None
        module, self._given = self._check(made)
        if self._last is not None and self._last() is module:
            raise self._error(
                "a new module in each call", "the one of the call before; build it in the factory"
            )
        self._last = weakref.ref(module)
        if case_phase(settings, "inference").trains:
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
                draw(shape, dtype, given.vocabulary, generator)
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

    def measure(self, settings: Settings) -> dict[str, Any]:
        """What only a run of the model can tell, as settings: COST_KEYS; `outputs`, the names of
        all that it returns; `output_bytes`; `computes_in`, the dtype of matrix products where the
        model itself lowers it; `grad_mode` where inference mode is impossible. In float32 on the
        CPU, in `train` with a backward; once a process for the same case.

        flops are those that torch counts in matrix products and convolutions, attention as full
        T^2; training_flops is 0 unless the case trains. Raises InputError where the module or the
        loss cannot be run, or changes what it is given.
        """
        keys = ("phase", "batch", "input", "dtype")
        key = " ".join(settings.text(name, "") for name in keys)
        if key not in self._measured:
            self._measured[key] = self._measure(settings)
        return self._measured[key]

    def _measure(self, settings: Settings) -> dict[str, Any]:
        training = case_phase(settings).trains
        cpu = torch.device("cpu")
        module = module_state.place(self.make(settings), cpu, torch.float32)
        if loss := self.loss_module:
            module_state.place(loss, cpu, torch.float32)
        if not training:
            module.eval()
        *inputs, target = (
            x.to(module_state.dtype_for(x, torch.float32))
            for x in self.inputs(settings, torch.Generator().manual_seed(0), None)
        )
        mode = "enable_grad" if training else self._grad_mode(module, inputs)
        with grad_modes()["no_grad" if mode == "inference" else mode]():
            self._expect_unchanged(module, inputs, training)
            reads = ParameterReads(module.parameters())
            with self._running(inputs), counted_flops() as forward, reads:
                result = module(*inputs)
        named = self._named(result)
        forward_flops, training_flops = forward.flops, 0
        if training:
            training_flops = forward_flops + self._backward_flops(result, target)
        element = element_bytes(settings)
        output_bytes = sum(
            element * x.numel() if x.is_floating_point() else x.nbytes for x in named.values()
        )
        parameter_bytes = element * sum(p.numel() for p in module.parameters())
        moved = (
            minimum_parameter_bytes(module, reads, element, training)
            + sum(element * x.numel() if x.is_floating_point() else x.nbytes for x in inputs)
            + (target.nbytes if training else output_bytes)
        )
        measured = {
            "flops": float(forward_flops),
            "training_flops": float(training_flops),
            "items": len(inputs[0]),
            "parameter_bytes": parameter_bytes,
            "minimum_bytes": moved,
            "output_bytes": output_bytes,
            "computes_in": _name(forward.lowest),
            "outputs": ",".join(outputs.names_of(result)),
        }
        return measured if training or mode == "inference" else measured | {"grad_mode": mode}

    def _named(self, result: Any) -> dict[str, Tensor]:
        try:
            named = dict(outputs.named(result))
        except InputError as error:
            raise InputError(f"factory {self.label}: {error}") from None
        if not named:
            raise self._error("a module that returns tensors", f"a {type(result).__name__}")
        return named

    def _grad_mode(self, module: nn.Module, inputs: list[Tensor]) -> str:
        """The first mode in which the module runs: some need autograd inside."""
        for mode, scope in grad_modes().items():
            copies = [x.clone() for x in inputs]
            try:
                with scope():
                    module(*copies)
                return mode
            except Exception as error:
                reason = error
        with self._running(inputs):
            raise reason

    @contextlib.contextmanager
    def _running(self, inputs: list[Tensor]) -> Iterator[None]:
        """Raises InputError where the module raises, with the line of it."""
        try:
            yield
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            shapes = ", ".join(f"{list(x.shape)} {_dtype(x)}" for x in inputs)
            raise self._error(
                f"a module that takes {shapes}", f"that it raised {_reason(error)}"
            ) from None

    def _expect_unchanged(self, module: nn.Module, inputs: list[Tensor], training: bool) -> None:
        """Raises InputError where a forward changes its inputs or, in inference, the tensors of the
        module: each step would do other work than the one before.
        """
        watched = {f"its input {i}": x for i, x in enumerate(inputs)}
        if not training:
            kinds = {module_state.PARAMETER: "parameter", module_state.ATTRIBUTE: "attribute"}
            for key, x in module_state.state_of(module).items():
                kind = kinds.get(key.partition(".")[0] + ".", "buffer")
                watched[f"its {kind} '{key.partition('.')[2]}'"] = x
        # what an earlier call has left behind has no version
        watched = {name: x for name, x in watched.items() if not x.is_inference()}
        versions = {name: x._version for name, x in watched.items()}
        kept = [x.clone() for x in inputs]
        with self._running(inputs):
            module(*inputs)
        changed = [name for name, x in watched.items() if x._version != versions[name]]
        for x, value in zip(inputs, kept, strict=True):
            x.data.copy_(value)
        if not changed:
            return
        advice = (
            "clone it first (x = x.clone())"
            if "input" in changed[0]
            else "keep what a call leaves behind out of the model that is measured"
        )
        raise InputError(
            f"factory {self.label}: the model changes {changed[0]} in place, so every step would "
            f"see another one; {advice}"
        )

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
        return backward.flops

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
        self._expect_plain(module)
        module_state.expect_known(module, f"factory {self.label}")
        embeddings = (m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding))
        return module, Given(
            inputs, target[0] if target else None, loss, _note(module), next(embeddings, 2)
        )

    def _expect_plain(self, module: nn.Module) -> None:
        """Raises InputError on a module that is, or holds, what another runtime has made of one:
        its row would not be what it is called.
        """
        # Not imported for this: it takes 1.5 s, which every load would pay.
        dynamo = sys.modules.get("torch._dynamo.eval_frame")
        compiled = dynamo.OptimizedModule if dynamo else ()
        for name, part in module.named_modules():
            where = f" in '{name}'" if name else ""
            if isinstance(part, compiled) or getattr(part, "_compiled_call_impl", None):
                raise self._error(
                    "a module as it is",
                    f"one of torch.compile{where}; return the module itself: "
                    "py-compile:default and the like compile it",
                )
            if isinstance(part, torch.jit.ScriptModule):
                raise self._error(
                    "a module as it is",
                    f"one of TorchScript{where}; return the module itself, or "
                    "compare a saved file with --model FILE.pt",
                )
            if isinstance(part, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
                raise self._error(
                    "a module as it is", f"a {type(part).__name__}{where}; return its .module"
                )

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
        return 1 if case_phase(settings, "inference").batch_of_one else len(inputs[0])

    def _error(self, expected: str, found: str) -> InputError:
        return InputError(f"factory {self.label}: expected {expected}, found {found}")


def grad_modes() -> dict[str, Any]:
    from torchpace.workload import GRAD_MODES  # which imports the models

    return GRAD_MODES


class _FlopCounter(TorchDispatchMode):
    """Adds up what torch's table says of each operator. Not torch's own FlopCounterMode, which
    follows modules and so forbids autograd.grad inside of one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.lowest = torch.float32  # what an autocast inside of the model has computed in

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)
            if isinstance(result, Tensor) and result.dtype in (torch.bfloat16, torch.float16):
                self.lowest = result.dtype
        return result


@contextlib.contextmanager
def counted_flops() -> Iterator[_FlopCounter]:
    """Counts the FLOPs of a block, with the fused kernels off that torch does not count:
    attention, recurrent layers and the fast path of nn.MultiheadAttention are then the matrix
    products that they consist of.
    """
    kept = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH), _FlopCounter() as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(kept[0])
        torch.backends.mkldnn.enabled = kept[1]


def _note(module: nn.Module) -> str:
    """What the settings of a case change about the module, without which a row's name misleads."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if not dtypes or dtypes == {torch.float32}:
        return ""
    found = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
    return f"the factory gives {found} parameters; a case runs in the dtype of --dtype"


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Folders whose files a version stands for: Python, installed packages, torch, torchpace."""
    paths = {sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])}
    paths.add(str(Path(torch.__file__).parent))
    return tuple(Path(path).absolute() for path in paths if path)


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


def draw(
    shape: Sequence[int], dtype: torch.dtype, below: int, generator: torch.Generator
) -> Tensor:
    """Floating-point and complex numbers normal, integers uniform below `below`, bool true."""
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(shape, generator=generator, dtype=wide).to(dtype)
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    highest = min(below, torch.iinfo(dtype).max + 1)
    return torch.randint(0, highest, shape, generator=generator, dtype=dtype)


def _with_rows(x: Tensor, rows: int) -> Tensor:
    """The first `rows` rows, from the start again where there are too few."""
    return x if len(x) == rows else x[torch.arange(rows) % len(x)]


def _find(label: str, path: str) -> tuple[Callable[[], Any], Path]:
    """The factory and the file that defines its module."""
    module_name, colon, attribute = label.partition(":")
    if not module_name or not colon or not attribute:
        raise SettingsError(f"settings: factory: expected module:callable, got '{label}'")
    if "/" in module_name or module_name.endswith(".py"):
        raise InputError(
            f"factory {label}: expected a module, found a file; start torchpace in its folder and "
            f"name {Path(module_name).stem}:{attribute}"
        )
    if path:
        if not Path(path).is_dir():
            raise SettingsError(f"settings: path: expected a folder, found none at '{path}'")
        sys.path[:] = [path, *(p for p in sys.path if p != path)]
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        found = "none; start torchpace in its folder" if missing else f"{_reason(error)}"
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
    """Its kind and first line, and the line of the user's own code that it came through last."""
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(root) for root in _installed()):
            return f"{reason} at {path.name}:{frame.lineno}: {frame.line[:160]}"
    return reason


def _dtype(x: Tensor) -> str:
    return _name(x.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
