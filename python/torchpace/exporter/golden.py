"""The golden (float64) run of a case, and what rounding may do to it.

Rule: docs/method.md, "Parity".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from torchpace import module_state, outputs, parity, rounding, workload
from torchpace.case_phase import case_phase
from torchpace.errors import InputError, Skipped
from torchpace.execution_options import ExecutionOptions
from torchpace.optim import factory
from torchpace.rounding import RandomRounding
from torchpace.runtimes import eager
from torchpace.settings import Settings
from torchpace.workload import (
    Workload,
    dtype_of,
    loss_module,
    seeded,
    to_device,
    without_dropout,
)

SHADOWS = 4  # perturbed float64 runs that show what rounding may do: two pairs
# What the float64 runs of a model of your own may cost: about a minute on two cores.
SHADOW_FLOPS = 1e12


def plain_settings(settings: Settings) -> Settings:
    """The case as the float64 run has it: no axis that loses precision."""
    return settings.replace(autocast=None, tf32=None, memory_format=None)


def shadow_count(settings: Settings, measured: dict, batches: int) -> tuple[int, str]:
    """How many perturbed runs the golden one gets, and why fewer than SHADOWS.

    With fewer the rounding sensitivity, their largest, is smaller: parity becomes stricter, never
    laxer.
    """
    if not measured:
        return SHADOWS, ""
    training = case_phase(settings).trains
    steps = workload.PARITY_STEPS if training else batches
    each = steps * measured["training_flops" if training else "flops"]
    count = SHADOWS if SHADOWS * each <= SHADOW_FLOPS else 2
    if count == SHADOWS:
        return SHADOWS, ""
    return count, (
        f"{count} instead of {SHADOWS}: a run costs {each:.2g} FLOP and all may cost "
        f"{SHADOW_FLOPS:g}"
    )


def try_golden(
    settings: Settings, model: ModuleType, shadows: int
) -> tuple[dict[str, Tensor], str]:
    """The golden run, or why there is none: a model of the user's own need not run in float64."""
    try:
        golden = golden_values(settings, model, shadows)
    except (InputError, Skipped):
        raise
    except Exception as error:
        own_family = not hasattr(model, "measure")
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if own_family or memory or "allocate memory" in str(error):
            raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        return {}, f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    for name, tensor in golden.items():
        held = to_device(tensor, tensor.device, dtype_of(settings))
        if case_phase(settings).trains and not held.isfinite().all():
            raise InputError(
                f"{settings.text('case', 'case')}: expected a finite float64 run, found {name} "
                "infinite or undefined: training diverges; lower lr"
            )
    return golden, ""


def golden_values(
    settings: Settings, model: ModuleType, shadows: int = SHADOWS
) -> dict[str, Tensor]:
    """The values of the golden (float64) run, and its rounding sensitivity: `spread`.

    The golden run is the same model with the same state, rounded to the case's dtype before.
    spread.<name> [2] holds the two norms by which `shadows` perturbed runs moved it; for an output
    of several batches the largest of all. Raises InputError where rounding changes a shape.
    """
    stored, computed = (
        dtype_of(settings),
        ExecutionOptions.of(settings).precision(dtype_of(settings)),
    )
    inside = getattr(torch, settings.text("computes_in", "float32"))
    if inside.itemsize < computed.itemsize:  # a model that autocasts itself, but not in float64
        computed = inside
    settings = plain_settings(settings)
    if case_phase(settings).trains and not has_complex_parameters(settings):
        # One operator for all tensors of the optimizer, whose float64 result is the same.
        settings = settings.replace(optimizer=f"{factory.optimizer_choice(settings)[0].name}-fused")
    golden = double(eager.load("py-eager", settings, model)).values()
    runs = (
        perturbed_values(
            settings,
            model,
            rounding.perturbing(computed, index),
            RandomRounding(stored, computed, index),
        )
        for index in range(shadows)
    )
    spread = rounding.sensitivity(golden, runs)
    for name, value in golden.items():
        # Where the model itself rounds to fewer digits than the case, a tie falls either way.
        if value.is_floating_point() and value.dtype.itemsize < stored.itemsize:
            one = rounding.MARGIN * torch.finfo(value.dtype).eps
            last = [one * size for size in parity.norms(value)]
            spread[name] = [max(pair) for pair in zip(spread[name], last, strict=True)]
    largest: dict[str, list[float]] = {}  # of each output, over the batches
    for name, norms in spread.items():
        known = largest.setdefault(_without_batch(name), norms)
        largest[_without_batch(name)] = [max(pair) for pair in zip(known, norms, strict=True)]
    spread = {name: largest[_without_batch(name)] for name in spread}
    return golden | rounding.as_values(spread)


def perturbed_values(
    settings: Settings,
    model: ModuleType,
    perturbed: Callable[[Tensor], Tensor],
    rounded: RandomRounding,
) -> dict[str, Tensor]:
    """Of a float64 run whose weights and inputs are perturbed and whose results are rounded. Where
    an operation of the model cannot be rounded, they are perturbed alone: the bound is smaller.
    """
    for scope in (rounded, contextlib.nullcontext()):
        shadow = double(eager.load("py-eager", settings, model))
        perturb(shadow, perturbed)
        try:
            with scope:
                return shadow.values()
        except Exception:
            if scope is not rounded:
                raise
    raise AssertionError("one of both returns or raises")


