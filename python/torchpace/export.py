"""Writes what the workers of a case load: initial weights and batches, and the float64 truth, once, into a cache.

    python -m torchpace.export --cache DIR [--text FILE]

Each line of standard input is a settings line. Each is answered with one line of JSON on standard output:
`{"case", "state", "truth", "tokens", "cached", "seconds", "note"}`, paths absolute and `tokens` empty for models
without text, or `{"error": "one line"}`. Layout: docs/design.md, "The path of the data".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from torchpace import cache, models, tensors
from torchpace.data import text
from torchpace.errors import InputError, Skipped
from torchpace.protocol import one_line, open_protocol
from torchpace.runtimes import eager
from torchpace.settings import Settings
from torchpace.workload import device_of, dtype_of, phase_of, seed_of, to_device

LAYOUT = 1  # raise it when what is written changes its meaning
# Keys of a settings line that do not change the files.
UNRELATED = {"case", "family", "device", "threads", "swap", "state", "truth", "tokens"}
MAXIMUM_BATCHES = 8
MAXIMUM_BATCH_BYTES = 64 << 20
# Initial weights take their own random numbers: with seed + index they would repeat those of a batch.
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
        source = self._text(settings) if settings.text("data", "normal", ("text", "normal")) == "text" else None
        entry = cache.get_or_make(
            self.folder / "cases" / key_of(settings, model, source),
            lambda target: make_case(target, settings, model, source),
        )
        notes = [source.note if source else "", f"rebuilt: {entry.rebuilt}" if entry.rebuilt else ""]
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
    code = Path(model.__file__).read_bytes()  # type: ignore[arg-type]
    tokens = source.sha256 if source else ""
    parts = f"{LAYOUT}\n{related}\n{torch.__version__}\n{tokens}\n".encode() + code
    return f"{settings.text('model')}-{settings.text('phase')}-{hashlib.sha256(parts).hexdigest()[:16]}"


def make_case(target: Path, settings: Settings, model: ModuleType, source: text.Text | None) -> dict:
    """Writes state.pt and truth.pt into `target`. Raises InputError if the values are not finite."""
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
            raise InputError(f"{settings.text('case', 'case')}: expected a finite float64 truth, {name} is not")
    tensors.save(target / "truth.pt", truth)
    return {"settings": settings.line(), "torch": torch.__version__, "seed": seed}


def make_truth(settings: Settings, model: ModuleType) -> dict[str, Tensor]:
    """The values of the float64 twin: the same model and state, rounded to the case's dtype before."""
    workload = eager.load("py-eager", settings, model)
    return double(workload).values()


def double(workload: eager.EagerInference | eager.EagerTraining):
    """Turns a loaded eager workload into its float64 twin, in place."""
    workload.dtype = torch.float64
    workload.module.double()
    if isinstance(workload, eager.EagerInference):
        workload.inputs = [to_device(x, workload.device, torch.float64) for x in workload.inputs]
    else:
        workload.batches = [
            tuple(to_device(x, workload.device, torch.float64) for x in b) for b in workload.batches
        ]
        workload.initial = [(t, initial.double()) for t, (_, initial) in
                            zip(eager.state_of(workload.module), workload.initial, strict=True)]  # fmt: skip
    return workload


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m torchpace.export", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder of the cache; made if it is not there")
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
