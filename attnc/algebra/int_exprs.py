"""Int expressions of the compiler's own: small builders that leave out what changes nothing."""

from __future__ import annotations

from attnc.ir.nodes import Binary, BinaryOp, Call, Const, Expr, Function
from attnc.ir.types import Type

ZERO = Const(0, Type.INT)


def constant(value: int) -> Const:
    """Return a number as an expression."""
    return Const(value, Type.INT)


def plus(left: Expr, right: Expr) -> Expr:
    """Return `left + right`: `x + 0 -> x`."""
    if right == ZERO:
        return left
    return right if left == ZERO else _binary(BinaryOp.ADD, left, right)


def minus(left: Expr, right: Expr) -> Expr:
    """Return `left - right`: `x - 0 -> x`."""
    return left if right == ZERO else _binary(BinaryOp.SUB, left, right)


def times(value: Expr, factor: int) -> Expr:
    """Return `value * factor`: `x * 1 -> x`, `x * 0 -> 0`."""
    if factor == 0:
        return ZERO
    return value if factor == 1 else _binary(BinaryOp.MUL, value, constant(factor))


def product(left: Expr, right: Expr) -> Expr:
    """Return `left * right`."""
    return _binary(BinaryOp.MUL, left, right)


def quotient(value: Expr, divisor: int | Expr) -> Expr:
    """Return `value // divisor`: `x // 1 -> x`."""
    return value if divisor == 1 else _binary(BinaryOp.FLOORDIV, value, _expr(divisor))


def remainder(value: Expr, divisor: int | Expr) -> Expr:
    """Return `value % divisor`: `x % 1 -> 0`."""
    return ZERO if divisor == 1 else _binary(BinaryOp.MOD, value, _expr(divisor))


def least(*values: Expr) -> Expr:
    """Return the least of some values, constants first as people write them."""
    return _extreme(Function.MIN, values)


def greatest(*values: Expr) -> Expr:
    """Return the greatest of some values, constants first as people write them."""
    return _extreme(Function.MAX, values)


def compare(op: BinaryOp, left: Expr, right: Expr) -> Expr:
    """Return a comparison of two ints."""
    return Binary(op, left, right, Type.BOOL)


def _extreme(function: Function, values: tuple[Expr, ...]) -> Expr:
    if len(values) == 1:
        return values[0]
    return Call(function, tuple(sorted(values, key=lambda value: not isinstance(value, Const))), Type.INT)


def _binary(op: BinaryOp, left: Expr, right: Expr) -> Expr:
    return Binary(op, left, right, Type.INT)


def _expr(value: int | Expr) -> Expr:
    return constant(value) if isinstance(value, int) else value
