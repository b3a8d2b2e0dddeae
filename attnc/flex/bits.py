"""Bit operators in arithmetic: the language has none. Exact for a constant on either side, in two's complement."""

from __future__ import annotations

from collections.abc import Iterator

from attnc.flex.errors import unsupported
from attnc.flex.forms import ZERO, add, floor_divide, modulo, multiply, subtract
from attnc.ir.nodes import Const, Expr
from attnc.ir.types import Type


def bit_and(left: Expr, right: Expr) -> Expr:
    """Return the bits that both ints have."""
    value, constant = _with_constant(left, right, "&")
    if constant < 0:
        return subtract(value, _masked(value, ~constant))
    return _masked(value, constant)


def bit_or(left: Expr, right: Expr) -> Expr:
    """Return the bits that either int has."""
    value, constant = _with_constant(left, right, "|")
    return subtract(add(value, _int(constant)), bit_and(value, _int(constant)))


def bit_xor(left: Expr, right: Expr) -> Expr:
    """Return the bits that one of the ints has."""
    value, constant = _with_constant(left, right, "^")
    return subtract(add(value, _int(constant)), multiply(_int(2), bit_and(value, _int(constant))))


def shift_left(left: Expr, right: Expr) -> Expr:
    """Return an int times a power of 2."""
    return multiply(left, _int(2 ** _places(right)))


def shift_right(left: Expr, right: Expr) -> Expr:
    """Return an int divided by a power of 2, rounded down."""
    return floor_divide(left, _int(2 ** _places(right)))


def _places(expr: Expr) -> int:
    if isinstance(expr, Const) and 0 <= expr.value < 62:
        return int(expr.value)
    raise unsupported("a shift by anything but a constant from 0 to 61", "multiply or divide by a captured table")


def _masked(value: Expr, mask: int) -> Expr:
    """Return `value & mask` for a mask >= 0: each run of ones is a remainder of a quotient."""
    result: Expr = ZERO
    for low, count in _runs(mask):
        part = modulo(floor_divide(value, _int(2**low)), _int(2**count))
        result = add(result, multiply(part, _int(2**low)))
    return result


def _runs(mask: int) -> Iterator[tuple[int, int]]:
    low = 0
    while mask >> low:
        if not (mask >> low) & 1:
            low += 1
            continue
        count = 1
        while (mask >> (low + count)) & 1:
            count += 1
        yield low, count
        low += count


def _with_constant(left: Expr, right: Expr, sign: str) -> tuple[Expr, int]:
    for one, other in ((left, right), (right, left)):
        if isinstance(other, Const):
            return one, int(other.value)
    raise unsupported(f"the bit operator `{sign}` on two integers", "compare them first, so that it works on booleans")


def _int(value: int) -> Const:
    if not -(2**63) <= value < 2**63:
        raise unsupported("an integer of more than 64 bits")
    return Const(value, Type.INT)
