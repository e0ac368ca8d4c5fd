import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, Process

from torchpace.io import tensor_file
from torchpace.settings import expand_case

CASE = expand_case("dnn_deep_train/size:smoke", threads=1)


def exporter(folder, **options):
    return Process(
        "torchpace.exporter",
        "--cache",
        str(folder),
        "--text",
        str(FIXTURES / "text.txt"),
        **options,
    )


def leftovers(folder):
    return [p.name for p in folder.rglob("*") if ".making" in p.name or p.name.startswith(".state")]


def test_an_entry_is_made_once_and_holds_what_it_should(exporter, folder):
    line = CASE.replace(seed=11).line()
    first = exporter.ask(line)
    again = exporter.ask(CASE.replace(seed=11, device="cpu", threads=2, case="another name").line())
    assert (first["cached"], again["cached"]) == (False, True) and first["state"] == again["state"]
    assert first["tokens"] == "" and first["note"] == "" and first["case"] == CASE["case"]
    state = tensor_file.read_tensors(first["state"], "state")
    assert state["input"].shape == (8, 4, 32) and state["target"].shape == (8, 4)
    assert not torch.equal(state["input"][0], state["input"][1])
    golden = tensor_file.read_tensors(first["golden"], "golden")
    assert golden["losses"].shape == (10,) and golden["losses"].dtype == torch.float64
    assert golden["spread.losses"].shape == (2,)
    torch.testing.assert_close(
        golden["update.layers.0.weight"], torch.ones(32, 32, dtype=torch.float64)
    )
    manifest = json.loads((Path(first["state"]).parent / "manifest.json").read_text())
    assert set(manifest["files"]) == {"state.pt", "golden.pt"}
    assert exporter.ask(CASE.replace(seed=12).line())["state"] != first["state"]
    assert not leftovers(folder)


def test_the_first_loss_of_the_truth_is_near_ln_65(exported):
    settings, answer = exported("gptlite_train/size:smoke")
    golden = tensor_file.read_tensors(answer["golden"], "golden")
    assert golden["losses"][0].item() == pytest.approx(4.174, abs=0.15)
    assert Path(settings["tokens"]).is_file()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_entry_is_rebuilt_and_said(exporter, damage):
    line = CASE.replace(seed=21).line()
    entry = Path(exporter.ask(line)["state"]).parent
    whole = (entry / "state.pt").read_bytes()
    if damage == "flip":
        (entry / "state.pt").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    elif damage == "truncate":
        (entry / "state.pt").write_bytes(whole[:100])
    elif damage == "remove":
        (entry / "golden.pt").unlink()
    else:
        (entry / "manifest.json").write_text('{"files"')
    answer = exporter.ask(line)
    assert not answer["cached"] and "rebuilt" in answer["note"]
    assert (entry / "state.pt").read_bytes() == whole
    assert exporter.ask(line)["cached"]


def test_two_exporters_at_once_are_both_right(tmp_path):
    lines = [CASE.replace(seed=seed).line() for seed in range(4)]
    processes = [exporter(tmp_path) for _ in range(2)]
    for process in processes:
        for line in lines:
            process.say(line)
    answers = [[process.read() for _ in lines] for process in processes]
    assert [process.close() for process in processes] == [0, 0]
    for one, other in zip(*answers, strict=True):
        assert (
            one["state"] == other["state"]
            and "error" not in one
            and not one["note"] + other["note"]
        )
        assert sorted([one["cached"], other["cached"]]) == [False, True]
        tensor_file.read_tensors(one["state"], "state")
    assert not leftovers(tmp_path)


def test_a_killed_exporter_leaves_nothing_that_hurts(exporter, folder):
    line = CASE.replace(seed=31).line()
    entry = Path(exporter.ask(line)["state"]).parent
    shutil.move(entry, entry.with_name(f".{entry.name}.making"))  # as if killed before the rename
    answer = exporter.ask(line)
    assert not answer["cached"] and not leftovers(folder)


def test_a_full_disk_is_one_clear_line_and_nothing_half_written(tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = exporter(tmp_path, preexec_fn=limit)
    error = process.ask(CASE.line())["error"]
    process.close()
    assert "cannot write" in error and "File too large" in error and "free some space" in error
    assert not list((tmp_path / "cases").glob("dnn*")) and not leftovers(tmp_path)


def test_bad_lines_are_answered_and_the_next_one_works(exporter):
    for change, message in (
        ({"model": "nothing"}, "model: expected one of"),
        ({"dtype": "int8"}, "dtype: expected one of"),
        ({"layers": "many"}, "layers: expected an integer"),
        ({"phase": "sleep"}, "phase: expected one of"),
        ({"device": "tpu"}, "device: expected cpu, cuda or cuda:N"),
        ({"optimizer": "lamb"}, "optimizer: expected one of adam, adam-foreach"),
        ({"data": "images"}, "data: expected one of text, normal"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"lr": 1e30}, "lower lr"),
    ):
        error = exporter.ask(CASE.replace(**change).line())["error"]
        assert message in error and "\n" not in error
    assert "expected key=value" in exporter.ask("nonsense")["error"]
    if not torch.cuda.is_available():
        assert "no CUDA device" in exporter.ask(CASE.replace(device="cuda:0").line())["skipped"]
    assert "state" in exporter.ask(CASE.line())


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    process = exporter(tmp_path / "file" / "cache")
    assert "cannot write" in process.ask(CASE.line())["error"]
    process.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_memory_that_a_step_keeps_by_hand(exporter, dtype):
    line = CASE.replace(dtype=dtype)  # L 8, W 32, B 4
    element = {"float32": 4, "bfloat16": 2}[dtype]
    parameters = element * 8 * (32 * 32 + 32)
    # relu's output is the next layer's input: one storage; the last one's are log-probabilities
    activations = element * 8 * 4 * 32 + element  # and the total weight of the loss
    assert exporter.ask(line.line())["memory"] == {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer": 2 * parameters,
        "activations": activations,
    }
    again = exporter.ask(line.line())
    assert again["cached"] and again["memory"]["activations"] == activations and again["set"] == {}
