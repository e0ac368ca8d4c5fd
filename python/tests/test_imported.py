"""Models of a user's own: good ones through the exporter and a worker, and every bad factory."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Process

from torchpace import models, outputs, parity, workload
from torchpace.errors import InputError
from torchpace.exporter import golden
from torchpace.io import tensor_file
from torchpace.models import imported
from torchpace.runtimes import eager
from torchpace.settings import Settings, SettingsError, encode

GOOD = """
from dataclasses import dataclass
import torch
from torch import nn
import torch.nn.functional as F

class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.deeper, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.dropout = nn.Dropout2d(0.5)

    def forward(self, x):
        x = self.deeper(F.relu(self.norm(self.conv(x))))
        return self.head(self.dropout(x).mean((2, 3)))

def conv():
    return {"module": Conv(), "inputs": torch.randn(4, 3, 8, 8), "target": torch.arange(4),
            "loss": F.cross_entropy}

def bare():
    return Conv()

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.scale = nn.Embedding(7, 5), nn.Linear(3, 5)

    def forward(self, tokens, x):
        return {"indices": tokens, "hidden": {"y": self.embedding(tokens).mean(1) * self.scale(x)}}

def pair():
    return {"module": Pair(), "target": torch.zeros(2, 5),
            "loss": lambda output, target: F.mse_loss(output["hidden"]["y"], target)}

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.body = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(6), persistent=False)

    def forward(self, tokens):
        return (self.head(self.body(self.embedding(tokens)) * self.mask), tokens)

def tied():
    return {"module": Tied(), "inputs": (torch.arange(6).view(2, 3),),
            "target": torch.ones(2).long(),
            "loss": lambda output, target: F.cross_entropy(output[0][:, -1], target)}
