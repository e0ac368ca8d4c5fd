"""Why C++ is slower than Python on the same file: each known cause alone, against its remedy.

    .venv/bin/python examples/cpp_slower/causes.py              # all, some ten minutes
    .venv/bin/python examples/cpp_slower/causes.py gradients denormals

Two programs take turns, the other one stopped, in six pairs of fresh processes. A ratio is the
median over the pairs; in brackets stand the smallest and the largest, which for six pairs is an
interval of 97 %. It needs g++ and the headers in torch. Read with the page
docs/guides/cpp-slower-than-python.md.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
PAIRS = 6
TUNED = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "1073741824"}


class Layers(nn.Module):
    """Many small layers: what a call costs beside its arithmetic."""

    def __init__(self, count=40, width=32):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x)) * 0.5 + x
        return x


class Convolutions(nn.Module):
    """As ResNet begins: 7 x 7, then 3 x 3 with normalization."""

    def __init__(self, blocks=6, width=64):
        super().__init__()
        self.first = nn.Conv2d(3, width, 7, 2, 3)
        rest = [
            layer
            for _ in range(blocks)
            for layer in (nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        ]
        self.rest = nn.Sequential(*rest)

    def forward(self, x):
        return self.rest(nn.functional.max_pool2d(self.first(x), 2)).mean((2, 3))


class Products(nn.Sequential):
    """Without biases: what is tiny at the start stays so."""

    def __init__(self, count=6, width=256):
        super().__init__(*(nn.Linear(width, width, bias=False) for _ in range(count)))


class Program:
    """A caller that answers how long each of its next calls took, in ns, and is else stopped."""

    def __init__(self, command, environment=None):
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        self.process.send_signal(signal.SIGSTOP)

    def calls(self, count):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        times = [int(word) for word in self.process.stdout.readline().split()]
        self.process.send_signal(signal.SIGSTOP)
        assert len(times) == count, "the caller ended"
        return times

    def close(self):
        self.process.kill()
        self.process.communicate()


class Causes:
    """A method for each cause; its first line is what it is called in the output."""

    def __init__(self, folder):
        self.folder = folder
        torch.manual_seed(0)
        warnings.simplefilter("ignore")
        for module in (Layers(), Convolutions(), Products()):
            name = type(module).__name__.lower()
            torch.jit.script(module.eval()).save(folder / f"{name}.pt")
        self.callers = {}

    def caller(self, optimization="-O2"):
        """caller.cpp, compiled once for each optimization."""
        if optimization not in self.callers:
            torch_folder = Path(torch.__file__).parent
            program = self.folder / f"caller{optimization}"
            include = [
                f"-I{torch_folder}/include/{path}" for path in ("", "torch/csrc/api/include")
            ]
            link = [f"-L{torch_folder}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
            command = ["g++", "-std=c++17", optimization, *include, str(HERE / "caller.cpp")]
            command += ["-o", str(program), *link, f"-Wl,-rpath,{torch_folder}/lib", "-lpthread"]
            subprocess.run(command, check=True)
            self.callers[optimization] = program
        return self.callers[optimization]

    def cpp(self, file, shape, *options, optimization="-O2"):
        return [self.caller(optimization), self.folder / f"{file}.pt", shape, *options]

    def python(self, file, shape, *options):
        return [sys.executable, HERE / "caller.py", self.folder / f"{file}.pt", shape, *options]

    def pair(self, what, slow, fast, calls=10, rounds=10, environments=({}, {})):
        """Prints how much longer a call of `slow` takes than one of `fast`."""
        ratios, times = [], []
        for number in range(PAIRS):
            programs = [Program(slow, environments[0]), Program(fast, environments[1])]
            for program in programs:
                program.calls(30)
            logs = []
            for turn in range(rounds):
                medians = [0.0, 0.0]
                for index in (0, 1) if (turn + number) % 2 else (1, 0):
                    medians[index] = statistics.median(programs[index].calls(calls))
                logs.append(medians[0] / medians[1])
                times.append(medians)
            ratios.append(statistics.median(logs))
            for program in programs:
                program.close()
        ms = [statistics.median(column) / 1e6 for column in zip(*times, strict=True)]
        print(
            f"  {what}: {statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"
            f"  ({ms[0]:.3f} against {ms[1]:.3f} ms)",
            flush=True,
        )

    def languages(self):
        """The same file, called alike: C++ over Python"""
        for file, shape in (("layers", "1x32"), ("convolutions", "1x3x64x64")):
            options = file, shape, "guard=inference"
            self.pair(f"{file}, {shape}", self.cpp(*options), self.python(*options))

    def first_calls(self):
        """The first calls of a shape, in ms, then the 30th: medians of six processes"""
        for file, shapes in (
            ("layers", ("1x32", "8x32")),
            ("convolutions", ("1x3x64x64", "1x3x56x56")),
        ):
            for language in (self.cpp, self.python):
                table = []
                for _ in range(PAIRS):
                    row = []
                    program = Program(language(file, ",".join(shapes), "guard=inference"))
                    times = program.calls(60)  # both shapes in turn
                    program.close()
                    for index in (0, 1):
                        own = times[index::2]
                        row += [*own[:4], own[-1]]
                    table.append(row)
                ms = [statistics.median(column) / 1e6 for column in zip(*table, strict=True)]
                for shape, own in zip(shapes, (ms[:5], ms[5:]), strict=True):
                    text = ", ".join(f"{t:.2f}" for t in own[:4])
                    print(f"  {file} {shape} in {language.__name__}: {text} ... {own[4]:.2f}")

    def shapes(self):
        """Eight shapes in turn over one shape of their mean size, once all are known"""
        many = ",".join(f"{n}x32" for n in range(12, 28, 2))
        self.pair("layers", *(self.cpp("layers", s, "guard=inference") for s in (many, "19x32")))
        many = ",".join(f"1x3x64x{n}" for n in range(36, 100, 8))
        one = "1x3x64x64"
        self.pair(
            "convolutions", *(self.cpp("convolutions", s, "guard=inference") for s in (many, one))
        )

    def gradients(self):
        """No guard against recording for a backward, over InferenceMode"""
        for file, shape in (("layers", "1x32"), ("convolutions", "1x3x64x64")):
            right = self.cpp(file, shape, "guard=inference")
            for guard in ("none", "no_grad"):
                self.pair(f"{file}, guard={guard}", self.cpp(file, shape, f"guard={guard}"), right)

    def executor(self):
        """The graph executor turned off, over left on"""
        for file, shape in (("layers", "1x32"), ("convolutions", "1x3x64x64")):
            options = file, shape, "guard=inference"
            self.pair(file, self.cpp(*options, "executor=off"), self.cpp(*options))

    def new_threads(self):
        """Each call from a new thread, over all calls from one"""
        for file, shape in (("layers", "1x32"), ("convolutions", "1x3x64x64")):
            options = file, shape, "guard=inference"
            self.pair(file, self.cpp(*options, "caller=new"), self.cpp(*options))

    def busy_threads(self):
        """A thread of the program's own is always busy, over the same with a core left to it"""
        cores = os.cpu_count() or 1
        options = "convolutions", "1x3x64x64", "guard=inference"
        self.pair(
            f"{cores} threads and a busy one over {cores - 1} and a busy one",
            self.cpp(*options, "own=busy", f"threads={cores}"),
            self.cpp(*options, "own=busy", f"threads={max(1, cores - 1)}"),
        )
        self.pair(
            f"{cores} threads and a busy one over {cores} alone",
            self.cpp(*options, "own=busy", f"threads={cores}"),
            self.cpp(*options, f"threads={cores}"),
        )

    def denormals(self):
        """Numbers below 1e-38, over the same flushed to 0"""
        for file, shape in (("products", "64x256"), ("convolutions", "1x3x64x64")):
            options = file, shape, "guard=inference", "input=denormal"
            self.pair(file, self.cpp(*options), self.cpp(*options, "flush=1"))

    def allocator(self):
        """glibc as it is, over thresholds that keep freed memory in the process"""
        for shape in ("1x3x64x64", "1x3x224x224"):
            options = self.cpp("convolutions", shape, "guard=inference")
            self.pair(shape, options, options, calls=5, environments=({}, TUNED))

    def build_type(self):
        """The program's own loops without optimization, over -O2"""
        options = "convolutions", "1x3x64x64", "guard=inference", "own=loops"
        self.pair(
            "an image prepared in loops", self.cpp(*options, optimization="-O0"), self.cpp(*options)
        )


def main():
    names = [name for name in vars(Causes) if not name.startswith("_")]
    names = [n for n in names if n not in ("caller", "cpp", "python", "pair")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("causes", nargs="*", help=f"of {', '.join(names)} (all)")
    chosen = parser.parse_args().causes or names
    if unknown := set(chosen) - set(names):
        parser.error(f"expected causes of {', '.join(names)}, found {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as folder:
        causes = Causes(Path(folder))
        for name in chosen:
            method = getattr(causes, name)
            print(f"{name}: {method.__doc__}", flush=True)
            method()


if __name__ == "__main__":
    main()
