"""Compiled files: made once, checked, killed at the limit; and the runtimes that load them."""

from __future__ import annotations

import json
import os
import signal
import time
import zipfile
from pathlib import Path

import pytest
from conftest import Process
from test_scratch import wait_until

from torchpace.exporter import artifacts
from torchpace.runtimes import aot, list_runtimes
from torchpace.runtimes.detail import inference_workload
from torchpace.settings import Settings, encode

CPU_KINDS = ("torchscript", "aot", "compile:default")


@pytest.fixture(scope="session")
def made(exporter, exported):
    """case, kind -> (settings with the artifact, answer); each is made once for all tests."""

    def make(name: str, kind: str, **overrides) -> tuple[Settings, dict]:
        settings, _ = exported(name, **overrides)
        answer = exporter.ask(settings.replace(make=kind, compile_timeout=300).line())
        return settings.replace(artifact=answer.get("artifact")), answer

    return make


@pytest.fixture
def runtime(tmp_path):
    """name -> a worker with a temporary folder of its own, which is found empty at its end."""
    started = []

    def start(name: str, **variables: str) -> Process:
        folder = tmp_path / f"temporary-{len(started)}"
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            for key, value in (variables | {"TMPDIR": str(folder)}).items():
                patch.setenv(key, value)
            process = Process("torchpace.worker", "--runtime", name, greets=True)
        started.append((process, folder))
        return process

    unpacked = unpacked_packages()
    yield start
    for process, folder in started:
        assert process.close() == 0
        assert not list(folder.iterdir())
    assert unpacked_packages() <= unpacked


def unpacked_packages() -> set[Path]:
    """What AOTInductor's loader unpacks, in /tmp whatever TMPDIR says."""
    return {path.parents[1] for path in Path("/tmp").glob("??????/data/aotinductor")}


def check(process: Process, settings: Settings, answer: dict, reference: Path) -> dict:
    loaded = process.ask("load " + settings.line())
    assert "load_s" in loaded, loaded
    return process.ask(f"check {encode(str(reference))} {encode(answer['golden'])}") | {
        "loaded": loaded
    }


@pytest.mark.parametrize(
    "case,kind",
    [
        ("gptlite_inference", "torchscript"),
        ("gptlite_inference", "aot"),
        ("gptlite_train", "compile:default"),
        ("dnn_deep_latency", "compile:default"),
    ],
)
def test_a_runtime_passes_parity_and_sees_a_swap(
    worker, runtime, made, exported, tmp_path, case, kind
):
    name = f"{case}/size:smoke"
    plain, answer = exported(name)
    reference = tmp_path / "reference.pt"
    worker.ask("load " + plain.line())
    worker.ask(f"write {encode(str(reference))}")
    settings, artifact = made(name, kind)
    assert artifact["compile_s"] > 0, artifact
    process = runtime(f"py-{kind}")
    found = check(process, settings, answer, reference)
    assert found["passed"], found
    assert "artifact" not in found["loaded"]["note"]  # its caches were warm
    assert len(process.ask("run 3 1")["step_ns"]) == 3
    # TorchScript's interpreter dispatches its operators one by one; its fuser is off on a CPU.
    assert process.ask("operators 2")["compiled"] == (kind != "torchscript")
    parts = ["backward", "forward", "optimizer"] if "train" in case else ["forward"]
    assert sorted(process.ask("parts 2")["parts"]) == parts
    threads = os.listdir(f"/proc/{process.process.pid}/task")
    assert len(threads) == 1  # before the fork that loaded it
    if kind.startswith("compile"):
        first = "token_embedding.weight,head.weight" if "gptlite" in name else None
        swap = first or "layers.0.weight,layers.7.weight"
        assert not check(process, settings.replace(swap=swap), answer, reference)["passed"]


def test_an_artifact_is_made_once_and_keeps_its_compile_time(made):
    _, first = made("dnn_deep_latency/size:smoke", "torchscript")
    settings, again = made("dnn_deep_latency/size:smoke", "torchscript", optimizer="sgd")
    assert again["cached"] and again["compile_s"] == first["compile_s"] > 0
    assert again["artifact"] == first["artifact"]
    _, other = made("dnn_deep_latency/size:smoke", "torchscript", seed=1)
    assert other["artifact"] != first["artifact"]
    Path(settings["artifact"]).write_bytes(b"damaged")
    _, rebuilt = made("dnn_deep_latency/size:smoke", "torchscript")
    assert "checksum of model.pt is wrong" in rebuilt["note"] and not rebuilt["cached"]


SLEEPER = """
import time
import torch

class Sleeper(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        {body}
        return self.linear(x)

def factory():
    return {{"module": Sleeper(), "inputs": torch.ones(2, 4)}}
"""


@pytest.fixture
def of_module(exporter, tmp_path):
    """The settings of a case whose module has `body` in its forward, and where it is."""

    def write(name: str, body: str) -> Settings:
        (tmp_path / f"{name}.py").write_text(SLEEPER.format(body=body))
        settings = Settings(
            model="imported",
            factory=f"{name}:factory",
            path=tmp_path,
            phase="inference",
            batch=2,
            threads=1,
            device="cpu",
        )
        assert "state" in exporter.ask(settings.line())
        return settings

    return write


