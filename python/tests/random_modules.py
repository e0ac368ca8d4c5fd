"""Small random modules as source files, each drawn from a seed: what people write, and traps.

`source(seed)` is a whole file with `class Net` and its factory `make`. What is drawn: layers,
dtypes, output structures, buffers and plain attributes, in-place operations. Three in ten have a
trap: a thing that a check may miss. Dimensions: B batch, C features; between blocks h is [B, C].
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEAD = '''"""Drawn from seed {seed}: {what}."""

import dataclasses
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRAP = "{trap}"
INPUT = "{input}"


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclasses.dataclass
class Record:
    logits: Tensor
    hidden: Optional[Tensor] = None
    extra: Optional[Tensor] = None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
{init}

    def forward(self, {parameters}):
{body}


def tensors(output):
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output):
        output = vars(output)
    if isinstance(output, dict):
        output = list(output.values())
    parts = output if isinstance(output, (tuple, list)) else []
    return [x for part in parts for x in tensors(part)]


def loss(output, target):
    found = [x for x in tensors(output) if x.requires_grad]
    found = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in found]
    return sum(x.square().mean() for x in found) + target.sum() * 0


def make():
    made = {{"module": Net()}}
{made}
    return made
'''


class Draw:
    """A module in the making."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.seed, self.count, self.trap = seed, 0, ""
        self.init: list[str] = []
        self.body: list[str] = []
        self.made: list[str] = []
        self.what: list[str] = []
        self.batch = self.random.choice([1, 2, 3, 5, 8])
        self.width = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def layer(self, code: str, stem: str = "layer") -> str:
        """The name of a new attribute of the module, `self.layer3`."""
        name = f"self.{self.name(stem)}"
        self.init.append(f"{name} = {code}")
        return name

    def add(self, *lines: str) -> None:
        self.body += lines

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability


# Where h comes from: each gives the input's shapes and dtypes, and sets h and width.
def from_floats(d: Draw) -> tuple[str, str]:
    d.width = d.random.choice([3, 4, 7, 16])
    d.add("h = x * 1.0")
    return "x", f"{d.batch}x{d.width}:float32"


def from_two(d: Draw) -> tuple[str, str]:
    a, b = d.random.choice([3, 5, 8]), d.random.choice([2, 6])
    d.width = a + b
    d.add("h = torch.cat([x, y], 1)")
    return "x, y", f"{d.batch}x{a}:float32;{d.batch}x{b}:float32"


def from_tokens(d: Draw) -> tuple[str, str]:
    length, d.width = d.random.choice([1, 4, 9]), d.random.choice([4, 8])
    table = d.layer(f"nn.Embedding(11, {d.width}{d.random.choice(['', ', padding_idx=0'])})")
    way = d.random.choice(["mean(1)", "sum(1)", "max(1).values", "[:, -1]"])
    d.add(f"h = {table}(x){'' if way.startswith('[') else '.'}{way}")
    return "x", f"{d.batch}x{length}:{d.random.choice(['int64', 'int64', 'int32'])}"


def from_image(d: Draw) -> tuple[str, str]:
    channels, d.width = d.random.choice([1, 3]), d.random.choice([4, 6])
    ways = ("padding=1", "padding='same'", "stride=2", "padding=1, padding_mode='reflect'")
    convolution = d.layer(f"nn.Conv2d({channels}, {d.width}, 3, {d.random.choice(ways)})")
    norm = d.random.choice(["nn.BatchNorm2d({})", "nn.InstanceNorm2d({})", "nn.GroupNorm(2, {})"])
    normal = d.layer(norm.format(d.width))
    pool = d.random.choice(
        ["mean((2, 3))", "amax((2, 3))", "flatten(2).logsumexp(2)", "flatten(2).median(2).values"]
    )
    kind = d.random.choice(["float32", "uint8"])
    # in the dtype of the weights, whatever the case's is
    image = "x" if kind == "float32" else f"x.to({convolution}.weight.dtype) / 255"
    d.add(f"h = {normal}({convolution}({image})).{pool}")
    return "x", f"{d.batch}x{channels}x7x9:{kind}"


