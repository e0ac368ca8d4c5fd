"""Steps of a finished training package against eager torch, before the package gets its name.

Rules: docs/training.md, "What is checked".
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchpace import parity
from torchpace.aot.compiled_training import CompiledTraining
from torchpace.aot.random_draws import Philox
from torchpace.aot.training_module import copied, placed_loss, references
from torchpace.aot.training_package import Recipe
from torchpace.aot.training_step import TrainingStep, kept_random_state, loss_of
from torchpace.errors import InputError
from torchpace.execution_options import AUTOCAST
from torchpace.module_state import place
from torchpace.optim.algorithms import OPTIMIZER_ALGORITHMS
from torchpace.rounding import RandomRounding, as_values, perturbing, sensitivity

STEPS = 3
SEED = 0
SHADOWS = 4  # perturbed float64 runs, whose largest difference is the rounding sensitivity
SHADOWS_S = 12.0  # that four may take together; otherwise two are run

Values = dict[str, Tensor]


def calls_of(recipe: Recipe) -> int:
    return STEPS * recipe.accumulate


def rate_of(recipe: Recipe) -> float:
    """A learning rate that float32 holds exactly, so large that a wrong second step shows in the
    third.
    """
    return 2**-8 if recipe.is_adam else 2**-5


def package_values(training: CompiledTraining, inputs: Sequence[Tensor], target: Tensor) -> Values:
    """Losses, parameters and buffers of STEPS steps on one batch, from the package's start."""
    torch.manual_seed(SEED)
    rate = rate_of(training.recipe)
    losses = [training.step(inputs, target, rate) for _ in range(calls_of(training.recipe))]
    buffers = {
        name.split(".", 1)[1]: x
        for name, x in training.state.items()
        if name.startswith(("buffer.", "transient."))
    }
    return _values(training.recipe, losses, training.parameters(), buffers)


class Expected:
    """What eager torch makes of the same steps, with torch.optim, on a copy of the module in the
    modes that it has, and by how much rounding may move it.

    The bound is that of parity: the rounding sensitivity of a float64 run and 8 eps of its size.
    Where there is no such run, it is sqrt(eps), or the sensitivity of the run itself.
    """

    def __init__(self, step: TrainingStep):
        """`step`: traced. Raises InputError where nothing can be compared."""
        assert step.draws is not None
        self.step = step
        self.dtype = AUTOCAST[step.autocast] or step.dtype
        with kept_random_state(step.device):
            with _expect_no_other_draws():
                self.reference = _train(step)
            for name, x in self.reference.items():
                if name.startswith("loss") and not x.isfinite().all():
                    raise InputError(
                        f"the {name} on the given batch is {x.item():g}, so the package cannot be "
                        "checked; give a batch on which the module trains"
                    )
            self.golden, self.bound = self._golden()

    def judge(self, found: Values) -> str:
        """What is to be said of values that are right. Raises InputError where they are not."""
        result = parity.check_parity(found, self.reference, self.golden, self.dtype)
        if result.worst and result.max_abs_error is not None:
            difference, allowed = _decisive(result)
            what = f"{result.worst} by {difference:.2g}, allowed {allowed:.2g}"
        else:
            what = result.note
        if not result.passed:
            held = references(self.step.source)
            cause = f"; it holds its own reference to a parameter: {held[0]}" if held else ""
            raise InputError(f"the package trains differently from eager torch: {what}{cause}")
        worst = what.replace(" by", " differs by")
        return f"{STEPS} steps; losses, parameters, buffers; worst {worst}; bound: {self.bound}"

    def _golden(self) -> tuple[Values, str]:
        """Values with their sensitivities, in the form of parity's, and what they are."""
        started = time.perf_counter()
        try:
            golden = _train(self.step, torch.float64)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return self._without_float64(lines[0][:120])
        each = 3 * (time.perf_counter() - started)
        shadows = SHADOWS if SHADOWS * each <= SHADOWS_S else 2
        golden |= _sensitivity(self.step, golden, torch.float64, shadows)
        own = parity.check_parity(self.reference, self.reference, golden, self.dtype)
        if own.passed:
            return golden, f"float64 run, {shadows} perturbed"
        if own.max_abs_error is None:
            found = own.note
        else:
            difference, allowed = _decisive(own)
            found = f"{own.worst} differs by {difference:.2g}, allowed {allowed:.2g}"
        raise InputError(
            "module: expected the same steps in float64 but for rounding, so that the package can "
            f"be checked, found that {found}"
        )

    def _without_float64(self, reason: str) -> tuple[Values, str]:
        eps = torch.finfo(self.dtype).eps
        moved = _sensitivity(self.step, self.reference, None, 2)
        for name, x in self.reference.items():
            floor = torch.tensor(parity.norms(x), dtype=torch.float64) * math.sqrt(eps)
            key = parity.SPREAD + name
            moved[key] = torch.maximum(moved[key], floor)
        return self.reference | moved, f"sqrt(eps), no float64 run: {reason}"


