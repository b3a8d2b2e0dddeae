"""Gradients of what belongs to a row alone, on any device: the factor on the dot product, the sink, reads of tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attnc.runtime.blocks import block_pairs, recording, row_scale, with_tape
from attnc.runtime.pairs import Pairs
from attnc.runtime.program import Formula, Program

Totals = Mapping[str, Tensor]
"""Gradients of tables by name, float64, of the expanded shapes: they are added to."""


def all_rows(heads: Pairs) -> Pairs:
    """Return the coordinates of all queries."""
    return block_pairs(heads, torch.arange(heads.sizes.N, device=heads.device).view(1, -1), None)


def all_keys(heads: Pairs) -> Pairs:
    """Return the coordinates of all keys, in the place of queries where the keys of a block stand."""
    at = block_pairs(heads, torch.zeros((1, 1), dtype=torch.int64, device=heads.device), None)
    at.i = at.r = None
    at.j = torch.arange(heads.sizes.M, device=heads.device).view(1, 1, 1, 1, 1, -1)
    return at


def values_of_rows(heads: Pairs, values: Tensor) -> Tensor:
    """Lay numbers of rows `[B, G, 1, g, N, 1]`, any of them 1, out as `[B, G, g, N]`."""
    sizes = heads.sizes
    return values.expand(sizes.B, sizes.kv_heads, 1, sizes.g, sizes.N, 1).squeeze(-1).squeeze(2)


def add_elements(total: Tensor, places: tuple[Tensor, ...], part: Tensor) -> None:
    """Add gradients to the elements of a table that were read; float64 sums are taken in order."""
    if not places:
        total.add_(part.sum().to(total.dtype))
    else:
        total.index_put_(places, part.to(total.dtype), accumulate=True)


def differentiate_rows(heads: Pairs, formula: Formula, grad: Tensor, totals: Totals) -> None:
    """Add the gradients of an expression of the query alone, given that of its value of each row."""
    sizes = heads.sizes
    shape = (sizes.B, sizes.kv_heads, 1, sizes.g, sizes.N, 1)
    _differentiate_elements(all_rows(heads), formula, grad.reshape(shape), totals)


def differentiate_keys(heads: Pairs, formula: Formula, grad: Tensor, totals: Totals) -> None:
    """Add the gradients of an expression of the key alone, given that of its value of each key."""
    sizes = heads.sizes
    shape = (sizes.B, sizes.kv_heads, 1, sizes.g, 1, sizes.M)
    _differentiate_elements(all_keys(heads), formula, grad.reshape(shape), totals)


def _differentiate_elements(at: Pairs, formula: Formula, grad: Tensor, totals: Totals) -> None:
    if not totals:
        return
    at = with_tape(at, None, frozenset(totals))
    with recording():
        values = formula(at)
        values = values.expand(grad.shape)
    if not values.requires_grad:
        return
    assert at.tape is not None
    leaves = [leaf for _, _, leaf in at.tape.reads]
    parts = torch.autograd.grad(values, leaves, grad.to(values.dtype), allow_unused=True)
    for (name, places, _), part in zip(at.tape.reads, parts, strict=True):
        if part is not None:
            add_elements(totals[name], places, part)


def sink_gradients(program: Program, heads: Pairs, delta: Tensor, peak: Tensor, total: Tensor, totals: Totals) -> None:
    """Add the gradients of the sink; all but `totals` are numbers of rows `[B, G, g, N]`."""
    if program.sink is None or not totals:
        return
    alive = total != 0
    sink = values_of_rows(heads, program.sink(all_rows(heads)))
    share = torch.exp(sink - peak) / torch.where(alive, total, 1.0)
    differentiate_rows(heads, program.sink, torch.where(alive, -share * delta, 0.0), totals)


def scale_gradients(
    program: Program, heads: Pairs, query: Tensor, grad_query: Tensor, scale: float | None, totals: Totals
) -> Tensor | float:
    """Add the gradients of the factor on the dot product, and return it: a number, or one a row `[B, G, g, N, 1]`.

    Args:
        program: of the attention.
        heads: coordinates of all heads.
        query: `[B, G, g, N, D]`.
        grad_query: that of `factor * query`.
        scale: the call's own factor.
        totals: gradients of tables.
    """
    factor = row_scale(program, all_rows(heads), scale)
    if isinstance(factor, float):
        return factor
    assert program.scale is not None
    differentiate_rows(heads, program.scale, (grad_query * query).sum(-1), totals)
    return values_of_rows(heads, factor).unsqueeze(-1)
