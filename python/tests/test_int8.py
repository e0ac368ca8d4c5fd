"""The approximate runtime py-int8: its package, its errors, and what it does not take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import PYTHON
from test_artifacts import check, made, runtime  # noqa: F401  (fixtures)
from torch import nn

from torchpace import runtimes
from torchpace.errors import Skipped
from torchpace.runtimes import int8
from torchpace.settings import encode, expand_case

ABSENT = runtimes.list_runtimes()["py-int8"].absent
needs_torchao = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)


@needs_torchao
def test_outputs_are_close_and_the_errors_are_told(made, exported, runtime, tmp_path):  # noqa: F811
    settings, answer = exported("gptlite_inference/size:smoke")
    settings, made_answer = made("gptlite_inference/size:smoke", "int8")
    assert "artifact" in made_answer, made_answer
    with zipfile.ZipFile(made_answer["artifact"]) as package:
        code = b"".join(package.read(n) for n in package.namelist() if n.endswith(".cpp"))
    assert b"qlinear_pointwise" in code
    eager, reference = runtime("py-eager"), tmp_path / "reference.pt"
    eager.ask("load " + settings.line())
    eager.ask(f"write {encode(str(reference))}")
    process = runtime("py-int8")
    found = check(process, settings, answer, reference)
    assert found["passed"] and found["tolerance"] is None
    assert 0.99 < found["cosine"] < 1 and found["top1"] > 0.8
    assert 0 < found["rms_error"] < found["max_abs_error"] < 0.1
    assert process.ask("environment")["engine"].startswith("torchao ")


@needs_torchao
def test_all_linear_layers_of_a_program_are_quantized():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(8, 16)
            self.head = nn.Linear(16, 8, bias=False)
            self.head.weight = self.embedding.weight  # shared: an embedding stays as it is
            self.middle = nn.Linear(16, 16)

        def forward(self, x):
            y = self.embedding(x)
            return self.head(torch.relu(self.middle(y)) + y)

    class Source:
        inputs = [(torch.arange(8),)]

    net = Net().eval()
    program = torch.export.export(net, Source.inputs[0]).module()
    assert len(int8._linear_layers(program)) == 2
    with torch.no_grad():
        quantized = int8._quantized(program, Source)
        own, expected = quantized(*Source.inputs[0]), net(*Source.inputs[0])
    targets = [str(node.target) for node in quantized.graph.nodes]
    assert sum("choose_qparams" in target for target in targets) == 2
    assert 0 < (own - expected).abs().max() < 0.05 * expected.abs().max()


@needs_torchao
def test_a_module_without_linear_layers_is_skipped():
    program = torch.export.export(nn.Conv2d(1, 1, 1).eval(), (torch.ones(1, 1, 2, 2),)).module()
    with pytest.raises(Skipped, match="linear layers"):
        int8._quantized(program, None)


@needs_torchao
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"phase": "train"}, "for inference"),
        ({"device": "cuda"}, "CUDA|for the CPU"),
        ({"dtype": "bfloat16"}, "float32"),
        ({"autocast": "bfloat16"}, "autocast"),
        ({"freezing": 0}, "freezing=0"),
    ],
)
def test_what_is_not_quantized_is_skipped(changes, reason):
    settings = expand_case("dnn_deep_inference/size:smoke").replace(**changes)
    with pytest.raises(Skipped, match=reason):
        int8._expect_case(settings)


def test_without_torchao_rows_are_skipped(monkeypatch):
    """Before anything is compiled."""
    monkeypatch.setattr(int8, "NEEDS", ("no-such-torchao",))
    settings = expand_case("dnn_deep_inference/size:smoke")
    for action in (
        lambda: int8.load("py-int8", settings, None),
        lambda: int8.make_artifact("int8", None, settings, None),
    ):
        with pytest.raises(Skipped, match="^pip install no-such-torchao$"):
            action()


def test_the_list_says_what_is_approximate_and_absent():
    command = [sys.executable, "-m", "torchpace.worker", "--list"]
    environment = os.environ | {"PYTHONPATH": str(PYTHON)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    listed = {entry["runtime"]: entry for entry in map(json.loads, result.stdout.splitlines())}
    assert [name for name, entry in listed.items() if entry["approximate"]] == ["py-int8"]
    assert listed["py-int8"]["absent"] == runtimes.missing(("torchao",)) == ABSENT