def double(shadow: Workload) -> Workload:
    """Turns a loaded eager workload into its float64 shadow, in place."""
    assert isinstance(shadow, (eager.EagerInference, eager.EagerTraining))
    shadow.dtype = torch.float64
    for part in (shadow.module, loss_module(shadow.model)):
        if part is not None:
            module_state.place(part, shadow.device, shadow.dtype)
    if isinstance(shadow, eager.EagerInference):
        shadow.inputs = [tuple(map(shadow.place, inputs)) for inputs in shadow.inputs]
    else:
        shadow.batches = [
            (tuple(map(shadow.place, inputs)), shadow.place(target))
            for inputs, target in shadow.batches
        ]
        # buffers are new tensors now, so what a turn restores is looked up again
        shadow.initial = eager.initial_of(shadow.module)
    return shadow


def perturb(shadow: Workload, perturbed: Callable[[Tensor], Tensor]) -> None:
    """Changes every weight and input of a float64 shadow, in place."""
    with torch.no_grad():
        for parameter in shadow.module.parameters():
            parameter.copy_(perturbed(parameter))
    assert isinstance(shadow, (eager.EagerInference, eager.EagerTraining))
    if isinstance(shadow, eager.EagerInference):
        shadow.inputs = [tuple(map(perturbed, inputs)) for inputs in shadow.inputs]
    else:
        shadow.batches = [(tuple(map(perturbed, inputs)), y) for inputs, y in shadow.batches]
        shadow.initial = [(tensor, tensor.detach().clone()) for tensor, _ in shadow.initial]


def has_complex_parameters(settings: Settings) -> bool:
    return any(p.is_complex() for p in workload.State(settings).parameters.values())


def _without_batch(name: str) -> str:
    """The output that `batch3.output` is of; any other name as it is."""
    return name.partition(".")[2] if name.startswith("batch") else name


def expect_repeatable(first: Workload, second: Workload) -> None:
    """Raises InputError where the same weights and inputs give another output, by other random
    numbers, because the module keeps something from one call to the next, or because the factory
    makes another module each time: no two runtimes could be compared.
    """
    assert isinstance(first, (eager.EagerInference, eager.EagerTraining))
    training = isinstance(first, eager.EagerTraining)
    inputs = first.batches[0][0] if training else first.inputs[0]
    found: list[dict[str, Tensor]] = []
    for loaded, seed in ((first, 0), (first, 0), (first, 1), (second, 0)):
        drawn = seeded(loaded.settings.replace(seed=seed))
        with loaded.turn(), without_dropout(loaded.module), _no_autograd(loaded), drawn:
            result = loaded.module(*inputs)
            found.append({n: outputs.plain(x) for n, x in outputs.named(result)})
    name = first.settings.text("factory", first.settings.text("model"))
    in_training = " in training" if training else ""
    for other, why, advice in (
        (
            *(found[1], "what the module keeps from one call to the next"),
            "keep it out of the model that is measured",
        ),
        (found[2], "random numbers", "set to 0 what the module drops or draws"),
        (
            *(found[3], "what the factory draws anew for each module"),
            "draw it from torch, numpy.random or random, which are seeded",
        ),
    ):
        if moved := _difference(found[0], other):
            raise InputError(
                f"{name}: expected the same output from the same weights and inputs, found that "
                f"{why} moves {moved}; {advice}{in_training}"
            )


def _no_autograd(loaded: Workload) -> contextlib.AbstractContextManager[None]:
    return torch.no_grad() if loaded.phase.trains else contextlib.nullcontext()


def _difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    """The first output that differs by more than rounding could; '' if none does."""
    for name, x in a.items():
        if name not in b or b[name].shape != x.shape:
            return f"the shape of {name}"
        moved, size = parity.norms(b[name], x)[0], parity.norms(x)[0]
        if moved > parity.REPEATABLE * size:
            return f"{name} by {moved:.1g}" + (f" of {size:.1g}" if size else " elements")
    return ""


def blindness(golden: dict[str, Tensor]) -> str:
    """A warning where parity sees nothing: no weight and no input changes any output, or rounding
    alone moves an output by as much as there is of it.
    """
    names = [name.removeprefix(parity.SPREAD) for name in golden if parity.SPREAD in name]
    inexact = [name for name in names if not parity.is_exact(golden[name])]
    if inexact and not any(golden[parity.SPREAD + name].any() for name in inexact):
        return (
            "WARNING: the outputs depend on no weight and no input, so parity cannot see an error; "
            "a last layer that starts at zero does this"
        )
    for name in names:
        if not name.startswith("batch"):
            continue
        moved, share = golden[parity.SPREAD + name].tolist()
        lost = (
            share >= 1
            if parity.is_exact(golden[name])
            else moved >= parity.norms(golden[name])[0] > 0
        )
        if lost:
            return (
                f"WARNING: rounding alone moves {name} by as much as there is of it, so parity "
                "cannot see an error there"
            )
    return ""
