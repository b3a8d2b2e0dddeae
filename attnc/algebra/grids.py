"""Positions as the points of a grid: tiles of query points that lie near each other, and the boxes of keys around them.

With rows of `W` points, position `i` is the point `(i // W, i % W)`; with more strides it has more coordinates, and a
dilation makes two of one: `(y // 2, y % 2)`. A query tile holds a block of such points. The keys that it sees lie in a
box: from the first to the last key coordinate along each axis that some query of the tile sees.

Query tiles are numbered in rows, their points one after the other inside, so that a local coordinate of a query stands
for a point of the grid that need not be a query: it may lie outside of the grid, or before the first or past the last
row. A local coordinate of a key counts the points of the tile's own box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from attnc.algebra.int_exprs import (
    ZERO,
    compare,
    constant,
    greatest,
    least,
    minus,
    plus,
    product,
    quotient,
    remainder,
    times,
)
from attnc.ir.nodes import TRUE, And, BinaryOp, Expr, Index, IndexName, Size, SizeName
from attnc.ir.walk import substitute

LEAST_ROWS = 16
"""Query tiles have a power of two of rows, and so many at least, as kernels' tiles do."""

_LOW, _HIGH, _SHIFT = (Index(name) for name in (IndexName.QUERY_LOW, IndexName.QUERY_HIGH, IndexName.SHIFT))
_QUERIES, _KEYS = Size(SizeName.QUERIES), Size(SizeName.KEYS)


@dataclass(frozen=True, slots=True)
class Axis:
    """One coordinate of the points of a grid: `position // stride % extent`.

    Attributes:
        stride: positions from one point to the next along the axis.
        extent: points along the axis; 0 for the outermost one, which has no end.
        tile: points of a query tile along the axis.
        lead: points of the first query tile that lie before the first one of the axis, fewer than `tile`.
    """

    stride: int
    extent: int
    tile: int
    lead: int = 0

    @property
    def tiles(self) -> int:
        """How many query tiles there are along the axis; not for the outermost one."""
        return (self.extent - 1 + self.lead) // self.tile + 1

    def coordinate(self, position: Expr) -> Expr:
        """Return the coordinate of a position along the axis."""
        found = quotient(position, self.stride)
        return remainder(found, self.extent) if self.extent else found


@dataclass(frozen=True, slots=True)
class Side:
    """From where to where a box reaches along one axis.

    Its ends are over `i_lo` and `i_hi`, which stand for the first and last coordinate of the tile's queries along it.

    Attributes:
        low, high: coordinate of the first and last key; None for the first and last one that there is.
    """

    low: Expr | None
    high: Expr | None


@dataclass(frozen=True, slots=True)
class Extent:
    """A box along one axis, over the numbers of the tile's first and last query.

    Attributes:
        query_low, query_high: first and last coordinate of the tile's queries.
        low: coordinate of the first key.
        width: number of coordinates, not negative.
    """

    query_low: Expr
    query_high: Expr
    low: Expr
    width: Expr


