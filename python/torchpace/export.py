"""Writes what the workers of a case load, once, into a cache: weights, batches, float64 truth.

    python -m torchpace.export --cache DIR [--text FILE]

Each line of standard input is a settings line. Each is answered with one line of JSON on standard
output, `{"case", "state", "truth", "tokens", "memory", "set", "cached", "seconds", "note",
"no_golden"}` or `{"error": "one line"}`. Paths are absolute, `tokens` is empty for models without
text, `truth` where there is no float64 run, and `no_golden` says why. `memory` has the bytes of
parameters, gradients, optimizer state and activations; `set` has settings to add to the case's
line: what only a run of the model can tell. A line with `make=KIND` is answered with a compiled
file of the case (torchpace.artifacts). Layout: docs/design.md, "The path of the data".
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from torchpace import (
    artifacts,
    axes,
    cache,
    models,
    module_state,
    optimizers,
    outputs,
    parity,
    reads,
    rounding,
    scratch,
    tensors,
    workload,
)
from torchpace.axes import Axes
from torchpace.data import text
from torchpace.errors import InputError, Skipped
from torchpace.protocol import answer_lines, open_protocol
from torchpace.rounding import RandomRounding
from torchpace.runtimes import eager
from torchpace.settings import Settings, SettingsError
from torchpace.workload import (
    Workload,
    device_of,
    dtype_of,
    load_libraries,
    loss_module,
    loss_of,
    phase_of,
    seed_of,
    seeded,
    to_device,
    without_dropout,
)

# Keys of a settings line that do not change the files: where and how the case runs, not what it is.
UNRELATED = {
    *("case", "family", "device", "threads", "swap", "state", "truth", "tokens", "artifact"),
    *("tf32", "memory_format", "torchscript", "aot", "freezing", "dynamic", "fullgraph", "runners"),
    *(*models.MEASURED_KEYS, "stamp"),
}
INTERNAL_KEYS = ("output_bytes", "computes_in")  # of what is measured: of no use to a worker
MAXIMUM_BATCHES = 8
MAXIMUM_BATCH_BYTES = 64 << 20
MAXIMUM_OUTPUT_BYTES = 256 << 20  # of all batches, since all are compared
TWINS = 4  # perturbed float64 runs that show what rounding may do: two pairs
# What the float64 runs of a model of your own may cost: about a minute on two cores.
TWINS_FLOPS = 1e12


class Exporter:
    def __init__(self, folder: Path, file: Path | None = None):
        self.folder, self.file = folder.absolute(), file
        self.maker = artifacts.Maker(folder)
        self._texts: dict[int, text.Text] = {}
        self._exported: dict[str, dict] = {}  # of cases that artifacts were asked of

    def answer(self, line: str) -> dict:
        """Answers one settings line. Raises InputError or Skipped."""
        settings = Settings.parse(line)
        if "make" not in settings:
            return self.export(settings)
        case = settings.replace(make=None, compile_limit=None)
        if case.line() not in self._exported:  # checked once, not for each kind: gigabytes
            self._exported[case.line()] = self.export(case)
        files = self._exported[case.line()]
        paths = {key: files[key] for key in ("state", "truth", "tokens")}
        return self.maker.ask(settings.replace(**paths, **files["set"]))

    def export(self, settings: Settings) -> dict:
        """A case's files. Raises InputError or Skipped."""
        started = time.perf_counter()
        load_libraries(settings)
        model = models.of(settings)
        check(settings, model)
        data = settings.text("data", "normal", ("text", "normal"))
        source = self._text(settings) if data == "text" else None
        entry = cache.get_or_make(
            self.folder / "cases" / key_of(settings, model, source),
            lambda target: make_case(target, settings, model, source),
        )
        no_golden = entry.manifest["no_golden"]
        notes = [
            source.note if source else "",
            entry.manifest["note"],
            f"rebuilt: {entry.rebuilt}" if entry.rebuilt else "",
        ]
        return {
            "case": settings.text("case", ""),
            "state": str(entry.path / "state.pt"),
            "truth": "" if no_golden else str(entry.path / "truth.pt"),
            "tokens": str(source.path) if source else "",
            "memory": entry.manifest["memory"],
            "set": entry.manifest["set"],
            "no_golden": no_golden,
            "cached": entry.cached,
            "seconds": time.perf_counter() - started,
            "note": "; ".join(note for note in notes if note),
        }

    def _text(self, settings: Settings) -> text.Text:
        vocabulary = settings.integer("vocabulary", 65, minimum=2)
        if vocabulary not in self._texts:
            self._texts[vocabulary] = text.find(self.folder, self.file, vocabulary)
        return self._texts[vocabulary]


