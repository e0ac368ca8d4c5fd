"""What is timed is what was asked for: each of these was once another thing, without a word."""

import os

import pytest
import torch
from conftest import Process

from torchpace import module_state, parity
from torchpace.aot import inductor
from torchpace.io import tensor_file
from torchpace.settings import Settings, encode

MODELS = """
import random
import torch
from torch import nn

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.policy = nn.Linear(6, 2), nn.Linear(6, 4)
    def forward(self, x):
        policy = self.policy(x)
        return {"value": self.value(x), "policy": (policy, policy.argmax(-1), policy > 0)}
def heads(): return Heads()

class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("waves", torch.randn(6, 8), persistent=False)
        self.shift = {"by": [torch.randn(8)]}
        self.factor = random.random()
        self.head = nn.Linear(8, 3)
    def forward(self, x):
        return self.head((x @ self.waves * self.factor).sin() + self.shift["by"][0])
def drawn(): return Drawn()

class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(6), torch.arange(6.0)))
        self.weight = nn.Parameter(torch.randn(6, dtype=torch.cfloat))
    def forward(self, x):
        y = x * self.turn * self.weight
        return y, y.abs()
def turning(): return Complex()

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(6, 3), nn.Linear(6, 3)
    def forward(self, *xs):  # which cannot be scripted
        return self.small(xs[0]) if float(xs[0].sum()) > 0 else self.large(xs[0])
def branch(): return Branch()

class Tied(nn.Module):  # by their memory, not by the parameter
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight.data = self.a.weight.data
    def forward(self, x): return self.b(self.a(x).relu())
def tied():
    return {"module": Tied(), "inputs": torch.randn(4, 6), "target": torch.zeros(4, 6),
            "loss": nn.functional.mse_loss}

class Forces(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            return -torch.autograd.grad(self.energy(x).sum(), x)[0]
def forces(): return Forces()

def frozen_norm():
    module = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    module[1].eval()
    return {"module": module, "inputs": torch.randn(4, 6), "target": torch.arange(4) % 3,
            "loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))}

class Apart(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(6, 3)
    @torch.compiler.disable
    def forward(self, x): return self.inside(x)
def apart(): return Apart()

class Lowered(nn.Linear):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()
def lowered(): return Lowered(6, 3)

def bare_bias():  # its gradient is nothing but rounding
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4))
    return {"module": module, "inputs": torch.randn(4, 3, 8, 8), "target": torch.arange(4),
            "loss": nn.functional.cross_entropy}
"""


@pytest.fixture(scope="session")
def folder_of_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    (folder / "checked.py").write_text(MODELS)
    return folder


@pytest.fixture(scope="session")
def case(exporter, folder_of_models):
    def export(factory, phase="inference", **more):
        settings = Settings(
            case=f"{factory}_{phase}",
            model="imported",
            factory=f"checked:{factory}",
            seed=0,
            path=folder_of_models,
            phase=phase,
            device="cpu",
            threads=1,
            input="5x6",
            **more,
        )
        if phase == "train":
            settings = settings.replace(input=None)
        answer = exporter.ask(settings.line())
        assert "error" not in answer, answer
        return settings.replace(state=answer["state"], **answer["set"]), answer

    return export


@pytest.fixture(scope="session")
def script_worker():
    process = Process("torchpace.worker", "--runtime", "py-torchscript", greets=True)
    yield process
    assert process.close() == 0


@pytest.fixture
def checked(worker, script_worker, exporter, case, tmp_path):
    """The answers of `check` of py-eager and of py-torchscript."""

    def check(factory, phase="inference", runtimes=2, change=lambda state: None):
        settings, answer = case(factory, phase)
        paths = " ".join(filter(None, (encode(str(tmp_path / "values.pt")), answer["golden"])))
        changed = settings
        if change is not None:
            state = tensor_file.read_tensors(settings["state"], "state")
            if change(state) is not None:
                tensor_file.write_tensors(tmp_path / "changed.pt", state)
                changed = settings.replace(state=tmp_path / "changed.pt")
        found = []
        assert "error" not in (loaded := worker.ask("load " + changed.line())), loaded
        worker.ask(f"write {encode(str(tmp_path / 'values.pt'))}")
        found.append(worker.ask(f"check {paths}"))
        if runtimes == 2:
            question = settings.replace(state=None, **dict.fromkeys(answer["set"]))
            made = exporter.ask(question.replace(make="torchscript").line())
            assert "artifact" in made, made
            script_worker.ask("load " + settings.replace(artifact=made["artifact"]).line())
            found.append(script_worker.ask(f"check {paths}") | {"made": made["note"]})
        return found

    return check


