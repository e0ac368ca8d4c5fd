"""Real processes for the tests: an exporter and a worker, one of each for the whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchpace.settings import Settings, expand_case

PYTHON = Path(__file__).resolve().parents[1]
FIXTURES = PYTHON.parent / "tests" / "fixtures"


class Process:
    """A program of lines, by default a module of Python: `ask` writes one, reads the answer."""

    def __init__(self, *arguments: str, program=None, greets: bool = False, **options):
        environment = os.environ | {"PYTHONPATH": str(PYTHON), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [program, *arguments] if program else [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )
        self.greeting = self.read() if greets else None

    def read(self) -> dict:
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait()}"
        return json.loads(line)

    def say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> dict:
        self.say(line)
        return self.read()

    def close(self) -> int:
        self.process.stdin.close()
        code = self.process.wait(timeout=30)
        self.process.stdout.close()
        return code


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def exporter(folder):
    process = Process(
        "torchpace.exporter", "--cache", str(folder), "--text", str(FIXTURES / "text.txt")
    )
    yield process
    assert process.close() == 0


@pytest.fixture(scope="session")
def worker():
    process = Process("torchpace.worker", "--runtime", "py-eager", greets=True)
    yield process
    assert process.close() == 0


@pytest.fixture(scope="session")
def exported(exporter):
    """case name -> (settings with files, answer of the exporter)."""

    def export(name: str, **overrides) -> tuple[Settings, dict]:
        settings = expand_case(name, threads=1, **overrides)
        answer = exporter.ask(settings.line())
        assert "error" not in answer, answer
        return settings.replace(
            **{key: answer[key] for key in ("state", "golden", "tokens")}
        ), answer

    return export
