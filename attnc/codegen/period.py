"""By how much query and key can move together without changing an expression.

The CPU program computes the mask of a band of equal rectangles once where it repeats.
"""

from __future__ import annotations

from math import lcm

from attnc.ir.nodes import (
    And,
    Binary,
    BinaryOp,
    Bound,
    Call,
    Cast,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Or,
    Quantifier,
    Read,
    Size,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import walk

LONGEST = 512
"""A longer period never divides the rows of a slab."""


def shift_period(expr: Expr) -> int:
    """Return the least P known such that moving `i`, `r` and `j` by P changes nothing; 0 if there is none."""
    period = 1
    for node in walk(expr):
        if isinstance(node, Binary) and node.op in (BinaryOp.FLOORDIV, BinaryOp.MOD) and isinstance(node.right, Const):
            if not isinstance(node.right.value, int) or node.right.value <= 0:
                return 0
            if _drift(node.left, 1) != 0:
                period = lcm(period, node.right.value)
            if period > LONGEST:
                return 0
    return period if _drift(expr, period) == 0 else 0


def _drift(expr: Expr, period: int) -> int | None:
    """Return by how much a value grows when positions move by `period`; None if that is not a constant."""
    match expr:
        case Index(name=IndexName.QUERY | IndexName.ROW | IndexName.KEY):
            return period
        case Const() | Index() | Size() | Bound():
            return 0
        case Unary(op=UnaryOp.NEG, operand=operand):
            inner = _drift(operand, period)
            return None if inner is None else -inner
        case Binary(op=op, left=left, right=right, type=Type.INT) if not op.is_comparison:
            return _drift_of_arithmetic(op, left, right, period)
        case Binary(left=left, right=right):
            one, two = _drift(left, period), _drift(right, period)
            comparable = expr.op.is_comparison and one is not None and one == two
            return 0 if comparable or (one == 0 and two == 0) else None
        case Call(function=Function.MIN | Function.MAX, args=args):
            drifts = {_drift(arg, period) for arg in args}
            return drifts.pop() if len(drifts) == 1 else None
        case Read(index=parts) | Call(args=parts) | And(operands=parts) | Or(operands=parts):
            return 0 if all(_drift(part, period) == 0 for part in parts) else None
        case Where(condition=condition, then=then, otherwise=otherwise):
            one, two = _drift(then, period), _drift(otherwise, period)
            return one if _drift(condition, period) == 0 and one == two else None
        case Unary(operand=operand) | Cast(operand=operand) | Quantifier(body=operand):
            return 0 if _drift(operand, period) == 0 else None
        case _:
            return None


def _drift_of_arithmetic(op: BinaryOp, left: Expr, right: Expr, period: int) -> int | None:
    one, two = _drift(left, period), _drift(right, period)
    if one is None or two is None:
        return None
    match op:
        case BinaryOp.ADD:
            return one + two
        case BinaryOp.SUB:
            return one - two
        case BinaryOp.MUL if isinstance(right, Const) and two == 0:
            return one * int(right.value)
        case BinaryOp.MUL if isinstance(left, Const) and one == 0:
            return two * int(left.value)
        case BinaryOp.FLOORDIV if isinstance(right, Const) and one % int(right.value) == 0:
            return one // int(right.value)
        case BinaryOp.MOD if isinstance(right, Const) and one % int(right.value) == 0:
            return 0
        case _:
            return 0 if one == 0 and two == 0 else None
