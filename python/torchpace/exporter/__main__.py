"""Writes what the workers of a case load, once, into a cache: weights, batches, golden values.

    python -m torchpace.exporter --cache DIR [--text FILE]

Each line of standard input is a settings line. Each is answered with one line of JSON on standard
output, `{"case", "state", "golden", "tokens", "memory", "set", "cached", "seconds", "note",
"no_golden"}` or `{"error": "one line"}`. Paths are absolute, `tokens` is empty for models without
text, `golden` where there is no float64 run, and `no_golden` says why. `memory` has the bytes of
parameters, gradients, optimizer state and activations; `set` has settings to add to the case's
line: what only a run of the model can tell. A line with `make=KIND` is answered with a compiled
file of the case (torchpace.exporter.artifacts). Layout: docs/worker-protocol.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torchpace import scratch
from torchpace.exporter.exporter import Exporter
from torchpace.worker.protocol import answer_lines, open_protocol


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torchpace.exporter", description=__doc__.splitlines()[0]
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
