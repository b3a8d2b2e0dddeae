"""Which weights dropout keeps, from its definition in unsigned arithmetic: what compiled programs must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD, _HALF = 1 << 64, 1 << 32


def kept_pairs(seed: int, batch: int, heads: int, queries: Tensor, keys: int, probability: float) -> Tensor:
    """Return which pairs are kept, bool `(B, H, rows, M)`, computed with Python's unbounded ints.

    Args:
        seed: of the call.
        batch: how many entries.
        heads: how many query heads.
        queries: positions of the queries, `(B, H, rows)`.
        keys: how many.
        probability: of a pair to be dropped.
    """
    below = int(probability * _HALF)
    found = torch.empty(batch, heads, queries.shape[2], keys, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            for row, position in enumerate(queries[b, h].tolist()):
                state = 0
                for value in (seed, b, h, position):
                    state = mix64((state + value + 0x9E3779B97F4A7C15) % _WORD)
                first, second = state % _HALF, state // _HALF
                draws = [_mix32(_mix32((first + key * 0x9E3779B9) % _HALF) ^ second) for key in range(keys)]
                found[b, h, row] = torch.tensor([draw >= below for draw in draws])
    return found


def mix64(x: int) -> int:
    """Return splitmix64's finaliser of an unsigned number of 64 bits."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % _WORD
    return x ^ (x >> 31)


def _mix32(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x21F0AAAD % _HALF
    x = (x ^ (x >> 15)) * 0x735A2D97 % _HALF
    return x ^ (x >> 15)