"""
INPUTS = {"pair": "2x4:int64;2x3:float32"}


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "good.py").write_text(GOOD)
    return folder


@pytest.fixture(scope="session")
def case(exporter, good):
    """The settings with files of a factory of good.py, and the answer of the exporter."""

    def export(factory, phase, **more):
        settings = Settings(
            case=f"{factory}_{phase}",
            model="imported",
            factory=f"good:{factory}",
            path=good,
            phase=phase,
            device="cpu",
            threads=1,
            seed=0,
        ).replace(input=INPUTS.get(factory), **more)
        answer = exporter.ask(settings.line())
        assert "error" not in answer, answer
        return settings.replace(state=answer["state"], **answer["set"]), answer

    return export


def load(settings):
    return eager.load("py-eager", settings, models.of(settings))


@pytest.mark.parametrize("phase", ["train", "inference", "latency"])
@pytest.mark.parametrize("factory", ["conv", "pair", "tied"])
def test_a_worker_loads_checks_and_runs_it(worker, case, tmp_path, factory, phase):
    settings, answer = case(factory, phase)
    loaded = worker.ask("load " + settings.line())
    assert loaded["flops"] > 0 and loaded["item"] == "samples", loaded
    assert loaded["items"] == (1 if phase == "latency" else {"conv": 4}.get(factory, 2))
    reference, golden = (
        encode(str(path)) for path in (tmp_path / "reference.pt", answer["golden"])
    )
    worker.ask(f"write {reference}")
    found = worker.ask(f"check {reference} {golden}")
    assert found["passed"]
    assert len(worker.ask("run 3 1")["step_ns"]) == 3
    assert worker.ask(f"check {reference} {golden}") == found  # the turn was undone
    if phase == "train":
        assert len(worker.ask("losses 3")["losses"]) == 3
    wrong = perturbed_state(settings, tmp_path)
    worker.ask("load " + settings.replace(state=wrong).line())
    assert not worker.ask(f"check {reference} {golden}")["passed"]


def perturbed_state(settings, folder):
    state = tensor_file.read_tensors(settings["state"], "state")
    name = next(name for name in state if name.startswith("parameter."))
    state[name] = state[name] * 1.01
    tensor_file.write_tensors(folder / "perturbed.pt", state)
    return folder / "perturbed.pt"


def test_what_the_state_holds(case):
    state = tensor_file.read_tensors(case("conv", "train")[1]["state"], "state")
    assert {"buffer.norm.running_mean", "buffer.norm.num_batches_tracked"} <= state.keys()
    assert state["input"].shape == (1, 4, 3, 8, 8)  # the factory's, which are always the same
    assert state["target"].shape == (1, 4)
    state = tensor_file.read_tensors(case("pair", "inference")[1]["state"], "state")
    assert state["input"].shape == (8, 2, 4) and state["input.1"].shape == (8, 2, 3)
    assert state["input"].max() == 6 and not torch.equal(state["input"][0], state["input"][1])
    state = tensor_file.read_tensors(case("tied", "inference")[1]["state"], "state")
    assert "parameter.embedding.weight" in state
    assert "head.weight" not in str(state.keys()) and "transient.mask" in state


def test_tied_weights_stay_tied(case):
    workload = load(case("tied", "train")[0])
    workload.values()
    assert workload.module.head.weight is workload.module.embedding.weight
    torch.testing.assert_close(
        workload.values()["parameter.embedding.weight"], workload.module.head.weight
    )


def test_rows_are_cut_or_repeated_to_the_batch(case):
    for more, rows in (({}, 4), ({"batch": 2}, 2), ({"batch": 6}, 6)):
        settings, answer = case("conv", "train", **more)
        state = tensor_file.read_tensors(answer["state"], "state")
        assert len(state["input"][0]) == len(state["target"][0]) == rows == answer["set"]["items"]
    assert state["target"][0].tolist() == [0, 1, 2, 3, 0, 1]
    assert torch.equal(state["input"][0, 4], state["input"][0, 0])
    _, answer = case("conv", "latency")
    assert tensor_file.read_tensors(answer["state"], "state")["input"].shape == (1, 1, 3, 8, 8)


def test_costs_and_memory_by_hand(case):
    settings, answer = case("conv", "train")
    first, deeper, head = (
        2 * 4 * 36 * 8 * 27,  # 6 x 6 outputs
        2 * 4 * 16 * 8 * 72,
        2 * 4 * 8 * 10,
    )
    parameters = 4 * (8 * 27 + 8 + 16 + 8 * 72 + 8 + 90)
    assert answer["set"] == {
        "flops": first + deeper + head,
        "training_flops": 3 * (first + deeper + head) - first,  # the input needs no gradient
        "items": 4,
        "parameter_bytes": parameters,
        "minimum_bytes": 6 * parameters + 4 * 4 * 3 * 64 + 4 * 8,
        "outputs": "output",
    }
    memory = answer["memory"]
    assert memory["parameters"] == memory["gradients"] == parameters
    assert memory["optimizer"] == 2 * parameters
    # conv's output (of norm), norm's output is relu's, relu's (of deeper), dropout's mask, head's
    # input, log-softmax: and small ones of the norm and the loss
    large = 4 * (2 * 4 * 8 * 36 + 4 * 8 + 4 * 8 + 4 * 10)
    assert large <= memory["activations"] <= large + 1000
    assert case("conv", "train", optimizer="sgd")[1]["memory"]["optimizer"] == parameters
    assert case("conv", "inference")[1]["memory"] == {
        "parameters": parameters,
        "gradients": 0,
        "optimizer": 0,
        "activations": 0,
    }
    stated = models.of(settings).cost(settings)
    unstated = models.of(settings).cost(settings.replace(**dict.fromkeys(answer["set"])))
    assert stated == unstated


def test_dropout_is_off_where_values_are_compared(case):
    workload = load(case("conv", "train")[0])
    assert workload.note == "checked at dropout 0" and workload.module.dropout.p == 0.5
    assert case("conv", "train")[0]["factory"] == "good:conv"


def test_channels_last_is_in_force_and_right(case):
    settings, answer = case("conv", "train", memory_format="channels_last")
    workload = load(settings)
    assert workload.module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    (image,), _ = workload.batches[0]
    assert image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    reference = load(settings.replace(memory_format="contiguous")).values()
    golden = tensor_file.read_tensors(answer["golden"], "golden")
    assert parity.check_parity(workload.values(), reference, golden, torch.float32).passed


def test_autocast_and_bfloat16(case):
    for more in ({"autocast": "bfloat16"}, {"dtype": "bfloat16"}):
        settings, answer = case("conv", "inference", **more)
        workload = load(settings)
        reference = workload.values()
        golden = tensor_file.read_tensors(answer["golden"], "golden")
        assert reference["batch0.output"].dtype == torch.bfloat16
        assert parity.check_parity(workload.values(), reference, golden, torch.bfloat16).passed


def test_a_changed_source_is_another_entry(exporter, tmp_path):
    (tmp_path / "changing.py").write_text(
        "from torch import nn\ndef f():\n    return nn.Linear(3, 2)\n"
    )
    settings = Settings(
        model="imported", factory="changing:f", path=tmp_path, phase="inference", input="2x3"
    )
    first = exporter.ask(settings.line())
    assert exporter.ask(settings.line())["cached"]
    with open(tmp_path / "changing.py", "a") as file:
        file.write("# changed\n")
    assert exporter.ask(settings.line())["state"] != first["state"]


BAD = """
import random
import torch
from torch import nn
def raises(): raise ValueError("no weights\\nsecond line")
def number(): return 3
def no_module(): return {"inputs": torch.zeros(1, 3)}
def unknown(): return {"module": nn.Linear(3, 2), "lss": 1}
def named_inputs(): return {"module": nn.Linear(3, 2), "inputs": {"x": torch.zeros(1, 3)}}
def scalar_input(): return {"module": nn.Linear(3, 2), "inputs": torch.zeros(())}
def rows():
    return {"module": nn.Linear(3, 2), "inputs": torch.zeros(4, 3), "target": torch.zeros(3)}
