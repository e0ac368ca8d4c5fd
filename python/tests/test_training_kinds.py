"""Which modules a compiled step trains as eager torch does, and which it refuses in one line.

By the traced program, which eager kernels run; compiled ones are in test_training_export.py.
"""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from torchpace.aot import training_check
from torchpace.aot.export_training import export_training
from torchpace.aot.random_draws import Philox
from torchpace.aot.training_check import Expected, calls_of
from torchpace.aot.training_package import Recipe
from torchpace.aot.training_step import TrainingStep, kept_random_state
from torchpace.errors import InputError


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool, dropout: float = 0.0):
        super().__init__()
        self.reentrant = reentrant
        self.first, self.head = nn.Linear(16, 8), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(dropout)) for _ in range(2)
        )

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


class WithoutInputGradient(nn.Module):
    """Under reentrant checkpointing the first layer gets no gradient: its input wants none."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(checkpoint(self.first, x, use_reentrant=True))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options):
        super().__init__()
        self.layer = kind(16, 8, batch_first=True, **options)
        self.head = nn.Linear(8 * (1 + self.layer.bidirectional), 5)

    def forward(self, x):
        return self.head(self.layer(x.view(len(x), 2, 16)[:, [0, 1, 0]])[0][:, -1])


class Normalized(nn.Module):
    """A bias before BatchNorm has gradient 0 but for rounding, which Adam turns into steps."""

    def __init__(self, **options):
        super().__init__()
        self.first, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16, **options)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.first(x))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (nn.Linear(16, n) for n in (16, 16, 5))
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(x))))


class Replacing(nn.Module):
    """A buffer that each step replaces, and one that it changes in place."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 5)
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x):
        y = self.head(x)
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        self.steps += 1
        return y - self.mean / self.steps


class Noisy(nn.Module):
    """Every way to draw that a step may have."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(16, 16), nn.Linear(16, 5)
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.2, batch_first=True)

    def forward(self, x):
        x = self.first(x) + 0.1 * torch.randn_like(x) * torch.rand(16)
        x = F.dropout1d(F.alpha_dropout(x, 0.2, True)[:, :, None], 0.2)[:, :, 0]
        x = x + torch.bernoulli(x.detach().sigmoid()) + torch.empty_like(x).uniform_(-0.1, 0.1)
        x = x + torch.empty_like(x).normal_(0, 0.1) + 0.1 * torch.randint(3, (16,))
        x = self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]
        return F.gumbel_softmax(self.head(x[torch.randperm(len(x))]))


class Held(nn.Module):
    """Its own reference to a weight, in a list or by memory alone."""

    def __init__(self, by_memory: bool):
        super().__init__()
        self.first, self.head = nn.Linear(16, 16), nn.Linear(16, 5)
        self.held = [self.first.weight.data if by_memory else self.first.weight]

    def forward(self, x):
        return self.head(torch.tanh(self.first(x) @ self.held[0]))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Linear(16, 5), 0

    def forward(self, x):
        self.calls += 1
        return self.head(x) * self.calls


class FromPython(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(x) * random.random()


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(x.mul_(0.5))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(x) if x.sum() > 0 else self.head(-x)


class InList(nn.Module):
    def __init__(self, what: str):
        super().__init__()
        self.head = nn.Linear(16, 5)
        self.layers = [nn.Linear(16, 16)] if what == "layers" else []
        self.weights = {"a": [nn.Parameter(torch.ones(16))]} if what == "weights" else {}

    def forward(self, x):
        return self.head(x)


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, dtype=torch.cfloat))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=16))


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 16, sparse=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.words(x.abs().long()[:, 0]))


def normalizations() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(16, 16)),
        nn.Tanh(),
        parametrizations.weight_norm(nn.Linear(16, 16)),
        nn.Tanh(),
        nn.utils.weight_norm(nn.Linear(16, 16)),
        nn.Tanh(),
        nn.utils.spectral_norm(nn.Linear(16, 5)),
    )


def frozen() -> nn.Module:
    """A BatchNorm in eval mode within a module in train mode, and a layer that is not trained."""
    module = Normalized()
    module.norm.eval()
    module.first.requires_grad_(False)
    return module


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    monkeypatch.setattr(training_check, "SHADOWS", 2)


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 16, dtype=dtype), torch.randint(5, (8,))


def two_steps(x: torch.Tensor) -> torch.Tensor:
    return x.repeat(1, 2)


def step_of(module: nn.Module, recipe: Recipe, loss=F.cross_entropy, **more) -> TrainingStep:
    x, y = batch(next(module.parameters()).dtype)
    if isinstance(module, Recurrent):
        x = two_steps(x)
    return TrainingStep(module, loss, (x,), y, recipe, more.get("autocast", "none"))


def traced_values(step: TrainingStep) -> training_check.Values:
    """What the package's program makes of its batch, as package_values has it."""
    program, recipe = step.trace(), step.recipe
    state = {name: x.clone() for name, x in step.initial.items()}
    rate, seeds = torch.tensor(training_check.rate_of(recipe)), torch.Generator().manual_seed(0)
    losses = []
    with kept_random_state(step.device), torch.no_grad():
        for _ in range(calls_of(recipe)):
            with Philox(step.draws, seeds) if step.draws else contextlib.nullcontext():
                losses.append(program(*state.values(), rate, *step.inputs, step.target)[0])
    parameters = {v.name: v.of(state["parameters"]) for v in step.layout.parameters}
    parameters |= {n[10:]: x for n, x in state.items() if n.startswith("parameter.")}
    buffers = {
        n.split(".", 1)[1]: x for n, x in state.items() if n.startswith(("buffer.", "transient."))
    }
    return training_check._values(recipe, losses, parameters, buffers)


