"""Orders in which a pass numbers positions, so that the pairs that a mask allows lie side by side.

A pass walks *local* coordinates: `u` numbers queries and `v` keys. A map says which position a local coordinate stands
for. In plain order that is the coordinate itself. In residue order the positions of one *class* follow each other,
`c, c + d, c + 2 * d, ...`, and a pass has `d` classes that know nothing of each other. In runs, positions that repeat
with a period follow each other, and the others are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from attnc.ir.nodes import Binary, BinaryOp, Call, Const, Expr, Function, Index, IndexName, Size, SizeName
from attnc.ir.types import Type

LOCAL_QUERY = Index(IndexName.LOCAL_QUERY)
LOCAL_KEY = Index(IndexName.LOCAL_KEY)
CLASS = Index(IndexName.CLASS)


class MapKind(Enum):
    """How positions are ordered while a pass runs."""

    IDENTITY = "identity"
    RESIDUE = "residue"
    RUNS = "runs"


@dataclass(frozen=True, slots=True)
class CoordinateMap:
    """Which positions a pass walks, and in which order. Positions grow with the local coordinate.

    Attributes:
        period: residue and runs: positions repeat after so many.
        first: residue: the class of keys that belongs to class `c` of queries is `(c + first) % period`; runs: the
            first position of each run.
        length: runs: positions in each run.
    """

    kind: MapKind = MapKind.IDENTITY
    period: int = 1
    first: int = 0
    length: int = 1

    def position(self, local: Expr) -> Expr:
        """Return the position that a local coordinate stands for."""
        match self.kind:
            case MapKind.IDENTITY:
                return local
            case MapKind.RESIDUE:
                return _add(_times(local, self.period), self.residue)
            case MapKind.RUNS:
                if self.length == 1:
                    return _add(_times(local, self.period), _int(self.first))
                block = _times(_binary(BinaryOp.FLOORDIV, local, _int(self.length)), self.period)
                return _add(_add(block, _int(self.first)), _binary(BinaryOp.MOD, local, _int(self.length)))

    @property
    def residue(self) -> Expr:
        """Return what positions of a class leave over when they are divided by the period."""
        return CLASS if self.first == 0 else _binary(BinaryOp.MOD, _add(CLASS, _int(self.first)), _int(self.period))

    def first_from(self, position: Expr) -> Expr:
        """Return the least local coordinate that stands for `position` or later; both may be negative.

        From 0 on, that is also how many positions of the map lie below `position`.
        """
        match self.kind:
            case MapKind.IDENTITY:
                return position
            case MapKind.RESIDUE:
                past = _add(_binary(BinaryOp.SUB, position, self.residue), _int(self.period - 1))
                return _binary(BinaryOp.FLOORDIV, past, _int(self.period))
            case MapKind.RUNS:
                whole = _times(_binary(BinaryOp.FLOORDIV, position, _int(self.period)), self.length)
                over = _binary(BinaryOp.SUB, _binary(BinaryOp.MOD, position, _int(self.period)), _int(self.first))
                return _add(whole, _call(Function.MIN, _call(Function.MAX, over, _int(0)), _int(self.length)))


IDENTITY = CoordinateMap()
KEYS = Size(SizeName.KEYS)


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

    def __str__(self) -> str:
        """Return a name for people: `identity`, `residue(64)`, `keys in runs(128: 120 .. 127)`."""
        if self.is_plain:
            return "identity"
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


def _runs_name(one: CoordinateMap) -> str:
    last = one.first + one.length - 1
    return f"runs({one.period}: {one.first}{f' .. {last}' if one.length > 1 else ''})"


def _int(value: int) -> Expr:
    return Const(value, Type.INT)


def _binary(op: BinaryOp, left: Expr, right: Expr) -> Expr:
    return Binary(op, left, right, Type.INT)


def _call(function: Function, *args: Expr) -> Expr:
    return Call(function, args, Type.INT)


def _add(left: Expr, right: Expr) -> Expr:
    return left if right == _int(0) else _binary(BinaryOp.ADD, left, right)


def _times(value: Expr, factor: int) -> Expr:
    return value if factor == 1 else _binary(BinaryOp.MUL, value, _int(factor))