def takes(x): return nn.Linear(3, 2)
def inputs(): return {"module": nn.Linear(3, 2), "inputs": torch.zeros(4, 5)}
def none(): return nn.Linear(3, 2)
def loss(): return {"module": nn.Linear(3, 2), "inputs": torch.zeros(4, 3), "loss": 3}
def untargeted():
    return {"module": nn.Linear(3, 2), "inputs": torch.zeros(4, 3), "loss": lambda o, t: o.sum()}
def vector(): return untargeted() | {"target": torch.zeros(4), "loss": lambda o, t: o}
class Strange(nn.Module):
    def forward(self, x): return {"boxes": [object(), x]}
def strange(): return {"module": Strange(), "inputs": torch.zeros(4, 3)}
class Nothing(nn.Module):
    def forward(self, x): return None, 3
def nothing(): return {"module": Nothing(), "inputs": torch.zeros(4, 3)}
class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = {"a": [nn.Linear(3, 3)]}
    def forward(self, x): return self.layers["a"][0](x)
def listed(): return {"module": Listed(), "inputs": torch.zeros(4, 3)}
def lazy(): return {"module": nn.LazyLinear(2), "inputs": torch.zeros(4, 3)}
def scripted(): return {"module": torch.jit.script(nn.Linear(3, 2)), "inputs": torch.zeros(4, 3)}
def compiled(): return nn.Sequential(torch.compile(nn.Linear(3, 2)))
def compiled_in_place():
    module = nn.Linear(3, 2)
    module.compile()
    return module
class InPlace(nn.Linear):
    def forward(self, x): return super().forward(x.mul_(2))
