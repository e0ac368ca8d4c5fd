"""Drawn modules: a row passes only where its values are those of the user's module in plain torch.

200 of them: scripts/property_trial.py.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import random_modules
import torch
from random_trial import CPP_WORKER, Trial, difference

SEEDS = (*range(19), 145)  # 145 rounds its output itself, at a tie
# What changes from one call to the next by itself, or is another module in every process.
REFUSED_TRAPS = ("inplace_on_input", "counting", "counting_number", "keeping", "hidden_layer")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    trial = Trial(tmp_path_factory.mktemp("drawn"))
    found = [row for seed in SEEDS for row in trial.run(seed, aot=seed % 7 == 3, train=seed == 16)]
    trial.close()
    return found


@pytest.mark.skipif(not CPP_WORKER.exists(), reason="the C++ worker is not built")
def test_no_row_of_twenty_drawn_modules_is_wrong_and_silent(rows):
    bad = [row for row in rows if row.verdict not in ("ok", "invalid", "refused")]
    assert not bad, "\n".join(map(str, bad))
    right = {row.runtime for row in rows if row.verdict == "ok"}
    assert {"py-eager", "cpp-torchscript"} <= right
    assert sum(row.verdict == "ok" for row in rows) > len(rows) / 2
    for row in rows:
        assert row.trap not in REFUSED_TRAPS or row.verdict == "refused", row


def test_a_seed_gives_the_same_module_everywhere(tmp_path):
    for seed in range(100):
        assert random_modules.source(seed) == random_modules.source(seed)
    traps = {random_modules.drawn(seed).trap for seed in range(200)}
    assert len(traps) > 10
    made = random_modules.make(1, tmp_path)
    assert isinstance(made["module"], torch.nn.Module)


@pytest.mark.parametrize(
    "change,words",
    [
        ({}, ""),
        ({"batch1.output.0": torch.tensor([1.0, 2.1])}, "batch1.output.0: off by 0.1"),
        ({"batch1.output.0": torch.tensor([1.0, float("nan")])}, "NaN"),
        ({"batch0.output.1": torch.tensor([3, 5])}, "other integers"),
        ({"batch0.output.1": torch.tensor([[3, 4]])}, "expected shape [2]"),
        ({"batch0.output.1": None}, "expected ["),
        ({"batch0.output.2": torch.tensor([1 + 2j])}, "off by 1"),
        ({"batch0.output.2": torch.tensor([1.0])}, "expected torch.complex64"),
    ],
)
def test_what_is_not_as_in_plain_torch_is_seen(change, words):
    plain = {
        "batch0.output.0": torch.tensor([1.0, 2.0]),
        "batch1.output.0": torch.tensor([1.0, 2.0]),
        "batch0.output.1": torch.tensor([3, 4]),
        "batch0.output.2": torch.tensor([1 + 1j]),
    }
    own = {k: v for k, v in (plain | change).items() if v is not None}
    found = difference(own, plain, "inference")
    assert words in found and bool(words) == bool(found)


def test_a_factory_is_called_without_an_import_of_the_compiler(tmp_path):
    """Which takes 1.5 s, in every load."""
    (tmp_path / "plain.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n")
    code = (
        "import sys\n"
        "from torchpace import models\n"
        "from torchpace.settings import Settings\n"
        f"settings = Settings(model='imported', factory='plain:make', path={str(tmp_path)!r})\n"
        "models.of(settings).make(settings)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    environment = os.environ | {"PYTHONPATH": str(CPP_WORKER.parents[3] / "python")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
