"""One case loaded in one runtime: what every runtime offers, and how a model gets its weights.

Twin: include/torchpace/workload.hpp.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor, nn

from torchpace import models, tensors
from torchpace.errors import InputError, Skipped
from torchpace.models import Cost
from torchpace.settings import PHASES, Settings, SettingsError

PARITY_STEPS = 10
LR = 2e-4
ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


class Workload(ABC):
    """One case in one runtime.

    A turn is `with workload.turn(): workload.step(0); workload.step(1); ...`.
    """

    def __init__(self, settings: Settings, model: ModuleType):
        self.settings, self.model = settings, model
        self.phase = phase_of(settings)
        self.cost: Cost = model.cost(settings)
        self.device = device_of(settings)
        self.dtype = dtype_of(settings)
        self.note = ""

    @abstractmethod
    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Restores parameters, buffers, optimiser and random state in place, and sets modes."""

    @abstractmethod
    def step(self, index: int) -> Tensor:
        """Enqueues step `index` of a turn, on batch index mod N. Does not synchronise."""

    @abstractmethod
    def values(self) -> dict[str, Tensor]:
        """What parity compares, by the code that is timed, at dropout 0 (docs/design.md)."""

    @abstractmethod
    def losses(self, steps: int, tokens: Tensor | None) -> list[float]:
        """The losses of `steps` training steps on fresh batches.

        Raises InputError outside the train phase.
        """

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def phase_of(settings: Settings) -> str:
    return settings.text("phase", choices=PHASES)


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

    Raises InputError if the file cannot be read or holds no batches.
    """

    def __init__(self, settings: Settings):
        self.path = settings.text("state")
        content = tensors.load(self.path, "state")
        self.parameters = _with_prefix(content, "parameter.")
        self.buffers = _with_prefix(content, "buffer.")
        for key in ("input", "target"):
            if key not in content or content[key].dim() == 0 or content[key].size(0) == 0:
                found = list(content[key].shape) if key in content else "none"
                raise InputError(
                    f"state: {self.path}: expected '{key}' [N, ...], found {found}; "
                    "export the case again"
                )
        self.input, self.target = content["input"], content["target"]

    def copy_to(self, model: nn.Module, name: str) -> None:
        """Copies into `model`. Raises InputError on a missing, extra or wrong-shaped parameter."""
        own = dict(model.named_parameters())
        buffers = {key: value for key, value in model.state_dict().items() if key not in own}
        with torch.no_grad():
            for kind, expected, found in (
                ("parameter", own, self.parameters),
                ("buffer", buffers, self.buffers),
            ):
                self._check(kind, expected, found, name)
                for key, tensor in expected.items():
                    tensor.copy_(found[key])

    def _check(
        self, kind: str, expected: dict[str, Tensor], found: dict[str, Tensor], model: str
    ) -> None:
        advice = "export the case again, with these settings"
        missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
        if missing:
            raise InputError(
                f"state: {self.path}: expected {kind} {min(missing)} of {model}, found none "
                f"({len(missing)} of {len(expected)} missing); {advice}"
            )
        if extra:
            raise InputError(
                f"state: {self.path}: expected the {len(expected)} {kind}s of {model}, found also "
                f"{min(extra)} ({len(extra)} extra); {advice}"
            )
        for key, tensor in expected.items():
            if tensor.shape != found[key].shape:
                raise InputError(
                    f"state: {self.path}: {kind} {key}: expected shape {list(tensor.shape)}, "
                    f"found {list(found[key].shape)}; {advice}"
                )


def _with_prefix(content: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}


def build(settings: Settings, model: ModuleType, state: State) -> nn.Module:
    """The case's module, dtype, device and weights; `swap` exchanges two of them."""
    module = model.make(settings).to(device=device_of(settings), dtype=dtype_of(settings))
    state.copy_to(module, settings.text("model"))
    if "swap" in settings:
        swap_parameters(module, settings.text("swap"))
    return module


def swap_parameters(module: nn.Module, names: str) -> None:
    """Exchanges the values of two parameters, `NAME,NAME`.

    Raises SettingsError on a bad name or unequal shapes.
    """
    parameters = dict(module.named_parameters())
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
    """Moves a batch: floating point to `dtype`, integers as they are."""
    return x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype)


def make_optimizer(settings: Settings, module: nn.Module) -> torch.optim.Optimizer:
    """Adam with one set of kernels per tensor, as torch::optim::Adam has it, on every device."""
    settings.text("optimizer", "adam", ("adam",))
    return torch.optim.Adam(
        module.parameters(),
        lr=settings.number("lr", LR),
        betas=ADAM_BETAS,
        eps=settings.number("eps", ADAM_EPS),
        foreach=False,  # by default Python takes foreach on CUDA, which torch::optim has not
        fused=False,
    )


def first_step_values(module: nn.Module, before: dict[str, Tensor], lr: float) -> dict[str, Tensor]:
    """`gradient.<name>` and `update.<name>` of the first step, which has just been taken from
    `before`.

    update = (before - after) / lr - g / (|g| + 1e-8) + 1, in float64: 1 for an Adam of eps 1e-8,
    whatever the gradient g is. So it sees the optimiser alone, also where rounding that flips one
    ReLU moves the gradients of a deep network by more than a wrong eps does.
    """
    values = {}
    for name, p in module.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        g = gradient.double()
        moved = (before[name].double() - p.detach().double()) / lr
        values[f"gradient.{name}"] = gradient
        values[f"update.{name}"] = moved - g / (g.abs() + ADAM_EPS) + 1
    return values


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Dropout 0 within the block: two runtimes draw different random numbers."""
    kept = [(m, m.p) for m in module.modules() if isinstance(m, nn.Dropout)]
    for dropout, _ in kept:
        dropout.p = 0.0
    try:
        yield
    finally:
        for dropout, p in kept:
            dropout.p = p
