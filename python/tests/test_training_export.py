"""`python -m torchpace.aot.export_training` from its options to the package and what is left."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchpace.aot.compiled_training import CompiledTraining
from torchpace.aot.export_training import CHECKED, export_training
from torchpace.aot.training_step import TrainingStep
from torchpace.errors import InputError
from torchpace.runtimes.aot import read_metadata

PYTHON = Path(__file__).resolve().parents[1]

# As many kinds as one compile can have: each alone is in test_training_kinds.py.
FACTORY = """
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(16, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.norm, self.frozen_norm = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.batch_norm = nn.BatchNorm1d(8, track_running_stats=False)
        self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.weight_norm = nn.utils.weight_norm(nn.Linear(8, 8))
        self.block, self.reentrant, self.frozen, self.tied = (nn.Linear(8, 8) for _ in range(4))
        self.tied.weight = self.block.weight
        self.frozen.requires_grad_(False)
        self.register_buffer("mean", torch.zeros(8))
        self.head = nn.Linear(8, 5)
        self.frozen_norm.eval()

    def forward(self, x):
        x = self.gru(self.lstm(x)[0])[0][:, -1]
        x = self.frozen_norm(self.frozen(self.norm(x)))
        x = x + checkpoint(nn.Sequential(self.block, nn.GELU()), x, use_reentrant=False)
        x = x + checkpoint(nn.Sequential(self.reentrant, nn.GELU()), x, use_reentrant=True)
        x = self.batch_norm(self.weight_norm(torch.tanh(self.spectral(x))))
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.head(torch.tanh(self.tied(x - self.mean)))


def net():
    weight = torch.tensor([1.0, 2.0, 3.0, 1.0, 0.5])
    return {"module": Mixed(), "inputs": torch.randn(8, 3, 16), "target": torch.randint(5, (8,)),
            "loss": nn.CrossEntropyLoss(weight=weight)}
"""


def command(folder: Path, out: Path, **more: str) -> subprocess.Popen:
    (folder / "mixed.py").write_text(FACTORY)
    temporary = folder / "a temporary folder"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(PYTHON), "TMPDIR": str(temporary)} | more
    options = ["--path", str(folder), "--threads", "1", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "torchpace.aot.export_training", "mixed:net", *options],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def left_in(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.iterdir()]


def scratch_of(process: subprocess.Popen) -> Path:
    """Its own folder: TMPDIR has a space, where no compiler can work."""
    return Path(f"/tmp/torchpace-temporary-{process.pid}")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    out = folder / "an output folder" / "step ä.pt2"
    out.parent.mkdir()
    process = command(folder, out, TORCHINDUCTOR_FREEZING="1", TORCHDYNAMO_DISABLE="1")
    _, said = process.communicate()
    assert process.returncode == 0, said
    return folder, out, said, scratch_of(process)


def test_nothing_is_left_but_the_package(mixed):
    folder, out, said, temporary = mixed
    assert left_in(out.parent, folder / "a temporary folder") == [out]
    assert not temporary.exists()
    first = said.splitlines()[0]
    assert "unset TORCHDYNAMO_DISABLE, TORCHINDUCTOR_FREEZING, on which no package" in first


def test_the_check_is_said_and_kept(mixed):
    _, out, said, _ = mixed
    checked = read_metadata(out)[CHECKED]
    assert f"checked against eager torch: {checked}\n" in said
    number = r"[\d.e+-]+"
    pattern = rf"3 steps; losses, parameters, buffers; worst .* differs by {number}, allowed "
    assert re.match(pattern + rf"{number}; bound: float64 run, \d perturbed$", checked)


def test_a_net_of_many_kinds_trains_as_eager_torch_does(mixed):
    folder, out, _, _ = mixed
    spec = importlib.util.spec_from_file_location("mixed", folder / "mixed.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    module, case, training = made.Mixed(), made.net(), CompiledTraining(out)
    # weight_norm's weight is computed before the first forward, so the loaded state counts
    training.share_with(module)
    module.load_state_dict({name: x.clone() for name, x in module.state_dict().items()})
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
    adam = torch.optim.Adam(module.parameters(), lr=2**-8)
    for _ in range(6):
        adam.zero_grad()
        loss = case["loss"](module(case["inputs"]), case["target"])
        loss.backward()
        adam.step()
        own = training.step(case["inputs"], case["target"], 2**-8)
        assert own.item() == pytest.approx(loss.item(), rel=1e-5)
    buffers = dict(module.named_buffers())
    for name, x in training.buffers().items():
        torch.testing.assert_close(x, buffers[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_leaves_nothing(how, tmp_path):
    out = tmp_path / "out" / "x.pt2"
    out.parent.mkdir()
    process = command(tmp_path, out)
    for line in process.stderr:
        if "compiles: " in line:
            break
    assert scratch_of(process).exists()
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert process.returncode == 130 and said.splitlines()[-1].endswith("interrupted")
    deadline = time.monotonic() + 30
    while scratch_of(process).exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # what a killed process cannot remove itself is removed soon after
    assert not scratch_of(process).exists()
    assert not left_in(out.parent, tmp_path / "a temporary folder")


def test_a_package_whose_second_step_is_wrong_gets_no_name(tmp_path, monkeypatch):
    """Weights of the first step and not of the present one: what a lost update would do."""
    usual = TrainingStep._update

    def wrong(self, state, rate, g):
        usual(self, state, rate, g)
        moved = state["parameters"] - self.initial["parameters"]
        state["parameters"].sub_(0.01 * moved)

    torch.manual_seed(0)
    monkeypatch.setattr(TrainingStep, "_update", wrong)
    with pytest.raises(InputError, match="trains differently from eager torch: .* by ") as caught:
        export_training(
            nn.Linear(16, 5),
            F.cross_entropy,
            torch.randn(8, 16),
            torch.randint(5, (8,)),
            path=tmp_path / "x.pt2",
        )
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_process_that_dies_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="the process that compiles ended with 1"):
        export_training(
            nn.Linear(3, 2), F.mse_loss, torch.ones(4, 3), torch.ones(4, 2), path=tmp_path / "x.pt2"
        )
    assert not list(tmp_path.iterdir())