def from_sequence(d: Draw) -> tuple[str, str]:
    features, d.width = d.random.choice([3, 5]), d.random.choice([4, 6])
    kind = d.random.choice(["LSTM", "GRU", "RNN"])
    more = d.random.choice(["", ", num_layers=2", ", bidirectional=True"])
    layer = d.layer(f"nn.{kind}({features}, {d.width}, batch_first=True{more})")
    if "bidirectional" in more:
        d.width *= 2
    out = d.name("out")
    d.add(f"{out}, _ = {layer}(x)", f"h = {out}[:, -1]")
    d.what.append(kind)
    return "x", f"{d.batch}x4x{features}:float32"


def from_complex(d: Draw) -> tuple[str, str]:
    d.width = d.random.choice([4, 6])
    weight = d.layer(f"nn.Parameter(torch.randn({d.width}, dtype=torch.complex64))", "weight")
    d.add(
        f"z = x * {weight}", f"h = {d.random.choice(['z.abs()', 'z.real + z.imag', 'z.angle()'])}"
    )
    d.what.append("complex")
    return "x", f"{d.batch}x{d.width}:complex64"


def from_masked(d: Draw) -> tuple[str, str]:
    d.width = d.random.choice([4, 6])
    d.add("h = torch.where(mask, x, -x) + mask.to(x.dtype)")
    return "x, mask", f"{d.batch}x{d.width}:float32;{d.batch}x{d.width}:bool"


SOURCES = (from_floats, from_floats, from_two, from_tokens, from_image, from_sequence, from_complex)
SOURCES += (from_masked,)


# Blocks: h [B, C] becomes another h.
def linear(d: Draw) -> None:
    width = d.random.choice([2, 5, 8, 12])
    layer = d.layer(f"nn.Linear({d.width}, {width}, bias={d.chance(0.7)})")
    d.add(f"h = {layer}(h)")
    d.width = width


def activation(d: Draw) -> None:
    kinds = ("relu", "gelu", "silu", "tanh", "sigmoid", "elu", "softplus", "hardswish", "mish")
    d.add(f"h = F.{d.random.choice(kinds)}(h)")


def inplace(d: Draw) -> None:
    d.add("h = h * 1.0")  # another tensor than the input
    way = d.random.choice(["F.relu(h, inplace=True)", "h.mul_(0.5)", "h.add_(1).tanh_()"])
    d.add(f"h = {way}" if way.startswith("F") else way)
    if d.chance(0.5):
        d.add("h[:, 0] = 0.25")


def norm(d: Draw) -> None:
    kind = d.random.choice(["LayerNorm", "BatchNorm1d", "RMSNorm"])
    layer = d.layer(f"nn.{kind}({d.width})")
    if kind == "BatchNorm1d":
        d.init.append(f"{layer}.running_mean.uniform_(-1, 1)")
        d.init.append(f"{layer}.running_var.uniform_(0.5, 2)")
    d.add(f"h = {layer}(h)")


def residual(d: Draw) -> None:
    layers = ", ".join([f"nn.Linear({d.width}, {d.width})"] * d.random.choice([1, 2]))
    layers = d.layer(f"nn.ModuleList([{layers}])")
    d.add(f"for layer in {layers}:", "    h = h + torch.tanh(layer(h))")


def attention(d: Draw) -> None:
    d.add("h = torch.cat([h, h.flip(1)], 1)")
    d.width *= 2
    if d.chance(0.5):
        layer = d.layer(f"nn.MultiheadAttention({d.width}, 2, batch_first=True)")
        tokens = d.name("tokens")
        d.add(
            f"{tokens} = torch.stack([h, 2 * h, -h], 1)",
            f"h = {layer}({tokens}, {tokens}, {tokens})[0].mean(1)",
        )
    else:
        query = d.layer(f"nn.Linear({d.width}, 3 * {d.width})")
        q, k, v = (d.name(x) for x in "qkv")
        d.add(
            f"{q}, {k}, {v} = {query}(torch.stack([h, h + 1], 1)).chunk(3, -1)",
            f"h = F.scaled_dot_product_attention({q}, {k}, {v}, is_causal={d.chance(0.5)})[:, -1]",
        )


def buffer(d: Draw) -> None:
    """A buffer: persistent or not, drawn at random or not, of any dtype."""
    name = d.name("buffer")
    value = d.random.choice(
        [
            f"torch.randn({d.width})",
            f"torch.rand({d.width}) + 0.5",
            f"torch.linspace(0, 1, {d.width})",
            f"torch.randint(0, 5, ({d.width},))",
            f"torch.rand({d.width}) > 0.5",
            f"torch.randn({d.width}).double()",
        ]
    )
    d.init.append(f"self.register_buffer('{name}', {value}, persistent={d.chance(0.5)})")
    d.add(f"h = h * self.{name}.to(h.dtype) + 1" if d.chance(0.5) else f"h = h + self.{name}")
    if "double" in value and "+ self" in d.body[-1]:
        d.body[-1] += ".to(h.dtype)"
    d.what.append("buffer")


