"""In which grids the pairs of a mask could lie in small boxes: candidates, the best one by counted keys.

A grid is a chain of strides that divide each other, made of the divisors that a mask mentions: `(128, 1)` for an image
with rows of 128, `(256, 16, 1)` for a video, `(256, 128, 2, 1)` for an image of which every second point counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise, product

from attnc.algebra.boxes import MOST_KEYS, Reaches
from attnc.algebra.congruences import PairSet
from attnc.algebra.coordinates import Layout, boxed
from attnc.algebra.grids import Axis, Side
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, IndexName
from attnc.ir.walk import tables, walk

ROWS = 64
"""Points of a query tile: what the tiles have that costs are counted for. Larger tiles have larger boxes."""

MOST_DIVISORS = 6
"""Divisors of one mask that grids are made of; the smallest first."""

MOST_AXES = 4

WIDEST = 1 << 20
"""Rows of a grid that are longer than sequences are no use."""

FAR = 1 << 14
"""A coordinate along the outermost axis that is far from its beginning."""

SAMPLES = 8
"""Tiles along an axis whose boxes are looked at."""

WORTH = 0.75
"""An inner axis along which boxes take more of the extent than this makes no grid worth its gathering."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A way to cut one axis, and how many coordinates boxes take along it, the mean over tiles."""

    axis: Axis
    width: float

    @property
    def filled(self) -> float:
        """Which share of the tiles' coordinates are points of the axis."""
        return self.axis.extent / (self.axis.tiles * self.axis.tile) if self.axis.extent else 1.0


def grid_layout(pairs: PairSet, mask: Expr) -> Layout | None:
    """Return the grid and the query tiles whose boxes have the fewest keys; None if the mask suggests none."""
    divisors = [value for value in mask_divisors(mask) if 1 < value <= WIDEST][:MOST_DIVISORS]
    if not divisors:
        return None
    reaches = Reaches(pairs, mask)
    best: tuple[tuple[float, float], Layout] | None = None
    for strides in _chains(divisors):
        found = _best_cut(reaches, mask, strides)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    return None if best is None else best[1]


def asked_grid(pairs: PairSet, mask: Expr, width: int, tile: tuple[int, int]) -> Layout:
    """Return the layout of a grid with rows of `width` points in tiles of so many rows and columns."""
    reaches = Reaches(pairs, mask)
    axes = Axis(width, 0, tile[0]), Axis(1, width, tile[1])
    return boxed(axes, tuple(reaches.side(axis.stride, axis.extent) for axis in axes))


def mask_divisors(mask: Expr) -> list[int]:
    """Return the divisors that a mask mentions, in rising order."""
    found = {
        node.right.value
        for node in walk(mask)
        if isinstance(node, Binary) and node.op in (BinaryOp.MOD, BinaryOp.FLOORDIV)
        if isinstance(node.right, Const) and isinstance(node.right.value, int)
    }
    return sorted(found)


def _chains(divisors: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield strides, the largest first and 1 last, each a multiple of the next one."""
    products = {left * right for left, right in combinations(divisors, 2)}
    strides = sorted({*divisors, *(value for value in products if value <= WIDEST)}, reverse=True)
    for length in range(1, MOST_AXES):
        for chosen in combinations(strides, length):
            if all(outer % inner == 0 for outer, inner in pairwise(chosen)):
                yield (*chosen, 1)


def _best_cut(reaches: Reaches, mask: Expr, strides: tuple[int, ...]) -> tuple[tuple[float, float], Layout] | None:
    """Return the tiles of a grid whose boxes have the fewest keys, and how many a row has then.

    What counts first is whole tiles of keys, and the keys themselves where those are as many.
    """
    extents = (0, *(outer // inner for outer, inner in pairwise(strides)))
    sides = tuple(reaches.side(stride, extent) for stride, extent in zip(strides, extents, strict=True))
    if any(tables(bound) for side in sides for bound in (side.low, side.high) if bound is not None):
        return None
    if _width(Axis(strides[0], 0, ROWS), sides[0]) > FAR // 4:
        return None
    cuts = [_cuts(stride, extent, side, mask) for stride, extent, side in zip(strides, extents, sides, strict=True)]
    best: tuple[tuple[float, float], tuple[_Cut, ...]] | None = None
    for sizes in _shapes(extents):
        chosen = tuple(min((cut for cut in cuts[n] if cut.axis.tile == sizes[n]), key=lambda cut: cut.width)
                       for n in range(len(sizes)))  # fmt: skip
        if all(cut.width > WORTH * cut.axis.extent for cut in chosen[1:]):
            continue
        keys = math.prod(cut.width for cut in chosen)
        rows = ROWS * math.prod(cut.filled for cut in chosen)
        cost = -(-keys // MOST_KEYS) * MOST_KEYS / rows, keys / rows
        if best is None or cost < best[0]:
            best = cost, chosen
    if best is None:
        return None
    return best[0], boxed(tuple(cut.axis for cut in best[1]), sides)


def _shapes(extents: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield how many points a tile of `ROWS` may have along each axis.

    It has several along two axes at least: along one alone they are a stretch of plain order or of a residue class.
    """
    sizes = [2**power for power in range(ROWS.bit_length())]
    inner = [[size for size in sizes if size == 1 or size < 2 * extent] for extent in extents[1:]]
    for chosen in product(*inner):
        outer, rest = divmod(ROWS, math.prod(chosen))
        if outer and not rest and sum(size > 1 for size in (outer, *chosen)) > 1:
            yield (outer, *chosen)


def _cuts(stride: int, extent: int, side: Side, mask: Expr) -> list[_Cut]:
    """Return the ways to cut an axis into tiles, from its beginning or from where the mask has its own ones begin."""
    cuts = []
    for power in range(ROWS.bit_length()):
        tile = 2**power
        for lead in sorted({0, *(offset % tile for offset in _offsets(mask))}):
            axis = Axis(stride, extent, tile, lead)
            cuts.append(_Cut(axis, _width(axis, side)))
    return cuts


def _offsets(mask: Expr) -> set[int]:
    """Return what a mask adds before it divides: `(y + 4) // 8`."""
    return {
        node.left.right.value
        for node in walk(mask)
        if isinstance(node, Binary) and node.op in (BinaryOp.FLOORDIV, BinaryOp.MOD) and isinstance(node.left, Binary)
        if node.left.op is BinaryOp.ADD and isinstance(node.left.right, Const)
        if isinstance(node.left.right.value, int)
    }


def _width(axis: Axis, side: Side) -> float:
    """Return how many coordinates boxes take along an axis, the mean over tiles."""
    count = axis.tiles if axis.extent else SAMPLES
    first = 0 if axis.extent else FAR // axis.tile
    numbers = range(first, first + count, max(1, count // SAMPLES))
    widths = []
    for number in numbers:
        low = number * axis.tile - axis.lead
        high = low + axis.tile - 1
        if axis.extent:
            low, high = max(low, 0), min(high, axis.extent - 1)
        env = Environment({IndexName.QUERY_LOW: low, IndexName.QUERY_HIGH: high, IndexName.HEAD: 3, IndexName.BATCH: 0})
        start = 0 if side.low is None else int(evaluate(side.low, env))
        stop = (axis.extent or 2 * FAR) if side.high is None else int(evaluate(side.high, env)) + 1
        widths.append(max(0, stop - start))
    return sum(widths) / len(widths)
