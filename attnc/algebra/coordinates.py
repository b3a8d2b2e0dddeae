"""Orders in which a pass numbers positions, so that the pairs that a mask allows lie side by side.

A pass walks *local* coordinates: `u` numbers queries and `v` keys. A map says which position a local coordinate stands
for. In plain order that is the coordinate itself. In residue order the positions of one *class* follow each other,
`c, c + d, c + 2 * d, ...`, and a pass has `d` classes that know nothing of each other. In runs, positions that repeat
with a period follow each other, and the others are left out. In a grid queries follow each other tile by tile, and each
tile has a box of keys of its own (`grids`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from attnc.algebra.grids import Axis, Boxes, Grid, Side
from attnc.algebra.int_exprs import ZERO, constant, greatest, least, minus, plus, quotient, remainder, times
from attnc.ir.nodes import TRUE, Expr, Index, IndexName, Size, SizeName
from attnc.ir.program import AlignKind

LOCAL_QUERY = Index(IndexName.LOCAL_QUERY)
LOCAL_KEY = Index(IndexName.LOCAL_KEY)
CLASS = Index(IndexName.CLASS)


class MapKind(Enum):
    """How positions are ordered while a pass runs."""

    IDENTITY = "identity"
    RESIDUE = "residue"
    RUNS = "runs"
    GRID = "grid"
    """Queries alone: tile by tile of a grid."""
    BOX = "box"
    """Keys alone: the box around a tile of queries, which lie in a grid."""


@dataclass(frozen=True, slots=True)
class CoordinateMap:
    """Which positions a pass walks, and in which order.

    But in grids, positions grow with the local coordinate.

    Attributes:
        period: residue and runs: positions repeat after so many.
        first: residue: the class of keys that belongs to class `c` of queries is `(c + first) % period`; runs: the
            first position of each run.
        length: runs: positions in each run.
        axes: grid and box: of the grid in which the queries lie, the outermost first.
        sides: box: how far it reaches along each axis.
        transposed: grid and box: whether the queries of the grid are keys, and the keys of boxes queries.
    """

    kind: MapKind = MapKind.IDENTITY
    period: int = 1
    first: int = 0
    length: int = 1
    axes: tuple[Axis, ...] = ()
    sides: tuple[Side, ...] = ()
    transposed: bool = False

    def position(self, local: Expr) -> Expr:
        """Return the position that a local coordinate stands for, where it `is_real`."""
        match self.kind:
            case MapKind.IDENTITY:
                return local
            case MapKind.RESIDUE:
                return plus(times(local, self.period), self.residue)
            case MapKind.RUNS:
                if self.length == 1:
                    return plus(times(local, self.period), constant(self.first))
                block = times(quotient(local, self.length), self.period)
                return plus(plus(block, constant(self.first)), remainder(local, self.length))
            case MapKind.GRID:
                return self.grid.position(local)
            case MapKind.BOX:
                return self.boxes.position(local)

    def is_real(self, local: Expr) -> Expr:
        """Return whether a local coordinate stands for a position at all, be it before the first or past the last."""
        return self.grid.is_real(local) if self.kind is MapKind.GRID else TRUE

    def reach(self, steps: int) -> int:
        """Return how far apart two positions can be, at most, whose local coordinates are `steps` apart; no grids."""
        return -(-steps // self.length) * self.period

    @property
    def residue(self) -> Expr:
        """Return what positions of a class leave over when they are divided by the period."""
        return CLASS if self.first == 0 else remainder(plus(CLASS, constant(self.first)), self.period)

    @property
    def grid(self) -> Grid:
        """The grid in which the queries lie."""
        return Grid(self.axes, self.transposed)

    @property
    def boxes(self) -> Boxes:
        """The boxes of the keys."""
        return Boxes(self.grid, self.sides)

    @property
    def tile(self) -> int:
        """Local coordinates of which tiles of queries must not have some here and some there; 0 without a limit."""
        return self.grid.rows if self.kind is MapKind.GRID else 0

    def first_from(self, position: Expr) -> Expr:
        """Return the least local coordinate that may stand for `position` or later; both may be negative.

        Keys in a box have none.
        """
        match self.kind:
            case MapKind.IDENTITY:
                return position
            case MapKind.RESIDUE:
                past = plus(minus(position, self.residue), constant(self.period - 1))
                return quotient(past, self.period)
            case MapKind.RUNS:
                whole = times(quotient(position, self.period), self.length)
                over = minus(remainder(position, self.period), constant(self.first))
                return plus(whole, least(greatest(over, ZERO), constant(self.length)))
            case MapKind.GRID:
                return self.grid.start(position)
            case MapKind.BOX:
                return ZERO

    def end_before(self, position: Expr) -> Expr:
        """Return the local coordinate past all those that stand for positions before a given one.

        From 0 on it is also how many positions of the map lie below that, but in grids. A box, which is the same for
        every position, may have some that lie past the last key.
        """
        match self.kind:
            case MapKind.GRID:
                return self.grid.stop(position)
            case MapKind.BOX:
                return self.boxes.count
            case _:
                return self.first_from(position)


IDENTITY = CoordinateMap()
KEYS = Size(SizeName.KEYS)


@dataclass(frozen=True, slots=True)
class Reach:
    """The positions `first <= position < past` that there are."""

    first: Expr
    past: Expr


def query_reach(align: AlignKind) -> Reach:
    """Return the positions of queries."""
    if align is AlignKind.START:
        return Reach(ZERO, Size(SizeName.QUERIES))
    shift = Index(IndexName.SHIFT)
    return Reach(shift, KEYS if align is AlignKind.END else plus(shift, Size(SizeName.QUERIES)))


KEY_REACH = Reach(ZERO, KEYS)
"""The positions of keys."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The coordinates of a pass."""

    query: CoordinateMap = IDENTITY
    key: CoordinateMap = IDENTITY

    @property
    def classes(self) -> int:
        """Return how many independent parts the pass has; `c` counts them."""
        return self.query.period if self.query.kind is MapKind.RESIDUE else 1

    @property
    def is_plain(self) -> bool:
        """Whether local coordinates are positions."""
        return self.query == IDENTITY and self.key == IDENTITY

    @property
    def is_grid(self) -> bool:
        """Whether queries lie in tiles of a grid, each with a box of keys."""
        return self.query.kind is MapKind.GRID

    def __str__(self) -> str:
        """Return a name for people: `identity`, `residue(64)`, `keys in runs(128: 120 .. 127)`, `tile(128, 8, 8)`."""
        if self.is_plain:
            return "identity"
        if self.is_grid:
            return _grid_name(self.query.axes)
        if self.query.kind is MapKind.RESIDUE:
            apart = f", keys {self.key.first} ahead" if self.key.first else ""
            return f"residue({self.query.period}){apart}"
        named = (("queries", self.query), ("keys", self.key))
        return ", ".join(f"{what} in {_runs_name(one)}" for what, one in named if one != IDENTITY)