def attribute(d: Draw) -> None:
    """A tensor in a plain attribute, a list or a dictionary."""
    value = f"torch.randn({d.width})"
    kind = d.random.choice(["plain", "list", "dictionary"])
    if kind == "plain":
        name = d.layer(value, "tensor")
    elif kind == "list":
        name = d.layer(f"[{value}, {value}]", "list") + "[1]"
    else:
        name = d.layer(f"{{'a': {value}}}", "table") + "['a']"
    d.add(f"h = h + {name}.to(h.dtype)")
    d.what.append(f"{kind} attribute")


def tied(d: Draw) -> None:
    a = d.layer(f"nn.Linear({d.width}, {d.width}, bias=False)")
    b = d.layer(f"nn.Linear({d.width}, {d.width}, bias=False)")
    d.init.append(
        f"{b}.weight = {a}.weight"
        if d.chance(0.5)
        else f"{b}.weight = nn.Parameter({a}.weight.data)"
    )
    d.add(f"h = {b}(torch.tanh({a}(h)))")
    d.what.append("tied weights")


def shared_view(d: Draw) -> None:
    a = d.layer(f"nn.Parameter(torch.randn(2, {d.width}))", "weight")
    name = d.name("view")
    d.init.append(f"self.register_buffer('{name}', {a}.detach()[0], persistent={d.chance(0.5)})")
    d.add(f"h = h * {a}[1] + self.{name}")
    d.what.append("a buffer that views a parameter")


def frozen(d: Draw) -> None:
    layer = d.layer(f"nn.Linear({d.width}, {d.width})")
    d.init.append(f"{layer}.requires_grad_(False)")
    d.add(f"h = {layer}(h)")


def half(d: Draw) -> None:
    """Parameters in bfloat16: a case has one dtype for all."""
    layer = d.layer(f"nn.Linear({d.width}, {d.width}).bfloat16()")
    d.add(f"h = {layer}(h.to({layer}.weight.dtype)).to(h.dtype)")
    d.what.append("bfloat16 parameters")


def indexing(d: Draw) -> None:
    kind = d.random.choice(["gather", "sort", "scatter", "index_add", "topk", "roll", "mask"])
    order, part = d.name("order"), d.name("part")
    if kind == "gather":
        d.add(f"{order} = h.argsort(1)", f"h = h.gather(1, {order})")
    elif kind == "sort":
        d.add("h = h.sort(1, descending=True).values")
    elif kind == "scatter":
        d.add(
            f"{order} = torch.arange(h.size(1), device=h.device).flip(0).expand(h.size(0), -1)",
            f"h = torch.zeros_like(h).scatter_add(1, {order}, h)",
        )
    elif kind == "index_add":
        d.add(
            f"{part} = torch.zeros(h.size(0), 3, dtype=h.dtype)",
            f"{order} = torch.arange(h.size(1)) % 3",
            f"h = {part}.index_add(1, {order}, h)",
        )
        d.width = 3
    elif kind == "topk":
        d.width = min(2, d.width)
        d.add(f"h = h.topk({d.width}, 1).values")
    elif kind == "roll":
        d.add("h = torch.roll(h, 1, 1).cumsum(1)")
    else:
        d.add("h = h.masked_fill(h > 0.5, 0.0)")


def normalized(d: Draw) -> None:
    kind = d.random.choice(["weight_norm", "spectral_norm", "orthogonal"])
    layer = d.layer(f"nn.utils.parametrizations.{kind}(nn.Linear({d.width}, {d.width}))")
    d.add(f"h = {layer}(h)")
    d.what.append(kind)


def dropout(d: Draw) -> None:
    layer = d.layer(
        f"nn.{d.random.choice(['Dropout', 'AlphaDropout'])}({d.random.choice([0.1, 0.5])})"
    )
    d.add(f"h = {layer}(h)")


def hooked(d: Draw) -> None:
    layer = d.layer(f"nn.Linear({d.width}, {d.width})")
    d.init.append(f"{layer}.register_forward_hook(lambda m, args, out: out * 0.5)")
    d.add(f"h = {layer}(h)")
    d.what.append("hook")