@pytest.mark.parametrize("factory", ["heads", "drawn", "turning"])
def test_every_tensor_of_every_batch_is_right_in_both(checked, factory):
    for found in checked(factory):
        assert found["passed"], found
        assert found["compared"] == 8 * {"heads": 4, "drawn": 1, "turning": 2}[factory]


def test_a_forward_with_modes_of_its_own_runs(checked):
    (found,) = checked("lowered", runtimes=1)
    assert found["passed"] and found["max_abs_error"] > 1e-4  # bfloat16 inside, which float64 lacks
    (found,) = checked("forces", runtimes=1)
    assert found["passed"] and "runs under torch.no_grad" in found["note"]


@pytest.mark.parametrize("factory", ["tied", "frozen_norm", "bare_bias"])
def test_a_training_is_what_the_factory_says(checked, factory):
    (found,) = checked(factory, "train", runtimes=1)
    assert found["passed"], found


@pytest.mark.parametrize(
    ("factory", "key"),
    [
        ("heads", "parameter.policy.weight"),  # the second output wrong
        ("drawn", "transient.waves"),  # a buffer drawn anew
        ("drawn", "attribute.shift.by.0"),
        ("turning", "buffer.turn"),
    ],
)
def test_a_reference_with_another_state_is_found(checked, factory, key):
    def change(state):
        x = state[key]
        state[key] = (
            torch.view_as_complex(
                torch.stack([x.real, torch.zeros_like(x.real)], -1)  # a complex buffer made real
            )
            if x.is_complex()
            else torch.randn_like(x)
        )
        return state

    (found,) = checked(factory, runtimes=1, change=change)
    assert not found["passed"], found


def test_one_wrong_batch_is_found(checked):
    def change(state):
        state["input"][2, 0, 0] += 0.01
        return state

    (found,) = checked("heads", runtimes=1, change=change)
    assert not found["passed"] and found["worst"].startswith("batch2."), found


def test_a_trace_of_one_branch_is_found_and_its_warning_kept(checked):
    eager, script = checked("branch")
    assert eager["passed"] and not script["passed"]
    assert "TracerWarning at checked.py" in script["made"]


def test_a_model_that_ran_eager_is_no_row_of_torch_compile(exporter, case):
    settings, answer = case("apart")
    question = settings.replace(state=None, **dict.fromkeys(answer["set"]))
    made = exporter.ask(question.replace(make="compile:default").line())
    assert "found that it ran eager: no graph was captured" in made["error"], made


def test_an_edited_import_makes_everything_anew(exporter, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    block = tmp_path / "package" / "block.py"
    block.write_text("def act(x):\n    return x.relu()\n")
    (tmp_path / "late.py").write_text(
        "from torch import nn\n"
        "class Late(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        from package.block import act\n"  # when it is called, not before
        "        return act(super().forward(x))\n"
        "def late():\n    return Late(6, 3)\n"
    )
    settings = Settings(
        model="imported", factory="late:late", path=tmp_path, phase="inference", input="5x6"
    )
    for process in range(2):
        own = Process("torchpace.exporter", "--cache", str(tmp_path / "cache"))
        first, script = (
            own.ask(settings.line()),
            own.ask(settings.replace(make="torchscript").line()),
        )
        assert "note" in script, script
        again = own.ask(settings.line()), own.ask(settings.replace(make="torchscript").line())
        assert all(answer["cached"] for answer in again), again
        assert own.close() == 0
        if process:
            assert not first["cached"] and not script["cached"]
            assert "block.py has changed since" in first["note"]
            assert "block.py has changed since" in script["note"]
        block.write_text("def act(x):\n    return 10 * x.tanh() + 5\n")


def test_variables_that_change_what_is_compiled_are_told(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("TORCH", "MKL", "DNNL", "ONEDNN")):
            monkeypatch.delenv(name)
    assert inductor.compiler_variables() == []
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert inductor.compiler_variables() == ["TORCHDYNAMO_DISABLE=1"]


def test_moving_keeps_what_shares_memory_and_what_is_complex():
    module = torch.nn.Module()
    whole = torch.arange(12.0)
    module.a = torch.nn.Parameter(whole[:6].view(2, 3))
    module.b = torch.nn.Parameter(whole[3:9].view(3, 2).t())
    module.register_buffer("turn", torch.ones(2, dtype=torch.complex64))
    module.register_buffer("count", torch.ones(2).long())
    module.plain = [torch.ones(2)]
    module_state.place(module, torch.device("cpu"), torch.float64)
    assert module.a.dtype == module.b.dtype == module.plain[0].dtype == torch.float64
    assert module.turn.dtype == torch.complex128 and module.count.dtype == torch.int64
    with torch.no_grad():
        module.a[1, 0] = 77  # the fourth of the whole, and the first of b
    assert module.b[0, 0] == 77 and parity.norms(module.b.detach())[0] == 77