def test_draws_are_those_of_the_compiled_programs():
    """Of seed -5 with Triton 3.6's interpreter; of the CPU's code by test_training_export.py."""
    draws = Philox(1, torch.Generator())
    draws.seeds, draws.cuda = [-5], True
    uniform, normal = (f(torch.Size([3]), "cpu") for f in (draws.uniform, draws.normal))
    expected = [0.4349519908428192, 0.824209988117218, 0.7069108486175537]
    assert uniform.tolist() == expected
    torch.testing.assert_close(normal[:2], torch.tensor([-0.00349446, 0.5034444]))


KINDS = {
    "checkpointed": lambda: Checkpointed(False),
    "reentrant": lambda: Checkpointed(True),
    "checkpointed dropout": lambda: Checkpointed(False, 0.3),
    "reentrant dropout": lambda: Checkpointed(True, 0.3),
    "no gradient": WithoutInputGradient,
    "lstm": lambda: Recurrent(nn.LSTM),
    "lstm of layers": lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.2),
    "lstm both ways": lambda: Recurrent(nn.LSTM, bidirectional=True),
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "norms of weights": normalizations,
    "tied": Tied,
    "batch norm": Normalized,
    "batch norm, eval": lambda: Normalized().eval(),
    "batch norm, frozen": frozen,
    "batch norm of the batch": lambda: Normalized(track_running_stats=False),
    "batch norm, momentum=None, eval": lambda: Normalized(momentum=None).eval(),
    "buffers": Replacing,
    "noise": Noisy,
    "float64": lambda: Checkpointed(False).double(),
    "bfloat16": lambda: Checkpointed(False).bfloat16(),
}
ADAM, SGD = Recipe("adamw", weight_decay=0.1), Recipe("sgd", clip_norm=0.5, accumulate=2)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_as_eager_torch_does(kind):
    torch.manual_seed(0)
    module = KINDS[kind]()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    # Every other kind with the other optimizer: Adam alone would not see a wrong scale.
    step = step_of(module, ADAM if list(KINDS).index(kind) % 2 else SGD)
    random_state = torch.get_rng_state()
    found = traced_values(step)
    said = Expected(step).judge(found)
    assert said.startswith("3 steps; losses, parameters, buffers; worst ")
    assert "float64 run" in said and "no float64 run" not in said
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [part.training for part in module.modules()] == modes
    for name, x in module.state_dict().items():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0)


def test_class_weights_of_a_loss_follow_the_module():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 1.0, 0.5]))
    step = step_of(nn.Linear(16, 5).double(), ADAM, loss)
    found = traced_values(step)
    assert "no float64 run" not in Expected(step).judge(found)
    assert loss.weight.dtype is torch.float32

    # Those that a function holds cannot, so there is no float64 run, and that is said.
    step = step_of(nn.Linear(16, 5), ADAM, lambda y, t: F.cross_entropy(y, t, loss.weight))
    found = traced_values(step)
    said = Expected(step).judge(found)
    assert "bound: sqrt(eps), no float64 run: expected scalar type Double but found Float" in said


@pytest.mark.parametrize("recipe", [Recipe("adam"), Recipe("sgd")], ids=["adam", "sgd"])
def test_a_wrong_second_step_is_seen(recipe, monkeypatch):
    """The weights of the first step in the recomputation, as functional_call would have left it."""

    def functional_call(self, *arguments):
        state = dict(zip((t.name for t in self.layout.state), arguments, strict=False))
        rate, *inputs, target = arguments[len(state) :]
        leaves = {v.name: v.of(state["parameters"]).detach().requires_grad_() for v in self.trained}
        with torch.enable_grad():
            loss = self.loss(torch.func.functional_call(self.module, leaves, tuple(inputs)), target)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
        self._update(state, rate, self._join(gradients))
        return loss.detach()

    torch.manual_seed(0)
    monkeypatch.setattr(TrainingStep, "__call__", functional_call)
    step = step_of(Checkpointed(False), recipe)
    found = traced_values(step)
    with pytest.raises(InputError, match="trains differently from eager torch: parameter"):
        Expected(step).judge(found)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: Held(by_memory=False), r"own reference to a parameter: held\[0\] -> first.weight"),
        (lambda: Held(by_memory=True), r"own reference to a parameter: held\[0\] -> first.weight"),
        (Counting, "differently from eager torch: loss of step [23] by .*, allowed"),
    ],
    ids=["reference", "memory", "counter"],
)
def test_what_changes_outside_of_the_state_is_seen(module, message):
    torch.manual_seed(0)
    step = step_of(module(), Recipe("adam"))
    found = traced_values(step)
    with pytest.raises(InputError, match=message) as caught:
        Expected(step).judge(found)
    assert "\n" not in str(caught.value)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(5))