def spectrum(d: Draw) -> None:
    d.width = d.width // 2 + 1
    d.add("h = torch.fft.rfft(h, dim=1).abs()")


def experts(d: Draw) -> None:
    a, b = (d.layer(f"nn.Linear({d.width}, {d.width})") for _ in "ab")
    gate = d.name("gate")
    d.add(
        f"{gate} = (h.mean(1, keepdim=True) > 0).to(h.dtype)",
        f"h = {gate} * {a}(h) + (1 - {gate}) * {b}(h)",
    )


def convolution(d: Draw) -> None:
    kind = d.random.choice(["Conv1d(1, 2, 3, padding=1)", "ConvTranspose1d(1, 2, 3, padding=1)"])
    layer = d.layer(f"nn.{kind}")
    d.add(f"h = {layer}(h.unsqueeze(1)).flatten(1)")
    d.width *= 2


def parameters(d: Draw) -> None:
    weights = d.layer(
        f"nn.ParameterList([nn.Parameter(torch.randn({d.width})) for _ in range(2)])", "weights"
    )
    d.add(f"h = h * {weights}[0] + {weights}[1]")


def helper(d: Draw) -> None:
    """Without gradients, or with einsum: ways to compute that compilers treat apart."""
    weight = d.layer(f"nn.Parameter(torch.randn({d.width}, {d.width}))", "weight")
    if d.chance(0.5):
        d.add("with torch.no_grad():", "    scale = h.abs().mean()", "h = h / (1 + scale)")
    d.add(f"h = torch.einsum('bi,ij->bj', h, {weight})")


BLOCKS = (
    *(linear, linear, activation, activation, inplace, norm, residual, attention, buffer, buffer),
    *(attribute, tied, shared_view, frozen, half, indexing, indexing, normalized, dropout, hooked),
    *(spectrum, experts, convolution, parameters, helper),
)


# Traps: what a careless check lets pass.
def inplace_on_input(d: Draw) -> None:
    d.body.insert(0, d.random.choice(["x.mul_(2)", "x[0] = 0", "x.clamp_(max=0)", "x.neg_()"]))


def counting(d: Draw) -> None:
    name = d.name("calls")
    d.init.append(f"self.register_buffer('{name}', torch.zeros(1), persistent={d.chance(0.5)})")
    d.add(f"self.{name} += 1", f"h = h + self.{name}")


def counting_number(d: Draw) -> None:
    """What is kept from one call to the next is no tensor."""
    name = d.layer("0", "calls")
    d.add(f"{name} += 1", f"h = h + 0.1 * {name}")


def keeping(d: Draw) -> None:
    """A running mean that a call in eval mode moves, though no output shows it at once."""
    name = d.name("mean")
    d.init.append(f"self.register_buffer('{name}', torch.zeros({d.width}))")
    d.add(f"self.{name}.mul_(0.9).add_(0.1 * h.detach().mean(0))", f"h = h - self.{name}")


def random_numbers(d: Draw) -> None:
    d.add(
        d.random.choice(
            ["h = h + torch.randn_like(h)", "h = F.dropout(h, 0.5, True)", "h = h * torch.rand(1)"]
        )
    )


def branching(d: Draw) -> None:
    layer = d.layer(f"nn.Linear({d.width}, {d.width})")
    condition = d.random.choice(["h.sum() > 0", "bool((h[0] > 0).any())", "h.mean().item() < 0.1"])
    d.add(f"if {condition}:", f"    h = {layer}(h)", "else:", "    h = h - 1")


def looping(d: Draw) -> None:
    d.add("for _ in range(int((h > 0).sum().item()) % 4):", "    h = torch.tanh(h) + 0.1")


def nonfinite(d: Draw) -> None:
    way = d.random.choice(["torch.log(h)", "h.sqrt()", "1 / (h > 0).to(h.dtype) * h", "h / 0.0"])
    d.add(f"h = {way}")


def rounding(d: Draw) -> None:
    """Precision is lost inside, in one dtype and not in the other."""
    d.add(d.random.choice(["h = h.bfloat16().to(h.dtype)", "h = h.half().to(h.dtype)"]))


def autocasting(d: Draw) -> None:
    layer = d.layer(f"nn.Linear({d.width}, {d.width})")
    d.add("with torch.autocast('cpu', dtype=torch.bfloat16):", f"    h = {layer}(h).float()")


