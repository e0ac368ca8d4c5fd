"""Writes what the workers of a case load, once, into a cache: weights, batches, float64 truth.

    python -m torchpace.export --cache DIR [--text FILE]

Each line of standard input is a settings line. Each is answered with one line of JSON on standard
output, `{"case", "state", "truth", "tokens", "memory", "set", "name", "cached", "seconds", "note"}`
or `{"error": "one line"}`. Paths are absolute, `tokens` is empty for models without text. `memory`
has the bytes of parameters, gradients, optimiser state and activations; `set` has settings to add
to the case's line: what a step of a model costs that only Python can count; `name` is how a model
of your own calls itself. A line with `make=KIND` is answered with a compiled file of the case
(torchpace.artifacts). Layout: docs/design.md, "The path of the data".
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from torchpace import artifacts, axes, cache, models, optimizers, parity, scratch, tensors, workload
from torchpace.axes import Axes
from torchpace.data import text
from torchpace.errors import InputError
from torchpace.protocol import answer_lines, open_protocol
from torchpace.runtimes import eager
from torchpace.settings import Settings
from torchpace.workload import (
    Workload,
    buffers_of,
    device_of,
    dtype_of,
    loss_of,
    output_of,
    phase_of,
    seed_of,
    to_device,
    without_dropout,
)

# Keys of a settings line that do not change the files: where and how the case runs, not what it is.
UNRELATED = {
    *("case", "family", "device", "threads", "swap", "state", "truth", "tokens", "artifact"),
    *("tf32", "memory_format", "torchscript", "aot", "freezing", "dynamic", "fullgraph", "runners"),
    *models.COST_KEYS,
}
MAXIMUM_BATCHES = 8
MAXIMUM_BATCH_BYTES = 64 << 20
TWINS = 4  # perturbed float64 twins that show what rounding may do
# What the twins of a model of your own may cost: about a minute on two cores.
TWINS_FLOPS = 1e12
REPEATABLE = 1e-6  # of its size: float64 moves an output by less, one dropped element by more
# Initial weights take their own random numbers: with seed + index they would repeat a batch's.
WEIGHTS_SEED = 2**31


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
        model = models.of(settings)
        check(settings, model)
        data = settings.text("data", "normal", ("text", "normal"))
        source = self._text(settings) if data == "text" else None
        entry = cache.get_or_make(
            self.folder / "cases" / key_of(settings, model, source),
            lambda target: make_case(target, settings, model, source),
        )
        notes = [
            source.note if source else "",
            entry.manifest["note"],
            f"rebuilt: {entry.rebuilt}" if entry.rebuilt else "",
        ]
        return {
            "case": settings.text("case", ""),
            "state": str(entry.path / "state.pt"),
            "truth": str(entry.path / "truth.pt"),
            "tokens": str(source.path) if source else "",
            "memory": entry.manifest["memory"],
            "set": entry.manifest["set"],
            "name": entry.manifest["name"],
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
    if not hasattr(model, "measure"):
        model.cost(settings)


def key_of(settings: Settings, model: ModuleType, source: text.Text | None) -> str:
    """The entry's name: model, phase and a hash of all that the files depend on."""
    related = settings.replace(**dict.fromkeys(UNRELATED, None))
    if phase_of(settings) == "train":  # all implementations of an optimiser do the same
        related = related.replace(optimizer=optimizers.parse(settings)[0])
    tokens = source.sha256 if source else ""
    # Whatever decides what is in the files: the model, the steps, how they are stored.
    sources = (axes, eager, optimizers, workload, text, tensors, sys.modules[__name__])
    files = [Path(module.__file__) for module in sources]  # type: ignore[arg-type]
    code = models.identity(model) + b"".join(file.read_bytes() for file in files)
    parts = f"{related.line()}\n{torch.__version__}\n{tokens}\n".encode() + code
    digest = hashlib.sha256(parts).hexdigest()[:16]
    return f"{models.label(settings)}-{settings.text('phase')}-{digest}"


def make_case(
    target: Path, settings: Settings, model: ModuleType, source: text.Text | None
) -> dict:
    """Writes state.pt and truth.pt into `target`. Raises InputError if a value is not finite."""
    measured = model.measure(settings) if hasattr(model, "measure") else {}
    settings = settings.replace(**measured)
    seed, dtype = seed_of(settings), dtype_of(settings)
    torch.manual_seed(WEIGHTS_SEED + seed)
    module = model.make(settings)
    tokens = text.load_tokens(source.path) if source else None
    batches: list[tuple[Tensor, ...]] = []
    while len(batches) < MAXIMUM_BATCHES and (
        not batches or (len(batches) + 1) * sum(x.nbytes for x in batches[0]) <= MAXIMUM_BATCH_BYTES
    ):
        generator = torch.Generator().manual_seed(seed + len(batches))
        batches.append(model.inputs(settings, generator, tokens))
    names = [workload.input_key(i) for i in range(len(batches[0]) - 1)] + ["target"]
    cpu = torch.device("cpu")
    state = {f"parameter.{name}": to_device(p, cpu, dtype) for name, p in module.named_parameters()}
    state |= {f"buffer.{name}": to_device(b, cpu, dtype) for name, b in buffers_of(module).items()}
    state |= {
        name: to_device(torch.stack(column), cpu, dtype)
        for name, column in zip(names, zip(*batches, strict=True), strict=True)
    }
    tensors.save(target / "state.pt", state)
    del module, state, batches
    settings = settings.replace(state=target / "state.pt")
    twins, why = twins_of(settings, measured)
    try:
        truth = make_truth(settings, model, twins)
    except RuntimeError as error:
        if not measured or "memory" in str(error):
            raise
        raise InputError(  # it has run in float32: see measure
            f"{settings.text('factory')}: expected a module that also runs in float64, for the "
            f"truth, found {str(error).splitlines()[0][:200]}; take the dtype of its input"
        ) from None
    for name, tensor in truth.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{settings.text('case', 'case')}: expected a finite float64 truth, found {name} "
                "infinite or undefined: training diverges; lower lr"
            )
    tensors.save(target / "truth.pt", truth)
    return {
        "settings": settings.replace(state=None).line(),
        "torch": torch.__version__,
        "seed": seed,
        "twins": {"count": twins, "reason": why},
        "memory": count_memory(settings, model),
        "note": blindness(truth),
        "set": measured,
        "name": getattr(model, "name", ""),
    }