@dataclass(frozen=True, slots=True)
class Grid:
    """A numbering of the points of a grid by query tiles.

    Attributes:
        axes: the outermost first.
        transposed: whether its points are keys, and boxes are of queries.
    """

    axes: tuple[Axis, ...]
    transposed: bool = False

    @property
    def points(self) -> int:
        """Points of a query tile."""
        return math.prod(axis.tile for axis in self.axes)

    @property
    def rows(self) -> int:
        """Numbers that a query tile takes."""
        return max(LEAST_ROWS, 1 << (self.points - 1).bit_length())

    @property
    def across(self) -> int:
        """Query tiles for each one along the outermost axis."""
        return math.prod(axis.tiles for axis in self.axes[1:])

    def position(self, local: Expr) -> Expr:
        """Return the position of the point with a number; of no meaning where it `is_real` not."""
        position: Expr = ZERO
        for axis, coordinate in zip(self.axes, self._coordinates(local), strict=True):
            position = plus(position, times(coordinate, axis.stride))
        return position

    def is_real(self, local: Expr) -> Expr:
        """Return whether a number stands for a point of the grid."""
        conditions: list[Expr] = []
        if self.points < self.rows:
            inside = remainder(local, self.rows)
            conditions.append(compare(BinaryOp.LT, inside, constant(self.points)))
        for axis, coordinate in zip(self.axes[1:], self._coordinates(local)[1:], strict=True):
            if axis.lead:
                conditions.append(compare(BinaryOp.GE, coordinate, ZERO))
            if axis.tiles * axis.tile - axis.lead > axis.extent:
                conditions.append(compare(BinaryOp.LT, coordinate, constant(axis.extent)))
        if not conditions:
            return TRUE
        return conditions[0] if len(conditions) == 1 else And(tuple(conditions))

    def start(self, position: Expr) -> Expr:
        """Return the first number of the row of tiles that has a position."""
        return times(self._tile_of(position), self.across * self.rows)

    def stop(self, position: Expr) -> Expr:
        """Return the number past the row of tiles that has the position before a given one."""
        return times(plus(self._tile_of(minus(position, constant(1))), constant(1)), self.across * self.rows)

    def extent(self, number: int, side: Side) -> Extent:
        """Return the box of the tile `i_lo .. i_hi` along an axis; both numbers are of one query tile."""
        axis = self.axes[number]
        first, last = self._query_range(number)
        start: Expr = ZERO
        end: Expr
        if axis.extent:
            end = constant(axis.extent - 1)
            if axis.lead or axis.tiles * axis.tile > axis.extent:
                first, last = (least(end, greatest(ZERO, one)) for one in (first, last))
        else:
            keys: tuple[Expr, Expr] = (ZERO, minus(_KEYS, constant(1)))
            queries: tuple[Expr, Expr] = (_SHIFT, _last_query())
            if self.transposed:
                queries, keys = keys, queries
            start, end = (quotient(one, axis.stride) for one in keys)
            bounds = tuple(quotient(one, axis.stride) for one in queries)
            first, last = (least(greatest(one, bounds[0]), bounds[1]) for one in (first, last))
        tile: dict[Expr, Expr] = {_LOW: first, _HIGH: last}
        low = start if side.low is None else substitute(side.low, tile)
        high = end if side.high is None else substitute(side.high, tile)
        if not axis.extent and side.high is not None:
            high = least(high, end)
        if not axis.extent and side.low is not None and self.transposed:
            low = greatest(low, start)
        return Extent(first, last, low, greatest(ZERO, plus(minus(high, low), constant(1))))

    def _query_range(self, number: int) -> tuple[Expr, Expr]:
        """Return the first and last coordinate of a tile's numbers along an axis.

        A part of a query tile has a part of the points along the outermost axis that has several, and all points along
        the others, or so it is taken to be.
        """
        axis = self.axes[number]
        start = minus(times(self._tile_index(quotient(_LOW, self.rows), number), axis.tile), constant(axis.lead))
        inner = math.prod(one.tile for one in self.axes[number + 1 :])
        if any(one.tile > 1 for one in self.axes[:number]):
            return start, plus(start, constant(axis.tile - 1))
        first, last = (quotient(remainder(one, self.rows), inner) for one in (_LOW, _HIGH))
        if axis.tile * inner < self.rows:
            first, last = (least(constant(axis.tile - 1), one) for one in (first, last))
        return plus(start, first), plus(start, last)

    def _coordinates(self, local: Expr) -> list[Expr]:
        """Return the coordinates of the point with a number."""
        inside, tile = remainder(local, self.rows), quotient(local, self.rows)
        found = []
        for number, axis in enumerate(self.axes):
            inner = math.prod(one.tile for one in self.axes[number + 1 :])
            within = quotient(inside, inner)
            if number:
                within = remainder(within, axis.tile)
            start = times(self._tile_index(tile, number), axis.tile)
            found.append(minus(plus(start, within), constant(axis.lead)))
        return found

    def _tile_index(self, tile: Expr, number: int) -> Expr:
        """Return which tile along an axis the tile with a number is."""
        inner = math.prod(axis.tiles for axis in self.axes[number + 1 :])
        found = quotient(tile, inner)
        return remainder(found, self.axes[number].tiles) if number else found

    def _tile_of(self, position: Expr) -> Expr:
        """Return which tile along the outermost axis has a position."""
        axis = self.axes[0]
        return quotient(plus(quotient(position, axis.stride), constant(axis.lead)), axis.tile)


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes of keys around the query tiles of a grid.

    Attributes:
        sides: one for each axis of the grid.
    """

    grid: Grid
    sides: tuple[Side, ...]

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The box of the tile `i_lo .. i_hi`, axis by axis."""
        return tuple(self.grid.extent(number, side) for number, side in enumerate(self.sides))

    @property
    def count(self) -> Expr:
        """How many points the box of the tile `i_lo .. i_hi` has."""
        widths = [extent.width for extent in self.extents]
        count = widths[0]
        for width in widths[1:]:
            count = product(count, width)
        return count

    def position(self, local: Expr) -> Expr:
        """Return the position of the point with a number in the box of the tile `i_lo .. i_hi`, from 0 on.

        It may lie past the last key: the last row of the grid need not be complete.
        """
        position: Expr = ZERO
        rest = local
        extents = self.extents
        for number in range(len(extents) - 1, -1, -1):
            extent, axis = extents[number], self.grid.axes[number]
            width = greatest(constant(1), extent.width)
            step = remainder(rest, width) if number else rest
            rest = quotient(rest, width)
            position = plus(times(plus(extent.low, step), axis.stride), position)
        return position


def _last_query() -> Expr:
    return minus(plus(_SHIFT, _QUERIES), constant(1))