def check(settings: Settings, model: ModuleType) -> None:
    """Raises SettingsError or Skipped for settings that no runtime can take, before anything is
    made.
    """
    phase, _, _, _ = phase_of(settings), dtype_of(settings), device_of(settings), Axes.of(settings)
    if phase == "train":
        optimizers.parse(settings)
    dtype = settings.text("dtype", "float32")
    if dtype in models.AS_GIVEN and not hasattr(model, "no_golden"):
        raise SettingsError(
            f"--dtype {dtype}: expected float32 or bfloat16; {' and '.join(models.AS_GIVEN)} are "
            "for files (--model FILE), which are run as they are"
        )
    if not hasattr(model, "measure"):
        model.cost(settings)


def key_of(settings: Settings, model: ModuleType, source: text.Text | None) -> str:
    """The entry's name: model, phase and a hash of all that the files depend on."""
    related = settings.replace(**dict.fromkeys(UNRELATED, None))
    if phase_of(settings) == "train":  # all implementations of an optimiser do the same
        related = related.replace(optimizer=optimizers.parse(settings)[0])
    tokens = source.sha256 if source else ""
    # Whatever decides what is in the files: the model, the steps, how they are stored.
    sources = (axes, eager, models, module_state, optimizers, outputs, parity, reads, rounding)
    sources += (tensors, text, workload, sys.modules[__name__])
    files = [Path(module.__file__) for module in sources]  # type: ignore[arg-type]
    code = models.identity(model) + b"".join(file.read_bytes() for file in files)
    parts = f"{related.line()}\n{torch.__version__}\n{tokens}\n".encode() + code
    digest = hashlib.sha256(parts).hexdigest()[:16]
    return f"{models.label(settings)}-{settings.text('phase')}-{digest}"


def make_case(
    target: Path, settings: Settings, model: ModuleType, source: text.Text | None
) -> dict:
    """Writes state.pt and, where a float64 run is possible, truth.pt into `target`.

    Raises InputError if a value of a training is not finite.
    """
    measured = model.measure(settings) if hasattr(model, "measure") else {}
    settings = settings.replace(**measured)
    count = write_state(target, settings, model, source)
    settings = settings.replace(state=target / "state.pt")
    no_golden = getattr(model, "no_golden", "")
    twins, why, golden, memory = 0, no_golden, {}, {}
    if not no_golden:
        plain = plain_settings(settings).replace(dtype=None)
        first, second = (eager.load("py-eager", plain, model) for _ in range(2))
        expect_repeatable(first, second)
        twins, why = twins_of(settings, measured, count)
        golden, no_golden = try_golden(settings, model, twins)
        memory = count_memory(settings, model)
    if golden:
        tensors.save(target / "truth.pt", golden)
    return {
        "settings": settings.replace(state=None).line(),
        "torch": torch.__version__,
        "seed": seed_of(settings),
        "twins": {"count": twins, "reason": why},
        "memory": memory,
        "note": "; ".join(filter(None, (getattr(model, "note", ""), blindness(golden)))),
        "no_golden": no_golden,
        "set": {key: value for key, value in measured.items() if key not in INTERNAL_KEYS},
        "sources": models.sources(model) | models.library_digests(settings),
    }


