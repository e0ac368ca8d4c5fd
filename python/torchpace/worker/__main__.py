"""A worker: one process that holds one runtime and obeys the controller.

Protocol: docs/worker-protocol.md.


python -m torchpace.worker --runtime py-eager
python -m torchpace.worker --list    # one JSON line a runtime; imports no torch
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

from torchpace import runtimes
from torchpace.errors import InputError
from torchpace.worker.protocol import PROTOCOL, answer_of, die_with_parent, open_protocol, serve


def fail(how: str) -> None:
    """For tests of the controller: what a worker may die of."""
    if how == "die":
        print("worker: dies as asked by --fail", file=sys.stderr, flush=True)
        os._exit(3)
    if how == "hang":
        time.sleep(1e6)
    if how == "memory":
        import torch

        pages = Path("/proc/self/statm").read_text().split()[0]
        limit = int(pages) * resource.getpagesize() + (256 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        kept = []
        while True:
            kept.append(torch.ones(8 << 20))
    raise InputError("failed as asked by --fail")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torchpace.worker", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--runtime", help="the runtime to hold")
    parser.add_argument("--list", action="store_true", help="print the runtimes and end")
    parser.add_argument(
        "--slow",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="tests only: every step lasts longer by this fraction of its own time",
    )
    parser.add_argument(
        "--fail",
        default="",
        metavar="HOW@COMMAND",
        help="tests only: die, hang, memory (until it is refused) or error, at a command",
    )
    options = parser.parse_args(arguments)
    if options.list:
        for name, listed in runtimes.list_runtimes().items():
            line = {"runtime": name, "description": listed.description}
            line |= {"artifact": listed.artifact, "absent": listed.absent}
            line |= {"approximate": listed.approximate}
            print(json.dumps(line))
        return 0
    known = runtimes.list_runtimes()
    if options.runtime not in known:
        parser.error(f"--runtime: expected one of {', '.join(known)}, got {options.runtime!r}")
    how, _, where = options.fail.partition("@")
    if how and (how not in ("die", "hang", "memory", "error") or not where):
        parser.error(
            f"--fail: expected die, hang, memory or error @ a command, got {options.fail!r}"
        )

    answer = open_protocol()
    die_with_parent()
    # Not before the options are read: a list or a wrong option must not wait for torch.
    import torch

    from torchpace.worker.commands import Worker

    torch.set_num_interop_threads(1)
    worker = Worker(options.runtime, options.slow)
    answer({"protocol": PROTOCOL, "runtime": options.runtime, "cases": ["*"]})

    def obey(line: str) -> dict:
        if how and line.partition(" ")[0] == where:
            fail(how)
        return worker.answer(line)

    serve(lambda line: answer(answer_of(obey, line)), worker.prepare)
    return 0


if __name__ == "__main__":
    sys.exit(main())
