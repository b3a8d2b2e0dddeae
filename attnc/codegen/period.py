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
from attnc.ir.walk import substitute, walk

_ORDERS = (BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE)

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


def far_form(expr: Expr) -> tuple[Expr, Expr] | None:
    """Return what an expression is away from fixed positions, and where it may differ from that; None if no help.

    `j <= i and (i - j < w or j < 4)` is `j <= i and i - j < w` wherever `j < 4` is false. Only comparisons of linear
    forms are taken out: they split the plane along a line, so one that is false at the corners of a rectangle is false
    in all of it.
    """
    fixed = tuple(dict.fromkeys(node for node in walk(expr) if _is_fixed_line(node)))
    if not fixed:
        return None
    never = Const(False, Type.BOOL)
    far = substitute(expr, dict.fromkeys(fixed, never))
    if shift_period(far) == 0:
        return None
    return far, fixed[0] if len(fixed) == 1 else Or(fixed)


def _is_fixed_line(expr: Expr) -> bool:
    if not (isinstance(expr, Binary) and expr.op in _ORDERS and expr.left.type is Type.INT):
        return False
    return _is_linear(expr.left) and _is_linear(expr.right) and _drift(expr.left, 1) != _drift(expr.right, 1)


def _is_linear(expr: Expr) -> bool:
    match expr:
        case Index(name=IndexName.QUERY | IndexName.ROW | IndexName.KEY) | Const() | Size():
            return True
        case Unary(op=UnaryOp.NEG, operand=operand):
            return _is_linear(operand)
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB, left=left, right=right):
            return _is_linear(left) and _is_linear(right)
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            return _is_linear(left) and _is_linear(right) and (isinstance(left, Const) or isinstance(right, Const))
        case _:
            return False


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
