"""Building and taking apart expressions: what the rules have in common."""

from __future__ import annotations

import math
from functools import lru_cache

from attnc.ir.nodes import (
    FALSE,
    TRUE,
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
    Or,
    Quantifier,
    QuantifierKind,
    Read,
    Size,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import walk

NEGATED = {
    BinaryOp.LT: BinaryOp.GE,
    BinaryOp.LE: BinaryOp.GT,
    BinaryOp.GT: BinaryOp.LE,
    BinaryOp.GE: BinaryOp.LT,
    BinaryOp.EQ: BinaryOp.NE,
    BinaryOp.NE: BinaryOp.EQ,
}
MIRRORED = {
    BinaryOp.LT: BinaryOp.GT,
    BinaryOp.LE: BinaryOp.GE,
    BinaryOp.GT: BinaryOp.LT,
    BinaryOp.GE: BinaryOp.LE,
    BinaryOp.EQ: BinaryOp.EQ,
    BinaryOp.NE: BinaryOp.NE,
}
UNWRAPPED = 2.0**62
"""Ints below it do not wrap around, nor do sums and differences of two."""
MAGNITUDE_LIMIT = 1e30
"""Terms below it are finite in float32, and so are sums and products of a few that are."""


def truth(value: bool) -> Const:
    """Return the constant `true` or `false`."""
    return TRUE if value else FALSE


def constant(value: int | float, kind: Type) -> Const:
    """Return a number as a constant of a type."""
    return Const(float(value) if kind is Type.FLOAT else int(value), kind)


def is_number(expr: Expr, value: int | float) -> bool:
    """Tell whether an expression is that constant, of whichever type of number."""
    return isinstance(expr, Const) and expr.type.is_number and expr.value == value


def conjunction(operands: list[Expr]) -> Expr:
    """And any number of bools."""
    return TRUE if not operands else operands[0] if len(operands) == 1 else And(tuple(operands))


def disjunction(operands: list[Expr]) -> Expr:
    """Or any number of bools."""
    return FALSE if not operands else operands[0] if len(operands) == 1 else Or(tuple(operands))


def combine(kind: type[And] | type[Or], operands: list[Expr]) -> Expr:
    """And or or any number of bools."""
    return conjunction(operands) if kind is And else disjunction(operands)


def negation(expr: Expr) -> Expr | None:
    """Return the negation of a bool with `not` pushed down by one level, or None where it must stand in front.

    An order of floats is not turned around: neither `x < y` nor `x >= y` holds where one of them is NaN.
    """
    match expr:
        case Const(value=value):
            return truth(not value)
        case Unary(op=UnaryOp.NOT, operand=operand):
            return operand
        case Binary(op=op, left=left):
            if left.type is Type.FLOAT and op not in (BinaryOp.EQ, BinaryOp.NE):
                return None
            return Binary(NEGATED[op], left, expr.right, Type.BOOL, span=expr.span)
        case And(operands=operands):
            return Or(tuple(opposite(operand) for operand in operands), span=expr.span)
        case Or(operands=operands):
            return And(tuple(opposite(operand) for operand in operands), span=expr.span)
        case Where(condition=condition, then=then, otherwise=otherwise):
            return Where(condition, opposite(then), opposite(otherwise), Type.BOOL, span=expr.span)
        case Quantifier(kind=kind, variable=variable, count=count, body=body):
            other = QuantifierKind.ALL if kind is QuantifierKind.ANY else QuantifierKind.ANY
            return Quantifier(other, variable, count, opposite(body), Type.BOOL, span=expr.span)
        case _:
            return None


def opposite(expr: Expr) -> Expr:
    """Return `not expr`."""
    return Unary(UnaryOp.NOT, expr, Type.BOOL, span=expr.span)


def atom_key(expr: Expr) -> object:
    """Return what two bools have in common that differ only in the side on which operands of a comparison stand."""
    if not isinstance(expr, Binary):
        return expr
    if expr.op in (BinaryOp.GT, BinaryOp.GE):
        return MIRRORED[expr.op], expr.right, expr.left
    if expr.op in (BinaryOp.EQ, BinaryOp.NE):
        return expr.op, frozenset((expr.left, expr.right))
    return expr.op, expr.left, expr.right


def negated_key(expr: Expr) -> object | None:
    """Return the key of the negation of an atom; None for anything but an atom."""
    if isinstance(expr, Unary):
        return atom_key(expr.operand)
    if isinstance(expr, Binary):
        turned = negation(expr)
        return None if turned is None else atom_key(turned)
    return opposite(expr) if isinstance(expr, Read) else None


def mentions(expr: Expr, variable: str) -> bool:
    """Tell whether a quantifier's variable occurs."""
    return any(isinstance(node, Bound) and node.name == variable for node in walk(expr))


def magnitude(expr: Expr) -> float:
    """Return a bound on the absolute value of a number, whatever inputs hold; inf where it may be infinite or NaN.

    Float inputs and learned tensors may hold anything, ints are 64-bit.
    """
    if expr.type is Type.INT:
        return min(_int_magnitude(expr), 2.0**63)
    match expr:
        case Const(value=value):
            return abs(float(value)) if math.isfinite(value) else math.inf
        case Cast(operand=operand):
            return 1.0 if operand.type is Type.BOOL else magnitude(operand)
        case Unary(operand=operand):
            return magnitude(operand)
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB, left=left, right=right):
            return _limited(magnitude(left) + magnitude(right))
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            first, second = magnitude(left), magnitude(right)
            return math.inf if math.inf in (first, second) else _limited(first * second)
        case Binary(op=BinaryOp.DIV, left=left, right=Const(value=divisor)):
            return _limited(magnitude(left) / abs(divisor)) if math.isfinite(divisor) and divisor else math.inf
        case Where(then=then, otherwise=otherwise):
            return max(magnitude(then), magnitude(otherwise))
        case Call(function=Function.ABS | Function.MIN | Function.MAX, args=args):
            return max(magnitude(arg) for arg in args)
        case Call(function=Function.TANH | Function.SIGMOID | Function.ERF | Function.SIN | Function.COS, args=args):
            return 1.0 if math.isfinite(magnitude(args[0])) else math.inf
        case Quantifier(count=count, body=body):
            inner = magnitude(body)
            return 0.0 if not count else _limited(count * inner) if math.isfinite(inner) else math.inf
        case _:
            return math.inf