def write_state(
    target: Path, settings: Settings, model: ModuleType, source: text.Text | None
) -> int:
    """Writes state.pt: all tensors of the module, where there is one, and the batches. Returns how
    many batches these are.
    """
    dtype, cpu = dtype_of(settings), torch.device("cpu")
    state = {}
    if not hasattr(model, "no_golden"):  # not of a file that is only code
        with seeded(settings):
            module = model.make(settings)
        state = module_state.state_of(module, loss_module(model))
    tokens = text.load_tokens(source.path) if source else None
    batches = make_batches(settings, model, tokens)
    names = [workload.input_key(i) for i in range(len(batches[0]) - 1)] + ["target"]
    columns = zip(names, zip(*batches, strict=True), strict=True)
    state |= {name: torch.stack(column) for name, column in columns}
    moved = {name: to_device(x.detach(), cpu, dtype) for name, x in state.items()}
    tensors.save(target / "state.pt", moved)
    return len(batches)


def make_batches(
    settings: Settings, model: ModuleType, tokens: Tensor | None
) -> list[tuple[Tensor, ...]]:
    """As many batches as may be compared, and one where all would be the same."""
    fixed = hasattr(model, "has_fixed_inputs") and model.has_fixed_inputs(settings)
    most = 1 if fixed else MAXIMUM_BATCHES
    if phase_of(settings) != "train":
        most = min(most, int(TWINS_FLOPS / 2 / max(settings.number("flops", 0.0), 1)))
        most = min(most, int(MAXIMUM_OUTPUT_BYTES / max(settings.number("output_bytes", 0), 1)))
    batches: list[tuple[Tensor, ...]] = []
    while not batches or (
        len(batches) < most
        and (len(batches) + 1) * sum(x.nbytes for x in batches[0]) <= MAXIMUM_BATCH_BYTES
    ):
        generator = torch.Generator().manual_seed(seed_of(settings) + len(batches))
        batches.append(model.inputs(settings, generator, tokens))
    return batches


def plain_settings(settings: Settings) -> Settings:
    """The case as the float64 run has it: no axis that loses precision."""
    return settings.replace(autocast=None, tf32=None, memory_format=None)


def twins_of(settings: Settings, measured: dict, batches: int) -> tuple[int, str]:
    """How many perturbed runs the golden one gets, and why fewer than TWINS.

    With fewer the rounding sensitivity, their largest, is smaller: parity becomes stricter, never
    laxer.
    """
    if not measured:
        return TWINS, ""
    training = phase_of(settings) == "train"
    steps = workload.PARITY_STEPS if training else batches
    each = steps * measured["training_flops" if training else "flops"]
    count = TWINS if TWINS * each <= TWINS_FLOPS else 2
    if count == TWINS:
        return TWINS, ""
    return count, (
        f"{count} instead of {TWINS}: a run costs {each:.2g} FLOP and all may cost {TWINS_FLOPS:g}"
    )


def try_golden(settings: Settings, model: ModuleType, twins: int) -> tuple[dict[str, Tensor], str]:
    """The golden run, or why there is none: a model of the user's own need not run in float64."""
    try:
        golden = make_truth(settings, model, twins)
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
        if phase_of(settings) == "train" and not held.isfinite().all():
            raise InputError(
                f"{settings.text('case', 'case')}: expected a finite float64 run, found {name} "
                "infinite or undefined: training diverges; lower lr"
            )
    return golden, ""


