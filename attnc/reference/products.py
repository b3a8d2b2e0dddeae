"""Products over allowed pairs in which the other pairs do not take part, whatever they hold, at any order of gradient.

Multiplying by a weight of 0 is not enough: `0 * NaN` is NaN. The two products here are each other's gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pair_products(left: Tensor, right: Tensor, allowed: Tensor) -> Tensor:
    """Return `dot(left[..., i, :], right[..., j, :])` for allowed pairs and 0 for the others: `[..., I, J]`."""
    return _PairProducts.apply(left, right, allowed)  # type: ignore[no-untyped-call, no-any-return]


def weighted_sums(weights: Tensor, vectors: Tensor, allowed: Tensor) -> Tensor:
    """Return the sum over the allowed `j` of `weights[..., i, j] * vectors[..., j, :]`: `[..., I, D]`."""
    return _WeightedSums.apply(weights, vectors, allowed)  # type: ignore[no-untyped-call, no-any-return]


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, allowed: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, allowed)
        return torch.where(allowed, left @ right.transpose(-1, -2), 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        left, right, allowed = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            weighted_sums(grad, right, allowed) if wanted[0] else None,
            weighted_sums(grad.transpose(-1, -2), left, allowed.transpose(-1, -2)) if wanted[1] else None,
            None,
        )


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, vectors: Tensor, allowed: Tensor) -> Tensor:
        ctx.save_for_backward(weights, vectors, allowed)
        weights = torch.where(allowed, weights, 0.0)
        finite = torch.isfinite(vectors)
        if bool(finite.all()):
            return weights @ vectors
        return weights @ torch.where(finite, vectors, 0.0) + _infinite_part(weights, vectors, allowed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weights, vectors, allowed = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            pair_products(grad, vectors, allowed) if wanted[0] else None,
            weighted_sums(weights.transpose(-1, -2), grad, allowed.transpose(-1, -2)) if wanted[1] else None,
            None,
        )


def _infinite_part(weights: Tensor, vectors: Tensor, allowed: Tensor) -> Tensor:
    """The sum over allowed pairs of the products with elements that are not finite: 0, inf, -inf or NaN."""

    def met(pairs: Tensor, elements: Tensor) -> Tensor:
        return pairs.to(torch.float32) @ elements.to(torch.float32) > 0

    up, down = vectors == torch.inf, vectors == -torch.inf
    rising = met(weights > 0, up) | met(weights < 0, down)
    falling = met(weights > 0, down) | met(weights < 0, up)
    undefined = met(allowed, vectors.isnan()) | met(allowed & (weights == 0), up | down) | (rising & falling)
    zero = torch.zeros((), dtype=weights.dtype, device=weights.device)
    result = torch.where(rising, torch.inf, torch.where(falling, -torch.inf, zero))
    return torch.where(undefined, torch.nan, result)
