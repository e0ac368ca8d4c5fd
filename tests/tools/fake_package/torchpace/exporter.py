"""An exporter for tests: it notes what it is asked in FAKE_LOG and makes empty files, each in
FAKE_EXPORT_SECONDS. A model of the user's own does as its factory's name says.
"""

import faulthandler
import json
import os
import signal
import sys
import tempfile
import time

NOTHING = {"set": {"batch": 7}, "memory": {"parameters": 100, "gradients": 100}, "note": ""}


def dies():
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs():
    time.sleep(1000)


def ends():
    os._exit(0)


def make_artifact(kind):
    if kind == "broken":
        return {"error": "cannot compile: a construct stopped it"}
    if kind == "dead":
        print("compiler: no space left", file=sys.stderr, flush=True)
        return {"error": "make=dead: the process that compiled died; its output is above"}
    tempfile.mkstemp(prefix="compiler-")
    return {
        "artifact": f"/artifacts/{kind}",
        "compile_s": 7.5,
        "cached": True,
        "seconds": 0.1,
        "note": "",
    }


def export(settings):
    factory = settings.get("factory", "").rpartition(":")[2]
    if factory in ("dies", "hangs", "ends"):
        globals()[factory]()
    if factory == "raises" or (factory == "untrained" and settings["phase"] == "train"):
        return {"error": "expected a factory that returns a module, found a list", "mendable": True}
    if settings["model"] == "imported" and settings["phase"] == "train":
        return {"skipped": "the factory gives no loss"}
    if factory == "quantized":
        return {"state": "/state.pt", "golden": "", **NOTHING, "no_golden": "quantized weights"}
    return {"state": "/state.pt", "golden": "/golden.pt", "tokens": "", **NOTHING}


def stop(number, frame):
    """As the real one: what it had begun is put away."""
    with open(os.environ["FAKE_LOG"], "a") as log:
        log.write("export put away\n")
    os._exit(0)


faulthandler.enable()
faulthandler.register(signal.SIGUSR1, all_threads=False)
signal.signal(signal.SIGTERM, stop)
for line in sys.stdin:
    with open(os.environ["FAKE_LOG"], "a") as log:
        log.write(f"export {line.strip()} pid={os.getpid()}\n")
    time.sleep(float(os.environ.get("FAKE_EXPORT_SECONDS", "0")))
    settings = dict(word.split("=", 1) for word in line.split())
    kind = settings.get("make")
    print(json.dumps(make_artifact(kind) if kind else export(settings)), flush=True)
