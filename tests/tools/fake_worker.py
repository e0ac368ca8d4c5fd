"""A worker in another language, without torch: it obeys docs/worker-protocol.md and makes its times
up.

    python3 -I -S fake_worker.py [--step-ms 2] [--noise 0.002] [--fail HOW@COMMAND[:N]] [--wrong]
        ...

Times are drawn, not measured, so that what a test expects does not depend on the machine.
HOW is die, killed, hang, error, skip or garbage, at the N-th COMMAND of a process (1), or at each
(*).
"""

import argparse
import json
import math
import os
import signal
import sys
import time

VARIABLES = ("TORCHDYNAMO", "TORCHINDUCTOR", "MKL_CBWR", "PYTHONW")


def words(line):
    parts = line.split()
    return parts[0], parts[1:]


def decode(word):
    head, *escapes = word.split("%")
    return head + "".join(chr(int(e[:2], 16)) + e[2:] for e in escapes)


class Worker:
    def __init__(self, options):
        self.options = options
        self.counts = {}
        self.state = os.getpid()
        self.settings = {}

    def answer(self, command, rest):
        self.counts[command] = self.counts.get(command, 0) + 1
        how, _, where = self.options.fail.partition("@")
        name, _, at = where.partition(":")
        if how and name == command and (at == "*" or self.counts[command] == int(at or 1)):
            found = self.misbehave(how)
            if found is not None:
                return found
        return getattr(self, command)(rest)

    def misbehave(self, how):
        if how == "die":
            print("fake: first line\nfake: something is wrong", file=sys.stderr, flush=True)
            os._exit(3)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(1e6)
        if how == "garbage":
            print("this is no JSON", flush=True)
            return {}
        if how == "skip":
            return {"skipped": "no such device here"}
        return {"error": "failed as asked"}

    def noise(self):
        """A factor near 1; importing `random` would double the time to start."""
        self.state = (self.state * 1103515245 + 12345) % 2**31
        return math.exp(self.options.noise * (self.state / 2**30 - 1))

    def load(self, rest):
        self.settings = {k: decode(v) for k, v in (word.split("=", 1) for word in rest)}
        # Left behind as by a worker that is killed: whoever gave the folder has to clear it.
        if "TMPDIR" in os.environ:
            with open(os.path.join(os.environ["TMPDIR"], f"unpacked-{os.getpid()}"), "w") as file:
                file.write("x")
        return {
            "compile_s": 0.5 if "artifact" in self.settings else 0,
            "load_s": 0.01,
            "flops": 1e9,
            "items": 8,
            "item": "samples",
            "parameter_bytes": 4,
            "minimum_bytes": 4,
        }

    def first(self, rest):
        answer = {"first_step_s": self.options.step_ms / 1e3}
        if rest and not self.options.first_only:
            answer["steps_s"] = int(rest[0]) * self.options.step_ms / 1e3
        return answer

    def run(self, rest):
        samples, _, steps = int(rest[0]), int(rest[1]), int(rest[2]) if len(rest) > 2 else 1
        time.sleep(self.options.sleep_ms / 1e3)
        step_ns = [self.options.step_ms * 1e6 * self.noise() for _ in range(samples)]
        return {
            "step_ns": step_ns,
            "device_ns": [],
            "enqueue_ns": [],
            "page_faults": round(self.options.faults * samples * steps),
            "involuntary_switches": 0,
        }

    def parts(self, rest):
        forward = self.options.step_ms * 0.4e6
        return {
            "parts": {
                "forward": [forward] * int(rest[0]),
                "backward": [1.5 * forward] * int(rest[0]),
                "optimizer": [],
            }
        }

    def operators(self, rest):
        """Half of the step is one product, called 10 times; the rest is the host's."""
        step_ns = self.options.step_ms * 1e6
        product = {
            "name": "aten::mm",
            "part": "forward",
            "calls": 10,
            "outer_calls": 10,
            "self_ns": step_ns / 2,
        }
        return {
            "operators": [product],
            "step_ns": [step_ns] * int(rest[0]),
            "synchronizations": 0,
            "compiled": False,
        }

    def dispatch(self, rest):
        return {
            "operator_ns": [1000] * int(rest[0]),
            "profiled_ns": [1500] * int(rest[0]),
            "profiled_self_ns": [600] * int(rest[0]),
        }

    def gemm_peak(self, rest):
        """2 TFLOP/s, of which a load says 1 GFLOP a step."""
        return {"gemm_peak_ns": [2 * int(rest[0]) ** 3 / 2e12 * 1e9] * int(rest[1])}

    def write(self, rest):
        with open(decode(rest[0]), "w") as file:
            json.dump({"output": 1.0}, file)
        return {"written": 1}

    def check(self, rest):
        with open(decode(rest[0])) as file:
            reference = json.load(file)["output"]
        error = abs(reference - (1.5 if self.options.wrong else 1.0))
        if len(rest) == 2 and self.options.off_golden:
            return {
                "passed": False,
                "max_abs_error": 0.5,
                "tolerance": 1,
                "rms_error": 0.25,
                "rms_tolerance": 1e-6,
                "worst": "batch0.output",
                "compared": 1,
                "note": "",
            }
        if self.options.approximate:
            return {"passed": True, "max_abs_error": 0.02, "cosine": 0.9995, "top1": 0.75}
        return {
            "passed": error <= 1e-6,
            "max_abs_error": error,
            "tolerance": 1e-6,
            "worst": "output",
            "compared": 1,
        }

    def losses(self, rest):
        return {"losses": [4.0 - 0.01 * i for i in range(int(rest[0]))], "seconds": 0.1}

    def memory(self, rest):
        return {
            "resident_bytes": 1 << 20,
            "resident_peak_bytes": self.options.peak_mb << 20,
            "device_allocated_peak_bytes": 0,
            "device_reserved_peak_bytes": 0,
            "device_driver_bytes": 3,
        }

    def environment(self, rest):
        return {
            "language": "python",
            "optimizer": self.options.optimizer,
            "torch": self.options.torch,
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "hash_seed": os.environ.get("PYTHONHASHSEED", ""),
            "mmap_threshold": os.environ.get("MALLOC_MMAP_THRESHOLD_", ""),
            "variables": " ".join(
                sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(VARIABLES))
            ),
        }