def make_truth(settings: Settings, model: ModuleType, twins: int = TWINS) -> dict[str, Tensor]:
    """The values of the golden (float64) run, and its rounding sensitivity: `spread`.

    The golden run is the same model with the same state, rounded to the case's dtype before.
    spread.<name> [2] holds the two norms by which `twins` perturbed runs moved it; for an output of
    several batches the largest of all. Raises InputError where rounding changes a shape.
    """
    stored, computed = dtype_of(settings), Axes.of(settings).precision(dtype_of(settings))
    inside = getattr(torch, settings.text("computes_in", "float32"))
    if inside.itemsize < computed.itemsize:  # a model that autocasts itself, but not in float64
        computed = inside
    settings = plain_settings(settings)
    if phase_of(settings) == "train" and not has_complex_parameters(settings):
        # One operator for all tensors of the optimizer, whose float64 result is the same.
        settings = settings.replace(optimizer=f"{optimizers.parse(settings)[0]}-fused")
    golden = double(eager.load("py-eager", settings, model)).values()
    runs = (
        perturbed_values(
            settings,
            model,
            rounding.perturbing(computed, index),
            RandomRounding(stored, computed, index),
        )
        for index in range(twins)
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
        twin = double(eager.load("py-eager", settings, model))
        perturb(twin, perturbed)
        try:
            with scope:
                return twin.values()
        except Exception:
            if scope is not rounded:
                raise
    raise AssertionError("one of both returns or raises")


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
    return torch.no_grad() if loaded.phase == "train" else contextlib.nullcontext()


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


def double(twin: Workload) -> Workload:
    """Turns a loaded eager twin into its float64 twin, in place."""
    assert isinstance(twin, (eager.EagerInference, eager.EagerTraining))
    twin.dtype = torch.float64
    for part in (twin.module, loss_module(twin.model)):
        if part is not None:
            module_state.place(part, twin.device, twin.dtype)
    if isinstance(twin, eager.EagerInference):
        twin.inputs = [tuple(map(twin.place, inputs)) for inputs in twin.inputs]
    else:
        twin.batches = [
            (tuple(map(twin.place, inputs)), twin.place(target)) for inputs, target in twin.batches
        ]
        # buffers are new tensors now, so what a turn restores is looked up again
        twin.initial = eager.initial_of(twin.module)
    return twin


def perturb(twin: Workload, perturbed: Callable[[Tensor], Tensor]) -> None:
    """Changes every weight and input of a float64 twin, in place."""
    with torch.no_grad():
        for parameter in twin.module.parameters():
            parameter.copy_(perturbed(parameter))
    assert isinstance(twin, (eager.EagerInference, eager.EagerTraining))
    if isinstance(twin, eager.EagerInference):
        twin.inputs = [tuple(map(perturbed, inputs)) for inputs in twin.inputs]
    else:
        twin.batches = [(tuple(map(perturbed, inputs)), y) for inputs, y in twin.batches]
        twin.initial = [(tensor, tensor.detach().clone()) for tensor, _ in twin.initial]


def count_memory(settings: Settings, model: ModuleType) -> dict[str, int]:
    """Bytes that one step must keep: parameters, their gradients, the optimiser's moments, and the
    activations that autograd keeps from one forward and loss for the backward.

    Activations are what is saved in storages of their own: parameters, buffers, inputs and target
    are not counted again, and of several views of one storage only one.
    """
    twin = eager.load("py-eager", settings.replace(tf32=None, memory_format=None), model)
    assert isinstance(twin, (eager.EagerInference, eager.EagerTraining))
    parameters = list(twin.module.parameters())
    counted = {"parameters": sum(p.nbytes for p in parameters)}
    if isinstance(twin, eager.EagerInference):
        return counted | {"gradients": 0, "optimizer": 0, "activations": 0}
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    inputs, target = twin.batches[0]
    own = {_storage(x) for x in (*module_state.state_of(twin.module).values(), *inputs, target)}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself could be the node's own output: a cycle

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), twin.autocast:
        # held until all is counted: a freed storage's address would be taken again
        loss = loss_of(model, twin.module(*inputs), target)  # noqa: F841
    return counted | {
        "gradients": trained,
        "optimizer": optimizers.moments(settings) * trained,
        "activations": sum(saved.values()),
    }


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torchpace.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder of the cache; made if it is not there"
    )
    parser.add_argument("--text", type=Path, help="a text of your own instead of the plays")
    options = parser.parse_args(arguments)
    answers = open_protocol()
    scratch.start_janitor()
    exporter = Exporter(options.cache, options.text)
    answer_lines(exporter.answer, answers)
    exporter.maker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