def twins_of(settings: Settings, measured: dict) -> tuple[int, str]:
    """How many perturbed twins the truth gets, and why fewer than TWINS.

    With fewer the spread, their largest, is smaller: parity becomes stricter, never laxer.
    """
    if not measured:
        return TWINS, ""
    training = phase_of(settings) == "train"
    steps = workload.PARITY_STEPS if training else 1
    each = steps * measured["training_flops" if training else "flops"]
    count = max(1, min(TWINS, int(TWINS_FLOPS / max(each, 1))))
    if count == TWINS:
        return TWINS, ""
    return count, (
        f"{count} instead of {TWINS}: a twin costs {each:.2g} FLOP and all may cost {TWINS_FLOPS:g}"
    )


def make_truth(settings: Settings, model: ModuleType, twins: int = TWINS) -> dict[str, Tensor]:
    """The values of the float64 twin, and the `spread` that rounding of weights and inputs brings.

    The twin is the same model with the same state, rounded to the case's dtype before.
    spread.<name> [2] holds the largest magnitude and root mean square of the difference, the larger
    of `twins` perturbed twins. Raises InputError where the output is drawn anew in each step.
    """
    size = 4 * torch.finfo(Axes.of(settings).precision(dtype_of(settings))).eps
    settings = settings.replace(autocast=None, tf32=None, memory_format=None)
    twin = double(eager.load("py-eager", settings, model))
    expect_repeatable(twin)
    truth = twin.values()
    spread = {name: [0.0, 0.0] for name in truth}
    for index in range(twins):
        del twin  # its weights and moments, before there are others
        twin = double(eager.load("py-eager", settings, model))
        perturb(twin, size, index)
        for name, value in twin.values().items():
            found = parity.norms(value - truth[name])
            spread[name] = [max(pair) for pair in zip(spread[name], found, strict=True)]
    moved = {
        parity.SPREAD + name: torch.tensor(v, dtype=torch.float64) for name, v in spread.items()
    }
    return truth | moved


def expect_repeatable(twin: Workload) -> None:
    """Raises InputError where the same weights and inputs give another output with other random
    numbers: no two runtimes could be compared.
    """
    assert isinstance(twin, (eager.EagerInference, eager.EagerTraining))
    training = isinstance(twin, eager.EagerTraining)
    inputs = twin.batches[0][0] if training else twin.inputs[0]
    outputs = []
    with twin.turn(), without_dropout(twin.module), torch.no_grad():
        for seed in (0, 1):
            torch.manual_seed(seed)
            outputs.append(output_of(twin.module(*inputs)))
    moved, size = parity.norms(outputs[1] - outputs[0])[0], parity.norms(outputs[0])[0]
    if moved > REPEATABLE * size:
        name = twin.settings.text("factory", twin.settings.text("model"))
        raise InputError(
            f"{name}: expected the same output from the same weights and inputs, found that random "
            f"numbers move it by {moved:.1g} of {size:.1g}; set to 0 what the module drops or draws"
            + (" in training" if training else "")
        )


def blindness(truth: dict[str, Tensor]) -> str:
    """A warning where no weight and no input changes the output, so that parity sees nothing."""
    spread = truth.get(f"{parity.SPREAD}output")
    if spread is None or spread.any():
        return ""
    return (
        "WARNING: the output depends on no weight and no input, so parity cannot see an error; "
        "a last layer that starts at zero does this"
    )


def double(twin: Workload) -> Workload:
    """Turns a loaded eager twin into its float64 twin, in place."""
    assert isinstance(twin, (eager.EagerInference, eager.EagerTraining))
    twin.dtype = torch.float64
    twin.module.double()
    if isinstance(twin, eager.EagerInference):
        twin.inputs = [tuple(map(twin.place, inputs)) for inputs in twin.inputs]
    else:
        twin.batches = [
            (tuple(map(twin.place, inputs)), twin.place(target)) for inputs, target in twin.batches
        ]
        # double() gives modules new buffers, so what a turn restores is looked up again
        twin.initial = [(t, t.detach().clone()) for t in eager.state_of(twin.module)]
    return twin


def perturb(twin: Workload, size: float, seed: int) -> None:
    """Multiplies every weight and input of a float64 twin by 1 + size or 1 - size, at random."""
    generator = torch.Generator().manual_seed(seed)

    def perturbed(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        signs = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.int8).to(x.device)
        return x * (1 + size * (2 * signs - 1))

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
    own = {_storage(x) for x in (*eager.state_of(twin.module), *inputs, target)}
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
