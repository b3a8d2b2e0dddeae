"""Errors of Performer's features: of one estimate of `exp(x . y)`, and of the output of `examples/performer.attn`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attnc
from attnc.runtime.features import FeatureMap, hashed_gaussians, map_features
from results.closed_forms import attention_error
from results.store import Store

NAME = "performer"

PATTERN = Path(__file__).parents[2] / "examples" / "performer.attn"

SETTINGS: dict[str, Any] = {
    "size": 64,
    "lengths": [0.5, 1.0, 1.5, 2.0],
    "features": [16, 32, 64, 128, 256, 512],
    "pairs": 64,
    "seeds": 1000,
    "deviations": [0.25, 0.5, 0.75, 1.0],
    "attention_features": [16, 64, 256, 1024],
    "attention_seeds": 16,
    "heads": 2,
    "positions": 512,
}
"""Head size; lengths `|x + y|`, features, pairs `x, y` and seeds of estimates; standard deviations of the elements of
queries and keys, features, seeds, heads and positions of attentions."""

QUICK = SETTINGS | {"seeds": 20, "attention_seeds": 2, "attention_features": [16, 64], "positions": 64}

SEEDS_AT_ONCE = 100
"""Seeds of a row: rows are small enough to go on from."""


def settings(*, quick: bool) -> dict[str, Any]:
    """Return what is measured."""
    return QUICK if quick else SETTINGS


def measure(store: Store) -> None:
    """Fill the rows in."""
    chosen = store.data["settings"]
    for first in range(0, chosen["seeds"], SEEDS_AT_ONCE):
        seeds = range(first, min(first + SEEDS_AT_ONCE, chosen["seeds"]))
        store.add(f"estimates {first}", lambda seeds=seeds: measure_estimates(chosen, seeds))  # type: ignore[misc]
    for deviation in chosen["deviations"]:
        store.add(f"attention {deviation:g}", lambda deviation=deviation: measure_attention(chosen, deviation))  # type: ignore[misc]


def draw_pairs(lengths: list[float], pairs: int, size: int) -> tuple[Tensor, Tensor]:
    """Draw `x` and `y` in float64, `(len(lengths) * pairs, size)`: `|x| = 1`, and `x + y` has the length wanted."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), pairs, size)
    x, sums = (torch.nn.functional.normalize(torch.randn(shape, generator=generator).double(), dim=-1) for _ in "xz")
    y = sums * torch.tensor(lengths, dtype=torch.float64).view(-1, 1, 1) - x
    return x.flatten(0, 1), y.flatten(0, 1)


def relative_errors(left: Tensor, right: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return errors of products of features over `exp(x . y)`, `(pairs,)`.

    Args:
        left: logs of the features of `x`, `(pairs, m)`.
        right: those of `y`.
        x: `(pairs, size)`.
        y: the same.
    """
    return (left + right - (x * y).sum(-1, keepdim=True)).exp().sum(-1) - 1


def measure_estimates(chosen: dict[str, Any], seeds: range) -> dict[str, Any]:
    """Return, by draw, sums over seeds of the mean over pairs of squared relative errors, and of its square.

    Both are `[length][features]`.
    """
    x, y = draw_pairs(chosen["lengths"], chosen["pairs"], chosen["size"])
    found: dict[str, list[Any]] = {}
    for draw in DRAWS:
        every = [[DRAWS[draw](x, y, features, seed) for seed in seeds] for features in chosen["features"]]
        squares = torch.stack([torch.stack(one) for one in every]).square()  # features, seeds, lengths and pairs
        means = squares.unflatten(-1, (len(chosen["lengths"]), -1)).mean(-1)
        found[draw] = [means.pow(power).sum(1).T.tolist() for power in (1, 2)]
    return found


def orthogonal_draw(x: Tensor, y: Tensor, features: int, seed: int) -> Tensor:
    """Return relative errors by attnc's own features."""
    feature = FeatureMap("favor", features, seed)
    rows = torch.stack((x, y)).unsqueeze(0)  # as two heads
    mapped = map_features(feature, rows, torch.zeros(1), len(x))
    assert mapped.exponent is not None
    left, right = (mapped.values.log() + mapped.exponent.unsqueeze(-1))[0]
    return relative_errors(left, right, x, y)


def independent_draw(x: Tensor, y: Tensor, features: int, seed: int) -> Tensor:
    """Return relative errors by independent directions."""
    directions = independent_directions(features, x.shape[1], seed)
    left, right = (log_features(one, directions) for one in (x, y))
    return relative_errors(left, right, x, y)


DRAWS = {"independent": independent_draw, "orthogonal": orthogonal_draw}


def independent_directions(count: int, size: int, seed: int) -> Tensor:
    """Return the normal numbers that attnc makes its orthogonal directions of, `(count, size)`."""
    return hashed_gaussians(seed, 0, -(-count // size), size).flatten(0, 1)[:count]


def log_features(rows: Tensor, directions: Tensor) -> Tensor:
    """Return logs of positive features."""
    return rows @ directions.T - rows.square().sum(-1, keepdim=True) / 2 - math.log(len(directions)) / 2


def measure_attention(chosen: dict[str, Any], deviation: float) -> dict[str, Any]:
    """Return relative errors of a causal attention's whole output.

    Squares of the errors' Frobenius norms over that of the exact output: of each seed and number of features by
    `examples/performer.attn` and by independent directions; what is expected of those to the first order, times the
    number of features; and the mean variance of a denominator, likewise.
    """
    query, key, value = draw_attention(chosen, deviation)
    scaled = [one * query.shape[-1] ** -0.25 for one in (query, key)]
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    power = float(exact.square().sum())
    errors, variances = attention_error(scaled[0][0], scaled[1][0], value[0])
    found: dict[str, Any] = {"orthogonal": [], "independent": []}
    for features in chosen["attention_features"]:
        module = attnc.load(PATTERN, features=features)
        seeds = range(chosen["attention_seeds"])
        ours = [module.performer(query, key, value, feature_seed=seed) for seed in seeds]
        found["orthogonal"].append([float((one - exact).square().sum()) / power for one in ours])
        theirs = [independent_attention(*scaled, value, features, seed) for seed in seeds]
        found["independent"].append([float((one - exact).square().sum()) / power for one in theirs])
    return found | {"expected": float(errors.sum()) / power, "variance": float(variances.mean())}


def draw_attention(chosen: dict[str, Any], deviation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draw queries and keys with a standard deviation, and values with 1, `(1, heads, positions, size)` in float64."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, chosen["heads"], chosen["positions"], chosen["size"])
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return query * deviation, key * deviation, value


def independent_attention(query: Tensor, key: Tensor, value: Tensor, features: int, seed: int) -> Tensor:
    """Return Performer's causal attention by independent directions, from the definition."""
    directions = independent_directions(features, query.shape[-1], seed)
    left, right = (log_features(one, directions) for one in (query, key))
    weights = (left - left.amax(-1, keepdim=True)).exp() @ (right - right.amax()).exp().transpose(-2, -1)
    weights = weights.tril()
    return weights / weights.sum(-1, keepdim=True) @ value
