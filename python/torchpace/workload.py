"""One case loaded in one runtime: what every runtime offers, and how a model gets its weights.

Twin: include/torchpace/workload.hpp.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from torchpace import models, module_state, outputs
from torchpace.case_phase import case_phase
from torchpace.errors import InputError, Skipped
from torchpace.execution_options import ExecutionOptions
from torchpace.io import tensor_file
from torchpace.models import Cost
from torchpace.optim import algorithms, factory
from torchpace.settings import Settings, SettingsError

PARITY_STEPS = 10
# How inference runs, the best first: some modules need autograd inside, such as forces as gradients
# of an energy.
GRAD_MODES = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
}
# Initial weights take their own random numbers: with the case's seed they would repeat a batch's.
WEIGHTS_SEED = 2**31


class Workload(ABC):
    """One case in one runtime.

    A turn is `with workload.turn(): workload.step(0); workload.step(1); ...`.
    """

    # Compiles what is compiled in this process: called once, right after loading, and timed apart.
    compile: Callable[[], None] | None = None
    compiled_kernels = False  # they run outside of operators

    def __init__(self, settings: Settings, model: ModuleType):
        self.settings, self.model = settings, model
        self.phase = case_phase(settings)
        self.device = device_of(settings)
        self.dtype = dtype_of(settings)
        self.execution = ExecutionOptions.of(settings)
        self.execution.apply()
        self.autocast = self.execution.autocast_scope(self.device)  # entered by every step
        self.cost: Cost = model.cost(settings)
        self.note = ""

    def warm_up(self) -> None:  # noqa: B027
        """Steps until their time no longer changes; called once, before the first timed turn, and
        not before the first step.
        """

    @abstractmethod
    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Restores parameters, buffers, optimizer and random state in place, and sets modes."""

    @abstractmethod
    def step(self, index: int) -> Tensor:
        """Enqueues step `index` of a turn, on batch index mod N. Does not synchronize."""

    def parts(self, index: int) -> list[tuple[str, Callable[[], Any]]]:
        """What step `index` does, in its order: forward (with the loss), backward, optimizer.

        Empty where it is one piece.
        """
        return [] if self.phase.trains else [("forward", lambda: self.step(index))]

    @abstractmethod
    def values(self) -> dict[str, Tensor]:
        """What parity compares, by the code that is timed, at dropout 0 (docs/method.md)."""

    @abstractmethod
    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        """The losses of `steps` training steps on fresh batches.

        Raises InputError outside the train phase.
        """

    @property
    def gemm(self) -> str:
        """Whose matrix products its kernels have: torch, or torchpace where an artifact says so."""
        return "torch"

    @property
    def optimizer_name(self) -> str:
        """As it is recorded; empty outside the train phase."""
        return factory.name(self.settings) if self.phase.trains else ""

    @property
    def precision(self) -> torch.dtype:
        """The dtype whose rounding parity must allow."""
        return self.execution.precision(self.dtype)

    def place(self, x: Tensor) -> Tensor:
        """An input or target on the case's device, in its dtype and memory format."""
        return self.execution.place(to_device(x, self.device, self.dtype))

    def inputs_of(self, state: State) -> list[tuple[Tensor, ...]]:
        """The inputs of every batch, placed. Raises InputError where they fit no memory format."""
        self.execution.check_inputs(state.inputs[0])
        return [tuple(self.place(x) for x in inputs) for inputs in state.inputs]

    def batches_of(self, state: State) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        """Inputs and target of every batch, placed."""
        targets = [self.place(target) for target in state.targets]
        return list(zip(self.inputs_of(state), targets, strict=True))

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def dtype_of(settings: Settings) -> torch.dtype:
    return getattr(torch, settings.text("dtype", "float32", tuple(models.ELEMENT_BYTES)))


def device_of(settings: Settings) -> torch.device:
    """The case's device.

    Raises Skipped where this machine lacks it, SettingsError on an unknown name.
    """
    text = settings.text("device", "cpu")
    name, _, index = text.partition(":")
    if name not in ("cpu", "cuda") or (index and not index.isdigit()) or (name == "cpu" and index):
        raise SettingsError(f"settings: device: expected cpu, cuda or cuda:N, got '{text}'")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Skipped(f"{text}: this machine has no CUDA device, or this torch is a CPU build")
    if int(index or 0) >= torch.cuda.device_count():
        raise Skipped(f"{text}: this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", int(index or 0))


def seed_of(settings: Settings) -> int:
    seed = settings.integer("seed", 0, minimum=0)
    if seed >= 2**31:
        raise SettingsError(f"settings: seed: expected less than {2**31}, got {seed}")
    return seed


