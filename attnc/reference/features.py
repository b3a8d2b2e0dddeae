"""Preparation of queries and keys and maps to features, straight from LANGUAGE.md section 7."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from attnc.ir.program import Deferred
from attnc.reference.dropout import mix64

_WORD = 2**64


def prepared(steps: tuple[Deferred, ...], rows: Tensor, positions: Tensor) -> Tensor:
    """Prepare queries or keys `(B, H, length, D)` at positions that broadcast against `(B, H, length)`."""
    for step in steps:
        match step.form:
            case "unit":
                rows = _over(rows, rows.square().sum(-1, keepdim=True).sqrt())
            case "rms":
                rows = _over(rows, rows.square().mean(-1, keepdim=True).sqrt())
            case "rotary":
                rows = _rotated(rows, positions, float(step.number("theta")))
            case _:
                raise ValueError(f"`prepare {step.form}` has no dense meaning")
    return rows


def _over(rows: Tensor, norm: Tensor) -> Tensor:
    return torch.where(norm > 0, rows / torch.where(norm > 0, norm, 1.0), 0.0)


def _rotated(rows: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn each pair of elements `t`, `t + D/2` as a complex number."""
    half = rows.shape[-1] // 2
    if 2 * half != rows.shape[-1]:
        raise ValueError(f"`prepare rotary` turns pairs of elements, and a head has {rows.shape[-1]}")
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64, device=rows.device) / half)
    angles = positions.unsqueeze(-1) * frequencies
    turned = torch.complex(rows[..., :half].double(), rows[..., half:].double()) * torch.exp(1j * angles)
    return torch.cat((turned.real, turned.imag), -1).to(rows.dtype)


def mapped(feature: Deferred, rows: Tensor, positions: Tensor, keys: int, seed: int | None = None) -> Tensor:
    """Map queries or keys to features.

    Args:
        feature: the `feature` statement; `favor` expects rows that are scaled already.
        rows: `(B, H, length, D)`.
        positions: as those of `prepared`.
        keys: how many there are.
        seed: of `favor`, in place of the statement's own.
    """
    match feature.form:
        case "identity":
            return rows
        case "relu":
            return rows.relu()
        case "elu1":
            return torch.nn.functional.elu(rows) + 1
        case "exp":
            return rows.exp()
        case "square":
            return rows.square()
        case "favor":
            count = int(feature.number("features"))
            directions = _directions(count, rows.shape[-1], int(feature.number("seed")) if seed is None else seed)
            powers = rows @ directions.to(rows).T - rows.square().sum(-1, keepdim=True) / 2
            return powers.exp() / math.sqrt(count)
        case "cosformer":
            angles = (positions.double() * math.pi / (2 * keys)).unsqueeze(-1)
            cosine, sine = (turn.to(rows.dtype) for turn in (angles.cos(), angles.sin()))
            return torch.cat((rows.relu() * cosine, rows.relu() * sine), -1)
        case _:
            raise ValueError(f"`feature {feature.form}` has no dense meaning")


@lru_cache(maxsize=8)
def _directions(count: int, size: int, seed: int) -> Tensor:
    """Return rows of random rotations with the lengths of Gaussian vectors, from hashed places."""
    found = []
    for block in range(-(-count // size)):
        orthogonal, upper = torch.linalg.qr(_normal(seed, 0, block, size))
        orthogonal = orthogonal * upper.diagonal().sign()
        found.append(orthogonal.T * _normal(seed, 1, block, size).norm(dim=1, keepdim=True))
    return torch.cat(found)[:count]


def _normal(seed: int, stream: int, block: int, size: int) -> Tensor:
    """Return a matrix of normal numbers by Box and Muller's transform, hashed with Python's unbounded ints."""

    def uniform(part: int, row: int, column: int) -> float:
        state = 0
        for value in (seed, stream, part, block, row, column):
            state = mix64((state + value + 0x9E3779B97F4A7C15) % _WORD)
        return (state >> 11) / 2.0**53

    def normal(row: int, column: int) -> float:
        radius = math.sqrt(-2.0 * math.log(uniform(0, row, column) + 2.0**-53))
        return radius * math.cos(2.0 * math.pi * uniform(1, row, column))

    return torch.tensor([[normal(row, column) for column in range(size)] for row in range(size)], dtype=torch.float64)
