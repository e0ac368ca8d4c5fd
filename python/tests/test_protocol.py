"""The two ends of a worker's pipes, against code that reads, writes, ends and hangs. No torch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PYTHON = Path(__file__).parents[1]
LINES = """
import os, sys, time
from torchpace.errors import InputError
from torchpace.worker.protocol import answer_lines, open_protocol

def obey(line):
    word = line.strip()
    if word == "reads":
        return {"read": sys.stdin.read(), "raw": os.read(0, 10).decode()}
    if word == "exits":
        sys.exit(3)
    if word == "input":
        raise InputError("expected another one")
    if word == "sleeps":
        try:
            print("begun", file=sys.stderr, flush=True)
            while True: time.sleep(0.02)  # a signal just before a long one would wait for its end
        finally:
            print("put away", file=sys.stderr)
    return {"said": word}

answer_lines(obey, open_protocol())
print("ended", file=sys.stderr)
"""
CASES = """
import os, sys
from torchpace.worker.protocol import open_protocol, serve

answer = open_protocol()

def respond(line):
    if "leaves" in line and os.fork() == 0:
        import time
        time.sleep(60)  # holds whatever the case held
        os._exit(0)
    if "ends" in line:
        os._exit(0)
    answer({"said": line})

serve(respond, lambda line: None)
"""


class Program:
    def __init__(self, code: str):
        environment = os.environ | {"PYTHONPATH": str(PYTHON)}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            text=True,
            start_new_session=True,
            **pipes,
        )

    def send(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> dict:
        self.send(line)
        return json.loads(self.process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Its exit code and standard error."""
        _, said = self.process.communicate(timeout=20)
        return self.process.returncode, said


def test_code_that_reads_finds_the_end_and_eats_no_command():
    program = Program(LINES)
    program.send("reads")
    assert program.ask("next") == {"read": "", "raw": ""}
    assert json.loads(program.process.stdout.readline()) == {"said": "next"}
    assert program.end() == (0, "ended\n")


def test_code_that_exits_is_an_error_of_one_command():
    program = Program(LINES)
    assert program.ask("exits") == {"error": "SystemExit: 3"}
    assert program.ask("input") == {"error": "expected another one", "mendable": True}
    assert program.ask("next") == {"said": "next"}
    assert program.end()[0] == 0


def test_sigterm_puts_away_what_was_begun():
    program = Program(LINES)
    assert program.ask("next") == {"said": "next"}
    program.send("sleeps")
    assert program.process.stderr.readline() == "begun\n"
    program.process.send_signal(signal.SIGTERM)
    assert program.end() == (0, "put away\nended\n")


def test_sigusr1_says_where_it_is():
    program = Program(LINES)
    assert program.ask("next") == {"said": "next"}
    program.send("sleeps")
    said, place = "none yet", 'File "<string>", line 17 in obey'
    while said and place not in said:  # the signal may come before the call
        program.process.send_signal(signal.SIGUSR1)
        said = program.process.stderr.readline()
    program.process.send_signal(signal.SIGTERM)
    assert program.end()[0] == 0
    assert place in said


def test_a_case_that_ends_its_process_gives_no_answer_to_it():
    program = Program(CASES)
    assert program.ask("load a") == {"said": "load a"}
    program.send("load ends")
    assert program.process.stdout.readline() == ""
    code, said = program.end()
    assert code == 1 and said == "the model's code ended the process with exit code 0\n"


def test_what_a_case_has_started_does_not_keep_the_next_one_waiting():
    program = Program(CASES)
    assert program.ask("load leaves") == {"said": "load leaves"}
    assert program.ask("load b") == {"said": "load b"}
    program.process.stdin.close()
    assert program.process.wait(20) == 0
    os.killpg(program.process.pid, signal.SIGKILL)
