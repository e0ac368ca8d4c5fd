"""Writes what the workers of a case load, once, into a cache: weights, batches, float64 truth.

    python -m torchpace.export --cache DIR [--text FILE]

Each line of standard input is a settings line. Each is answered with one line of JSON on standard
output: `{"case", "state", "truth", "tokens", "cached", "seconds", "note"}`, paths absolute and
`tokens` empty for models without text, or `{"error": "one line"}`. Layout: docs/design.md, "The
path of the data".
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

from torchpace import cache, models, parity, tensors, workload
from torchpace.data import text
from torchpace.errors import InputError, Skipped
from torchpace.protocol import one_line, open_protocol
from torchpace.runtimes import eager
from torchpace.settings import Settings
from torchpace.workload import Workload, device_of, dtype_of, phase_of, seed_of, to_device

# Keys of a settings line that do not change the files.
UNRELATED = {"case", "family", "device", "threads", "swap", "state", "truth", "tokens"}
MAXIMUM_BATCHES = 8
MAXIMUM_BATCH_BYTES = 64 << 20
TWINS = 4  # perturbed float64 twins that show what rounding may do
# Initial weights take their own random numbers: with seed + index they would repeat a batch's.
WEIGHTS_SEED = 2**31


class Exporter:
    def __init__(self, folder: Path, file: Path | None = None):
        self.folder, self.file = folder.absolute(), file
        self._texts: dict[int, text.Text] = {}

    def export(self, line: str) -> dict:
        """Answers one settings line. Raises InputError or Skipped."""
        started = time.perf_counter()
        settings = Settings.parse(line)
        model = models.find(settings.text("model"))
        model.cost(settings)  # validates the model's own settings before anything is made
        phase_of(settings), dtype_of(settings), device_of(settings)
        data = settings.text("data", "normal", ("text", "normal"))
        source = self._text(settings) if data == "text" else None
        entry = cache.get_or_make(
            self.folder / "cases" / key_of(settings, model, source),
            lambda target: make_case(target, settings, model, source),
        )
        notes = [
            source.note if source else "",
            f"rebuilt: {entry.rebuilt}" if entry.rebuilt else "",
        ]
        return {
            "case": settings.text("case", ""),
            "state": str(entry.path / "state.pt"),
            "truth": str(entry.path / "truth.pt"),
            "tokens": str(source.path) if source else "",
            "cached": entry.cached,
            "seconds": time.perf_counter() - started,
            "note": "; ".join(note for note in notes if note),
        }

    def _text(self, settings: Settings) -> text.Text:
        vocabulary = settings.integer("vocabulary", 65, minimum=2)
        if vocabulary not in self._texts:
            self._texts[vocabulary] = text.find(self.folder, self.file, vocabulary)
        return self._texts[vocabulary]


def key_of(settings: Settings, model: ModuleType, source: text.Text | None) -> str:
    """The entry's name: model, phase and a hash of all that the files depend on."""
    related = settings.replace(**dict.fromkeys(UNRELATED, None)).line()
    tokens = source.sha256 if source else ""
    # Whatever decides what is in the files: the model, the steps, how they are stored.
    sources = (model, eager, workload, text, tensors, sys.modules[__name__])
    code = b"".join(Path(module.__file__).read_bytes() for module in sources)  # type: ignore[arg-type]
    parts = f"{related}\n{torch.__version__}\n{tokens}\n".encode() + code
    digest = hashlib.sha256(parts).hexdigest()[:16]
    return f"{settings.text('model')}-{settings.text('phase')}-{digest}"


def make_case(
    target: Path, settings: Settings, model: ModuleType, source: text.Text | None
) -> dict:
    """Writes state.pt and truth.pt into `target`. Raises InputError if a value is not finite."""
    seed, dtype = seed_of(settings), dtype_of(settings)
    torch.manual_seed(WEIGHTS_SEED + seed)
    module = model.make(settings)
    tokens = text.load_tokens(source.path) if source else None
    batches: list[tuple[Tensor, Tensor]] = []
    while len(batches) < MAXIMUM_BATCHES and (
        not batches or (len(batches) + 1) * sum(x.nbytes for x in batches[0]) <= MAXIMUM_BATCH_BYTES
    ):
        generator = torch.Generator().manual_seed(seed + len(batches))
        batches.append(model.inputs(settings, generator, tokens))
    own = dict(module.named_parameters())
    buffers = {key: value for key, value in module.state_dict().items() if key not in own}
    cpu = torch.device("cpu")
    state = {f"parameter.{name}": to_device(p, cpu, dtype) for name, p in own.items()}
    state |= {f"buffer.{name}": to_device(b, cpu, dtype) for name, b in buffers.items()}
    state |= {
        name: to_device(torch.stack(column), cpu, dtype)
        for name, column in zip(("input", "target"), zip(*batches, strict=True), strict=True)
    }
    tensors.save(target / "state.pt", state)
    del module, own, buffers, state, batches
    truth = make_truth(settings.replace(state=target / "state.pt"), model)
    for name, tensor in truth.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{settings.text('case', 'case')}: expected a finite float64 truth, found {name} "
                "infinite or undefined: training diverges; lower lr"
            )
    tensors.save(target / "truth.pt", truth)
    return {"settings": settings.line(), "torch": torch.__version__, "seed": seed}


def make_truth(settings: Settings, model: ModuleType) -> dict[str, Tensor]:
    """The values of the float64 twin, and the `spread` that rounding of weights and inputs brings.

    The twin is the same model with the same state, rounded to the case's dtype before.
    spread.<name> [2] holds the largest magnitude and root mean square of the difference, the larger
    of TWINS perturbed twins.
    """
    truth = double(eager.load("py-eager", settings, model)).values()
    spread = {name: [0.0, 0.0] for name in truth}
    for index in range(TWINS):
        twin = double(eager.load("py-eager", settings, model))
        perturb(twin, 4 * torch.finfo(dtype_of(settings)).eps, index)
        for name, value in twin.values().items():
            found = parity.norms(value - truth[name])
            spread[name] = [max(pair) for pair in zip(spread[name], found, strict=True)]
    moved = {
        parity.SPREAD + name: torch.tensor(v, dtype=torch.float64) for name, v in spread.items()
    }
    return truth | moved


def double(twin: Workload) -> Workload:
    """Turns a loaded eager twin into its float64 twin, in place."""
    assert isinstance(twin, (eager.EagerInference, eager.EagerTraining))
    twin.dtype = torch.float64
    twin.module.double()
    if isinstance(twin, eager.EagerInference):
        twin.inputs = [to_device(x, twin.device, torch.float64) for x in twin.inputs]
    else:
        twin.batches = [(to_device(x, twin.device, torch.float64), y) for x, y in twin.batches]
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
        twin.inputs = [perturbed(x) for x in twin.inputs]
    else:
        twin.batches = [(perturbed(x), y) for x, y in twin.batches]
        twin.initial = [(tensor, tensor.detach().clone()) for tensor, _ in twin.initial]


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
    exporter = Exporter(options.cache, options.text)
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            answer = exporter.export(line)
        except Skipped as skipped:
            answer = {"skipped": str(skipped)}
        except Exception as error:
            answer = {"error": one_line(error)}
        answers(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
