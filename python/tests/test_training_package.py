"""Wrong and damaged training packages: one line each, before any of their code is opened.

The code inside is no library, so a package that is not refused in time fails in another line.
Twin: tests/aot/training_package_test.cpp.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchpace.aot.compiled_training import CompiledTraining
from torchpace.aot.training_package import INITIAL, Recipe
from torchpace.aot.training_step import TrainingStep
from torchpace.errors import InputError
from torchpace.runtimes import aot

LIBRARY = "step/data/aotinductor/model/code.wrapper.so"
METADATA = LIBRARY.removesuffix(".so") + "_metadata.json"
STATE, PARAMETERS = "torchpace.state", "torchpace.parameters"


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes | dict[str, str]]:
    """The entries of a package that is right but for its code."""
    torch.manual_seed(0)
    step = TrainingStep(
        nn.Linear(3, 2),
        F.mse_loss,
        (torch.ones(4, 3),),
        torch.ones(4, 2),
        Recipe("adam", accumulate=2),
        "none",
    )
    metadata = step.contents(deterministic=False, gemm="torch").metadata() | aot.conditions(
        torch.device("cpu")
    )
    return {
        LIBRARY: b"no library" * 100,
        METADATA: metadata | {"AOTI_DEVICE_KEY": "cpu"},
        f"step/{INITIAL}": step.initial_bytes(),
    }


def pack(path: Path, entries, **options) -> None:
    with zipfile.ZipFile(path, "w", **options) as package:
        for name, content in entries.items():
            text = json.dumps(content).encode() if isinstance(content, dict | list) else content
            package.writestr(name, text)


def metadata(entries, **change):
    """Other values; None takes a key away."""
    values = {f"torchpace.{key}": value for key, value in change.items()}
    known = entries[METADATA] | values
    return entries | {METADATA: {k: v for k, v in known.items() if v is not None}}


def line(entries, key: str, old: str, new: str):
    """Another text in a value of the metadata."""
    before = entries[METADATA][key]
    assert old in before, before
    return entries | {METADATA: entries[METADATA] | {key: before.replace(old, new)}}


def without(entries, name: str):
    return {n: c for n, c in entries.items() if n != name}


WRONG = {
    "no code": (lambda e: e, "expected code that loads"),
    "torch": (lambda e: metadata(e, torch="2.0.0"), "found 2.0.0"),
    "threads": (lambda e: metadata(e, threads="6400"), "threads"),
    "isa": (lambda e: metadata(e, isa="AVX9000"), "found AVX9000"),
    "device": (lambda e: metadata(e, device="cuda"), "cuda"),
    "gpu": (lambda e: metadata(e, gpu="NVIDIA X"), "found NVIDIA X"),
    "kind": (lambda e: metadata(e, kind="inference"), "expected a compiled training step"),
    **{
        f"no {key}": (lambda e, key=key: metadata(e, **{key: None}), f"torchpace.{key}")
        for key in (
            *("torch", "device", "threads", "state", "parameters", "optimizer"),
            *("inputs", "target", "autocast", "deterministic", "gemm"),
        )
    },
    "no metadata": (lambda e: without(e, METADATA), "without metadata"),
    "metadata of another kind": (lambda e: e | {METADATA: b"[1]"}, "names and texts"),
    "metadata cut": (lambda e: e | {METADATA: b'{"a": "b'}, "damaged or foreign"),
    "metadata nested": (lambda e: e | {METADATA: b"[" * 100000}, "damaged or foreign"),
    "no initial": (lambda e: without(e, f"step/{INITIAL}"), "bytes of initial state"),
    "short initial": (lambda e: e | {f"step/{INITIAL}": b"1234"}, "bytes of initial state"),
    "empty state": (lambda e: metadata(e, state=""), "no flat state"),
    "state line": (lambda e: metadata(e, state="parameters 8:float32"), "found ValueError"),
    "state first": (lambda e: line(e, STATE, "parameters ", "x "), "no flat state"),
    "state twice": (lambda e: line(e, STATE, "steps ", "part "), "twice"),
    "negative size": (lambda e: line(e, STATE, "parameters ", "parameters -"), "the sizes -"),
    "huge size": (lambda e: line(e, STATE, "parameters ", "parameters 9999999999999999x"), "sizes"),
    "any size": (lambda e: line(e, STATE, "parameters ", "parameters ?x"), "'?'"),
    "zeros without end": (
        lambda e: line(e, STATE, "steps ", "steps 9999999999"),
        "the state steps",
    ),
    "unknown dtype": (lambda e: line(e, STATE, "float32", "float33"), "the dtype 'float33'"),
    "no dtype": (lambda e: line(e, STATE, "float32", "nn"), "the dtype 'nn'"),
    "negative offset": (lambda e: line(e, STATE, ":float32 0", ":float32 -64"), "the state param"),
    "offset outside": (lambda e: line(e, STATE, ":float32 0", ":float32 9999"), "bytes of initial"),
    "no moment": (lambda e: line(e, STATE, "second_moment", "moment"), "no second_moment"),
    "short moment": (lambda e: line(e, STATE, "first_moment ", "first_moment 1x"), "first_moment"),
    "no gradient": (lambda e: line(e, STATE, "gradient", "other"), "no gradient"),
    "no steps": (lambda e: line(e, STATE, "steps", "step"), "no steps"),
    "parameter outside": (lambda e: line(e, PARAMETERS, "2x3", "2x999"), "outside the flat"),
    "parameter before": (lambda e: metadata(e, parameters="weight 2x3: -1"), "outside the flat"),
    "parameter overflows": (
        lambda e: line(e, PARAMETERS, "2x3", "4294967296x4294967296"),
        "the sizes",
    ),
    "no parameters": (lambda e: metadata(e, parameters=""), "no parameters"),
    "optimizer": (lambda e: metadata(e, optimizer="kind=lion"), "found"),
    "beta": (lambda e: line(e, "torchpace.optimizer", "beta1=0.9", "beta1=2"), "beta1: expected"),
    "inputs": (lambda e: metadata(e, inputs="4x:float32"), "found ValueError"),
    "target": (lambda e: metadata(e, target="4x2"), "the dtype ''"),
    "deterministic": (lambda e: metadata(e, deterministic="yes"), "not 0 or 1"),
    "gemm": (lambda e: metadata(e, gemm="mkl"), "not torchpace or torch"),
    "parent folder": (lambda e: {**e, "step/../../x": b""}, "own folder"),
    "absolute name": (lambda e: {**e, "/tmp/x": b""}, "own folder"),
}


@pytest.fixture
def refuses(tmp_path, monkeypatch):
    """Expects one line with this text, and nothing left."""
    path = tmp_path / "x.pt2"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def expect(message: str) -> None:
        with pytest.raises(InputError) as caught:
            CompiledTraining(path)
        text = str(caught.value)
        assert message in text and str(path) in text and "\n" not in text
        assert not list(temporary.iterdir())

    return path, expect


@pytest.mark.parametrize("name", WRONG)
def test_refuses(name, whole, refuses):
    (change, message), (path, expect) = WRONG[name], refuses
    pack(path, change(whole))
    expect(message)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["library", "metadata", "initial"])
def test_refuses_a_flipped_byte_of_any_entry(place, method, whole, refuses):
    path, expect = refuses
    pack(path, whole, compression=method)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as package:
        entry = package.infolist()[place]
    name, extra = content[entry.header_offset + 26], content[entry.header_offset + 28]
    begin = entry.header_offset + 30 + name + extra
    content[begin + entry.compress_size // 2] ^= 4
    path.write_bytes(content)
    expect("make it again")


def test_refuses_what_is_cut_or_no_archive(whole, refuses):
    path, expect = refuses
    pack(path, whole)
    content = path.read_bytes()
    for part in (b"", b"a text\n", content[:-1], content[: len(content) // 2], content[100:]):
        path.write_bytes(part)
        expect("make it again")
    path.unlink()
    expect("No such file")
    path.mkdir()
    expect("Is a directory")


def test_refuses_a_zip_bomb_and_a_name_twice(whole, refuses):
    path, expect = refuses
    # deflate packs zeros 1:1029
    pack(path, {**whole, "step/zeros": bytes(64 << 20)}, compression=zipfile.ZIP_DEFLATED)
    expect("a zip bomb")
    pack(path, whole)
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(path, "a") as package,
    ):
        package.writestr(LIBRARY, b"another")
    expect("every name once")
