"""Least and greatest values of int expressions, to tell where 32 bits are enough and which guards are needless."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

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
    Parameter,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    Size,
    SizeName,
    Unary,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import substitute

POSITION_LIMIT = 2**30
"""Positions and sizes stay below it, the unused rows and keys of a last tile included; the launcher checks sizes."""

MAX_HEAD_SIZE = 256


@dataclass(frozen=True, slots=True)
class IntRange:
    """All ints from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def fits_int32(self) -> bool:
        """Whether every value is a 32-bit int."""
        return self.low >= -(2**31) and self.high < 2**31

    def within(self, low: int, high: int) -> bool:
        """Tell whether every value lies in `low .. high`."""
        return low <= self.low and self.high <= high


INT64 = IntRange(-(2**63), 2**63 - 1)
_POSITION = IntRange(1 - POSITION_LIMIT, POSITION_LIMIT - 1)
_NATURAL = IntRange(0, POSITION_LIMIT - 1)
_SIZE = IntRange(1, POSITION_LIMIT - 1)

_PAIRS = tuple(
    (Index(one), Index(other))
    for one, other in (
        (IndexName.QUERY, IndexName.KEY),
        (IndexName.QUERY_LOW, IndexName.KEY_LOW),
        (IndexName.QUERY_HIGH, IndexName.KEY_HIGH),
    )
)


def int_range(expr: Expr, counts: Mapping[str, int], *, transposed: bool = False) -> IntRange:
    """Return a range that holds every value of an int expression, computed as a 64-bit int.

    Args:
        expr: of type int.
        counts: number of values of each quantifier's variable in scope.
        transposed: whether keys may have negative positions, and queries none, as in a transposed attention.
    """
    found = _range(_swapped(expr) if transposed else expr, counts)
    return found if found.within(INT64.low, INT64.high) else INT64


def _swapped(expr: Expr) -> Expr:
    """Exchange queries and keys."""
    return substitute(expr, {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])})


def _range(expr: Expr, counts: Mapping[str, int]) -> IntRange:
    match expr:
        case Const(value=value):
            return IntRange(int(value), int(value))
        case Index(name=name):
            return _index_range(name)
        case Size(name=name):
            return IntRange(1, MAX_HEAD_SIZE) if name is SizeName.HEAD_SIZE else _SIZE
        case Bound(name=variable):
            return IntRange(0, max(counts[variable] - 1, 0))
        case Unary(operand=operand):
            inner = int_range(operand, counts)
            return IntRange(-inner.high, -inner.low)
        case Binary(op=op, left=left, right=right):
            return _binary_range(op, int_range(left, counts), int_range(right, counts))
        case Where(then=then, otherwise=otherwise):
            return _union(int_range(then, counts), int_range(otherwise, counts))
        case Cast(operand=operand):
            return IntRange(0, 1) if operand.type is Type.BOOL else INT64
        case Call(function=function, args=args):
            return _call_range(function, args, counts)
        case Quantifier(kind=QuantifierKind.SUM, variable=variable, count=count, body=body):
            inner = int_range(body, {**counts, variable: count})
            return IntRange(min(0, count * inner.low), max(0, count * inner.high))
        case Read() | Parameter() | Score() | And() | Or() | Quantifier():
            return INT64
        case _:
            assert_never(expr)


def _index_range(name: IndexName) -> IntRange:
    match name:
        case IndexName.BATCH | IndexName.HEAD | IndexName.KEY | IndexName.ROW | IndexName.DIM:
            return _NATURAL
        case IndexName.KEY_LOW | IndexName.KEY_HIGH | IndexName.LOCAL_KEY | IndexName.CLASS:
            return _NATURAL
        case IndexName.QUERY | IndexName.LOCAL_QUERY | IndexName.QUERY_LOW | IndexName.QUERY_HIGH | IndexName.SHIFT:
            return _POSITION
        case _:
            assert_never(name)


def _binary_range(op: BinaryOp, left: IntRange, right: IntRange) -> IntRange:
    match op:
        case BinaryOp.ADD:
            return IntRange(left.low + right.low, left.high + right.high)
        case BinaryOp.SUB:
            return IntRange(left.low - right.high, left.high - right.low)
        case BinaryOp.MUL:
            return _corners([a * b for a in (left.low, left.high) for b in (right.low, right.high)])
        case BinaryOp.FLOORDIV:
            return _quotients(left, right)
        case BinaryOp.MOD:
            if right.low > 0:
                return IntRange(0, min(right.high - 1, left.high)) if left.low >= 0 else IntRange(0, right.high - 1)
            return IntRange(min(right.low + 1, 0), max(right.high - 1, 0))
        case BinaryOp.POW:
            return _powers(left, right.low)
        case _:
            return INT64


def _corners(values: list[int]) -> IntRange:
    return IntRange(min(values), max(values))


def _quotients(left: IntRange, right: IntRange) -> IntRange:
    if right.low > 0:
        return _corners([a // b for a in (left.low, left.high) for b in (right.low, right.high)])
    size = max(abs(left.low), abs(left.high))
    return IntRange(-size, size)


def _powers(base: IntRange, exponent: int) -> IntRange:
    if max(abs(base.low), abs(base.high), 2).bit_length() * exponent > 128:
        return INT64
    corners = [base.low**exponent, base.high**exponent]
    return _corners([*corners, 0] if base.low < 0 < base.high else corners)


def _call_range(function: Function, args: tuple[Expr, ...], counts: Mapping[str, int]) -> IntRange:
    match function:
        case Function.MIN | Function.MAX:
            pick = min if function is Function.MIN else max
            ranges = [int_range(arg, counts) for arg in args]
            return IntRange(pick(r.low for r in ranges), pick(r.high for r in ranges))
        case Function.ABS:
            inner = int_range(args[0], counts)
            least = 0 if inner.low <= 0 <= inner.high else min(abs(inner.low), abs(inner.high))
            return IntRange(least, max(abs(inner.low), abs(inner.high)))
        case Function.HASH:
            return IntRange(0, 2**63 - 1)
        case _:
            return INT64


def _union(left: IntRange, right: IntRange) -> IntRange:
    return IntRange(min(left.low, right.low), max(left.high, right.high))
