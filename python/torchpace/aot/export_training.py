"""Compiles a whole training step, forward, loss, backward and optimizer, into one package.

    python -m torchpace.aot.export_training gptlite --size quick --optimizer adamw --out FILE.pt2
    python -m torchpace.aot.export_training my_module:make --input 8x3x32x32:float32 --out FILE.pt2

Rules and format: docs/training.md. What drives the package: torchpace.aot.compiled_training, and
include/torchpace/aot/compiled_training.hpp.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchpace import models, scratch
from torchpace.aot import inductor, training_check
from torchpace.aot.patches import gemm as gemm_patch
from torchpace.aot.patches.concat import joined_in_place
from torchpace.aot.training_package import INITIAL, Recipe
from torchpace.aot.training_step import TrainingStep, deterministic_algorithms
from torchpace.errors import InputError, Skipped
from torchpace.execution_options import AUTOCAST
from torchpace.io.tensor_spec import parse_spec, spec_of
from torchpace.optim import algorithms
from torchpace.refusal import refused
from torchpace.settings import Settings, expand_case, read_cases
from torchpace.worker.protocol import die_with_parent, one_line

COMPILE_LIMIT_S = 600.0
# Operations. The code that calls the kernels is one function, on which g++ at O1 spends time as the
# square of its length: of longer ones at O0, which costs a net of small layers 9 % of its step.
LONG_PROGRAM = 5000
CHECK_LIMIT_S = 600.0  # of the process that runs the package's first steps
CHECKED = "torchpace.checked"  # of a package's metadata
_LIBRARIES = ("MKL", "DNNL", "ONEDNN", "OPENBLAS")  # of kernels; their variables are not unset
_interrupts: list[int] = []  # signals that this process was sent


def export_training(
    module: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    inputs: Tensor | Sequence[Tensor],
    target: Tensor,
    *,
    path: str | os.PathLike[str],
    optimizer: str = "adam",
    betas: tuple[float, float] = algorithms.ADAM_BETAS,
    eps: float = algorithms.ADAM_EPS,
    momentum: float = algorithms.SGD_MOMENTUM,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    autocast: str | torch.dtype | None = None,
    deterministic: bool = False,
    gemm: str = "torchpace",
    compile_timeout: float | None = COMPILE_LIMIT_S,
    check: bool = True,
    inductor_configs: dict[str, Any] | None = None,
    progress: bool = False,
) -> Path:
    """Writes the package of `module`'s training step, with its present state, to `path` (.pt2).

    inputs, target: one batch on the module's device; the package takes batches of these shapes.
    weight_decay: 0.01 for adamw, else 0. gemm: whose float32 matrix products the step has on a CPU,
    torchpace's where the processor suits them, or torch's. compile_timeout: seconds for the
    compiler, which runs in a process of its own that the limit ends; None compiles in this process
    without a limit. check: steps of the package must be those of eager torch on this batch
    (training_check.py), else there is no file. progress: says on standard error what goes on. Each
    module keeps the mode that it has, train or eval. Leaves the module and the random state as they
    are. Raises InputError on what cannot be exported, in one line that names it.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"expected a file *.pt2 to write, got {path}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: expected a folder {path.absolute().parent}, found none")
    if gemm not in gemm_patch.CHOICES:
        raise InputError(f"gemm: expected {' or '.join(gemm_patch.CHOICES)}, got {gemm}")
    if weight_decay is None:
        known = algorithms.OPTIMIZER_ALGORITHMS.get(optimizer)
        weight_decay = known.weight_decay if known else 0.0
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
    if not any(part.training for part in module.modules()):
        say.aloud(
            "the module is in eval mode, as given: it trains without dropout and with the running "
            "statistics of BatchNorm; module.train() before the export changes that"
        )
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.pt2")
    with _Process(say, part) as process:
        if compile_timeout is not None:
            process.start()
        batch = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        with deterministic_algorithms(deterministic), inductor.caches_in(str(process.folder)):
            step = TrainingStep(module, loss, batch, target, recipe, _autocast_name(autocast))
            program = step.trace()
            arguments = tuple(map(spec_of, step.arguments()))
        say(f"traced: {len(program.graph.nodes)} operations, {step.elements} trained numbers")
        gemm = gemm_patch.choice(gemm, step.device)
        metadata = step.contents(deterministic, gemm).metadata() | _conditions(step.device)
        device = str(step.device)
        code, package = process.folder / "code.pt2", process.folder / "package.pt2"
        configs = inductor_configs or {}
        job = Job(program, arguments, device, metadata, deterministic, gemm, configs)
        if compile_timeout is not None:
            process.begin_compile(job, code)
        with deterministic_algorithms(deterministic), _half_of_the_threads(compile_timeout):
            expected = training_check.Expected(step) if check else None
        if compile_timeout is not None:
            process.end_compile(compile_timeout)
        else:
            compile_package(job, code)
        checked = {}
        try:
            if expected:
                _pack(code, {}, step, package)
                found = expected.judge(process.steps_of(package, step))
                say(f"checked against eager torch: {found}")
                checked[CHECKED] = found.encode("ascii", "replace").decode()  # all that C++ reads
            _pack(code, checked, step, part)
            if _interrupts:  # raised where torch has swallowed it
                raise KeyboardInterrupt
            os.replace(part, path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
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
    gemm: str
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
            scope.enter_context(gemm_patch.gemm_of(job.gemm))
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


class _Process:
    """A process that compiles a job and runs steps of the package, with a folder for all that is
    written on the way, and `part`, the file beside the package: none of it stays.
    """

    def __init__(self, say: _Progress, part: Path):
        self.say, self.part = say, part.absolute()
        self.process: subprocess.Popen[str] | None = None
        self.folder = _temporary_folder()

    def __enter__(self) -> _Process:
        scratch.watch(self.part)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.part.unlink(missing_ok=True)
        scratch.forget(self.part)

    def start(self) -> None:
        """Early, so that it imports torch's compiler meanwhile."""
        # Bound to a core by OMP_PROC_BIND, it would hand that one core down to every compiler.
        unwanted = {"OMP_PROC_BIND", *compile_variables()}
        environment = {k: v for k, v in os.environ.items() if k not in unwanted}
        environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        environment |= {"TMPDIR": str(self.folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torchpace.aot.export_training", "--serve", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )
        scratch.watch_group(self.process.pid)

    def begin_compile(self, job: Job, out: Path) -> None:
        program = self.folder / "program"
        program.write_bytes(_bytes_of(job.program))
        question = {
            "program": str(program),
            "job": {name: value for name, value in vars(job).items() if name != "program"},
            "out": str(out),
        }
        self._ask({"compile": question})

    def end_compile(self, limit: float) -> None:
        """Raises InputError where it fails, or is not done in time."""
        self._answer(
            "compile", "compiles", limit, "; --compile-timeout (compile_timeout) raises it"
        )

    def steps_of(self, package: Path, step: TrainingStep) -> training_check.Values:
        """What the package makes of its own batch. Raises InputError where it fails or dies."""
        if self.process is None:
            self.start()
        batch, out = self.folder / "batch", self.folder / "values"
        torch.save([x.contiguous().cpu() for x in (*step.inputs, step.target)], batch)
        request = training_check.Request(
            str(package.absolute()), str(step.device), str(batch), str(out)
        )
        self._ask({"check": asdict(request)})
        self._answer("check", "runs the package's first steps", CHECK_LIMIT_S)
        return torch.load(out, weights_only=True)

    def _ask(self, question: dict[str, Any]) -> None:
        assert self.process and self.process.stdin
        question |= {
            "threads": torch.get_num_threads(),
            "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        }
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()

    def _answer(self, what: str, doing: str, limit: float, advice: str = "") -> None:
        assert self.process and self.process.stdout
        begun = time.monotonic()
        while not select.select([self.process.stdout], [], [], min(5.0, limit))[0]:
            elapsed = time.monotonic() - begun
            self.say(f"{doing}: {elapsed:.0f} s of at most {limit:g} s")
            if elapsed > limit:
                raise InputError(
                    f"{what}: expected an end within {limit:g} s, it was stopped{advice}"
                )
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            died = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            raise InputError(f"{what}: the process that {doing} {died}; its output is above")
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])


def _temporary_folder() -> Path:
    """Makes one where torch's compiler can work: in TMPDIR, or another if that has a space."""
    faults = []
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):
        fault = scratch.fault_of(Path(parent))
        if not fault:
            return Path(tempfile.mkdtemp(prefix="torchpace-training-", dir=parent))
        faults.append(fault)
    raise InputError(f"TMPDIR: expected a folder for a compiler, found {', '.join(faults)}")


def compile_variables() -> list[str]:
    """Names of the variables in force that change what torch compiles, not which kernels run."""
    names = [variable.partition("=")[0] for variable in inductor.compiler_variables()]
    return [name for name in names if not name.startswith(_LIBRARIES)]


def start_without_compile_variables() -> None:
    """Starts this program again without such variables, if there are some: torch has read them."""
    if found := compile_variables():
        for name in found:
            del os.environ[name]
        print(
            f"torchpace export-training: unset {', '.join(found)}, on which no package may depend",
            file=sys.stderr,
            flush=True,
        )
        os.execv(sys.executable, sys.orig_argv)


def _serve(folder: Path) -> int:
    """The life of _Process's process: lines of JSON in, one out for each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    die_with_parent()
    warnings.simplefilter("ignore", FutureWarning)  # torch's own, of itself
    inductor.use_caches(folder / "caches", warm=True)
    inductor.prepare()
    inductor.start_making()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            torch.set_num_threads(question["threads"])
            matmul, cudnn = question["tf32"]
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
            if compile_ := question.get("compile"):
                program = _program_of(Path(compile_["program"]).read_bytes())
                compile_package(Job(program, **compile_["job"]), Path(compile_["out"]))
            else:
                training_check.answer(training_check.Request(**question["check"]))
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
            self.aloud(what)

    def aloud(self, what: str) -> None:
        print(f"{time.monotonic() - self.begun:6.1f} s  {what}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _half_of_the_threads(compile_timeout: float | None) -> Iterator[None]:
    """Where a compiler runs at the same time: threads that wait for each other wait for it too,
    which took 2048 small layers minutes on two cores.
    """
    threads = torch.get_num_threads()
    if compile_timeout is not None:
        torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _conditions(device: torch.device) -> dict[str, str]:
    from torchpace.runtimes import aot

    return aot.conditions(device)


def _pack(code: Path, metadata: dict[str, str], step: TrainingStep, out: Path) -> None:
    """Writes compiled code, with more metadata, and the initial state as one package."""
    with zipfile.ZipFile(code) as source, zipfile.ZipFile(out, "w") as package:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("_metadata.json"):
                content = json.dumps(json.loads(content) | metadata).encode()
            package.writestr(entry, content)
        folder = source.namelist()[0].partition("/")[0]
        package.writestr(f"{folder}/{INITIAL}", step.initial_bytes(), zipfile.ZIP_STORED)


def _autocast_name(autocast: str | torch.dtype | None) -> str:
    name = str(autocast or "none").removeprefix("torch.")
    if name not in AUTOCAST:
        raise InputError(f"autocast: expected one of {', '.join(AUTOCAST)}, got '{name}'")
    return name


def _interrupt(number: int, frame: Any) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torchpace.aot.export_training", description=__doc__.splitlines()[0]
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
    parser.add_argument(
        "--optimizer", default="adam", choices=tuple(algorithms.OPTIMIZER_ALGORITHMS)
    )
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--clip-norm", type=float)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--autocast", default="none", choices=tuple(AUTOCAST))
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--gemm", default="torchpace", choices=gemm_patch.CHOICES)
    parser.add_argument("--compile-timeout", type=float, default=COMPILE_LIMIT_S, metavar="SECONDS")
    options = parser.parse_args(arguments)
    for wish in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(wish, _interrupt)
    try:
        inductor.work_in_own_folder()
        return _export(options)
    except (InputError, Skipped) as error:
        print(f"torchpace export-training: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("torchpace export-training: interrupted", file=sys.stderr)
        return 130


def _export(options: argparse.Namespace) -> int:
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
        gemm=options.gemm,
        compile_timeout=options.compile_timeout,
        progress=True,
    )
    return 0


def _case(
    options: argparse.Namespace,
) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor], tuple[Tensor, ...], Tensor]:
    """Module, loss, inputs and target that the command line names."""
    from torchpace.module_state import place
    from torchpace.worker.commands import set_threads
    from torchpace.workload import device_of, dtype_of, loss_module, to_device

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
    module = place(model.make(settings), device, dtype)
    tokens = None
    if settings.text("data", "") == "text":  # only their shape counts
        size = 4 * settings.integer("context")
        tokens = torch.randint(settings.integer("vocabulary"), (size,), dtype=torch.uint8)
    *inputs, target = model.inputs(settings, torch.Generator().manual_seed(0), tokens)
    placed = tuple(to_device(x, device, dtype) for x in inputs)
    return module, loss_module(model) or model.loss, placed, to_device(target, device, dtype)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        sys.exit(_serve(Path(sys.argv[2])))
    start_without_compile_variables()
    sys.exit(main())