def in_place(): return {"module": InPlace(3, 2), "inputs": torch.ones(4, 3)}
class Counting(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("calls", torch.zeros(()).long())
    def forward(self, x):
        self.calls += 1
        return super().forward(x)
def counting(): return {"module": Counting(), "inputs": torch.ones(4, 3)}
class Remembering(nn.Linear):
    last = 0
    def forward(self, x):
        self.last = super().forward(x) + self.last
        return self.last
def remembering(): return {"module": Remembering(3, 2), "inputs": torch.ones(4, 3)}
class InSet(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.scales = {"all": {torch.ones(2)}}
    def forward(self, x): return super().forward(x) * next(iter(self.scales["all"]))
def in_set(): return {"module": InSet(), "inputs": torch.ones(4, 3)}
class Rolling(nn.Linear):
    def forward(self, x): return super().forward(x) * random.random()
def rolling(): return {"module": Rolling(3, 2), "inputs": torch.ones(4, 3)}
def absent(): open("/nowhere/weights.bin")
class Drawn(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.factor = random.SystemRandom().random()
    def forward(self, x): return super().forward(x) * self.factor
def drawn(): return {"module": Drawn(), "inputs": torch.ones(4, 3)}
three = 3
instance = nn.Linear(3, 2)
def same(): return {"module": instance, "inputs": torch.ones(4, 3)}
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("bad", "factory: expected module:callable, got 'bad'"),
        ("bad:", "factory: expected module:callable"),
        ("nowhere:f", "expected a module nowhere, found none; start torchpace in its folder"),
        ("broken:f", "expected a module broken, found SyntaxError"),
        ("needy:f", "expected a module needy, found ModuleNotFoundError: No module named 'nothing"),
        ("leaving:f", "expected a module leaving, found SystemExit"),
        ("bad:missing", "expected 'missing' in bad, found none"),
        ("bad:three", "expected a function without arguments that returns a module, found a int"),
        ("bad:instance", "expected a function without arguments .* found a Linear"),
        (
            "bad:raises",
            "found that it raised ValueError: no weights at bad.py:5: def raises",
        ),
        ("bad:takes", "found that it raised TypeError: .*missing 1 required"),
        (
            "bad:number",
            "expected it to return an nn.Module or a dictionary with 'module', found int",
        ),
        ("bad:no_module", "expected it to return an nn.Module .* found 'module' a NoneType"),
        ("bad:unknown", "expected a dictionary with keys of module, inputs, .* found 'lss'"),
        (
            "bad:named_inputs",
            r"expected 'inputs' a tensor \[B, ...\] or a tuple of such, found dict",
        ),
        ("bad:scalar_input", "expected 'inputs' a tensor .* found Tensor"),
        ("bad:rows", r"expected inputs and target of one batch, .* found \[3, 4\] rows"),
        (
            "bad:inputs",
            r"expected a module that takes \[4, 5\] float32, found that it raised Runtime",
        ),
        ("bad:none", "expected 'inputs' of the factory or --input"),
        ("bad:loss", "expected 'loss' a function of output and target, found int"),
        ("bad:untargeted", "expected a 'target' beside 'loss', found none"),
        ("bad:vector", "expected a loss.* that gives a scalar .* grad can be implicitly created"),
        ("bad:strange", "output.boxes.0: expected tensors in tuples, .* found a object"),
        ("bad:nothing", "expected a module that returns tensors, found a tuple"),
        ("bad:listed", "found a Linear in the plain attribute 'layers.a.0'; .* nn.ModuleList"),
        ("bad:lazy", "found the lazy 'weight'; call the module once"),
        ("bad:scripted", "found one of TorchScript; return the module itself, or compare a saved"),
        ("bad:compiled", "found one of torch.compile in '0'; return the module itself"),
        ("bad:compiled_in_place", "found one of torch.compile; return the module itself"),
        ("bad:in_place", r"changes its input 0 in place, .* clone it first \(x = x.clone\(\)\)"),
        ("bad:counting", "the model changes its buffer 'calls' in place"),
        ("bad:same", "expected a new module in each call, found the one of the call before"),
        ("bad:in_set", "found one in the set 'scales.all', which has no order"),
        ("bad:rolling", "found that random numbers moves output by"),
        ("bad:drawn", "found that what the factory draws anew for each module moves output by"),
        ("bad.py:drawn", "expected a module, found a file; start torchpace in its folder and name"),
        ("bad:absent", "it raised FileNotFoundError: .*'/nowhere/weights.bin' at bad.py:"),
        ("bad:remembering", "found that what the module keeps from one call to the next moves"),
    ],
)
def test_bad_factories_are_one_clear_line(exporter, tmp_path_factory, factory, message):
    folder = tmp_path_factory.getbasetemp() / "bad"
    folder.mkdir(exist_ok=True)
    (folder / "bad.py").write_text(BAD)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "needy.py").write_text("import nothing_such\n")
    (folder / "leaving.py").write_text("raise SystemExit(3)\n")
    settings = Settings(model="imported", factory=factory, path=folder, phase="inference")
    if factory in ("bad:untargeted", "bad:vector"):
        settings = settings.replace(phase="train")
    error = exporter.ask(settings.line())["error"]
    assert re.search(message, error) and "\n" not in error, error


