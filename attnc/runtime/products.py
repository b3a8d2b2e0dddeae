"""Matrix products over allowed pairs, in which other pairs do not take part whatever their vectors hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.transforms import are_nested_tangents, may_hold


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
    if not may_hold(~finite):
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
    """`query @ key^T` where allowed, 0 elsewhere; derivatives of masked pairs do not exist.

    Differentiable in both directions, any number of times, and under every transform of `torch.func`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
        """Return `[..., I, J]`."""
        return torch.where(allowed, query @ key.transpose(-1, -2), 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what derivatives are made of."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query and key."""
        query, key, allowed = ctx.saved_tensors
        grad = grads[0]
        return (
            weighted_sums(grad, key, allowed),
            weighted_sums(grad.transpose(-1, -2), query, allowed.transpose(-1, -2)),
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        """Return the tangent of the products."""
        query, key, allowed = ctx.saved_tensors
        return _product_tangent(pair_products, (query, key), tangents, allowed)


class WeightedSums(torch.autograd.Function):
    """`weights @ vectors` over allowed pairs alone; differentiable as `PairProducts` is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, vectors: Tensor, allowed: Tensor) -> Tensor:
        """Return `[..., I, D]`."""
        return weighted_sum(torch.where(allowed, weights, 0.0), vectors, allowed, careful=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what derivatives are made of."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weights and vectors."""
        weights, vectors, allowed = ctx.saved_tensors
        grad = grads[0]
        return (
            pair_products(grad, vectors, allowed),
            weighted_sums(weights.transpose(-1, -2), grad, allowed.transpose(-1, -2)),
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        """Return the tangent of the sums."""
        weights, vectors, allowed = ctx.saved_tensors
        return _product_tangent(weighted_sums, (weights, vectors), tangents, allowed)


def pair_products(query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """Return `query @ key^T` where allowed, 0 elsewhere; differentiable."""
    if are_nested_tangents():
        return torch.where(allowed, plain_product(query, key.transpose(-1, -2)), 0.0)
    return PairProducts.apply(query, key, allowed)  # type: ignore[no-untyped-call, no-any-return]


def weighted_sums(weights: Tensor, vectors: Tensor, allowed: Tensor) -> Tensor:
    """Return `weights @ vectors` over allowed pairs alone; differentiable."""
    if are_nested_tangents():
        return plain_product(torch.where(allowed, weights, 0.0), vectors)
    return WeightedSums.apply(weights, vectors, allowed)  # type: ignore[no-untyped-call, no-any-return]


def plain_product(left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product by torch's own operation, since forward mode inside forward mode forgets `jvp` functions.

    Raises:
        RuntimeError: masked pairs may hold NaN or infinities, which 0 times them would not keep from derivatives.
    """
    if any(may_hold(~torch.isfinite(factor)) for factor in (left, right)):
        raise RuntimeError(
            "attention takes finite numbers alone, and none that vmap hides, inside two forward-mode transforms: "
            "take one of the two in reverse mode (torch.func.jacrev, vjp or grad)"
        )
    return left @ right


def _product_tangent(
    product: Callable[[Tensor, Tensor, Tensor], Tensor],
    factors: tuple[Tensor, Tensor],
    tangents: tuple[Tensor | None, ...],
    allowed: Tensor,
) -> Tensor | None:
    """Return the tangent of a product that is linear in each of its factors."""
    left, right = tangents[:2]
    first = None if left is None else product(left, factors[1], allowed)
    second = None if right is None else product(factors[0], right, allowed)
    return second if first is None else first if second is None else first + second
