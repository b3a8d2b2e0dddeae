"""An attention seen from its keys: the same pairs, with the position of the key in place of the query's.

A gradient of keys and values adds up over queries as an output does over keys, so that the tiles of queries that a tile
of keys meets are derived as the tiles of keys of a tile of queries are: from the transposed mask. Positions stay what
they are. In a transposed attention `i` is the position of a key, `0 <= i < M`, and `j` that of a query,
`shift <= j < shift + N`; sizes, and the shift of the queries, mean what they did.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.algebra.boxes import Reaches
from attnc.algebra.congruences import PairSet
from attnc.algebra.coordinates import Layout, MapKind, boxed, residue
from attnc.algebra.int_exprs import minus
from attnc.ir.nodes import Expr, Index, IndexName
from attnc.ir.program import AlignKind, Attention
from attnc.ir.walk import substitute

_QUERY, _KEY, _ROW, _SHIFT = (Index(name) for name in (IndexName.QUERY, IndexName.KEY, IndexName.ROW, IndexName.SHIFT))


def transpose(attention: Attention) -> Attention:
    """Return an attention with `i` and `j` exchanged; rows of the query tensor are `j - shift`."""

    def turned(expr: Expr | None) -> Expr | None:
        return None if expr is None else transpose_expression(expr, attention.align.kind)

    normalize = attention.normalize
    return replace(
        attention,
        mask=transpose_expression(attention.mask, attention.align.kind),
        score=transpose_expression(attention.score, attention.align.kind),
        scale=turned(attention.scale),
        weight=turned(attention.weight),
        normalize=replace(normalize, sink=turned(normalize.sink), bias=turned(normalize.bias)),
        assertions=(),
        transposed=True,
    )


def transpose_expression(expr: Expr, align: AlignKind) -> Expr:
    """Return an expression of an attention as its transposed one has it."""
    row = _KEY if align is AlignKind.START else minus(_KEY, _SHIFT)
    return substitute(expr, {_QUERY: _KEY, _KEY: _QUERY, _ROW: row})


def transpose_layout(layout: Layout, transposed: Attention) -> Layout:
    """Return the order of keys and queries of a pass for its transposed one.

    Args:
        layout: of the pass.
        transposed: an attention with the transposed mask of the pass.
    """
    if layout.is_grid:
        reaches, axes = Reaches(PairSet.of(transposed), transposed.mask), layout.query.axes
        return boxed(axes, tuple(reaches.side(axis.stride, axis.extent) for axis in axes), transposed=True)
    if layout.query.kind is MapKind.RESIDUE:
        return residue(layout.query.period, -layout.key.first)
    return Layout(layout.key, layout.query)
