"""Random numbers of a training step, so that a compiled step and eager torch can draw the same.

torch and its compiler draw from different generators in different orders. In these modes every
random operation is computed from uniform or normal numbers of one source, a draw each, in the order
of the program: `Traced` puts torch.rand and torch.randn into the program, `Philox` computes what
the compiled program then draws. Rules: docs/training.md, "What is checked".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchpace.errors import InputError

aten = torch.ops.aten
_SEEDS = torch.iinfo(torch.int64)  # the compiled program draws its seeds between these
_MASK = 0xFFFFFFFF
_LARGEST_RANGE = 1 << 20  # of integers that one float32 can choose among


class Draws(TorchDispatchMode):
    """Computes every random operation from `uniform` and `normal`, which a subclass has.

    torch's checkpointing puts the state of torch's generator back before it computes again: so that
    state, set to the draw's number, tells a repeated draw from a new one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0  # of the draws so far
        self.drawn: dict[int, Any] = {}
        torch.default_generator.manual_seed(0)

    def uniform(self, size: torch.Size, device: torch.device) -> Tensor:
        """float32 in [0, 1)."""
        raise NotImplementedError

    def normal(self, size: torch.Size, device: torch.device) -> Tensor:
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or _draws_nothing(func, args):
            return func(*args, **kwargs)
        if func not in _WAYS or kwargs.get("generator") is not None:
            raise InputError(
                f"module: draws random numbers by {func}, which a compiled step cannot repeat; "
                "expected dropout, rand, randn, uniform_, normal_, bernoulli, exponential_, "
                "randint or randperm, with torch's default generator"
            )
        number = torch.default_generator.initial_seed()
        if number not in self.drawn:
            self.drawn[number] = _WAYS[func](self, *args, **kwargs)
            self.count += 1
        torch.default_generator.manual_seed(number + 1)
        drawn = self.drawn[number]
        if func._schema.is_mutable:
            return args[0].copy_(drawn)
        # a copy: what is drawn may be changed in place and, under checkpointing, be drawn again
        return tuple(x.clone() for x in drawn) if isinstance(drawn, tuple) else drawn.clone()


class Traced(Draws):
    """As nodes of the program."""

    def uniform(self, size: torch.Size, device: torch.device) -> Tensor:
        return torch.rand(size, device=device, dtype=torch.float32)

    def normal(self, size: torch.Size, device: torch.device) -> Tensor:
        return torch.randn(size, device=device, dtype=torch.float32)


class Philox(Draws):
    """What one call of the compiled program draws: Philox of a seed for each draw, the position in
    the tensor being its counter. On the CPU at::Philox4_32, on CUDA that of Triton.
    """

    def __init__(self, draws: int, seeds: torch.Generator):
        """seeds: in the state of torch's generator of the device, which the program draws from."""
        super().__init__()
        self.cuda = seeds.device.type == "cuda"
        drawn = torch.randint(
            _SEEDS.min, _SEEDS.max, (draws,), generator=seeds, device=seeds.device
        )
        self.seeds = drawn.tolist()

    def uniform(self, size: torch.Size, device: torch.device) -> Tensor:
        return self._random(size, device)[0]

    def normal(self, size: torch.Size, device: torch.device) -> Tensor:
        u, v = self._random(size, device)
        u, v = (u.clamp(min=1e-7), v) if self.cuda else (1 - u, 1 - v)
        return ((-2 * u.double().log()).sqrt() * (2 * math.pi * v.double()).cos()).float()

    def _random(self, size: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.count >= len(self.seeds):
            raise InputError(
                f"module: draws more random numbers than the {len(self.seeds)} tensors of its "
                "traced step; expected the same draws in every step"
            )
        seed, position = self.seeds[self.count], torch.arange(math.prod(size), device=device)
        low, high = seed & _MASK, (seed >> 32) & _MASK if self.cuda else 0
        first, second = (self._as_uniform(x).view(size) for x in philox(low, high, position))
        return first, second

    def _as_uniform(self, x: Tensor) -> Tensor:
        x = torch.where(x >> 31 > 0, _MASK - x, x) if self.cuda else x & 0x7FFFFFFF
        return x.float() * torch.tensor(4.6566127342e-10, device=x.device)


def philox(low: int, high: int, position: Tensor) -> tuple[Tensor, Tensor]:
    """The first two 32-bit numbers of Philox 4x32-10 (Salmon et al. 2011), int64, of a key in two
    parts and counters below 2^32.
    """
    zeros = torch.zeros_like(position)
    c, k = [position & _MASK, zeros, zeros, zeros], [low, high]
    for _ in range(10):
        high0, low0 = _product(0xD2511F53, c[0])
        high1, low1 = _product(0xCD9E8D57, c[2])
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & _MASK, (k[1] + 0xBB67AE85) & _MASK]
    return c[0], c[1]