class State:
    """A case's initial parameters, buffers and batches, read from its `state` file.

    `inputs` and `targets` have one entry a batch; an entry of `inputs` is what the module is called
    with. Raises InputError if the file cannot be read or holds no batches.
    """

    def __init__(self, settings: Settings):
        self.path = settings.text("state")
        content = tensor_file.read_tensors(self.path, "state")
        self.parameters = _with_prefix(content, module_state.PARAMETER)
        self.buffers = _with_prefix(content, module_state.BUFFER)
        self._all = {name: x for name, x in content.items() if name.startswith(_STATE)}
        columns = [self._batches(content, key) for key in input_keys(content)]
        self.inputs: list[tuple[Tensor, ...]] = list(zip(*columns, strict=True))
        self.targets = self._batches(content, "target")

    def _batches(self, content: dict[str, Tensor], key: str) -> tuple[Tensor, ...]:
        found = content.get(key)
        if found is None or found.dim() == 0 or found.size(0) == 0:
            shape = "none" if found is None else list(found.shape)
            raise InputError(
                f"state: {self.path}: expected '{key}' [N, ...], found {shape}; "
                "export the case again"
            )
        if found.size(0) != content["input"].size(0):
            raise InputError(
                f"state: {self.path}: expected as many of '{key}' as of 'input', found "
                f"{found.size(0)} and {content['input'].size(0)}; export the case again"
            )
        return found.unbind(0)

    def copy_to(self, module: nn.Module, name: str, loss: nn.Module | None = None) -> None:
        """Copies into `module`, and into a loss that is one. Raises InputError on a missing, extra
        or wrong-shaped tensor.
        """
        own = module_state.state_of(module, loss)
        self._check(own, name)
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(self._all[key])

    def _check(self, expected: dict[str, Tensor], model: str) -> None:
        found = self._all
        advice = "export the case again, with these settings"
        missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
        if missing:
            raise InputError(
                f"state: {self.path}: expected {_words(min(missing))} of {model}, found none "
                f"({len(missing)} of {len(expected)} missing); {advice}"
            )
        if extra:
            raise InputError(
                f"state: {self.path}: expected the {len(expected)} tensors of {model}, found also "
                f"{_words(min(extra))} ({len(extra)} extra); {advice}"
            )
        for key, tensor in expected.items():
            if tensor.shape != found[key].shape:
                raise InputError(
                    f"state: {self.path}: {_words(key)}: expected shape {list(tensor.shape)}, "
                    f"found {list(found[key].shape)}; {advice}"
                )


_STATE = (
    *(module_state.PARAMETER, module_state.BUFFER, module_state.TRANSIENT),
    *(module_state.ATTRIBUTE, module_state.LOSS),
)


def _words(key: str) -> str:
    """`parameter.a.b` as `parameter a.b`."""
    return key.replace(".", " ", 1)


def _with_prefix(content: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}


def input_key(index: int) -> str:
    """In a state's file: `input`, `input.1`, `input.2`, ..."""
    return f"input.{index}" if index else "input"


def input_keys(content: Mapping[str, Any]) -> list[str]:
    """The keys of all inputs that `content` has; the first one also where it is missing."""
    count = 1
    while input_key(count) in content:
        count += 1
    return [input_key(index) for index in range(count)]


def build(settings: Settings, model: ModuleType, state: State) -> nn.Module:
    """The case's module: weights, dtype, device and memory format; `swap` exchanges two weights.

    Made from the same random numbers in every process, for what no state file can hold.
    """
    with seeded(settings):
        module = model.make(settings)
    loss = loss_module(model)
    for part in (module, loss):
        if part is not None:
            module_state.place(part, device_of(settings), dtype_of(settings))
    state.copy_to(module, settings.text("model"), loss)
    if "swap" in settings:
        swap_parameters(dict(module.named_parameters()), settings.text("swap"))
    return ExecutionOptions.of(settings).place_module(module)


def grad_mode_of(
    settings: Settings,
) -> tuple[Callable[[], contextlib.AbstractContextManager[None]], str]:
    """In which mode of autograd inference runs, and what is to be said of it."""
    mode = settings.text("grad_mode", "inference", tuple(GRAD_MODES))
    note = f"runs under torch.{mode}: the module needs autograd inside"
    return GRAD_MODES[mode], "" if mode == "inference" else note


@contextlib.contextmanager
def seeded(settings: Settings) -> Iterator[None]:
    """Random numbers of torch, numpy and Python that depend on the case's seed alone; those of
    Python and numpy go on afterwards as if nothing had been drawn.
    """
    seed = WEIGHTS_SEED + seed_of(settings)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    random.seed(seed)
    if numpy:
        numpy.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])


def loss_module(model: ModuleType) -> nn.Module | None:
    """The loss where it is a module: its buffers, such as class weights, are moved and carried as
    the model's are.
    """
    return getattr(model, "loss_module", None)


def output_values(workload: Workload, batches: int) -> dict[str, Tensor]:
    """Every output of every batch that a turn cycles through, `batch0.output`, ..."""
    names = workload.settings.text("outputs", outputs.ROOT).split(",")
    values = {}
    with workload.turn():
        for index in range(batches):
            found = outputs.by_name(workload.step(index), names)
            values |= {f"batch{index}.{name}": x for name, x in found.items()}
    return values