ODD = """
import torch
from torch import nn
class Narrow(nn.Linear):
    def forward(self, x):
        return super().forward(x.float())
def narrow(): return Narrow(3, 3)
def zero():
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
    return module
def attention():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
def lstm():
    return nn.LSTM(8, 4, batch_first=True)
def dropping():
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return {"module": module, "inputs": torch.randn(2, 5, 8), "target": torch.zeros(2, 5, 8),
            "loss": nn.functional.mse_loss}
class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + (torch.randn_like(x) if self.training else 0)
def noisy():
    return dropping() | {"module": Noisy(8, 8)}
"""


@pytest.fixture(scope="session")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd.py").write_text(ODD)
    return Settings(model="imported", path=folder, phase="inference", input="2x3")


def test_without_a_float64_run_it_goes_on_and_says_so(exporter, worker, odd, tmp_path):
    found = exporter.ask(odd.replace(factory="odd:narrow").line())
    assert found["golden"] == "" and "RuntimeError: " in found["no_golden"]
    settings = odd.replace(factory="odd:narrow", state=found["state"], **found["set"])
    worker.ask("load " + settings.line())
    worker.ask(f"write {tmp_path / 'reference.pt'}")
    checked = worker.ask(f"check {tmp_path / 'reference.pt'}")
    assert checked["passed"] and "no float64 run" in checked["note"]


def test_an_output_that_nothing_changes_is_said(exporter, odd):
    for _ in range(2):
        found = exporter.ask(odd.replace(factory="odd:zero").line())
        assert "WARNING: the outputs depend on no weight" in found["note"]
    assert found["cached"]


def test_dropout_that_is_a_number_of_another_module_is_off_too(exporter, worker, odd, tmp_path):
    settings = odd.replace(factory="odd:dropping", phase="train", input=None)
    answer = exporter.ask(settings.line())
    settings = settings.replace(state=answer["state"], **answer["set"])
    module = load(settings).module
    assert sorted((name, value) for _, name, value in workload.dropouts(module)) == [
        *[("dropout", 0.2)],  # of the attention, not a module
        *[("p", 0.2)] * 3,
    ]
    with workload.without_dropout(module):
        assert not workload.dropouts(module) and module.self_attn.dropout == 0
    assert module.self_attn.dropout == 0.2
    assert "checked at dropout 0" in worker.ask("load " + settings.line())["note"]
    reference, golden = (
        encode(str(path)) for path in (tmp_path / "reference.pt", answer["golden"])
    )
    worker.ask(f"write {reference}")
    assert worker.ask(f"check {reference} {golden}")["passed"]


def test_training_that_draws_numbers_cannot_be_compared(exporter, odd):
    settings = odd.replace(factory="odd:noisy", input=None)
    error = exporter.ask(settings.replace(phase="train").line())["error"]
    assert "expected the same output from the same weights" in error and "in training" in error
    assert "state" in exporter.ask(settings.line())  # in eval mode it draws none


