"""A compiled training step against eager torch: its arithmetic traced only, and two packages."""

from __future__ import annotations

import copy
import math
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchpace.aot.compiled_training import CompiledTraining
from torchpace.aot.export_training import export_training
from torchpace.aot.training_package import Recipe, TrainingPackage
from torchpace.aot.training_step import TrainingStep
from torchpace.errors import InputError
from torchpace.io import tensor_file


class Small(nn.Module):
    """A tied weight, one that gets no gradient, one that wants none; sizes that leave gaps."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.last = nn.Linear(7, 5, bias=False)
        self.last.weight = nn.Parameter(self.last.weight.detach().clone())
        self.tied = self.first
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.full((7,), 0.5), requires_grad=False)

    def forward(self, x):
        return self.last(torch.tanh(self.tied(x)) * self.frozen)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        # A bias before BatchNorm has gradient 0 but for rounding, which Adam turns into steps.
        self.convolution = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.convolution(x))).mean((2, 3)))


class Words(nn.Module):
    """What repeats only with deterministic algorithms, and random numbers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 24)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(24, 11)

    def forward(self, x):
        return self.head(self.dropout(self.embedding(x))).flatten(0, 1)


class Repeated(nn.Module):
    """Layers that are the same, and tensors that are neither parameters nor buffers."""

    def __init__(self, layers: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(layers))
        )
        self.scale = torch.linspace(0.5, 1.5, 16)

    def forward(self, x):
        return self.layers(x) * self.scale + torch.tensor([1.0, 2.0]).sum()


def eager_optimizer(recipe: Recipe, module: nn.Module) -> torch.optim.Optimizer:
    adam = {"betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}
    given = {"lr": 0.0, "weight_decay": recipe.weight_decay}
    if recipe.kind == "sgd":
        return torch.optim.SGD(module.parameters(), momentum=recipe.momentum, **given)
    kind = torch.optim.AdamW if recipe.kind == "adamw" else torch.optim.Adam
    return kind(module.parameters(), **adam, **given)


def eager_losses(
    module: nn.Module, recipe: Recipe, batches, rate, autocast: bool = False
) -> list[float]:
    optimizer, losses = eager_optimizer(recipe, module), []
    for i, (x, y) in enumerate(batches):
        # entered at each step: its cache would keep the weights of the first one
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(module.train()(x), y)
        losses.append(loss.item())
        (loss / recipe.accumulate).backward()
        if (i + 1) % recipe.accumulate:
            continue
        if recipe.clip_norm < math.inf:
            nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
        optimizer.param_groups[0]["lr"] = rate(i)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def rate(step: int) -> float:
    return 1e-2 * (1 + math.cos(step / 10)) / 2


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("adam"),
        Recipe("adam", eps=1e-3, weight_decay=0.1, clip_norm=0.3),
        Recipe("adamw", weight_decay=0.1),
        Recipe("sgd"),
        Recipe("sgd", weight_decay=0.1, clip_norm=0.3),
        Recipe("adamw", weight_decay=0.1, clip_norm=0.3, accumulate=3),
        Recipe("sgd", accumulate=2),
    ],
    ids=Recipe.line,
)
def test_the_step_is_that_of_eager_torch(recipe):
    torch.manual_seed(0)
    module = Small()
    batches = [(torch.randn(4, 5), torch.randint(5, (4,))) for _ in range(102)]
    step = TrainingStep(module, F.cross_entropy, (batches[0][0],), batches[0][1], recipe, "none")
    state = {name: tensor.clone() for name, tensor in step.initial.items()}
    losses = []
    for i, (x, y) in enumerate(batches):
        r = torch.tensor(rate(i))
        losses.append(step(*state.values(), r, x, y).item())

    assert losses == pytest.approx(eager_losses(module, recipe, batches, rate), rel=1e-5)
    own = {v.name: v.of(state["parameters"]) for v in step.layout.parameters}
    assert set(own) == {"first.weight", "first.bias", "last.weight", "tied.weight", "tied.bias"}
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, module.get_parameter(name), rtol=1e-4, atol=1e-6)
    assert int(state["steps"]) == len(batches) // recipe.accumulate
    gaps = torch.ones(step.elements, dtype=torch.bool)
    for view in step.layout.parameters:
        view.of(gaps).fill_(False)
    assert gaps.any() and not state["parameters"][gaps].any()


