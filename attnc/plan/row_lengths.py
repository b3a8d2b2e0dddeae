"""How many keys rows have: what decides how many programs share the keys of a row, and which rows are computed first.

One program walks the keys of a row. Where most rows have few, one row of all keys holds the others up; a kernel gives
such rows several programs each, which share their keys. Rows that have few keys however long the sequence is need no
such help. Where rows have more and more keys along the sequence, or fewer and fewer, the longest ones are begun first,
so that short ones are left for the end, when some multiprocessors have nothing else to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from attnc.algebra.coordinates import IDENTITY
from attnc.algebra.counting import bounds_read
from attnc.algebra.walking import row_tiles, walk_tiles
from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, Index, IndexName
from attnc.ir.program import Attention
from attnc.ir.walk import walk
from attnc.plan.cost import SMALLEST, TILE, imagined_call, keys_walked
from attnc.plan.kernel_plan import Pass, Trend

LENGTH = 8192
"""Length for which plans are compared, and rows looked at, unless the caller has another one in hand."""

MOST_ROWS = 128
"""More rows than these keep programs busy by themselves."""

TIMES = 4
"""Rows with so many times the keys of others are long."""

GROWTH = 1.5
"""Between a sequence and one of twice its length, counts differ by less where only tiles lie otherwise."""

SAMPLED = 12
"""Tiles of other rows that are looked at."""

UNEVEN = 1.25
"""Rows that visit so many times the keys of others are longer; with less, only the edges of tiles lie otherwise."""


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


def most_keys(attention: Attention, one: Pass, length: int) -> int | None:
    """Return about how many keys a pass visits for a tile of rows, where no longer sequence has more; else None.

    A window of 1024 keys does. What data decides, and the first rows, are not looked into.

    Args:
        attention: simplified.
        one: a pass of its plan.
        length: of the sequence that is imagined, besides one twice as long.
    """
    if bounds_read(one.tiles):
        return None
    short, long = (_visited(attention, one, size) for size in (length, 2 * length))
    return None if long > GROWTH * short else max(short, long)


def trend_of(attention: Attention, one: Pass, length: int) -> Trend:
    """Return how the number of keys that a pass visits changes along the rows of a sequence of that length.

    The first and the last quarter are compared with those beyond their neighbours: the first rows of a window have
    fewer keys than all others, which does not make it uneven.
    """
    if bounds_read(one.tiles):
        return Trend.MIXED
    tile = SMALLEST if one.layout.classes > 1 else TILE  # a class has few rows
    first, second, third, last = _quarters(row_counts(attention, one, length, tile, tile))
    rises, falls = last >= UNEVEN * second and last > 0, first >= UNEVEN * third and first > 0
    if rises is falls:
        level = not rises and max(second, third) <= UNEVEN * min(second, third)
        peaks = UNEVEN * first < second and UNEVEN * last < third
        return Trend.LEVEL if level and not peaks else Trend.MIXED
    if rises:
        return Trend.RISING if UNEVEN * last >= max(first, second, third) else Trend.MIXED
    return Trend.FALLING if UNEVEN * first >= max(second, third, last) else Trend.MIXED


def trend_together(trends: Iterable[Trend]) -> Trend:
    """Return the trend of rows that walk the keys of several passes."""
    uneven = set(trends) - {Trend.LEVEL}
    if not uneven:
        return Trend.LEVEL
    return uneven.pop() if len(uneven) == 1 else Trend.MIXED


def row_counts(attention: Attention, one: Pass, length: int, rows: int = TILE, keys: int = TILE) -> list[int]:
    """Return how many tiles of keys a pass visits for evenly spaced tiles of rows, as far as no data decides it.

    Of residue classes the first one stands for all.
    """
    env = imagined_call(attention, one, length)
    every = list(row_tiles(env, one.layout, rows))
    tiles = [here for here in every if here.indices[IndexName.CLASS] == every[0].indices[IndexName.CLASS]]
    step = max(1, len(tiles) // (2 * SAMPLED))
    visits = (walk_tiles(one.tiles, here, keys) for here in tiles[step // 2 :: step])
    return [sum(visit.end - visit.begin for visit in found) for found in visits]


def _quarters(counts: Sequence[int]) -> list[float]:
    """Return the means of four stretches of equal length."""
    ends = [len(counts) * quarter // 4 for quarter in range(5)]
    return [sum(counts[start:stop]) / max(1, stop - start) for start, stop in pairwise(ends)]


def _visited(attention: Attention, one: Pass, length: int) -> int:
    """Return the most keys that tiles from the middle on visit."""
    env = imagined_call(attention, one, length)
    tiles = list(row_tiles(env, one.layout, TILE))
    later = tiles[len(tiles) // 2 :: max(1, len(tiles) // SAMPLED)] + tiles[-1:]
    visits = (sum(visit.end - visit.begin for visit in walk_tiles(one.tiles, here, TILE)) for here in later)
    return TILE * max(visits, default=0)


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