def main(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--runtime", default="fake")
    parser.add_argument("--cases", default="toy_train,toy_inference")
    parser.add_argument("--protocol", type=int, default=1)
    parser.add_argument("--step-ms", type=float, default=2)
    parser.add_argument("--noise", type=float, default=0.002)
    parser.add_argument("--faults", type=float, default=0)
    parser.add_argument("--sleep-ms", type=float, default=0)
    parser.add_argument("--peak-mb", type=int, default=10)
    parser.add_argument("--torch", default="none")
    parser.add_argument("--fail", default="")
    parser.add_argument("--wrong", action="store_true")
    parser.add_argument("--approximate", action="store_true")
    parser.add_argument(
        "--off-golden", action="store_true", help="farther from a float64 run than it may be"
    )
    parser.add_argument(
        "--first-only", action="store_true", help="`first N` tells of the first step alone"
    )
    parser.add_argument("--optimizer", default="")
    parser.add_argument("--log", help="a file that gets one line a command: name, pid, command")
    options = parser.parse_args(arguments)
    worker = Worker(options)
    if options.fail.startswith("die@start"):
        sys.exit("fake: cannot start")
    greeting = {
        "protocol": options.protocol,
        "runtime": options.runtime,
        "cases": options.cases.split(","),
    }
    print(json.dumps(greeting), flush=True)
    for line in sys.stdin:
        command, rest = words(line)
        if options.log:
            with open(options.log, "a") as log:
                log.write(f"{options.runtime} {os.getpid()} {line}")
        if command == "quit":
            break
        print(json.dumps(worker.answer(command, rest)), flush=True)


if __name__ == "__main__":
    main()
