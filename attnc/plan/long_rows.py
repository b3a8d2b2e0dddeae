"""First rows that have many more keys than the others, as those of tokens that see everything.

One program walks the keys of a row. Where most rows have few, one row of all keys holds the others up; a kernel gives
such rows several programs each, which share their keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnc.algebra.coordinates import IDENTITY
from attnc.algebra.counting import bounds_read
from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, Index, IndexName
from attnc.ir.program import Attention
from attnc.ir.walk import walk
from attnc.plan.cost import TILE, keys_walked
from attnc.plan.kernel_plan import Pass

MOST_ROWS = 128
"""More rows than these keep programs busy by themselves."""

TIMES = 4
"""Rows with so many times the keys of others are long."""

SAMPLED = 12
"""Tiles of other rows that are looked at."""


def count_long_rows(attention: Attention, passes: Sequence[Pass], length: int) -> int:
    """Return how many positions, from 0 on, have rows with many more keys than the others; 0 for none.

    Only masks that say so are looked into: those that compare the query's position with a constant.

    Args:
        attention: simplified.
        passes: of its plan; those in plain order count.
        length: of the sequence that is imagined.
    """
    plain = [one for one in passes if one.layout.query == IDENTITY]
    limits = sorted({limit for limit in _limits(attention.mask) if 0 < limit <= MOST_ROWS}, reverse=True)
    if not limits or any(bounds_read(one.tiles) for one in plain):
        return 0

    def walked(first: int, rows: int) -> float:
        return sum(keys_walked(attention, one, length, range(first, first + rows)) for one in plain)

    for limit in limits:
        start = -(-limit // TILE) * TILE
        others = range(start, length - TILE, max(TILE, (length - start) // SAMPLED))
        if walked(0, limit) >= TIMES * max((walked(first, TILE) for first in others), default=length):
            return limit
    return 0


def _limits(mask: Expr) -> Iterator[int]:
    """Yield the positions that a mask tells earlier rows from later ones by: 1 for `i < 1`, 64 for `i // 64 < 1`."""
    for node in walk(mask):
        if not isinstance(node, Binary) or node.op not in (BinaryOp.LT, BinaryOp.LE):
            continue
        match node.left, node.right:
            case Index(name=IndexName.QUERY), Const(value=int() as value):
                yield value + (node.op is BinaryOp.LE)
            case (
                Binary(op=BinaryOp.FLOORDIV, left=Index(name=IndexName.QUERY), right=Const(value=int() as size)),
                Const(value=int() as value),
            ):
                yield size * (value + (node.op is BinaryOp.LE))
            case _:
                pass
