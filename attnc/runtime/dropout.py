"""Dropout of weights by random numbers that depend on the pair alone.

Each number is a hash of (seed, b, h, i, j), so that neither tiles nor the device have a say in which pairs are dropped:
the four of a row go through splitmix64's finaliser (Steele, Lea and Flood, 2014) to 64 bits; the key is added to one
half of these and the other half mixed in between two rounds of a 32-bit finaliser of the same kind. `kernel_math` has
the same in Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.runtime.pairs import Pairs, splitmix_state

_KEY_STEP = 0x9E3779B9 - 2**32
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97
_SIGN = -(2**31)


@dataclass(frozen=True, slots=True)
class Dropout:
    """Which weights are dropped, and what the others are multiplied by.

    Attributes:
        seed: int64, 0-d, on the device of the call.
        below: numbers of 32 bits below it drop their pair.
        factor: of the weights that are kept.
    """

    seed: Tensor
    below: int
    factor: float

    @classmethod
    def of(cls, probability: float, seed: Tensor | None) -> Dropout | None:
        """Return the dropout of checked arguments; None where nothing is dropped."""
        if seed is None or probability == 0.0:
            return None
        return cls(seed, int(probability * 2**32), 1.0 / (1.0 - probability))

    def keeps(self, at: Pairs) -> Tensor:
        """Return which pairs of a block are kept."""
        assert at.i is not None
        assert at.j is not None
        assert at.b is not None
        assert at.h is not None
        return is_kept(splitmix_state(self.seed, at.b, at.h, at.i), at.j, self.below)

    def drop(self, weights: Tensor, kept: Tensor) -> Tensor:
        """Return weights, or gradients of such, with 0 where a pair is dropped."""
        return torch.where(kept, weights * self.factor, 0.0)


def is_kept(rows: Tensor, keys: Tensor, below: int) -> Tensor:
    """Tell which pairs are kept.

    Args:
        rows: int64 hashes of (seed, b, h, i).
        keys: int64 positions.
        below: see `Dropout`.
    """
    halves = rows.contiguous().unsqueeze(-1).view(torch.int32)
    first, second = halves[..., 0], halves[..., 1]
    mixed = _finalised(first + keys.to(torch.int32) * _KEY_STEP)
    mixed = _finalised(mixed ^ second)
    return (mixed ^ _SIGN) >= below + _SIGN


def _finalised(x: Tensor) -> Tensor:
    """Mix 32 bits; int32 wraps around as unsigned arithmetic does, and shifts must not draw the sign in."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * _FIRST
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _SECOND
    return x ^ ((x >> 15) & 0x1FFFF)
