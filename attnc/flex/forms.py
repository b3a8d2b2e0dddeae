"""Building expressions of the language as a person would write them: neutral operands go, negative constants move."""

from __future__ import annotations

from attnc.ir.nodes import (
    FALSE,
    TRUE,
    And,
    Binary,
    BinaryOp,
    Call,
    Cast,
    Const,
    Expr,
    Function,
    Or,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type

ZERO, ONE = Const(0, Type.INT), Const(1, Type.INT)


def constant(value: bool | int | float) -> Const:
    """Return a Python number as an expression."""
    if isinstance(value, bool):
        return TRUE if value else FALSE
    return Const(value, Type.INT if isinstance(value, int) else Type.FLOAT)


def convert(expr: Expr, to: Type) -> Expr:
    """Return an expression in another type, as torch converts: anything but zero is true, floats are truncated."""
    if expr.type is to:
        return expr
    if isinstance(expr, Const) and to is Type.FLOAT:
        return Const(float(expr.value), Type.FLOAT)
    if isinstance(expr, Const) and to is Type.INT and expr.type is Type.BOOL:
        return Const(int(expr.value), Type.INT)
    if to is Type.BOOL:
        return compare(BinaryOp.NE, expr, Const(0 if expr.type is Type.INT else 0.0, expr.type))
    if expr.type is Type.BOOL and to is Type.FLOAT:
        return Cast(Cast(expr, Type.INT), Type.FLOAT)
    if isinstance(expr, Cast) and expr.operand.type is to is Type.INT:
        return expr.operand  # an int that was a float in between
    return Cast(expr, to)


def add(left: Expr, right: Expr) -> Expr:
    """Return the sum of two numbers of one type."""
    if _is(right, 0):
        return left
    if _is(left, 0):
        return right
    if isinstance(right, Const) and right.value < 0:
        return Binary(BinaryOp.SUB, left, Const(-right.value, right.type), left.type)
    if isinstance(right, Unary) and right.op is UnaryOp.NEG:
        return Binary(BinaryOp.SUB, left, right.operand, left.type)
    if isinstance(left, Unary) and left.op is UnaryOp.NEG:
        return Binary(BinaryOp.SUB, right, left.operand, left.type)
    return Binary(BinaryOp.ADD, left, right, left.type)


def subtract(left: Expr, right: Expr) -> Expr:
    """Return the difference of two numbers of one type."""
    if _is(right, 0):
        return left
    if isinstance(right, Const) and right.value < 0:
        return Binary(BinaryOp.ADD, left, Const(-right.value, right.type), left.type)
    if _is(left, 0) and left.type is Type.INT:
        return negative(right)
    return Binary(BinaryOp.SUB, left, right, left.type)


def multiply(left: Expr, right: Expr) -> Expr:
    """Return the product of two numbers of one type."""
    if _is(right, 1):
        return left
    if _is(left, 1):
        return right
    return Binary(BinaryOp.MUL, left, right, left.type)


def negative(expr: Expr) -> Expr:
    """Return a number with its sign turned."""
    if isinstance(expr, Const):
        return Const(-expr.value, expr.type)
    if isinstance(expr, Unary) and expr.op is UnaryOp.NEG:
        return expr.operand
    return Unary(UnaryOp.NEG, expr, expr.type)


def floor_divide(left: Expr, right: Expr) -> Expr:
    """Divide two numbers of one type rounding down; a constant divisor becomes positive."""
    if isinstance(right, Const) and right.value < 0:
        return floor_divide(negative(left), negative(right))
    if _is(right, 1) and right.type is Type.INT:
        return left
    return Binary(BinaryOp.FLOORDIV, left, right, left.type)


def modulo(left: Expr, right: Expr) -> Expr:
    """Return the remainder of `floor_divide`, which has the divisor's sign."""
    if isinstance(right, Const) and right.value < 0:
        return negative(modulo(negative(left), negative(right)))
    if _is(right, 1) and right.type is Type.INT:
        return ZERO
    return Binary(BinaryOp.MOD, left, right, left.type)


def truncating_divide(left: Expr, right: Expr) -> Expr:
    """Divide two numbers of one type rounding toward zero."""
    if left.type is Type.FLOAT:
        return convert(convert(Binary(BinaryOp.DIV, left, right, Type.FLOAT), Type.INT), Type.FLOAT)
    size = floor_divide(call(Function.ABS, left), call(Function.ABS, right))
    if isinstance(right, Const):
        size = floor_divide(call(Function.ABS, left), Const(abs(right.value), Type.INT))
        down = compare(BinaryOp.LT if right.value > 0 else BinaryOp.GT, left, ZERO)
        return Where(down, negative(size), size, Type.INT)
    same = compare(BinaryOp.EQ, compare(BinaryOp.LT, left, ZERO), compare(BinaryOp.LT, right, ZERO))
    return Where(same, size, negative(size), Type.INT)


def compare(op: BinaryOp, left: Expr, right: Expr) -> Expr:
    """Compare two operands of one type; a constant stands on the right."""
    if isinstance(left, Const) and not isinstance(right, Const):
        op, left, right = _TURNED[op], right, left
    return Binary(op, left, right, Type.BOOL)


_TURNED = {
    BinaryOp.LT: BinaryOp.GT,
    BinaryOp.LE: BinaryOp.GE,
    BinaryOp.GT: BinaryOp.LT,
    BinaryOp.GE: BinaryOp.LE,
    BinaryOp.EQ: BinaryOp.EQ,
    BinaryOp.NE: BinaryOp.NE,
}

_OPPOSITE = {
    BinaryOp.LT: BinaryOp.GE,
    BinaryOp.LE: BinaryOp.GT,
    BinaryOp.GT: BinaryOp.LE,
    BinaryOp.GE: BinaryOp.LT,
    BinaryOp.EQ: BinaryOp.NE,
    BinaryOp.NE: BinaryOp.EQ,
}


def conjunction(*operands: Expr) -> Expr:
    """Return whether all operands hold."""
    kept = [part for one in operands for part in (one.operands if isinstance(one, And) else (one,)) if part != TRUE]
    if FALSE in kept:
        return FALSE
    return TRUE if not kept else kept[0] if len(kept) == 1 else And(tuple(kept))


def disjunction(*operands: Expr) -> Expr:
    """Return whether some operand holds."""
    kept = [part for one in operands for part in (one.operands if isinstance(one, Or) else (one,)) if part != FALSE]
    if TRUE in kept:
        return TRUE
    return FALSE if not kept else kept[0] if len(kept) == 1 else Or(tuple(kept))


def opposite(expr: Expr) -> Expr:
    """Return whether an operand does not hold."""
    match expr:
        case Const(value=value):
            return constant(not value)
        case Unary(op=UnaryOp.NOT, operand=operand):
            return operand
        case Binary(op=op, left=left, right=right) if op in _OPPOSITE and left.type is not Type.FLOAT:
            return Binary(_OPPOSITE[op], left, right, Type.BOOL)  # floats may be NaN, which is neither
        case _:
            return Unary(UnaryOp.NOT, expr, Type.BOOL)


def where(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """Choose between two operands of one type."""
    if isinstance(condition, Const):
        return then if condition.value else otherwise
    if then.type is Type.BOOL:
        if then == TRUE:
            return disjunction(condition, otherwise)
        if otherwise == FALSE:
            return conjunction(condition, then)
    return Where(condition, then, otherwise, then.type)


def call(function: Function, *args: Expr) -> Expr:
    """Call a function whose result has its first operand's type."""
    return Call(function, args, args[0].type)


def _is(expr: Expr, value: int) -> bool:
    return isinstance(expr, Const) and expr.type is not Type.BOOL and expr.value == value
