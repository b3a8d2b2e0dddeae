"""The transformers that are compared: embeddings, layers, a head. Only what the layers attend with differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnc.study.tasks import Task

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps query, key and value (B, H, N, D) to the output of the same shape."""

EMBEDDING_DEVIATION = 0.5
"""Standard deviation of initial embeddings of tokens and of positions."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a model is.

    Attributes:
        width: of the residual stream; a multiple of the heads.
        layers: how many.
        heads: in each.
    """

    width: int
    layers: int
    heads: int

    @property
    def head_size(self) -> int:
        """Of query, key and value."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward network."""
        return 2 * self.width


class PatternLayer(nn.TransformerEncoderLayer):
    """PyTorch's pre-norm layer with another attention: the same parameters, the same initial values of them."""

    def __init__(self, size: Size, attend: Attend) -> None:
        super().__init__(**_layer_options(size))
        self.heads, self.attend = size.heads, attend

    def forward(self, src: Tensor, *unused: Any, **also_unused: Any) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        mixed = self.self_attn
        projected = functional.linear(self.norm1(src), mixed.in_proj_weight, mixed.in_proj_bias)
        query, key, value = projected.view(*src.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = self.attend(query, key, value).transpose(1, 2).flatten(2)
        x = src + mixed.out_proj(attended)
        y: Tensor = x + self.linear2(self.activation(self.linear1(self.norm2(x))))
        return y


class Layers(nn.Module):
    """PyTorch's own layers, or those of a pattern, and a norm behind the last one."""

    mask: Tensor | None

    def __init__(self, size: Size, length: int, *, causal: bool, attend: Callable[[], Attend] | None = None) -> None:
        super().__init__()
        own = [None if attend is None else attend() for _ in range(size.layers)]
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(**_layer_options(size)) if one is None else PatternLayer(size, one)
            for one in own
        )
        self.norm = nn.LayerNorm(size.width)
        mask = nn.Transformer.generate_square_subsequent_mask(length) if causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        for layer in self.layers:
            x = layer(x, src_mask=self.mask, is_causal=self.mask is not None)
        out: Tensor = self.norm(x)
        return out


class LayerStack(nn.Module):
    """Compiled layers of a pattern file and a norm behind the last one.

    Args:
        width: of the residual stream.
        layers: each made from scratch.
        elements: of all matrices of one layer, free ones alone, that each position is multiplied with.
        features: of queries, over all heads of one layer.
    """

    def __init__(self, width: int, layers: list[nn.Module], elements: Fraction, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.elements = elements * len(layers)
        self.features = features * len(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        out: Tensor = self.norm(self.layers(x))
        return out


class Transformer(nn.Module):
    """Tokens in, logits of the answers out, at every position.

    Args:
        task: what it is for.
        size: of the model.
        layers: maps embeddings (B, N, width) to what the head reads.
    """

    def __init__(self, task: Task, size: Size, layers: nn.Module) -> None:
        super().__init__()
        self.token = nn.Embedding(task.vocabulary, size.width)
        self.position = nn.Embedding(task.length, size.width)
        self.layers = layers
        self.head = nn.Linear(size.width, task.classes)
        initialize_embeddings(self.token, self.position)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N) to logits (B, N, classes)."""
        logits: Tensor = self.head(self.layers(self.token(tokens) + self.position.weight))
        return logits


def initialize_embeddings(token: nn.Embedding, position: nn.Embedding) -> None:
    """Give embeddings the initial sizes that all contenders share: smaller ones are learned from more slowly."""
    for table in (token, position):
        nn.init.normal_(table.weight, std=EMBEDDING_DEVIATION)


def build(task: Task, size: Size, layers: Callable[[], nn.Module], seed: int) -> Transformer:
    """Make a model; torch's own random numbers are left as they were.

    Args:
        task: what it is for.
        size: of the model.
        layers: makes what stands between the embeddings and the head.
        seed: of the initial parameters: those of layers with the same parameters are the same.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(task, size, layers())


def _layer_options(size: Size) -> dict[str, Any]:
    return {
        "d_model": size.width,
        "nhead": size.heads,
        "dim_feedforward": size.hidden,
        "dropout": 0.0,
        "activation": functional.gelu,
        "batch_first": True,
        "norm_first": True,
    }
