"""A small encoder-decoder transformer whose three attentions are compiled from patterns.

    python examples/encoder_decoder.py

The encoder reads padded sources (`bert.attn`), the decoder attends to itself (`gpt.attn`) and to the encoder's output
(`cross.attn`). The script runs one forward pass on the CPU, shows that padding does not matter, and that decoding one
token at a time against a key/value cache gives the numbers of the whole sequence at once.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import attnc

HERE = Path(__file__).parent


class MultiHead(nn.Module):
    """Project to heads, attend by a compiled module's function, project back.

    Args:
        module: a module that attnc generated.
        name: its attention's name.
        width: model width; a multiple of `heads`.
        heads: query heads.
        kv_heads: key and value heads; divides `heads`.
    """

    def __init__(self, module: ModuleType, name: str, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.attend = getattr(module, name)
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * self.head_size, bias=False)
        self.value = nn.Linear(width, kv_heads * self.head_size, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, context: Tensor | None = None, cache: dict[str, Tensor] | None = None, **inputs: Tensor
    ) -> Tensor:
        """Map `x` (B, N, width) and `context` (B, M, width; `x` itself if None) to (B, N, width).

        Keys and values of earlier calls are taken from `cache` and the new ones left there.
        """
        source = x if context is None else context
        query = self._split(self.query(x), self.heads)
        key = self._split(self.key(source), self.kv_heads)
        value = self._split(self.value(source), self.kv_heads)
        if cache is not None:
            key = torch.cat([cache["key"], key], dim=2) if "key" in cache else key
            value = torch.cat([cache["value"], value], dim=2) if "value" in cache else value
            cache.update(key=key, value=value)
        out = self.attend(query, key, value, **inputs)
        return self.output(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(2, (heads, self.head_size)).transpose(1, 2)


def feed_forward(width: int) -> nn.Sequential:
    """Return the usual two-layer network, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class EncoderLayer(nn.Module):
    """Bidirectional attention over real tokens, then a feed-forward network; pre-norm."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.attention = MultiHead(attnc.load(HERE / "bert.attn"), "bert", width, heads, kv_heads)
        self.feed_forward = feed_forward(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        """Map (B, M, width) to (B, M, width); `length` (B,) counts the real tokens."""
        x = x + self.attention(self.norms[0](x), length=length)
        return x + self.feed_forward(self.norms[1](x))


class DecoderLayer(nn.Module):
    """Causal attention, attention to the encoder's output, a feed-forward network; pre-norm."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.attention = MultiHead(attnc.load(HERE / "gpt.attn"), "gpt", width, heads, kv_heads)
        self.cross = MultiHead(attnc.load(HERE / "cross.attn"), "cross", width, heads, kv_heads)
        self.feed_forward = feed_forward(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, length: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        """Map (B, N, width) and the encoder's `memory` (B, M, width) to (B, N, width)."""
        x = x + self.attention(self.norms[0](x), cache=cache)
        x = x + self.cross(self.norms[1](x), context=memory, length=length)
        return x + self.feed_forward(self.norms[2](x))


class EncoderDecoder(nn.Module):
    """The whole model: token and position embeddings, both stacks, logits over the vocabulary."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, kv_heads: int, longest: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(longest, width)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, kv_heads) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, kv_heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embed token ids (B, N) that stand at positions `start`, `start + 1`, ..."""
        places = torch.arange(start, start + ids.shape[1], device=ids.device)
        return self.tokens(ids) + self.positions(places)

    def encode(self, source: Tensor, length: Tensor) -> Tensor:
        """Map source ids (B, M) to their representation (B, M, width)."""
        x = self.embed(source)
        for layer in self.encoder:
            x = layer(x, length)
        return x

    def decode(
        self, target: Tensor, memory: Tensor, length: Tensor, start: int = 0, caches: list[dict] | None = None
    ) -> Tensor:
        """Map target ids (B, N) that stand at positions `start` on to logits (B, N, vocabulary)."""
        x = self.embed(target, start)
        for number, layer in enumerate(self.decoder):
            x = layer(x, memory, length, None if caches is None else caches[number])
        return self.norm(x) @ self.tokens.weight.T


def main() -> None:
    """Run the model forward and show what its attentions promise."""
    torch.manual_seed(0)
    model = EncoderDecoder(vocabulary=1000, width=128, layers=2, heads=8, kv_heads=2, longest=512).eval()
    source, target = torch.randint(1000, (3, 300)), torch.randint(1000, (3, 40))
    length = torch.tensor([300, 211, 64])
    with torch.no_grad():
        memory = model.encode(source, length)
        logits = model.decode(target, memory, length)
        print(f"source {tuple(source.shape)}, target {tuple(target.shape)} -> logits {tuple(logits.shape)}")

        other = source.clone()
        for row, count in enumerate(length.tolist()):
            other[row, count:] = 7  # other padding
        again = model.decode(target, model.encode(other, length), length)
        print(f"other padding changes the logits by {float((again - logits).abs().max()):.1e}")

        caches: list[dict] = [{} for _ in model.decoder]
        steps = [model.decode(target[:, t : t + 1], memory, length, t, caches) for t in range(target.shape[1])]
        print(f"decoding with a cache differs by {float((torch.cat(steps, 1) - logits).abs().max()):.1e}")


if __name__ == "__main__":
    main()