def of_one_memory() -> nn.Module:
    module = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5))
    module[1].weight = nn.Parameter(module[0].weight.t())
    return module


def with_a_hook() -> nn.Module:
    module = nn.Linear(16, 5)
    module.weight.register_hook(lambda gradient: 2 * gradient)
    return module


def compiled_inside() -> nn.Module:
    module = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 5))
    module[0].compile()
    return module


def uncopyable() -> nn.Module:
    module = nn.Linear(16, 5)
    module.generator = (i for i in range(3))
    return module


def quantized() -> nn.Module:
    module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 5)))
    return nn.Sequential(module, nn.Linear(5, 5))


REFUSED = {
    "complex": (Spectral, "float32, float64 or bfloat16, found weight of complex64"),
    "sparse": (Sparse, "a sparse one of words.weight; .* sparse=False"),
    "lazy": (lazy, "found 0.weight of a lazy module; run it once on a batch first"),
    "one memory": (of_one_memory, "found 0.weight and 1.weight in the same"),
    "float16": (lambda: nn.Linear(16, 5).half(), r"weight of float16; take module.float\(\)"),
    "dtypes": (
        lambda: nn.Sequential(nn.Linear(16, 5), nn.Linear(5, 5).bfloat16()),
        "one dtype, found bfloat16, float32",
    ),
    "in place": (InPlace, r"changes its input 0 in place, .* clone it first \(x = x.clone\(\)\)"),
    "parallel": (lambda: nn.DataParallel(nn.Linear(16, 5)), "found DataParallel; pass its .module"),
    "compiled": (lambda: torch.compile(nn.Linear(16, 5)), "torch.compile made; .* _orig_mod"),
    "compile()": (compiled_inside, r"compiled by .compile\(\) \(0\); pass one on which"),
    "scripted": (lambda: torch.jit.script(nn.Linear(16, 5)), "found TorchScript; pass the Python"),
    "quantized": (quantized, r"found a quantized Linear \(0.0\); pass the module before"),
    "layers in a list": (lambda: InList("layers"), r"found layers\[0\].weight in a plain"),
    "weights in a list": (lambda: InList("weights"), r"found weights\['a'\]\[0\] in a plain"),
    "momentum=None": (lambda: Normalized(momentum=None), r"BatchNorm1d with momentum=None \(norm"),
    "hook": (with_a_hook, "expected parameters without hooks, found some on weight"),
    "Python's random": (FromPython, "draws random numbers by Python's random"),
    "branch": (Branching, r"that torch can trace: .* at test_training_kinds.py:\d+: return"),
    "nothing trained": (lambda: nn.Linear(16, 5).requires_grad_(False), "none that requires"),
    "meta": (lambda: nn.Linear(16, 5, device="meta"), "on one device, found|with values, found"),
    "uncopyable": (uncopyable, "that copy.deepcopy copies, .* cannot pickle 'generator'"),
    "wrong shape": (lambda: nn.Linear(3, 5), "that eager torch trains: mat1 and mat2 shapes"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_refuses_in_one_line(kind, tmp_path):
    make, message = REFUSED[kind]
    module = make()
    x, y = batch(torch.float16 if kind == "float16" else torch.float32)
    with pytest.raises(InputError, match=message) as caught:
        export_training(
            module, F.cross_entropy, x, y, path=tmp_path / "x.pt2", compile_timeout=None
        )
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda y, t: y,
            "loss: expected a floating-point scalar to differentiate, found 8x5:float",
        ),
        (lambda y, t: (F.cross_entropy(y, t), y), "found tuple"),
        (lambda y, t: F.cross_entropy(y, t) * float("nan"), "the loss of step 1 on the .* is nan"),
        (nn.Linear(5, 5), "loss: expected no parameters to train, found weight"),
    ],
    ids=["vector", "tuple", "nan", "parameters"],
)
def test_refuses_losses_in_one_line(loss, message):
    with pytest.raises(InputError, match=message) as caught:
        step = step_of(nn.Linear(16, 5), Recipe("adam"), loss)
        step.trace()
        Expected(step)
    assert "\n" not in str(caught.value)


def test_a_module_in_eval_mode_is_said_to_be(tmp_path, capsys):
    for module, said in ((Normalized().eval(), True), (frozen(), False)):
        with pytest.raises(InputError, match="loss: expected a floating-point scalar"):
            export_training(
                module, lambda y, t: y, *batch(), path=tmp_path / "x.pt2", compile_timeout=None
            )
        assert ("is in eval mode, as given: it trains without" in capsys.readouterr().err) == said