def may_wrap(expr: Expr) -> bool:
    """Tell whether constants may make an int leave 64 bits, inputs being no larger than positions.

    Its operands are not looked into where they do not matter to its size, as the dividend of a remainder.
    """
    return _int_magnitude(expr, unknown=2.0**31) >= UNWRAPPED


@lru_cache(maxsize=4096)
def _int_magnitude(expr: Expr, unknown: float = 2.0**63) -> float:
    """Return a bound on an int: positions and sizes are below 2**30, anything else is at most `unknown`."""
    match expr:
        case Const(value=value):
            return abs(float(value))
        case Size() | Bound():
            return 2.0**30
        case Index():
            return 2.0**31
        case Cast(operand=operand) if operand.type is Type.BOOL:
            return 1.0
        case Unary(operand=operand):
            return _int_magnitude(operand, unknown)
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB, left=left, right=right):
            return min(_int_magnitude(left, unknown) + _int_magnitude(right, unknown), 2.0**63)
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            return min(_int_magnitude(left, unknown) * _int_magnitude(right, unknown), 2.0**63)
        case Binary(op=BinaryOp.FLOORDIV, left=left):
            return _int_magnitude(left, unknown)
        case Binary(op=BinaryOp.MOD, right=right):
            return _int_magnitude(right, unknown)
        case Where(then=then, otherwise=otherwise):
            return max(_int_magnitude(then, unknown), _int_magnitude(otherwise, unknown))
        case Call(function=Function.ABS | Function.MIN | Function.MAX, args=args):
            return max(_int_magnitude(arg, unknown) for arg in args)
        case Quantifier(count=count, body=body):
            return min(count * _int_magnitude(body, unknown), 2.0**63)
        case _:
            return unknown


def _limited(bound: float) -> float:
    return bound if bound < MAGNITUDE_LIMIT else math.inf
