"""GPTlite: a decoder-only transformer on characters, pre-norm, with ReLU feed-forward blocks.

Source: Vaswani et al. 2017, arXiv:1706.03762; pre-norm as in Radford et al. 2019 (GPT-2), whose
initialization it takes: weights N(0, 0.02), biases 0. Twin: include/torchpace/models/gptlite.hpp.
Dimensions: B batch, T tokens, C width, H heads, L layers, V vocabulary, N context (T <= N).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchpace.data import text
from torchpace.models import Cost, element_bytes, minimum_bytes
from torchpace.settings import Settings, SettingsError


@dataclass(frozen=True)
class GptliteOptions:
    layers: int = 12  # L
    width: int = 768  # C
    heads: int = 12  # H
    context: int = 2048  # N
    vocabulary: int = 65  # V
    dropout: float = 0.1  # of attention weights and of both branches before they are added
    attention: str = "sdpa"  # or "explicit": matmul, mask, softmax, matmul
    causal: bool = True
    scale: float = 0.0  # of the attention scores; 0 means head_size^-0.5

    @staticmethod
    def of(settings: Settings) -> GptliteOptions:
        """Raises SettingsError on a missing or unusable value."""
        options = GptliteOptions(
            layers=settings.integer("layers", minimum=1),
            width=settings.integer("width", minimum=1),
            heads=settings.integer("heads", minimum=1),
            context=settings.integer("context", minimum=1),
            vocabulary=settings.integer("vocabulary", 65, minimum=2),
            dropout=settings.number("dropout", 0.0),
            attention=settings.text("attention", "sdpa", ("sdpa", "explicit")),
            causal=settings.flag("causal", True),
            scale=settings.number("scale", 0.0),
        )
        if options.width % options.heads:
            raise SettingsError(
                f"settings: width: expected a multiple of heads={options.heads}, "
                f"got {options.width}"
            )
        if not 0 <= options.dropout < 1:
            raise SettingsError(
                f"settings: dropout: expected 0 <= dropout < 1, got {options.dropout}"
            )
        return options


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, whose rows are q, k and v, each of H
    heads.
    """

    def __init__(self, o: GptliteOptions):
        super().__init__()
        self.heads, self.explicit, self.causal = o.heads, o.attention == "explicit", o.causal
        self.scale = o.scale or (o.width // o.heads) ** -0.5
        self.qkv = nn.Linear(o.width, 3 * o.width, bias=False)
        self.projection = nn.Linear(o.width, o.width)
        self.dropout = nn.Dropout(o.dropout)
        self.register_buffer(
            "mask", None, persistent=False
        )  # [T, T], true where hidden; built at first use

    def forward(self, x: Tensor) -> Tensor:  # [B, T, C]
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, T, C/H] each
        if self.explicit:
            scores = (q @ k.transpose(-2, -1)) * self.scale  # [B, H, T, T]
            if self.causal:
                scores = scores.masked_fill(self._hidden(T, x.device), float("-inf"))
            y = self.dropout(scores.softmax(-1)) @ v
        else:
            p = self.dropout.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, None, p, self.causal, scale=self.scale)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.dropout(self.projection(y))

    def _hidden(self, tokens: int, device: torch.device) -> Tensor:
        if self.mask is None or self.mask.size(0) < tokens or self.mask.device != device:
            # A mask made in inference mode could not be used by a later training step.
            with torch.inference_mode(False):
                self.mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)
        return self.mask[:tokens, :tokens]


class FeedForward(nn.Module):
    def __init__(self, o: GptliteOptions):
        super().__init__()
        self.expand = nn.Linear(o.width, 4 * o.width)
        self.contract = nn.Linear(4 * o.width, o.width)
        self.dropout = nn.Dropout(o.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.contract(F.relu(self.expand(x))))


class Block(nn.Module):
    def __init__(self, o: GptliteOptions):
        super().__init__()
        self.norm1 = nn.LayerNorm(o.width)
        self.attention = Attention(o)
        self.norm2 = nn.LayerNorm(o.width)
        self.feed_forward = FeedForward(o)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Gptlite(nn.Module):
    """Logits of the next token.

    >>> Gptlite(GptliteOptions(layers=1, width=8, heads=2, context=4))(torch.zeros(1, 4,
    dtype=torch.int64)).shape torch.Size([1, 4, 65])
    """

    def __init__(self, options: GptliteOptions | None = None):
        super().__init__()
        self.options = o = options or GptliteOptions()
        self.token_embedding = nn.Embedding(o.vocabulary, o.width)
        self.position_embedding = nn.Embedding(o.context, o.width)
        self.blocks = nn.ModuleList(Block(o) for _ in range(o.layers))
        self.norm = nn.LayerNorm(o.width)
        self.head = nn.Linear(o.width, o.vocabulary)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, T], int64, T <= N. Returns logits [B, T, V] in the parameters' dtype.

        Raises ValueError unless tokens is 2-D and T <= N.
        """
        # A trace would hold the answer, and warn of it.
        tracing = torch.jit.is_tracing()
        if not tracing and (tokens.dim() != 2 or tokens.size(1) > self.options.context):
            raise ValueError(
                f"Gptlite: expected tokens [B, T <= {self.options.context}], "
                f"got {list(tokens.shape)}"
            )
        x = (
            self.token_embedding(tokens) + self.position_embedding.weight[: tokens.size(1)]
        )  # [B, T, C]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # [B, T, V]


def make(settings: Settings) -> Gptlite:
    return Gptlite(GptliteOptions.of(settings))


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy in nats. output: [B, T, V]; target: [B, T], int64."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def cost(settings: Settings) -> Cost:
    """With T = N tokens a row and causal attention counted as full T^2:

    forward_flops = B T (L (24 C^2 + 4 T C) + 2 C V): 6 C^2 for q, k and v, 2 C^2 for the
    projection, 16 C^2 for the feed-forward, 2 T C for the scores and as much for the weighted sum,
    a token and layer; 2 C V for the head. training_flops = 3 forward_flops: the input of every
    product needs a gradient, since embeddings are trained. parameters = 2 V C + V + N C + L (12 C^2
    + 10 C) + 2 C. Input and target: 8 B T bytes each; output: B T V elements.
    """
    o = GptliteOptions.of(settings)
    batch = settings.integer("batch", minimum=1)
    B, T, C, L, V = batch, o.context, o.width, o.layers, o.vocabulary
    forward = float(B * T * (L * (24 * C * C + 4 * T * C) + 2 * C * V))
    element = element_bytes(settings)
    parameter_bytes = element * (2 * V * C + V + T * C + L * (12 * C * C + 10 * C) + 2 * C)
    moved = minimum_bytes(settings, parameter_bytes, 8 * B * T, element * B * T * V, 8 * B * T)
    return Cost(forward, 3 * forward, parameter_bytes, moved, B * T, "tokens")


def inputs(
    settings: Settings, generator: torch.Generator, tokens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One batch of the text: input and target [B, N], int64. Raises InputError where there is no
    text.
    """
    if tokens is None:
        raise SettingsError("settings: tokens: expected a file of tokens for data=text, found none")
    batch, context = settings.integer("batch", minimum=1), settings.integer("context", minimum=1)
    return text.windows(tokens, batch, context, generator)
