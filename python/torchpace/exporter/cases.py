"""A case's files: its state (weights and batches) and its golden run.

Layout: docs/worker-protocol.md.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from torchpace import (
    models,
    module_state,
    workload,
)
from torchpace.case_phase import case_phase
from torchpace.data import text
from torchpace.execution_options import ExecutionOptions
from torchpace.exporter import cache, golden, memory
from torchpace.io import tensor_file
from torchpace.optim import factory
from torchpace.runtimes import eager
from torchpace.settings import Settings, SettingsError
from torchpace.workload import (
    device_of,
    dtype_of,
    loss_module,
    seed_of,
    seeded,
    to_device,
)

# Keys of a settings line that do not change the files: where and how the case runs, not what it is.
UNRELATED = {
    *("case", "family", "device", "threads", "swap", "state", "golden", "tokens", "artifact"),
    *("tf32", "memory_format", "torchscript", "freezing", "dynamic", "fullgraph", "runners"),
    *(*models.MEASURED_KEYS, "stamp", "gemm"),
}
INTERNAL_KEYS = ("output_bytes", "computes_in")  # of what is measured: of no use to a worker
MAXIMUM_BATCHES = 8
MAXIMUM_BATCH_BYTES = 64 << 20
MAXIMUM_OUTPUT_BYTES = 256 << 20  # of all batches, since all are compared


def check(settings: Settings, model: ModuleType) -> None:
    """Raises SettingsError or Skipped for settings that no runtime can take, before anything is
    made.
    """
    dtype_of(settings)
    device_of(settings)
    ExecutionOptions.of(settings)
    if case_phase(settings).trains:
        factory.optimizer_choice(settings)
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
    if case_phase(settings).trains:  # all implementations of an optimizer do the same
        related = related.replace(optimizer=factory.optimizer_choice(settings)[0].name)
    tokens = source.sha256 if source else ""
    code = models.identity(model) + cache.package_digest()
    parts = f"{related.line()}\n{torch.__version__}\n{tokens}\n".encode() + code
    digest = hashlib.sha256(parts).hexdigest()[:16]
    return f"{models.label(settings)}-{settings.text('phase')}-{digest}"


def make_case(
    target: Path, settings: Settings, model: ModuleType, source: text.Text | None
) -> dict:
    """Writes state.pt and, where a float64 run is possible, golden.pt into `target`.

    Raises InputError if a value of a training is not finite.
    """
    measured = model.measure(settings) if hasattr(model, "measure") else {}
    settings = settings.replace(**measured)
    count = write_state(target, settings, model, source)
    settings = settings.replace(state=target / "state.pt")
    no_golden = getattr(model, "no_golden", "")
    shadows, why, values, counted = 0, no_golden, {}, {}
    if not no_golden:
        plain = golden.plain_settings(settings).replace(dtype=None)
        first, second = (eager.load("py-eager", plain, model) for _ in range(2))
        golden.expect_repeatable(first, second)
        shadows, why = golden.shadow_count(settings, measured, count)
        values, no_golden = golden.try_golden(settings, model, shadows)
        counted = memory.count_memory(settings, model)
    if values:
        tensor_file.write_tensors(target / "golden.pt", values)
    return {
        "settings": settings.replace(state=None).line(),
        "torch": torch.__version__,
        "seed": seed_of(settings),
        "shadows": {"count": shadows, "reason": why},
        "memory": counted,
        "note": "; ".join(filter(None, (getattr(model, "note", ""), golden.blindness(values)))),
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
    tokens = text.read_tokens(source.path) if source else None
    batches = make_batches(settings, model, tokens)
    names = [workload.input_key(i) for i in range(len(batches[0]) - 1)] + ["target"]
    columns = zip(names, zip(*batches, strict=True), strict=True)
    state |= {name: torch.stack(column) for name, column in columns}
    moved = {name: to_device(x.detach(), cpu, dtype) for name, x in state.items()}
    tensor_file.write_tensors(target / "state.pt", moved)
    return len(batches)


def make_batches(
    settings: Settings, model: ModuleType, tokens: Tensor | None
) -> list[tuple[Tensor, ...]]:
    """As many batches as may be compared, and one where all would be the same."""
    fixed = hasattr(model, "has_fixed_inputs") and model.has_fixed_inputs(settings)
    most = 1 if fixed else MAXIMUM_BATCHES
    if not case_phase(settings).trains:
        most = min(most, int(golden.SHADOW_FLOPS / 2 / max(settings.number("flops", 0.0), 1)))
        most = min(most, int(MAXIMUM_OUTPUT_BYTES / max(settings.number("output_bytes", 0), 1)))
    batches: list[tuple[Tensor, ...]] = []
    while not batches or (
        len(batches) < most
        and (len(batches) + 1) * sum(x.nbytes for x in batches[0]) <= MAXIMUM_BATCH_BYTES
    ):
        generator = torch.Generator().manual_seed(seed_of(settings) + len(batches))
        batches.append(model.inputs(settings, generator, tokens))
    return batches
