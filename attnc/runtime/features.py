"""Maps of queries and keys to features (LANGUAGE.md section 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype
from attnc.runtime.pairs import splitmix_state

EXPONENTIAL_MAPS = ("exp", "favor")
"""Maps whose features are exponentials: they are kept as `features * exp(exponent)`, so that none overflows."""


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """A `feature` line.

    Attributes:
        form: `identity`, `relu`, `elu1`, `exp`, `square`, `favor` or `cosformer`.
        features: of `favor`, how many.
        seed: of `favor`, which ones.
    """

    form: str
    features: int = 0
    seed: int = 0

    def size(self, head_size: int) -> int:
        """Return how many features a head of this size has."""
        match self.form:
            case "favor":
                return self.features
            case "cosformer":
                return 2 * head_size
            case _:
                return head_size


@dataclass(frozen=True, slots=True)
class Features:
    """Features `(B, heads, length, F)`, to be multiplied by `exp(exponent)`: `(B, heads, length)`, None for 0."""

    values: Tensor
    exponent: Tensor | None = None


def map_features(feature: FeatureMap, rows: Tensor, positions: Tensor, keys: int, seed: int | None = None) -> Features:
    """Map queries or keys to features, in float32 at least.

    Args:
        feature: the map; `favor` expects rows that are scaled already.
        rows: `(B, heads, length, D)`.
        positions: int64, broadcasting against `(B, heads, length)`.
        keys: how many there are, `M`.
        seed: takes the place of the map's own.
    """
    wide = rows.to(compute_dtype(rows.dtype))
    match feature.form:
        case "identity":
            return Features(rows)
        case "relu":
            return Features(rows.relu())
        case "elu1":
            return Features(torch.where(wide > 0, wide + 1, wide.clamp(max=0).exp()))
        case "square":
            return Features(wide.square())
        case "exp":
            return _exponentials(wide)
        case "favor":
            seed = feature.seed if seed is None else seed
            directions = directions_on(feature.features, rows.shape[-1], seed, rows.device, wide.dtype)
            powers = wide @ directions.T - wide.square().sum(-1, keepdim=True) / 2
            return _exponentials(powers - math.log(feature.features) / 2)
        case _:
            turns = (positions.to(torch.float64) * (math.pi / (2 * keys))).unsqueeze(-1)
            positive = wide.relu()
            parts = (positive * turn.to(wide.dtype) for turn in (turns.cos(), turns.sin()))
            return Features(torch.cat(tuple(parts), -1))


def _exponentials(powers: Tensor) -> Features:
    """Return `exp(powers)`, the greatest of each row apart: it cancels from gradients as from values."""
    peak = powers.detach().amax(-1)
    peak = torch.where(peak.isfinite(), peak, 0.0)
    return Features((powers - peak.unsqueeze(-1)).exp(), peak.to(torch.float64))


def directions_on(count: int, size: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return random directions where they are used."""
    return _remembered_directions(count, size, seed, device, dtype)


directions_on._dynamo_marked_constant = True  # type: ignore[attr-defined]
"""As `torch.compiler.assume_constant_result` does, which imports PyTorch's compiler: hashing is not for graphs."""


@lru_cache(maxsize=32)
def _remembered_directions(count: int, size: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Bring directions to a device once, and not in each call."""
    with torch.inference_mode(False), torch.no_grad():
        return random_directions(count, size, seed).to(device=device, dtype=dtype)


@lru_cache(maxsize=32)
def random_directions(count: int, size: int, seed: int) -> Tensor:
    """Return directions `(count, size)` in float64, orthogonal in blocks of `size`, with the lengths of Gaussian ones.

    Follows Choromanski et al., "Rethinking Attention with Performers" (2021), section 2.4. They depend on the
    arguments alone, and not on torch's generators: the same on every device and in every version.
    """
    blocks = -(-count // size)
    rotations, upper = torch.linalg.qr(hashed_gaussians(seed, 0, blocks, size))
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    lengths = hashed_gaussians(seed, 1, blocks, size).norm(dim=-1)
    directions: Tensor = (rotations * signs.unsqueeze(-2)).transpose(-2, -1) * lengths.unsqueeze(-1)
    return directions.reshape(blocks * size, size)[:count].contiguous()


def hashed_gaussians(seed: int, stream: int, blocks: int, size: int) -> Tensor:
    """Return independent normal numbers `(blocks, size, size)`, by Box and Muller's transform of hashed places."""
    block, row, column = (
        torch.arange(length, device="cpu").view(shape)
        for length, shape in ((blocks, (-1, 1, 1)), (size, (-1, 1)), (size, (-1,)))
    )
    first, second = (
        ((splitmix_state(block.new_tensor(seed), stream, part, block, row, column) >> 11) & (2**53 - 1)).double()
        for part in (0, 1)
    )
    radius = (-2.0 * torch.log((first + 1) / 2.0**53)).sqrt()
    return radius * torch.cos(second * (2.0 * math.pi / 2.0**53))