def _product(factor: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit numbers, in parts that fit into int64."""
    low = factor * (x & 0xFFFF)
    whole = factor * (x >> 16) + (low >> 16)
    return whole >> 16, ((whole & 0xFFFF) << 16) | (low & 0xFFFF)


def _draws_nothing(func: Any, args: tuple[Any, ...]) -> bool:
    """Operations that draw only with a probability: attention without dropout, say."""
    if "scaled_dot_product" not in func.name():
        return func is aten.native_dropout.default and args[2] is False
    names = [argument.name for argument in func._schema.arguments]
    place = names.index("dropout_p") if "dropout_p" in names else len(args)
    return place >= len(args) or args[place] == 0


def _size_and_kind(like: Tensor, given: dict[str, Any]) -> dict[str, Any]:
    return {"dtype": given.get("dtype") or like.dtype, "device": given.get("device") or like.device}


def _new(size: Any, given: dict[str, Any]) -> tuple[torch.Size, torch.device, torch.dtype]:
    device = torch.device(given.get("device") or "cpu")
    return torch.Size(size), device, given.get("dtype") or torch.get_default_dtype()


def _native_dropout(d: Draws, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    mask = d.uniform(x.shape, x.device) >= p
    return mask * x * (0.0 if p == 1 else 1 / (1 - p)), mask


def _integers(d: Draws, low: int, high: int, size: Any, given: dict[str, Any]) -> Tensor:
    if high - low > _LARGEST_RANGE:
        raise InputError(
            f"module: expected random integers of a range up to {_LARGEST_RANGE}, found "
            f"{high - low}"
        )
    size, device, _ = _new(size, given)
    drawn = (d.uniform(size, device) * (high - low)).floor() + low
    return drawn.to(given.get("dtype") or torch.int64)


def _created(draw: str) -> Callable[..., Tensor]:
    def way(d: Draws, size: Any, **given: Any) -> Tensor:
        size, device, dtype = _new(size, given)
        return getattr(d, draw)(size, device).to(dtype)

    return way


def _like(draw: str) -> Callable[..., Tensor]:
    def way(d: Draws, x: Tensor, **given: Any) -> Tensor:
        kind = _size_and_kind(x, given)
        return getattr(d, draw)(x.shape, kind["device"]).to(kind["dtype"])

    return way


_WAYS: dict[Any, Callable[..., Any]] = {
    aten.bernoulli_.float: lambda d, x, p=0.5, **_: d.uniform(x.shape, x.device) < p,
    aten.bernoulli_.Tensor: lambda d, x, p, **_: d.uniform(x.shape, x.device) < p,
    aten.bernoulli.default: lambda d, p, **_: (d.uniform(p.shape, p.device) < p).to(p.dtype),
    aten.bernoulli.p: lambda d, x, p=0.5, **_: (d.uniform(x.shape, x.device) < p).to(x.dtype),
    aten.native_dropout.default: _native_dropout,
    aten.rand.default: _created("uniform"),
    aten.randn.default: _created("normal"),
    aten.rand_like.default: _like("uniform"),
    aten.randn_like.default: _like("normal"),
    aten.uniform_.default: lambda d, x, low=0.0, high=1.0, **_: (
        d.uniform(x.shape, x.device) * (high - low) + low
    ),
    aten.normal_.default: lambda d, x, mean=0.0, std=1.0, **_: (
        d.normal(x.shape, x.device) * std + mean
    ),
    aten.exponential_.default: lambda d, x, rate=1.0, **_: (
        -torch.log1p(-d.uniform(x.shape, x.device)) / rate
    ),
    aten.randint.default: lambda d, high, size, **given: _integers(d, 0, high, size, given),
    aten.randint.low: lambda d, low, high, size, **given: _integers(d, low, high, size, given),
    aten.randperm.default: lambda d, n, **given: _created("uniform")(
        d, [n], device=given.get("device")
    ).argsort(),
}
