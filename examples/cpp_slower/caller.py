"""caller.cpp in Python, for what both are asked.

python caller.py FILE SHAPE[,SHAPE...] [guard=none|no_grad|inference]
"""

import contextlib
import sys
import time
import warnings

import torch

GUARDS = {
    "none": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


def main():
    options = dict(word.split("=") for word in sys.argv[3:])
    guard = GUARDS[options.get("guard", "none")]
    warnings.simplefilter("ignore")
    module = torch.jit.load(sys.argv[1]).eval()
    batches = [torch.randn(*map(int, shape.split("x"))) for shape in sys.argv[2].split(",")]
    index = 0
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            begin = time.perf_counter_ns()
            with guard():
                module(batches[index % len(batches)])
            times.append(time.perf_counter_ns() - begin)
            index += 1
        print(*times, flush=True)


if __name__ == "__main__":
    main()