def hidden_layer(d: Draw) -> None:
    layer = d.layer(f"[nn.Linear({d.width}, {d.width})]", "hidden")
    d.add(f"h = {layer}[0](h)")


def by_mode(d: Draw) -> None:
    d.add("h = h * 2 if torch.is_grad_enabled() else h", "h = h + (1 if self.training else 0)")


TRAPS = (
    *(inplace_on_input, counting, counting_number, keeping, random_numbers, branching, branching),
    *(looping, nonfinite, nonfinite, rounding, autocasting, hidden_layer, by_mode),
)


OUTPUTS = (
    *("h", "h", "h, h.mean(1)", "(h, (h > 0, h.argmax(1)))", "[h, h.sum(1, keepdim=True)]"),
    *("{'logits': h, 'norm': h.norm(dim=1)}", "Pair(h, h.argmax(1))", "Record(h, hidden=h + 1)"),
    *("{'a': h, 'b': (h.sum(1), {'c': h.int()})}", "h, None, h.flip(1)", "h, 3, h.max(1)"),
    *("torch.complex(h, h + 1)", "h.t()", "h.expand(2, -1, -1)", "h.sum()", "h[:, :0], h"),
    *(
        "h.topk(1, 1)",
        "(h > 0).sum(1), h",
        "h.argmax(1)",
        "h > 0",
        "(h.abs() < 1).to(torch.uint8), h",
    ),
    *(
        "torch.fft.fft(h, dim=1)",
        "h.bfloat16(), h",
        "h, h",
        "h, x",
        "h.half()",
        "Record(h, None, h)",
    ),
    *("{'loss': None, 'scores': h.softmax(1), 'name': 'x'}", "h.double() if False else h"),
)


def drawn(seed: int) -> Draw:
    """A module's parts. Every seed gives the same one in every process."""
    d = Draw(seed)
    names, d.input = d.random.choice(SOURCES)(d)
    d.parameters = ", ".join(f"{name}: Tensor" for name in names.split(", "))
    blocks: list[Callable[[Draw], None]] = [
        d.random.choice(BLOCKS) for _ in range(d.random.randint(1, 5))
    ]
    if d.chance(0.3):
        trap = d.random.choice(TRAPS)
        d.trap = trap.__name__
        blocks.insert(d.random.randint(0, len(blocks)), trap)
    for block in blocks:
        if not (block is attention and d.width > 16):
            block(d)
    d.add(f"return {d.random.choice(OUTPUTS)}")
    if d.chance(0.4):  # all batches are the factory's
        shapes = [part.partition(":")[::2] for part in d.input.split(";")]
        d.made.append(f'made["inputs"] = ({" ".join(_value(*s) + "," for s in shapes)})')
        d.input = ""
    d.trains = d.chance(0.4)
    if d.trains:
        d.made.append('made["loss"] = loss')
        d.made.append(f'made["target"] = torch.zeros({d.batch})')
    if d.chance(0.2):
        d.made.append('made["module"].eval()')
    return d


def _value(shape: str, dtype: str) -> str:
    sizes = shape.replace("x", ", ")
    if dtype == "bool":
        return f"torch.rand({sizes}) > 0.5"
    if dtype in ("float32", "complex64"):
        return f"torch.randn({sizes}, dtype=torch.{dtype})"
    return f"torch.randint(0, {200 if dtype == 'uint8' else 11}, ({sizes},), dtype=torch.{dtype})"


def source(seed: int) -> str:
    """The whole file."""
    d = drawn(seed)

    def indented(lines: list[str], by: int) -> str:
        return "\n".join(" " * by + line for line in lines)

    return HEAD.format(
        seed=seed,
        what=", ".join(dict.fromkeys(d.what)) or "plain layers",
        trap=d.trap,
        input=d.input,
        init=indented(d.init, 8) or "        pass",
        body=indented(d.body, 8),
        parameters=d.parameters,
        made=indented(d.made, 4),
    )


def write(seed: int, folder: Path) -> Path:
    """Writes the file `drawn_SEED.py`."""
    path = folder / f"drawn_{seed}.py"
    path.write_text(source(seed))
    return path


def load(path: Path) -> Any:
    """The file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(seed: int, folder: Path) -> dict[str, Any]:
    """What the factory of a seed returns."""
    return load(write(seed, folder)).make()
