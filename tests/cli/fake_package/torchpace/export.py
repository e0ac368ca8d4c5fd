"""An exporter for tests: it notes what it is asked in FAKE_LOG and makes empty files, each in
FAKE_EXPORT_SECONDS.
"""

import json
import os
import sys
import tempfile
import time

for line in sys.stdin:
    with open(os.environ["FAKE_LOG"], "a") as log:
        log.write("export " + line)
    time.sleep(float(os.environ.get("FAKE_EXPORT_SECONDS", "0")))
    settings = dict(word.split("=", 1) for word in line.split())
    kind = settings.get("make")
    if kind == "broken":
        answer = {"error": "cannot compile: a construct stopped it"}
    elif kind:
        tempfile.mkstemp(prefix="compiler-")
        answer = {"artifact": f"/artifacts/{kind}", "compile_s": 7.5, "cached": True, "seconds": 0.1, "note": ""}
    elif settings["model"] == "imported" and settings["phase"] == "train":
        answer = {"skipped": "the factory gives no loss"}
    else:
        answer = {
            "state": "/state.pt",
            "truth": "",
            "tokens": "",
            "set": {"batch": 7},
            "memory": {"parameters": 100, "gradients": 100},
            "note": "",
        }
    print(json.dumps(answer), flush=True)