def test_the_limit_kills_a_compile_with_all_that_it_started(exporter, folder, of_module, tmp_path):
    seen = tmp_path / "seen"
    body = (
        "if torch.compiler.is_exporting():\n"
        "            import subprocess\n"
        f"            subprocess.run(['sh', '-c', 'echo $$ > {seen}; exec sleep 600'])"
    )
    settings = of_module("sleeper", body)
    started = time.monotonic()
    error = exporter.ask(settings.replace(make="aot", compile_timeout=2).line())["error"]
    assert "expected a compile within 2 s, it was stopped; --compile-timeout raises it" in error
    assert time.monotonic() - started < 60
    sleeping = Path("/proc", seen.read_text().strip(), "cmdline")
    assert not sleeping.exists() or b"sleep" not in sleeping.read_bytes()
    assert not list(folder.glob("artifacts/.aot-*.making"))
    # the next one is made
    assert "artifact" in exporter.ask(settings.replace(make="torchscript").line())


def test_a_compile_that_the_limit_stopped_is_tried_again_only_with_a_larger_one(
    exporter, folder, of_module, tmp_path
):
    seen = tmp_path / "seen"
    body = (
        "if torch.compiler.is_exporting():\n"
        f"            open({str(seen)!r}, 'a').write('x')\n"
        f"            time.sleep(600 if len(open({str(seen)!r}).read()) < 3 else 0)"
    )
    line = of_module("slow", body).replace(make="aot")

    def ask(limit: float) -> dict:
        return exporter.ask(line.replace(compile_timeout=limit).line())

    assert "within 2 s, it was stopped" in ask(2)["error"]
    today = time.strftime("%Y-%m-%d")
    for limit in (2, 1.5):  # nothing is compiled
        assert f"took longer than 2 s on {today}; --compile-timeout" in ask(limit)["error"]
        assert seen.read_text() == "x"
    assert "within 3 s, it was stopped" in ask(3)["error"]
    assert "took longer than 3 s" in ask(2)["error"]
    records = folder.glob("artifacts/.aot-factory-*.stopped")
    (record,) = (file for file in records if json.loads(file.read_text())["limit_s"] == 3)
    record.write_text("damaged")
    assert "artifact" in ask(300)
    assert not record.exists() and ask(1)["cached"]


def test_a_compile_that_dies_is_said(exporter, of_module):
    body = "if torch.compiler.is_exporting():\n            import os; os._exit(3)"
    error = exporter.ask(of_module("dier", body).replace(make="aot").line())["error"]
    assert "make=aot: the process that compiled died" in error


def test_what_cannot_be_compiled_is_one_line_that_names_the_construct(exporter, of_module):
    settings = of_module("branch", "x = x + 1 if x.sum() > 0 else x - 1")
    for kind, change in (("aot", {}), ("compile:default", {"fullgraph": 1})):
        error = exporter.ask(settings.replace(make=kind, **change).line())["error"]
        assert "x.sum() > 0" in error and "branch.py:" in error and "\n" not in error, error
    unscriptable = of_module("unscriptable", "x = x + len(globals()['torch'].__name__)")
    assert "artifact" in exporter.ask(unscriptable.replace(make="torchscript").line())
    error = exporter.ask(settings.replace(make="nothing").line())["error"]
    assert "make: expected one of" in error and "torchscript" in error


def test_what_a_device_or_a_phase_cannot_have_is_skipped_before_anything_is_compiled(
    exporter, exported
):
    train, _ = exported("dnn_deep_train/size:smoke")
    for kind, reason in (
        ("torchscript", "TorchScript here is for inference"),
        ("aot", "AOTInductor here is for inference"),
        ("compile:reduce-overhead", "same as py-compile:default on a CPU"),
        ("compile:max-autotune-no-cudagraphs", "same as py-compile:max-autotune on a CPU"),
    ):
        answer = exporter.ask(train.replace(make=kind).line())
        assert reason in answer["skipped"]