def load_libraries(settings: Settings) -> None:
    """Loads the libraries of custom operators that the case names. Raises InputError."""
    for path in filter(None, settings.text("libraries", "").split(",")):
        try:
            torch.ops.load_library(path)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"--load-library {path}: expected a library of operators that loads, found: "
                f"{str(error).splitlines()[0][:200]}"
            ) from None


def loss_of(model: ModuleType, output: Any, target: Tensor) -> Tensor:
    """The scalar loss of all that the module returned."""
    return model.loss(output, target)


def swap_parameters(parameters: Mapping[str, Tensor], names: str) -> None:
    """Exchanges the values of two parameters, `NAME,NAME`.

    Raises SettingsError on a bad name or unequal shapes.
    """
    pair = names.split(",")
    if len(pair) != 2 or not all(name in parameters for name in pair):
        raise SettingsError(f"settings: swap: expected two parameters NAME,NAME, got '{names}'")
    a, b = (parameters[name] for name in pair)
    if a.shape != b.shape:
        raise SettingsError(
            f"settings: swap: expected equal shapes, got {list(a.shape)} and {list(b.shape)}"
        )
    with torch.no_grad():
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)


def to_device(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Moves a batch: floating point to `dtype`, complex to the complex dtype as wide, integers as
    they are.
    """
    return x.to(device=device, dtype=module_state.dtype_for(x, dtype))


def first_step_values(
    module: nn.Module, before: dict[str, Tensor], settings: Settings
) -> dict[str, Tensor]:
    """`gradient.<name>` and `update.<name>` of the first step, which has just been taken from
    `before`.

    update = (before - after) / lr - direction + 1, in float64: 1 for the right optimizer, whatever
    the gradient is. So it sees the optimizer alone, also where rounding that flips one ReLU moves
    the gradients of a deep network by more than a wrong eps does.
    """
    parameters = dict(module.named_parameters())
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in parameters.items()
    }
    return update_values(gradients, before, parameters, settings)


def update_values(
    gradients: dict[str, Tensor],
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    settings: Settings,
) -> dict[str, Tensor]:
    """As first_step_values, of parameters by name."""
    lr = settings.number("lr", algorithms.LEARNING_RATE)
    values = {}
    for name, gradient in gradients.items():
        values[f"gradient.{name}"] = gradient
        # Optimizers take a complex number as a pair of real ones.
        g, old, new = map(_as_real, (gradient, before[name], after[name].detach()))
        moved = (old.double() - new.double()) / lr
        values[f"update.{name}"] = moved - factory.update_direction(settings, g, old) + 1
    return values


def _as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def fresh_losses(
    workload: Workload,
    batches: Sequence[tuple[Sequence[Tensor], Tensor]],
    train_on: Callable[[Sequence[Tensor], Tensor], Tensor],
    steps: int,
    tokens: Tensor | None,
) -> list[float]:
    """The losses of a turn of `train_on` on fresh batches. Raises InputError at the first that is
    not finite.
    """
    found = []
    with workload.turn():
        for index in range(steps):
            inputs, target = fresh_batch(workload, batches, index, tokens)
            found.append(train_on(inputs, target).item())
            if not math.isfinite(found[-1]):
                raise InputError(
                    f"losses: expected finite losses, found {found[-1]} at step {index}"
                )
    return found


def fresh_batch(
    workload: Workload,
    batches: Sequence[tuple[Sequence[Tensor], Tensor]],
    index: int,
    tokens: Tensor | None,
) -> tuple[Sequence[Tensor], Tensor]:
    """Inputs and target `index` of a loss curve: of the text where there is one, else the case's
    batches in turn.
    """
    if workload.settings.text("data", "normal") != "text":
        return batches[index % len(batches)]
    generator = torch.Generator().manual_seed(seed_of(workload.settings) + index)
    *inputs, target = workload.model.inputs(workload.settings, generator, tokens)
    return [workload.place(x) for x in inputs], workload.place(target)


def dropouts(module: nn.Module) -> list[tuple[nn.Module, str, float]]:
    """Where a module says how much it drops: module, attribute, probability.

    That is `p` of nn.Dropout and of stochastic depth, and what other modules keep as a number that
    is named after it: `dropout` of nn.MultiheadAttention, `attention_dropout`, `drop_prob`, ...
    """
    return [
        (m, name, value)
        for m in module.modules()
        for name, value in vars(m).items()
        if type(value) in (int, float)
        and 0 < value <= 1
        and (("drop" in name and type(value) is float) or (name == "p" and _drops(m)))
    ]


def _drops(module: nn.Module) -> bool:
    kind = type(module).__name__
    return isinstance(module, _DropoutNd) or kind == "StochasticDepth" or "Drop" in kind


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Dropout 0 within the block: two runtimes draw different random numbers."""
    kept = dropouts(module)
    for m, name, _ in kept:
        setattr(m, name, 0.0)
    try:
        yield
    finally:
        for m, name, value in kept:
            setattr(m, name, value)
