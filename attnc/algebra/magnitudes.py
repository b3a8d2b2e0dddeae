"""How large ints may become: sets know integers without bounds, while the language's wrap around at 64 bits."""

from __future__ import annotations

from attnc.ir.nodes import Binary, BinaryOp, Call, Cast, Const, Expr, Function, Index, Quantifier, Size, Unary, Where
from attnc.ir.types import Type
from attnc.ir.walk import children

LONGEST = 2**31
"""Positions and sizes are below it; so, it is assumed, are inputs that decide for whole heads."""

SAFE = 2**62
"""Sums and differences of two such numbers do not wrap around."""


def may_wrap(expr: Expr) -> bool:
    """Tell whether an int, or one that it is made of, may leave 64 bits: only absurd constants make it do so."""
    return _magnitude(expr) >= SAFE


def _magnitude(expr: Expr) -> int:
    """Return a bound on the absolute value of an int, and of all ints on the way to it."""
    match expr:
        case Const(value=value):
            return abs(int(value)) if expr.type is not Type.FLOAT else 0
        case Binary(op=BinaryOp.MUL, left=left, right=right) if expr.type is Type.INT:
            one, two = _magnitude(left), _magnitude(right)
            return max(one, two, one * two)
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB, left=left, right=right) if expr.type is Type.INT:
            return _magnitude(left) + _magnitude(right)
        case Quantifier(count=count, body=body) if expr.type is Type.INT:
            return count * _magnitude(body)
        case Index() | Size():
            return LONGEST
        case Unary() | Where() | Cast() | Call(function=Function.ABS | Function.MIN | Function.MAX) | Binary():
            return max(map(_magnitude, children(expr)))
        case _:
            return LONGEST
