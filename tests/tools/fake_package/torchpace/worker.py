"""Runtimes for tests: two that share a kind of artifact, one whose artifact fails, one that is
skipped, one that is farther from the float64 run than it may be, one whose package is missing, one
that is approximate.
"""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
import fake_worker

RUNTIMES = {
    "py-eager": ["", "--step-ms", "2"],
    "py-one": ["shared", "--step-ms", "1"],
    "py-two": ["shared", "--step-ms", "3"],
    "py-broken": ["broken"],
    "py-dead": ["dead"],
    "py-off": ["", "--off-golden"],
    "py-skipped": ["", "--fail", "skip@load:*"],
    "py-absent": ["absent"],
    "py-coarse": ["", "--step-ms", "1", "--approximate"],
}
ABSENT = {"py-absent": "pip install it"}

if sys.argv[1:] == ["--list"]:
    for name, (artifact, *_) in RUNTIMES.items():
        entry = {"name": name, "description": "fake", "artifact": artifact}
        entry |= {"absent": ABSENT.get(name, ""), "approximate": name == "py-coarse"}
        print(json.dumps(entry))
else:
    name = sys.argv[sys.argv.index("--runtime") + 1]
    log = ["--log", os.environ["FAKE_LOG"]] if "FAKE_LOG" in os.environ else []
    fake_worker.main([*RUNTIMES[name][1:], "--runtime", name, "--cases", "*", *log])