def test_a_package_for_other_conditions_or_damaged_is_refused(runtime, made, tmp_path):
    settings, _ = made("gptlite_inference/size:smoke", "aot")
    process = runtime("py-aot")
    package = tmp_path / "other.pt2"

    def refusal(change) -> str:
        with zipfile.ZipFile(settings["artifact"]) as old, zipfile.ZipFile(package, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("_metadata.json"):
                    content = json.dumps(json.loads(content) | change).encode()
                new.writestr(name, content)
        return process.ask("load " + settings.replace(artifact=package).line())["error"]

    assert "expected torchpace.torch" in refusal({"torchpace.torch": "1.0"})
    assert "expected torchpace.threads 1, found 2" in refusal({"torchpace.threads": "2"})
    assert "expected torchpace.device cpu, found cuda" in refusal({"torchpace.device": "cuda"})
    assert "expected torchpace.format 1, found none" in refusal({"torchpace.format": ""})
    assert "expected torchpace.inputs 1x16:int64" in refusal({"torchpace.inputs": "1x8:int64"})
    whole = Path(settings["artifact"]).read_bytes()
    middle = len(whole) // 2
    for damaged in (
        whole[:1000],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    ):
        package.write_bytes(damaged)
        error = process.ask("load " + settings.replace(artifact=package).line())["error"]
        assert "make it again" in error and "\n" not in error
    assert "load_s" in process.ask("load " + settings.line())


def test_a_package_with_a_dynamic_batch_serves_another_one(made, exported, runtime, tmp_path):
    _, answer = made("gptlite_latency/size:smoke", "aot", dynamic=1)
    larger, case = exported("gptlite_inference/size:smoke", batch=3)
    process = runtime("py-aot")
    loaded = process.ask("load " + larger.replace(artifact=answer["artifact"]).line())
    assert "load_s" in loaded, loaded
    reference = tmp_path / "reference.pt"
    eager = runtime("py-eager")
    eager.ask("load " + larger.line())
    eager.ask(f"write {encode(str(reference))}")
    assert process.ask(f"check {encode(str(reference))} {encode(case['golden'])}")["passed"]


def test_a_package_is_the_fastest_of_several_ways(made):
    settings, answer = made("dnn_wide_inference/size:smoke", "aot")
    package = Path(answer["artifact"])
    assert sorted(file.name for file in package.parent.iterdir()) == ["manifest.json", "model.pt2"]
    found = aot.read_metadata(package)
    assert found["torchpace.aot"] in ("linear", "libraries")
    assert found["torchpace.gemm"] == {"linear": "torchpace"}.get(found["torchpace.aot"], "torch")
    assert found["torchpace.aot"] == "linear" or "libraries was the fastest" in answer["note"]


@pytest.mark.parametrize("whose", ["torchpace", "torch"])
def test_whose_products_a_package_has_can_be_named(whose, made, runtime):
    case, answer = made("dnn_wide_inference/size:smoke", "aot", gemm=whose)
    with zipfile.ZipFile(answer["artifact"]) as archive:
        code = b"".join(archive.read(n) for n in archive.namelist() if n.endswith("wrapper.cpp"))
    assert (b"torchpace_linear_chain(" in code) == (whose == "torchpace")
    process = runtime("py-aot")
    assert "load_s" in process.ask("load " + case.line())
    assert process.ask("environment")["gemm"] == whose


def test_every_kind_has_a_maker():
    kinds = {listed.artifact for listed in list_runtimes().values()} - {""}
    assert kinds == set(artifacts.makers()) >= set(CPU_KINDS)


def test_a_cache_whose_path_has_a_space_can_be_compiled_for(tmp_path, monkeypatch):
    """And with warnings as errors, which torch's own imports are."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    (tmp_path / "plain.py").write_text(SLEEPER.format(body="pass"))
    cache = tmp_path / "a b's cäche"
    process = Process("torchpace.exporter", "--cache", str(cache))
    line = Settings(
        model="imported",
        factory="plain:factory",
        path=tmp_path,
        phase="inference",
        batch=2,
        threads=1,
        device="cpu",
    )
    files = process.ask(line.line())
    line = line.replace(state=files["state"], make="aot", gemm="torch", freezing=0)
    answer = process.ask(line.replace(compile_timeout=300).line())
    assert Path(answer["artifact"]).is_relative_to(cache), answer
    assert process.close() == 0
    assert not list(cache.glob("artifacts/.temporary-*")) + list(cache.glob("*/.*.making"))


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_an_exporter_that_ends_while_it_compiles(tmp_path, ending):
    seen = tmp_path / "seen"
    body = f"open({str(seen)!r}, 'a').write('x') and torch.jit.is_tracing() and time.sleep(600)"
    (tmp_path / "sleeper.py").write_text(SLEEPER.format(body=body))
    cache = tmp_path / "cache"
    process = Process("torchpace.exporter", "--cache", str(cache))
    line = Settings(
        model="imported",
        factory="sleeper:factory",
        path=tmp_path,
        phase="inference",
        threads=1,
        device="cpu",
    )
    line = line.replace(state=process.ask(line.line())["state"], make="torchscript")
    seen.unlink()
    process.say(line.line())
    artifacts_made = cache / "artifacts"
    assert wait_until(lambda: seen.exists() and list(artifacts_made.glob(".*.making")))
    assert list(artifacts_made.glob(".temporary-*"))
    process.process.send_signal(ending)
    process.process.communicate(timeout=60)
    assert wait_until(lambda: [p.suffix for p in artifacts_made.iterdir()] == [".lock"])


def test_operators_that_a_file_lacks_come_with_the_packages_of_its_model():
    made = []

    class Model:
        def make(self, settings):
            made.append(settings)

    def load():
        if not made:
            raise RuntimeError("Unknown builtin op: torchvision::nms.\nCould not find any similar")
        return "loaded"

    def broken():
        raise RuntimeError("PytorchStreamReader failed")

    assert inference_workload.with_operators(load, "settings", Model()) == "loaded" and made == [
        "settings"
    ]
    with pytest.raises(RuntimeError, match="PytorchStreamReader"):
        inference_workload.with_operators(broken, "settings", Model())
    assert len(made) == 1
