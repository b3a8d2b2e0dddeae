"""What theory says of positive random features, with `z = x + y` and `SM = exp(x . y)`.

One estimate of `SM` is the mean of `SM f_i`, with `f_i = exp(w_i . z - |z|^2 / 2)`, since

    exp(w . x - |x|^2 / 2) exp(w . y - |y|^2 / 2) = exp(x . y) exp(w . z - |z|^2 / 2).

For `w` normal, `E f = 1` and `E f^2 = exp(2 |z|^2 - |z|^2)`: so the mean squared error of `m` independent features is
`SM^2 (exp(|z|^2) - 1) / m`, lemma 2 of Choromanski et al. (2021), "Rethinking Attention with Performers".

For two directions of one orthogonal block, `w_i + w_k` has an isotropic direction `u`, and the square of its length
`R` is a sum of two independent chi-squared numbers with `d` degrees of freedom each. The even moments of `u . z / |z|`
and of `R` give

    E exp((w_i + w_k) . z) = sum over p of (|z|^2 / 2)^p (d)_p / (p! (d / 2)_p) = 1F1(d; d / 2; |z|^2 / 2)

with rising factorials `(a)_p`. Independent ones give `exp(|z|^2)`, whose terms are larger from `p = 2` on: directions
of one block are negatively correlated, and the error is smaller by their covariances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def independent(square: float, features: int) -> float:
    """Return the mean squared error of an estimate of SM, over SM squared.

    Args:
        square: of the length of `x + y`.
        features: independent ones.
    """
    return math.expm1(square) / features


def orthogonal(square: float, features: int, size: int) -> float:
    """Return the same for directions that are orthogonal in blocks of `size`, with the lengths of normal ones."""
    whole, rest = divmod(features, size)
    pairs = whole * size * (size - 1) + rest * (rest - 1)
    return independent(square, features) - pairs / features**2 * gap(square, size)


def gap(square: float, size: int) -> float:
    """Return minus the covariance of `f_i` and `f_k` of one orthogonal block: `1 - exp(-|z|^2) 1F1`."""
    term, total, place = 1.0, 1.0, 0
    while term > 1e-18 * total:
        term *= square / 2 * (size + place) / ((place + 1) * (size / 2 + place))
        total += term
        place += 1
    return 1.0 - math.exp(-square) * total


def least_gap(square: float, size: int) -> float:
    """Return what theorem 2 of the paper says that `gap` is at least.

    It has `2 (m - 1) / (m (d + 2)) (SM - exp(-(|x|^2 + |y|^2) / 2))^2` for `m` features of one block, of which the part
    `(m - 1) / m` is that of their pairs.
    """
    return 2 / (size + 2) * (1 - math.exp(-square / 2)) ** 2


def attention_error(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return, to the first order in one over the number of independent features, the errors of a causal attention.

    With `a_j` the weights of a query `x`, `z_j = x + y_j` and `o` its output, the estimate's error is to the first
    order the mean over features of `sum over j of a_j f_j (v_j - o)`, and that of its denominator, relative to it, the
    mean of `sum over j of a_j (f_j - 1)`; `E f_j f_k = exp(z_j . z_k)`.

    Args:
        query: `(H, N, D)` in float64, scaled so that scores are products with keys.
        key: the same.
        value: `(H, N, E)`.

    Returns:
        Of each query, the expected squared error of its output and the variance of its denominator, relative to it,
        both times the number of features: `(H, N)`.
    """
    count = query.shape[1]
    errors, variances = [], []
    for row in range(count):
        x, y, v = query[:, row, None], key[:, : row + 1], value[:, : row + 1]
        weights = (x @ y.transpose(-2, -1)).softmax(-1)
        z = x + y
        moments = (z @ z.transpose(-2, -1)).exp()
        away = weights.transpose(-2, -1) * (v - weights @ v)
        errors.append(((moments @ away) * away).sum((-2, -1)))
        variances.append((weights @ moments.sub(1) @ weights.transpose(-2, -1))[:, 0, 0])
    return torch.stack(errors, -1), torch.stack(variances, -1)