def test_first_gradients_do_not_change_with_the_moment():
    moment = torch.tensor([1.0, 2.0])
    gradient = Recipe("sgd").first_gradient(moment)
    moment.zero_()
    assert gradient.tolist() == [1.0, 2.0]


class OddlyNamed(nn.ModuleDict):
    def forward(self, x):
        return self["ä layer%"](x)


def test_contents_survive_the_metadata():
    module = OddlyNamed({"ä layer%": nn.Linear(3, 2)})
    step = TrainingStep(
        module, F.mse_loss, (torch.ones(4, 3),), torch.ones(4, 2), Recipe("sgd"), "none"
    )
    contents = step.contents(deterministic=True, gemm="torch")
    metadata = contents.metadata() | {"torchpace.device": "cpu"}
    assert TrainingPackage.parse(Path("x.pt2"), metadata) == contents
    del metadata["torchpace.state"]
    with pytest.raises(InputError, match=r"x\.pt2: expected the metadata of a training package"):
        TrainingPackage.parse(Path("x.pt2"), metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": lambda y, t: y}, "loss: expected a floating-point scalar"),
        ({"loss": lambda y, t: y.detach().sum()}, "without a gradient"),
        ({"optimizer": "lion"}, "kind: expected adam or adamw or sgd, got lion"),
        ({"accumulate": 0}, "accumulate: expected 1 or more"),
        ({"clip_norm": -1.0}, "clip_norm: expected above 0"),
        ({"autocast": "float16"}, "autocast: expected one of none, bfloat16"),
        ({"path": "x.pt"}, "expected a file"),
        ({"path": "/nowhere/x.pt2"}, "expected a folder"),
        ({"module": nn.ReLU()}, "expected parameters to train, found none"),
        ({"module": nn.Linear(3, 2).requires_grad_(False)}, "none that requires a gradient"),
    ],
)
def test_refuses_what_it_cannot_export(change, message, tmp_path):
    arguments = {
        "module": nn.Linear(3, 2),
        "loss": F.mse_loss,
        "inputs": torch.ones(4, 3),
        "target": torch.ones(4, 2),
        "path": tmp_path / "x.pt2",
        "compile_timeout": None,
    } | change
    with pytest.raises(InputError, match=message) as caught:
        export_training(**arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_compile_timeout_ends_the_compiler(tmp_path):
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
    with pytest.raises(InputError, match="within 0.1 s"):
        export_training(
            module,
            F.mse_loss,
            torch.ones(2, 4),
            torch.ones(2, 4),
            path=tmp_path / "x.pt2",
            compile_timeout=0.1,
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    """The package, its module and its batches."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = Convolutions()
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(5, (4,))) for _ in range(100)]
    path = tmp_path_factory.mktemp("convolutions") / "step.pt2"
    export_training(
        module,
        F.cross_entropy,
        *batches[0],
        path=path,
        optimizer="adamw",
        weight_decay=0.1,
        clip_norm=0.5,
    )
    return path, module, batches


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    batches = [(torch.randint(11, (4, 6)), torch.randint(11, (24,))) for _ in range(20)]
    path = tmp_path_factory.mktemp("words") / "step.pt2"
    export_training(Words(), F.cross_entropy, *batches[0], path=path, deterministic=True)
    return path, batches


def test_a_package_trains_like_eager_torch(convolutions, tmp_path):
    path, module, batches = convolutions
    with zipfile.ZipFile(path) as package:
        code = next(package.read(n) for n in package.namelist() if n.endswith(".wrapper.cpp"))
    assert b"(aoti_torch_cpu_torchpace_mm_out(" in code
    assert b"(aoti_torch_cpu_torchpace_addmm_out(" in code
    training = CompiledTraining(path)
    losses = [training.step(x, y, rate(i)).item() for i, (x, y) in enumerate(batches)]
    recipe = Recipe("adamw", weight_decay=0.1, clip_norm=0.5)
    eager = Convolutions()
    eager.load_state_dict(module.state_dict())
    assert losses == pytest.approx(eager_losses(eager, recipe, batches, rate), rel=1e-4)

    training.save(tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    expected = eager.state_dict()
    assert saved.keys() == expected.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    assert int(saved["norm.num_batches_tracked"]) == len(batches)

    # into a module without a copy, and back out of a file
    shared = Convolutions()
    training.share_with(shared)
    training.step(*batches[0], 0.1)
    assert shared.head.weight.data_ptr() == training.parameters()["head.weight"].data_ptr()
    assert not torch.equal(shared.head.weight, saved["head.weight"])
    training.load(tmp_path / "model.pt")
    assert torch.equal(shared.head.weight, saved["head.weight"])
    training.restart()
    assert [training.step(*batches[i], rate(i)).item() for i in range(3)] == losses[:3]


def test_identical_layers_are_compiled_once_and_write_into_the_gradient(tmp_path):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers, module = 24, Repeated(24)
    batches = [(torch.randn(8, 16), torch.randint(16, (8,))) for _ in range(5)]
    path = tmp_path / "step.pt2"
    export_training(module, F.cross_entropy, *batches[0], path=path)
    with zipfile.ZipFile(path) as package:
        host, kernels = (
            next(package.read(n) for n in package.namelist() if n.endswith(f".{kind}.cpp")).decode()
            for kind in ("wrapper", "kernel")
        )
    assert 0 < kernels.count('extern "C"') < layers / 2
    views = set(re.findall(r"auto (buf\d+) = \w+\(reinterpret_tensor_wrapper\(", host))
    products = re.findall(r"aoti_torch_cpu_torchpace_mm_out\((buf\d+),", host)
    assert sum(out in views for out in products) == layers

    training = CompiledTraining(path)
    losses = [training.step(x, y, rate(i)).item() for i, (x, y) in enumerate(batches)]
    assert losses == pytest.approx(eager_losses(module, Recipe("adam"), batches, rate), rel=1e-5)


def test_autocast_is_that_of_eager_torch(tmp_path):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 5))
    batches = [(torch.randn(8, 16), torch.randint(5, (8,))) for _ in range(10)]
    path = tmp_path / "step.pt2"
    export_training(module, F.cross_entropy, *batches[0], path=path, autocast="bfloat16")
    training = CompiledTraining(path)
    own = [training.step(x, y, rate(i)).item() for i, (x, y) in enumerate(batches)]
    rounded, exact = (
        eager_losses(copy.deepcopy(module), Recipe("adam"), batches, rate, autocast)
        for autocast in (True, False)
    )

    def farthest(a, b):
        return max(abs(x - y) for x, y in zip(a, b, strict=True))

    # Rounding to bfloat16 moves the losses; the compiler rounds in fewer places than eager torch.
    rounding = farthest(rounded, exact)
    assert farthest(own, rounded) < 2 * rounding
    assert farthest(own, exact) > rounding / 4


def test_strange_tensors_are_copied_and_wrong_ones_refused(convolutions):
    path, _, batches = convolutions
    (x, y), training = batches[0], CompiledTraining(path)
    expected = training.step(x, y, 0.0)
    odd = torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape)
    assert odd.data_ptr() % 16
    training.restart()
    assert torch.equal(training.step(odd, y, 0.0), expected)
    training.restart()
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(training.step(channels_last, y, 0.0), expected)

    before = {name: tensor.clone() for name, tensor in training.state.items()}
    for arguments, message in (
        ((x[:3], y, 0.1), r"input 0: expected 4x3x8x8:float32 on cpu, got 3x3x8x8:float32"),
        ((x.double(), y, 0.1), "got 4x3x8x8:float64"),
        ((x, y.int(), 0.1), "target: expected 4:int64 on cpu, got 4:int32"),
        ((x.to("meta"), y, 0.1), "on meta"),
        (((x, x), y, 0.1), "expected 1 inputs, got 2"),
        ((x, y, math.nan), "lr: expected a finite number of 0 or more, got nan"),
        ((x, y, math.inf), "got inf"),
        ((x, y, -0.1), "got -0.1"),
    ):
        with pytest.raises(InputError, match=message):
            training.step(*arguments)
    assert all(torch.equal(before[name], tensor) for name, tensor in training.state.items())


def test_refuses_another_device(convolutions):
    with pytest.raises(InputError, match="expected one for cuda, found one for cpu"):
        CompiledTraining(convolutions[0], "cuda")


def test_ten_steps_and_ten_are_twenty(words, tmp_path):
    path, batches = words
    torch.manual_seed(3)
    whole = CompiledTraining(path)
    expected = [whole.step(*batch, 1e-2) for batch in batches]

    torch.manual_seed(3)
    first = CompiledTraining(path)
    losses = [first.step(*batch, 1e-2) for batch in batches[:10]]
    first.save_checkpoint(tmp_path / "run.pt", position=10)
    torch.manual_seed(99)
    second = CompiledTraining(path)
    position = second.resume(tmp_path / "run.pt")
    assert position == 10
    losses += [second.step(*batch, 1e-2) for batch in batches[position:]]

    assert torch.equal(torch.stack(losses), torch.stack(expected))
    assert all(torch.equal(second.state[n], t) for n, t in whole.state.items())
    assert not torch.are_deterministic_algorithms_enabled()
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_dropout_draws_from_the_generator(words):
    path, batches = words
    training, losses = CompiledTraining(path), []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        training.restart()
        losses.append(training.step(*batches[0], 0.0).item())
    assert losses[0] == losses[2] != losses[1]


def test_foreign_checkpoints_are_refused(words, convolutions, tmp_path):
    run = tmp_path / "run.pt"
    CompiledTraining(convolutions[0]).save_checkpoint(run)
    training = CompiledTraining(words[0])
    before = {name: tensor.clone() for name, tensor in training.state.items()}
    with pytest.raises(InputError, match="expected one of accumulate=1 .* kind=adam "):
        training.resume(run)
    content = tensor_file.read_tensors(run, "checkpoint")
    content["optimizer"] = torch.tensor(list(training.recipe.line().encode()), dtype=torch.uint8)
    tensor_file.write_tensors(run, content)
    with pytest.raises(InputError, match=r"lacks .* \(\d+ such\)"):
        training.resume(run)
    run.write_bytes(run.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot read"):
        training.resume(run)
    with pytest.raises(InputError, match="cannot write"):
        training.save("/nowhere/model.pt")
    assert all(torch.equal(before[name], tensor) for name, tensor in training.state.items())


def test_the_first_gradients_come_from_the_moments(words):
    path, batches = words
    training = CompiledTraining(path)
    torch.manual_seed(0)
    with pytest.raises(InputError, match="expected one update, found 0"):
        training.first_gradients()
    training.step(*batches[0], 1e-2)
    found = training.first_gradients()
    assert found.keys() == training.parameters().keys()
    direction = found["head.weight"] / (found["head.weight"].abs() + 1e-8)
    training2 = CompiledTraining(path)
    moved = training2.parameters()["head.weight"] - training.parameters()["head.weight"]
    torch.testing.assert_close(moved / 1e-2, direction, rtol=1e-4, atol=1e-4)


def test_nothing_is_left_in_the_temporary_folder(words, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    copy = shutil.copy(words[0], tmp_path / "step.pt2")
    training = CompiledTraining(copy)
    maps = Path("/proc/self/maps").read_text()
    loaded = re.findall(r"(/\S+)/[^/\s]+/data/aotinductor/model/\S+\.so", maps)
    assert training and loaded and not any(Path(folder).exists() for folder in loaded)
    assert [p.name for p in tmp_path.iterdir()] == ["step.pt2"]
