"""Gradients of what belongs to a row alone, on any device: the factor on the dot product, the sink, reads of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from attnc.runtime.blocks import block_pairs, row_scale
from attnc.runtime.pairs import Pairs, Tape
from attnc.runtime.program import Program, TableRead

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
    """Add gradients to the elements of a table that were read; float64 sums are taken in a fixed order."""
    if not places:
        total.add_(part.sum().to(total.dtype))
    else:
        places = torch.broadcast_tensors(*places, part)[:-1]  # type: ignore[no-untyped-call]
        total.index_put_(places, part.to(total.dtype).expand(places[0].shape), accumulate=True)


def add_read(at: Pairs, read: TableRead, grad: Tensor, totals: Totals) -> None:
    """Add the gradient of a read of a table.

    Args:
        at: coordinates of what it was read for.
        read: of the pattern.
        grad: of what was computed with the element, multiplied by the derivative by it but for `read.slope`.
        totals: gradients of tables.
    """
    if read.table not in totals:
        return
    at = replace(at, tape=Tape(frozenset((read.table,)), leaves=False))
    read.element(at)
    assert at.tape is not None
    (taped,) = at.tape.reads
    if read.slope is not None:
        grad = grad * read.slope(at)
    if taped.inside is not None:
        grad = torch.where(taped.inside, grad, 0.0)
    add_elements(totals[read.table], taped.places, grad)


def of_rows(heads: Pairs, numbers: Tensor) -> Tensor:
    """Lay numbers of rows out as `[B, G, 1, g, N, 1]`."""
    sizes = heads.sizes
    return numbers.reshape(sizes.B, sizes.kv_heads, 1, sizes.g, sizes.N, 1)


def of_keys(heads: Pairs, numbers: Tensor) -> Tensor:
    """Lay numbers of the keys of each query head out as `[B, G, 1, g, 1, M]`."""
    sizes = heads.sizes
    return numbers.reshape(sizes.B, sizes.kv_heads, 1, sizes.g, 1, sizes.M)


def sink_gradients(program: Program, heads: Pairs, delta: Tensor, peak: Tensor, total: Tensor, totals: Totals) -> None:
    """Add the gradients of the sink; all but `totals` are numbers of rows `[B, G, g, N]`."""
    if program.sink is None or not any(read.table in totals for read in program.sink_reads):
        return
    alive, at = total != 0, all_rows(heads)
    share = torch.exp(values_of_rows(heads, program.sink(at)) - peak) / torch.where(alive, total, 1.0)
    grad = of_rows(heads, torch.where(alive, -share * delta, 0.0))
    for read in program.sink_reads:
        add_read(at, read, grad, totals)


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
    at = all_rows(heads)
    factor = row_scale(program, at, scale)
    if isinstance(factor, float):
        return factor
    if any(read.table in totals for read in program.scale_reads):
        grad = of_rows(heads, (grad_query * query).sum(-1))
        for read in program.scale_reads:
            add_read(at, read, grad, totals)
    return values_of_rows(heads, factor).unsqueeze(-1)
