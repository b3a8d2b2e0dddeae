"""What a mask can be on a whole tile, from the least and greatest values of its parts: Python text over tile bounds.

Where a mask reads tables along the positions, its interval list says little. The extent of a table over the rows, or
the keys, of a tile is cheap, and interval arithmetic carries it through the mask: documents whose numbers do not
overlap cannot meet. The text is sound, and says "it may hold" where it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from attnc.codegen.expr_torch import Body, number, quoted
from attnc.ir.nodes import (
    And,
    Binary,
    BinaryOp,
    Call,
    Cast,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Or,
    Read,
    Size,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import depends_on, walk

_ENDS = {IndexName.QUERY: ("at.i_lo", "at.i_hi"), IndexName.KEY: ("at.j_lo", "at.j_hi")}
_POSITIONS = (IndexName.QUERY, IndexName.KEY, IndexName.ROW)
_OPPOSITE = {
    BinaryOp.LT: BinaryOp.GE,
    BinaryOp.LE: BinaryOp.GT,
    BinaryOp.GT: BinaryOp.LE,
    BinaryOp.GE: BinaryOp.LT,
    BinaryOp.EQ: BinaryOp.NE,
    BinaryOp.NE: BinaryOp.EQ,
}

Extent = tuple[str, str]
"""Texts of the least and the greatest value."""


def tile_body(mask: Expr) -> Body | None:
    """Write whether a tile may hold an allowed pair; None where data along the positions does not help to tell."""
    if not any(isinstance(node, Read) and _is_data(node) for node in walk(mask)):
        return None
    writer = _Writer()
    text = writer.may(mask)
    return None if text is None else Body((*writer.lines, f"return {text}"))


def _is_data(read: Read) -> bool:
    return any(depends_on(place, *_POSITIONS) for place in read.index)


@dataclass(slots=True)
class _Writer:
    """Names extents as it goes; equal expressions share a name."""

    lines: list[str] = field(default_factory=list)
    named: dict[Expr, Extent | None] = field(default_factory=dict)
    counter: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))

    def may(self, expr: Expr, *, negated: bool = False) -> str | None:
        """Write whether a condition, or its negation, may hold somewhere on the tile; None is "yes"."""
        match expr:
            case Const(value=value):
                return None if bool(value) is not negated else "at.as_bool(False)"
            case Unary(op=UnaryOp.NOT, operand=operand):
                return self.may(operand, negated=not negated)
            case And(operands=operands) | Or(operands=operands):
                parts = [self.may(operand, negated=negated) for operand in operands]
                if isinstance(expr, Or) is negated:
                    known = [part for part in parts if part is not None]
                    return " & ".join(f"({part})" for part in known) if known else None
                return None if None in parts else " | ".join(f"({part})" for part in parts)
            case Where(condition=condition, then=then, otherwise=otherwise):
                arms = (self._both(condition, then, negated), self._both(condition, otherwise, negated, other=True))
                return None if None in arms else " | ".join(f"({arm})" for arm in arms)
            case Binary(op=op, left=left, right=right) if op.is_comparison and left.type is not Type.BOOL:
                return self._compare(_OPPOSITE[op] if negated else op, left, right)
            case _:
                return None

    def _both(self, condition: Expr, arm: Expr, negated: bool, *, other: bool = False) -> str | None:
        parts = [self.may(condition, negated=other), self.may(arm, negated=negated)]
        known = [part for part in parts if part is not None]
        return " & ".join(f"({part})" for part in known) if known else None

    def _compare(self, op: BinaryOp, left: Expr, right: Expr) -> str | None:
        if left.type is not Type.INT:
            return None  # a float may be NaN, and rounds
        one, two = self.extent(left), self.extent(right)
        if one is None or two is None:
            return None
        match op:
            case BinaryOp.LT | BinaryOp.LE:
                return f"{one[0]} {op.value} {two[1]}"
            case BinaryOp.GT | BinaryOp.GE:
                return f"{one[1]} {op.value} {two[0]}"
            case BinaryOp.EQ:
                return f"({one[0]} <= {two[1]}) & ({two[0]} <= {one[1]})"
            case _:
                return f"({one[0]} != {two[1]}) | ({two[0]} != {one[1]})"

    def extent(self, expr: Expr) -> Extent | None:
        """Return the extent of an int on the tile; None if it is not known."""
        if expr not in self.named:
            found = self._read(expr) if isinstance(expr, Read) else self._extent(expr)
            if found is not None and not isinstance(expr, Const | Index | Size | Read):
                names = self._names()
                self.lines.extend(f"{name} = {text}" for name, text in zip(names, found, strict=True))
                found = names
            self.named[expr] = found
        return self.named[expr]

    def _names(self) -> Extent:
        at = next(self.counter)
        return f"least_{at}", f"most_{at}"

    def _extent(self, expr: Expr) -> Extent | None:
        match expr:
            case Const(value=value):
                return (f"at.as_int({number(value)})",) * 2
            case Size(name=size):
                return (f"at.{size.value}",) * 2
            case Index(name=IndexName.BATCH | IndexName.HEAD as name):
                return (f"at.{name.value}",) * 2
            case Index(name=name) if name in _ENDS:
                return _ENDS[name]
            case Index(name=IndexName.ROW):
                return "(at.i_lo - at.shift)", "(at.i_hi - at.shift)"
            case Unary(op=UnaryOp.NEG, operand=operand):
                inner = self.extent(operand)
                return None if inner is None else (f"-{inner[1]}", f"-{inner[0]}")
            case Binary(op=op, left=left, right=right):
                return self._binary(op, left, right)
            case Call(function=Function.MIN | Function.MAX as function, args=args):
                parts = [self.extent(arg) for arg in args]
                known = [part for part in parts if part is not None]
                if len(known) < len(parts):
                    return None
                join = f"{function.value}imum"
                low, high = (f"{join}({', '.join(part[end] for part in known)})" for end in (0, 1))
                return low, high
            case Call(function=Function.ABS, args=(arg,)):
                inner = self.extent(arg)
                if inner is None:
                    return None
                return f"maximum(0, {inner[0]}, -{inner[1]})", f"maximum({inner[1]}, -{inner[0]})"
            case Where(then=then, otherwise=otherwise):
                one, two = self.extent(then), self.extent(otherwise)
                if one is None or two is None:
                    return None
                return f"minimum({one[0]}, {two[0]})", f"maximum({one[1]}, {two[1]})"
            case Cast(operand=operand) if operand.type is Type.BOOL:
                return "at.as_int(0)", "at.as_int(1)"
            case _:
                return None

    def _binary(self, op: BinaryOp, left: Expr, right: Expr) -> Extent | None:
        one, two = self.extent(left), self.extent(right)
        if one is None or two is None:
            return None
        if op is BinaryOp.ADD:
            return f"{one[0]} + {two[0]}", f"{one[1]} + {two[1]}"
        if op is BinaryOp.SUB:
            return f"{one[0]} - {two[1]}", f"{one[1]} - {two[0]}"
        factor = right.value if isinstance(right, Const) else 0
        if factor <= 0:
            return None
        if op is BinaryOp.MUL:
            return f"{one[0]} * {factor}", f"{one[1]} * {factor}"
        if op is BinaryOp.FLOORDIV:
            return f"{one[0]} // {factor}", f"{one[1]} // {factor}"
        return ("at.as_int(0)", f"at.as_int({factor - 1})") if op is BinaryOp.MOD else None

    def _read(self, expr: Read) -> Extent | None:
        """Write the extent of a table along one position; other indices must be the same on the whole tile."""
        if expr.type is not Type.INT:
            return None
        moving = [at for at, place in enumerate(expr.index) if depends_on(place, *_POSITIONS)]
        fixed = [self.extent(place) for at, place in enumerate(expr.index) if at not in moving]
        if len(moving) > 1 or any(part is None or part[0] != part[1] for part in fixed):
            return None
        if not moving:
            return None  # the same for a tile, and read by the bounds already
        position = expr.index[moving[0]]
        if not isinstance(position, Index) or position.name not in _POSITIONS:
            return None
        along = self._extent(position)
        assert along is not None
        places = [part[0] for part in fixed if part is not None]
        text = ", ".join(["at", quoted(expr.table), str(moving[0]), *along, *places])
        names = self._names()
        self.lines.append(f"{names[0]}, {names[1]} = extent({text})")
        return names