PLAIN = Layout()


def residue(period: int, ahead: int = 0) -> Layout:
    """Return the layout of `(j - i) % period == ahead`: each class of queries with its class of keys."""
    if period == 1:
        return PLAIN
    return Layout(CoordinateMap(MapKind.RESIDUE, period), CoordinateMap(MapKind.RESIDUE, period, first=ahead % period))


def runs(period: int, first: int, length: int) -> CoordinateMap:
    """Return the map to the positions with `first <= position % period < first + length`."""
    return CoordinateMap(MapKind.RUNS, period, first, length)


def boxed(axes: tuple[Axis, ...], sides: tuple[Side, ...], *, transposed: bool = False) -> Layout:
    """Return the layout of queries in tiles of a grid, with boxes of keys; or the other way round."""
    return Layout(
        CoordinateMap(MapKind.GRID, axes=axes, transposed=transposed),
        CoordinateMap(MapKind.BOX, axes=axes, sides=sides, transposed=transposed),
    )


def _runs_name(one: CoordinateMap) -> str:
    last = one.first + one.length - 1
    return f"runs({one.period}: {one.first}{f' .. {last}' if one.length > 1 else ''})"


def _grid_name(axes: tuple[Axis, ...]) -> str:
    """Name strides but the last one's 1, then points of a tile along each axis, as `permute(tile(..))` has them."""
    strides = [axis.stride for axis in axes if axis.stride > 1]
    leads = f", from {', '.join(str(-axis.lead) for axis in axes)}" if any(axis.lead for axis in axes) else ""
    return f"tile({', '.join(map(str, (*strides, *(axis.tile for axis in axes))))}{leads})"
