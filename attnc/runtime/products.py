"""Matrix products over allowed pairs, in which other pairs do not take part whatever their vectors hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def has_no_values(*tensors: Tensor) -> bool:
    """Tell whether no value of tensors can be asked for: they are traced, or many at once under `torch.func.vmap`."""
    return any(type(tensor) not in (Tensor, torch.nn.Parameter) or _is_batched(tensor) for tensor in tensors)


def _is_batched(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


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
    if not has_no_values(weights, vectors, allowed) and bool(finite.all()):
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
    """`query @ key^T` where allowed, 0 elsewhere; derivatives of masked pairs do not exist."""

    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
        """Return `[..., I, J]`."""
        return torch.where(allowed, query @ key.transpose(-1, -2), 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep what derivatives need."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

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

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        """Return the tangent of the products."""
        query, key, allowed = ctx.saved_tensors
        return _sum_of_tangents(PairProducts, (query, key), tangents, allowed)


class WeightedSums(torch.autograd.Function):
    """`weights @ vectors` over allowed pairs alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, vectors: Tensor, allowed: Tensor) -> Tensor:
        """Return `[..., I, D]`."""
        return weighted_sum(torch.where(allowed, weights, 0.0), vectors, allowed, careful=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep what derivatives need."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

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

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        """Return the tangent of the sums."""
        weights, vectors, allowed = ctx.saved_tensors
        return _sum_of_tangents(WeightedSums, (weights, vectors), tangents, allowed)


def _sum_of_tangents(
    product: Any, factors: tuple[Tensor, Tensor], tangents: tuple[Tensor | None, ...], allowed: Tensor
) -> Tensor:
    """Return the tangent of a product of two factors, of which at least one has a tangent."""
    terms = []
    if tangents[0] is not None:
        terms.append(product.apply(tangents[0], factors[1], allowed))
    if tangents[1] is not None:
        terms.append(product.apply(factors[0], tangents[1], allowed))
    total: Tensor = terms[0] if len(terms) == 1 else terms[0] + terms[1]
    return total
