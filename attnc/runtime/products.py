"""Matrix products over allowed pairs, in which other pairs do not take part whatever their vectors hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def weighted_sum(weights: Tensor, vectors: Tensor, allowed: Tensor | None, careful: bool) -> Tensor:
    """Return `weights @ vectors`; weights are 0 where pairs are not allowed.

    Args:
        weights: `[..., I, J]`.
        vectors: `[..., J, D]`.
        allowed: which pairs take part, broadcastable to `weights`; None for all.
        careful: vectors may hold NaN and infinities, which must not reach rows that may not see them (0 * NaN is NaN).
    """
    if not careful or allowed is None:
        return weights @ vectors
    finite = torch.isfinite(vectors)
    if bool(finite.all()):
        return weights @ vectors
    allowed = allowed.expand(weights.shape)

    def met(pairs: Tensor, elements: Tensor) -> Tensor:
        return pairs.to(weights.dtype) @ elements.to(weights.dtype) > 0

    up, down = vectors == torch.inf, vectors == -torch.inf
    rising = met(weights > 0, up) | met(weights < 0, down)
    falling = met(weights > 0, down) | met(weights < 0, up)
    undefined = met(allowed, vectors.isnan()) | met(allowed & (weights == 0), up | down) | (rising & falling)
    result = torch.where(rising, torch.inf, torch.where(falling, -torch.inf, weights.new_zeros(())))
    return weights @ torch.where(finite, vectors, 0) + torch.where(undefined, torch.nan, result)


class PairProducts(torch.autograd.Function):
    """`query @ key^T` where allowed, 0 elsewhere; gradients of masked pairs do not exist."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
        """Return `[..., I, J]`."""
        ctx.save_for_backward(query, key, allowed)
        return torch.where(allowed, query @ key.transpose(-1, -2), 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query and key."""
        query, key, allowed = ctx.saved_tensors
        grad = grads[0]
        return (
            WeightedSums.apply(grad, key, allowed),  # type: ignore[no-untyped-call]
            WeightedSums.apply(grad.transpose(-1, -2), query, allowed.transpose(-1, -2)),  # type: ignore[no-untyped-call]
            None,
        )


class WeightedSums(torch.autograd.Function):
    """`weights @ vectors` over allowed pairs alone."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, vectors: Tensor, allowed: Tensor) -> Tensor:
        """Return `[..., I, D]`."""
        ctx.save_for_backward(weights, vectors, allowed)
        return weighted_sum(torch.where(allowed, weights, 0.0), vectors, allowed, careful=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weights and vectors."""
        weights, vectors, allowed = ctx.saved_tensors
        grad = grads[0]
        return (
            PairProducts.apply(grad, vectors, allowed),  # type: ignore[no-untyped-call]
            WeightedSums.apply(weights.transpose(-1, -2), grad, allowed.transpose(-1, -2)),  # type: ignore[no-untyped-call]
            None,
        )
