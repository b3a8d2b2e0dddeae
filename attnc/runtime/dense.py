"""The meaning of a pattern, densely and eagerly: what the compiled program is compared with, and looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnc.runtime.blocks import (
    LazyTables,
    block_pairs,
    compute_dtype,
    exponentials,
    head_pairs,
    row_scale,
    score_pairs,
)
from attnc.runtime.dropout import Dropout
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.products import pair_products, weighted_sums
from attnc.runtime.program import Program
from attnc.runtime.transforms import may_hold


def dense_mask(program: Program, sizes: Sizes, inputs: dict[str, Tensor], device: torch.device) -> Tensor:
    """Return which pairs are allowed, bool `[B, H, N, M]`."""
    heads = head_pairs(program, sizes, inputs, torch.float64, device)
    rows = torch.arange(sizes.N, device=device).view(1, -1)
    keys = torch.arange(sizes.M, device=device).view(1, -1)
    return _allowed(program, block_pairs(heads, rows, keys)).reshape(sizes.B, sizes.H, sizes.N, sizes.M)


def dense_attention(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: Sequence[Tensor],
    sizes: Sizes,
    scale: float | None,
    dropout: Dropout | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp `[B, H, N]` (softmax only; NaN otherwise), differentiable throughout.

    With `rows`, the query holds these rows alone, and so do the results; dropout goes by their numbers in the whole.
    """
    rows = torch.arange(sizes.N, device=query.device) if rows is None else rows
    weights, lse, alive = dense_weights(program, query, key, inputs, sizes, scale, rows)
    if dropout is not None:
        kept = dropout.keeps(_pairs_of_rows(program, inputs, sizes, rows, weights.dtype))
        weights, alive = dropout.drop(weights, kept), alive & kept
    values = torch.unflatten(value, 1, (sizes.kv_heads, 1, 1)).to(weights.dtype)
    out = weighted_sums(weights, values.expand(-1, -1, -1, sizes.g, -1, -1), alive)
    return out.reshape(sizes.B, sizes.H, rows.numel(), -1).to(query.dtype), lse


def dense_weights(
    program: Program,
    query: Tensor,
    key: Tensor,
    inputs: Sequence[Tensor],
    sizes: Sizes,
    scale: float | None,
    rows: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights `[B, G, 1, g, R, M]`, log-sum-exp `[B, H, R]` and the pairs that take part, for some query rows.

    The query holds those rows alone.
    Products are taken in the query's dtype, the rest in float32 at least, as eager attention is usually written.
    """
    at = _pairs_of_rows(program, inputs, sizes, rows, compute_dtype(query.dtype))
    queries = torch.unflatten(query, 1, (sizes.kv_heads, 1, sizes.g))
    keys = torch.unflatten(key, 1, (sizes.kv_heads, 1, 1)).expand(-1, -1, -1, sizes.g, -1, -1)
    allowed = _allowed(program, at)
    weights, lse, alive = _normalized(program, at, queries, keys, allowed, scale)
    if program.normalize in ("softmax", "rows") and may_hold(allowed.any(-1, keepdim=True) & ~alive):
        # rows whose denominator is 0: computed again without any pair, so that no gradient passes through them
        allowed = allowed & alive
        weights, lse, _ = _normalized(program, at, queries, keys, allowed, scale)
    if program.dropped is not None:
        row_at = block_pairs(at, rows.view(1, -1), None)
        dropped = program.dropped(row_at).expand(*lse.shape[:4], lse.shape[4], 1).squeeze(-1)
        lse = torch.where(allowed.any(-1), lse + dropped, lse)
    return weights.to(query.dtype), lse.reshape(sizes.B, sizes.H, -1), allowed


def _pairs_of_rows(program: Program, inputs: Sequence[Tensor], sizes: Sizes, rows: Tensor, dtype: torch.dtype) -> Pairs:
    heads = head_pairs(program, sizes, LazyTables(program, inputs, sizes), dtype, rows.device)
    return block_pairs(heads, rows.view(1, -1), torch.arange(sizes.M, device=rows.device).view(1, -1))


def _allowed(program: Program, at: Pairs) -> Tensor:
    assert at.i is not None
    assert at.j is not None
    sizes = at.sizes
    shape = (sizes.B, sizes.kv_heads, at.i.shape[2], sizes.g, at.i.shape[4], at.j.shape[5])
    mask = torch.ones((), dtype=torch.bool, device=at.device) if program.mask is None else program.mask(at)
    return mask.expand(shape)


def _normalized(
    program: Program, at: Pairs, query: Tensor, key: Tensor, allowed: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised weights, log-sum-exp, and which rows have a denominator other than 0."""
    row_at = block_pairs(at, _rows(at), None)
    row_at.allowed = allowed.any(-1, keepdim=True)
    factor = row_scale(program, row_at, scale)
    products = pair_products(query, key, allowed)
    at.allowed = allowed
    dots = torch.where(allowed, factor * products.to(at.dtype), 0.0)
    scores = score_pairs(program, at, dots)
    factors = scores.new_ones(()) if program.weight is None else program.weight(at)
    factors = torch.where(allowed, factors, 0.0)
    match program.normalize:
        case "softmax":
            row_at.allowed = None
            return _softmax(program, row_at, scores, factors, allowed)
        case "sigmoid":
            weights = torch.sigmoid(scores)
        case "relu":
            positive = allowed & ~(scores <= 0)
            weights = torch.where(positive, torch.where(positive, scores, 1.0) ** program.power, 0.0)
        case _:
            weights = scores
    weights = torch.where(allowed, weights, 0.0) * factors
    lse = weights.new_full(allowed.shape[:-1], torch.nan)
    if program.normalize != "rows":
        return weights, lse, torch.ones_like(allowed[..., :1])
    total = weights.sum(-1, keepdim=True)
    alive = total != 0
    return torch.where(allowed & alive, weights / torch.where(alive, total, 1.0), 0.0), lse, alive


def _softmax(
    program: Program, row_at: Pairs, scores: Tensor, factors: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    peak = torch.where(allowed & (factors != 0), scores.detach(), -torch.inf).amax(-1, keepdim=True)
    sink = None if program.sink is None else program.sink(row_at)
    if sink is not None:
        peak = torch.maximum(peak, sink.detach())
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    weights = exponentials(program, torch.where(allowed, scores - peak, -torch.inf)) * factors
    weights = torch.where(allowed, weights, 0.0)
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - peak)
    alive = total != 0
    safe = torch.where(alive, total, 1.0)
    lse = torch.where(alive, peak + torch.log(safe), -torch.inf)
    # `inf - inf` makes the weights NaN, but the sum of such a row is infinite
    spoiled = (allowed & scores.isnan()).any(-1, keepdim=True)
    lse = torch.where((peak == torch.inf) & ~spoiled, torch.inf, lse)
    return torch.where(allowed & alive, weights / safe, 0.0), lse.squeeze(-1), alive


def _rows(at: Pairs) -> Tensor:
    assert at.r is not None
    return at.r.view(at.r.shape[2], at.r.shape[4])
