"""Compiles a whole training step, forward, loss, backward and optimiser, into one package.

    python -m torchpace.training gptlite --size quick --optimizer adamw --out FILE.pt2
    python -m torchpace.training my_module:make_model --input 8x3x32x32:float32 --out FILE.pt2

Rules and format: docs/training.md. What drives the package: torchpace.compiled_training, and
include/torchpace/runtimes/compiled_training.hpp.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchpace import inductor, models, optimizers
from torchpace.artifacts import refused
from torchpace.axes import AUTOCAST
from torchpace.errors import InputError, Skipped
from torchpace.joined import joined_in_place
from torchpace.matmul import own_products
from torchpace.protocol import die_with_parent, one_line
from torchpace.settings import Settings, expand_case, read_cases
from torchpace.tensors import parse_spec, spec_of
from torchpace.training_package import INITIAL, Recipe
from torchpace.training_step import TrainingStep, deterministic_algorithms

COMPILE_LIMIT_S = 600.0
# Operations. The code that calls the kernels is one function, on which g++ at O1 spends time as the
# square of its length: of longer ones at O0, which costs a net of small layers 9 % of its step.
LONG_PROGRAM = 5000


def export_training(
    module: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    inputs: Tensor | Sequence[Tensor],
    target: Tensor,
    *,
    path: str | os.PathLike[str],
    optimizer: str = "adam",
    betas: tuple[float, float] = optimizers.ADAM_BETAS,
    eps: float = optimizers.ADAM_EPS,
    momentum: float = optimizers.MOMENTUM,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    autocast: str | torch.dtype | None = None,
    deterministic: bool = False,
    compile_limit: float | None = COMPILE_LIMIT_S,
    inductor_configs: dict[str, Any] | None = None,
    progress: bool = False,
) -> Path:
    """Writes the package of `module`'s training step, with its present state, to `path` (.pt2).

    inputs, target: one batch on the module's device; the package takes batches of these shapes.
    weight_decay: 0.01 for adamw, else 0. compile_limit: seconds for the compiler, which runs in a
    process of its own that the limit ends; None compiles in this process without a limit. progress:
    says on standard error what goes on. Leaves the module and the random state as they are. Raises
    InputError on what cannot be exported, in one line that names it.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"expected a file *.pt2 to write, got {path}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: expected a folder {path.absolute().parent}, found none")
    if weight_decay is None:
        weight_decay = optimizers.WEIGHT_DECAY if optimizer == "adamw" else 0.0
    recipe = Recipe(
        optimizer,
        *betas,
        eps,
        momentum,
        weight_decay,
        math.inf if clip_norm is None else clip_norm,
        accumulate,
    )
    say = _Progress(progress)
    compiler = _Compiler(compile_limit, say) if compile_limit is not None else None
    try:
        batch = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        with deterministic_algorithms(deterministic):
            step = TrainingStep(module, loss, batch, target, recipe, _autocast_name(autocast))
            program = step.trace()
            arguments = tuple(map(spec_of, step.arguments()))
        say(f"traced: {len(program.graph.nodes)} operations, {step.elements} trained numbers")
        metadata = step.contents(deterministic).metadata() | _conditions(step.device)
        device = str(step.device)
        job = Job(program, arguments, device, metadata, deterministic, inductor_configs or {})
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.part.pt2")
        try:
            (compiler.run if compiler else compile_package)(job, temporary)
            _append(temporary, INITIAL, step.initial_bytes())
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        if compiler:
            compiler.close()
    say(f"wrote {path}")
    return path


@dataclass
class Job:
    """What the compiler needs."""

    program: torch.fx.GraphModule
    arguments: tuple[str, ...]  # shapes and dtypes
    device: str
    metadata: dict[str, str]
    deterministic: bool
    configs: dict[str, Any]


def compile_package(job: Job, path: Path) -> None:
    """Compiles in this process. Raises InputError in one line."""
    from torch._inductor.package import package_aoti
    from torch._subclasses.fake_tensor import FakeTensorMode

    long = len(job.program.graph.nodes) > LONG_PROGRAM
    configs = {"aot_inductor.compile_wrapper_opt_level": "O0" if long else "O1", **job.configs}
    configs |= {"aot_inductor.package": True, "aot_inductor.metadata": job.metadata}
    try:
        with contextlib.ExitStack() as scope:
            scope.enter_context(deterministic_algorithms(job.deterministic))
            scope.enter_context(torch.no_grad())
            scope.enter_context(own_products())
            scope.enter_context(joined_in_place())
            with FakeTensorMode(allow_non_fake_inputs=True):
                arguments = tuple(
                    torch.empty(shape, dtype=dtype, device=job.device)
                    for shape, dtype in map(parse_spec, job.arguments)
                )
            files = torch._inductor.aot_compile(job.program, arguments, options=configs)
            package_aoti(str(path), files)
    except Exception as error:
        raise refused("AOTInductor: expected a step that it can compile", error) from None