def test_a_costly_model_gets_fewer_shadows_and_says_why(exporter, odd):
    for phase, flops, count in (
        ("train", 2e10, 4),
        ("train", 4e10, 2),
        ("train", 1e13, 2),
        ("inference", 1e11, 4),
        ("inference", 2e11, 2),
    ):
        measured = {"flops": flops, "training_flops": flops}
        found, reason = golden.shadow_count(Settings(phase=phase), measured, batches=2)
        assert (found, bool(reason)) == (count, count < 4)
    assert golden.shadow_count(Settings(phase="train"), {}, 8) == (
        4,
        "",
    )  # torchpace's own models
    answer = exporter.ask(odd.replace(factory="odd:attention", input="2x5x8").line())
    manifest = json.loads((Path(answer["state"]).parent / "manifest.json").read_text())
    assert manifest["shadows"] == {"count": 4, "reason": ""}


@pytest.mark.parametrize(
    ("factory", "flops"),
    [  # of 2 x 5 tokens
        ("attention", 10 * (2 * 8 * 24 + 2 * 8 * 8 + 2 * 2 * 8 * 16) + 2 * 2 * (2 * 5 * 5 * 8)),
        ("lstm", 10 * 2 * (8 * 16 + 4 * 16)),
    ],
)
def test_fused_kernels_are_counted_too(exporter, odd, factory, flops):
    found = exporter.ask(odd.replace(factory=f"odd:{factory}", input="2x5x8").line())
    assert found["set"]["flops"] == flops


def test_without_a_loss_it_is_not_trained(exporter, good):
    settings = Settings(model="imported", factory="good:bare", path=good, input="2x3x8x8")
    found = exporter.ask(settings.replace(phase="train").line())
    assert "factory good:bare gives no loss, so it cannot be trained" in found["skipped"]
    assert "state" in exporter.ask(settings.replace(phase="inference").line())


def test_a_folder_that_is_not_there(exporter):
    settings = Settings(model="imported", factory="x:f", path="/nowhere", phase="inference")
    assert "path: expected a folder, found none" in exporter.ask(settings.line())["error"]


def test_inputs_are_parsed():
    assert imported.parse_inputs("1x3x4;1:int64") == [
        ([1, 3, 4], torch.float32),
        ([1], torch.int64),
    ]
    for wrong in ("", "x3", "0x3", "2x3:float31", "2,3", "2x3;", "2x3;3x3"):
        with pytest.raises(SettingsError, match="settings: input: expected"):
            imported.parse_inputs(wrong)


@dataclass
class Answer:
    logits: torch.Tensor
    nothing: None = None


def test_all_tensors_of_any_nesting_have_a_name():
    y, n = torch.zeros(2), torch.zeros(2).long()
    for result, names in (
        (y, ["output"]),
        ((n, [y]), ["output.0", "output.1.0"]),
        ({"n": n, "a": None, "b": (y, {"c": y})}, ["output.n", "output.b.0", "output.b.1.c"]),
        (Answer(y), ["output.logits"]),
        ((3, "x", y), ["output.2"]),
        (torch.nn.utils.rnn.PackedSequence(y, n), ["output.0", "output.1"]),
    ):
        assert outputs.names_of(result) == names
        assert list(outputs.by_name(result, names)) == names
        assert list(outputs.by_name(result, ["a", "b", "c", "d"]))[0] in ("output", "output.0")
    with pytest.raises(InputError, match=r"output.1: expected tensors in .* found a object"):
        outputs.flat((y, object()))
    sparse = torch.eye(2).to_sparse()
    assert torch.equal(outputs.plain(sparse), torch.eye(2))


def test_a_worker_says_it_too(good):
    process = Process("torchpace.worker", "--runtime", "py-eager", greets=True)
    line = Settings(model="imported", factory="good:gone", path=good, phase="latency").line()
    assert "expected 'gone' in good, found none" in process.ask("load " + line)["error"]
    assert process.close() == 0
