"""A small decoder over bytes: pre-norm, RMSNorm, rotary embedding, SwiGLU, tied embeddings, no biases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from language_model.patterns import Attend

BYTES = 256


@dataclass(frozen=True, slots=True)
class Size:
    """How large a model is.

    Attributes:
        width: of the residual stream; a multiple of twice the heads.
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
        """Width inside the feed-forward network: three matrices of it weigh what two of four times the width do."""
        return -(-self.width // 3) * 8


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x[t], x[t + D/2]) of (B, H, N, D) by the angle of its position."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


class Block(nn.Module):
    """Attention, then a feed-forward network, each added to what came in."""

    def __init__(self, size: Size, attend: Attend) -> None:
        super().__init__()
        self.attend, self.heads = attend, size.heads
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        self.query_key_value = nn.Linear(size.width, 3 * size.width, bias=False)
        self.attention_output = nn.Linear(size.width, size.width, bias=False)
        self.gate_and_up = nn.Linear(size.width, 2 * size.hidden, bias=False)
        self.down = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        projected = self.query_key_value(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        out = self.attend(rotate(query, cosine, sine), rotate(key, cosine, sine), value)
        x = x + self.attention_output(out.transpose(1, 2).flatten(2))
        gate, up = self.gate_and_up(self.feed_forward_norm(x)).chunk(2, dim=-1)
        y: Tensor = x + self.down(functional.silu(gate) * up)
        return y


class LanguageModel(nn.Module):
    """Bytes in, logits of the next byte out.

    Args:
        size: of the model.
        attend: the attention of every layer; nothing else differs between two models.
        length: the longest sequence.
        seed: of the initial parameters.
        dtype: precision of everything.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, size: Size, attend: Attend, length: int, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, size.width)
        self.blocks = nn.ModuleList(Block(size, attend) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width)
        frequencies = 10000.0 ** -torch.linspace(0, 1, size.head_size // 2 + 1, dtype=torch.float64)[:-1]
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        self.to(dtype)
        self._initialize(seed)

    def _initialize(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("attention_output.weight", "down.weight"))
                # each block adds two of these to the stream, whose size then does not grow with the layers
                deviation = 0.02 / (2 * len(self.blocks)) ** 0.5 if residual else 0.02
                nn.init.normal_(parameter, std=deviation, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """Map bytes (B, N) to logits (B, N, 256)."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cosine[: ids.shape[1]], self.sine[: ids.shape[1]])
        logits: Tensor = self.norm(x) @ self.embedding.weight.T
        return logits

    def parameter_count(self) -> int:
        """Return how many numbers are learnt."""
        return sum(parameter.numel() for parameter in self.parameters())

    def matrix_flops(self, tokens: int) -> int:
        """Count what everything but attention takes, forward and backward: three products with each matrix.

        The embedding counts once: as the last matrix; looking bytes up takes nothing.
        """
        elements = sum(parameter.numel() for parameter in self.parameters() if parameter.dim() == 2)
        return 3 * 2 * tokens * elements