class _Compiler:
    """A process that compiles one job, started early: it imports torch's compiler meanwhile."""

    def __init__(self, limit: float, say: Callable[[str], None]):
        self.limit, self.say = limit, say
        self.folder = tempfile.TemporaryDirectory(prefix="torchpace-training-")
        # Bound to a core by OMP_PROC_BIND, it would hand that one core down to every compiler.
        environment = {k: v for k, v in os.environ.items() if k != "OMP_PROC_BIND"}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torchpace.training", "--compile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )

    def run(self, job: Job, path: Path) -> None:
        """Raises InputError where it fails, or is not done in time."""
        program = Path(self.folder.name) / "program"
        program.write_bytes(_bytes_of(job.program))
        question = {
            "program": str(program),
            "job": {name: value for name, value in vars(job).items() if name != "program"},
            "out": str(path.absolute()),
            "threads": torch.get_num_threads(),
            "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        }
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        begun = time.monotonic()
        while not select.select([self.process.stdout], [], [], 5.0)[0]:
            elapsed = time.monotonic() - begun
            self.say(f"compiles: {elapsed:.0f} s of at most {self.limit:g} s")
            if elapsed > self.limit:
                raise InputError(
                    f"compile: expected an end within {self.limit:g} s, it was stopped; "
                    "--compile-limit (compile_limit) raises it"
                )
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process that compiled died"}
        if "error" in answer:
            raise InputError(answer["error"])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.folder.cleanup()


def _compile_as_asked() -> int:
    """The life of _Compiler's process: one line of JSON in, one out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    die_with_parent()
    warnings.simplefilter("ignore", FutureWarning)  # torch's own, of itself
    inductor.prepare()
    inductor.start_making()
    question = json.loads(sys.stdin.readline())
    try:
        torch.set_num_threads(question["threads"])
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = question["tf32"]
        program = _program_of(Path(question["program"]).read_bytes())
        compile_package(Job(program, **question["job"]), Path(question["out"]))
        answer = {}
    except Exception as error:
        answer = {"error": one_line(error)}
    print(json.dumps(answer), file=answers, flush=True)
    return 0


def _bytes_of(program: torch.fx.GraphModule) -> bytes:
    """Its nodes, of any operator, without what tracing notes of each: the compiler finds that."""
    from torch.fx._graph_pickler import GraphPickler, Options

    nodes_alone = Options(ops_filter=None, node_metadata_key_filter=lambda _: False)
    return GraphPickler.dumps(program, nodes_alone)


def _program_of(content: bytes) -> torch.fx.GraphModule:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx._graph_pickler import GraphPickler

    return GraphPickler.loads(content, FakeTensorMode())


class _Progress:
    """Lines on standard error with the time since the start; silent unless wanted."""

    def __init__(self, wanted: bool):
        self.wanted, self.begun = wanted, time.monotonic()

    def __call__(self, what: str) -> None:
        if self.wanted:
            print(f"{time.monotonic() - self.begun:6.1f} s  {what}", file=sys.stderr, flush=True)


def _conditions(device: torch.device) -> dict[str, str]:
    from torchpace.runtimes import aot

    return aot.conditions(device)


def _append(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as package:
        folder = package.namelist()[0].partition("/")[0]
        package.writestr(f"{folder}/{name}", content)


def _autocast_name(autocast: str | torch.dtype | None) -> str:
    name = str(autocast or "none").removeprefix("torch.")
    if name not in AUTOCAST:
        raise InputError(f"autocast: expected one of {', '.join(AUTOCAST)}, got '{name}'")
    return name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torchpace.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model", help="a family of cases.json, or module:factory")
    parser.add_argument("--out", type=Path, required=True, help="the package to write, *.pt2")
    parser.add_argument("--size", default="quick", help="of a family; quick by default")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the family: layers=6, batch=16",
    )
    parser.add_argument("--input", help="of a factory: 8x3x32x32:float32, joined by ';'")
    parser.add_argument("--path", default=os.getcwd(), help="folder to import the factory from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="compiled in; by default torch's own choice")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--optimizer", default="adam", choices=optimizers.KINDS)
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--clip-norm", type=float)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--autocast", default="none", choices=tuple(AUTOCAST))
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--compile-limit", type=float, default=COMPILE_LIMIT_S, metavar="SECONDS")
    options = parser.parse_args(arguments)
    try:
        module, loss, inputs, target = _case(options)
        export_training(
            module,
            loss,
            inputs,
            target,
            path=options.out,
            optimizer=options.optimizer,
            weight_decay=options.weight_decay,
            clip_norm=options.clip_norm,
            accumulate=options.accumulate,
            autocast=options.autocast,
            deterministic=options.deterministic,
            compile_limit=options.compile_limit,
            progress=True,
        )
    except (InputError, Skipped) as error:
        print(f"torchpace.training: {error}", file=sys.stderr)
        return 2
    return 0


def _case(
    options: argparse.Namespace,
) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor], tuple[Tensor, ...], Tensor]:
    """Module, loss, inputs and target that the command line names."""
    from torchpace.commands import set_threads
    from torchpace.workload import device_of, dtype_of, to_device

    more: dict[str, Any] = {"device": options.device, "seed": options.seed}
    if options.threads is not None:
        more["threads"] = options.threads
    for setting in options.set:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise InputError(f"--set: expected KEY=VALUE, got '{setting}'")
        more[key] = value
    if ":" in options.model:
        settings = Settings(
            {"model": "imported", "phase": "train", "factory": options.model}, path=options.path
        ).replace(input=options.input, **more)
    else:
        known = read_cases()["families"]
        if options.model not in known:
            raise InputError(
                f"expected one of {', '.join(known)} or module:factory, got '{options.model}'"
            )
        settings = expand_case(f"{options.model}_train/size:{options.size}", **more)
    set_threads(settings)
    device, dtype = device_of(settings), dtype_of(settings)
    model = models.of(settings)
    torch.manual_seed(options.seed)
    module = model.make(settings).to(device=device, dtype=dtype)
    tokens = None
    if settings.text("data", "") == "text":  # only their shape counts
        size = 4 * settings.integer("context")
        tokens = torch.randint(settings.integer("vocabulary"), (size,), dtype=torch.uint8)
    *inputs, target = model.inputs(settings, torch.Generator().manual_seed(0), tokens)
    placed = tuple(to_device(x, device, dtype) for x in inputs)
    return module, model.loss, placed, to_device(target, device, dtype)


if __name__ == "__main__":
    sys.exit(_compile_as_asked() if sys.argv[1:] == ["--compile"] else main())