def _decisive(result: parity.Parity) -> tuple[float, float]:
    """Difference and tolerance of the norm that is closer to its tolerance, or farther over it."""
    pairs = [
        (result.max_abs_error or 0.0, result.tolerance or 0.0),
        (result.rms_error or 0.0, result.rms_tolerance or 0.0),
    ]
    return max(pairs, key=lambda p: p[0] / p[1] if p[1] else p[0] * math.inf if p[0] else 0.0)


def _train(
    step: TrainingStep,
    dtype: torch.dtype | None = None,
    index: int | None = None,
) -> Values:
    """The steps in eager torch; in `dtype` without autocast. index: of a run whose weights, inputs
    and results of operations are perturbed.
    """
    module, loss = copied(step.source), placed_loss(step.loss, step.device, step.dtype)
    inputs, target, autocast = step.inputs, step.target, step.autocast
    if dtype is not None:
        module, autocast = place(module, step.device, dtype), "none"
        loss = placed_loss(loss, step.device, dtype)
        inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
        target = target.to(dtype) if target.is_floating_point() else target
    rounding: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if index is not None:
        lowered = AUTOCAST[step.autocast] or step.dtype
        rounding = RandomRounding(step.dtype, lowered, index, own=dtype is None)
        perturbed = perturbing(lowered, index)
        inputs = tuple(map(perturbed, inputs))
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(perturbed(p))
    recipe, seeds = step.recipe, torch.Generator(step.device).manual_seed(SEED)
    optimizer = optimizer_of(recipe, module.parameters(), rate_of(recipe))
    losses = []
    torch.manual_seed(SEED)
    for call in range(calls_of(recipe)):
        draws = Philox(step.draws, seeds) if step.draws else contextlib.nullcontext()
        with torch.enable_grad(), draws, rounding:
            value = loss_of(module, loss, inputs, target, autocast)
            (value / recipe.accumulate).backward()
        losses.append(value.detach())
        if (call + 1) % recipe.accumulate == 0:
            if recipe.clip_norm < math.inf:
                nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return _values(recipe, losses, parameters, dict(module.named_buffers()))


def optimizer_of(
    recipe: Recipe, parameters: Iterator[nn.Parameter], rate: float
) -> torch.optim.Optimizer:
    """torch's own, that the recipe stands for."""
    own: dict[str, Any] = {"momentum": recipe.momentum}
    if recipe.is_adam:
        own = {"betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}
    kind = OPTIMIZER_ALGORITHMS[recipe.kind].optimizer
    return kind(parameters, lr=rate, weight_decay=recipe.weight_decay, **own)


def _values(
    recipe: Recipe, losses: Sequence[Tensor], parameters: Values, buffers: Values
) -> Values:
    unit = "step" if recipe.accumulate == 1 else "call"
    values = {f"loss of {unit} {i + 1}": x.reshape(()) for i, x in enumerate(losses)}
    values |= {f"parameter {name}": x for name, x in parameters.items()}
    values |= {f"buffer {name}": x for name, x in buffers.items()}
    return {name: x.detach().cpu().clone() for name, x in values.items()}


def _sensitivity(
    step: TrainingStep, values: Values, dtype: torch.dtype | None, shadows: int
) -> Values:
    """`spread.<name>` [2]: how far rounding moves the values, the farthest of perturbed runs."""
    runs = (_train(step, dtype, index) for index in range(shadows))
    return as_values(sensitivity(values, runs))


@contextlib.contextmanager
def _expect_no_other_draws() -> Iterator[None]:
    """Raises InputError where the block draws from generators that no compiled step knows."""
    import numpy

    states: dict[str, Callable[[], Any]] = {
        "Python's random": random.getstate,
        "numpy.random": lambda: str(numpy.random.get_state(legacy=False)),
    }
    before = {name: state() for name, state in states.items()}
    kept = random.getstate(), numpy.random.get_state()
    try:
        yield
        changed = next((name for name, state in states.items() if state() != before[name]), "")
    finally:
        random.setstate(kept[0])
        numpy.random.set_state(kept[1])
    if changed:
        raise InputError(
            f"module: draws random numbers by {changed}, as a compiled step cannot; draw by torch"
        )


@dataclass(frozen=True)
class Request:
    """What a process needs to run a package's steps."""

    package: str
    device: str
    batch: str  # a file of tensors: input 0, ..., target
    out: str  # the file of values to write


def answer(request: Request) -> None:
    """Runs the steps, and writes their values."""
    batch = torch.load(request.batch, weights_only=True)
    *inputs, target = (x.to(request.device) for x in batch)
    values = package_values(CompiledTraining(request.package, request.device), inputs, target)
    torch.save(values, request.out)
