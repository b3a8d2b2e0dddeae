"""The language's arithmetic on values, exactly, in pure Python: what operators, functions and conversions give."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import assert_never

from attnc.diagnostics import InternalError
from attnc.ir.nodes import BinaryOp, Function
from attnc.ir.types import Type

Value = bool | int | float

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
_WORD = 2**64


def binary(op: BinaryOp, result: Type) -> Callable[[Value, Value], Value]:
    """Return an operator on two values of one type, with the division of ints by 0 that gives 0.

    Args:
        op: the operator.
        result: type of the result.
    """
    compare = _COMPARISONS.get(op)
    if compare is not None:
        return compare
    return _INT_OPERATIONS[op] if result is Type.INT else _FLOAT_OPERATIONS[op]


def apply_function(function: Function, args: tuple[Value, ...]) -> Value:
    """Apply a built-in function. `min` and `max` of floats give NaN where an operand is NaN."""
    match function:
        case Function.ABS:
            value = abs(args[0])
            return value if isinstance(value, float) else wrap(value)
        case Function.MIN:
            return math.nan if any(arg != arg for arg in args) else min(args)
        case Function.MAX:
            return math.nan if any(arg != arg for arg in args) else max(args)
        case Function.FLOOR:
            return _saturate(float(args[0]), math.floor)
        case Function.HASH:
            return _hash(tuple(int(arg) for arg in args))
        case _:
            return _elementary(function, float(args[0]))


def _elementary(function: Function, x: float) -> float:
    """A function of one float, with IEEE results in place of Python's exceptions."""
    match function:
        case Function.EXP | Function.EXP2:
            try:
                return math.exp(x) if function is Function.EXP else math.exp2(x)
            except OverflowError:
                return math.inf
        case Function.LOG | Function.LOG2:
            if not x > 0:
                return -math.inf if x == 0 else math.nan
            return math.log(x) if function is Function.LOG else math.log2(x)
        case Function.SQRT:
            return math.sqrt(x) if x >= 0 else math.nan
        case Function.TANH:
            return math.tanh(x)
        case Function.SIGMOID:
            tail = math.exp(-abs(x))
            return (1.0 if x >= 0 else tail) / (1.0 + tail) if x == x else x
        case Function.ERF:
            return math.erf(x)
        case Function.SIN:
            return math.nan if math.isinf(x) else math.sin(x)
        case Function.COS:
            return math.nan if math.isinf(x) else math.cos(x)
        case _:
            raise InternalError(f"{function.value} is not a function of one float")


def convert(value: Value, to: Type) -> Value:
    """Convert to another type: float -> int truncates, saturates and gives 0 for NaN; bool -> int gives 0 or 1."""
    match to:
        case Type.BOOL:
            return bool(value)
        case Type.INT:
            return _saturate(value, math.trunc) if isinstance(value, float) else int(value)
        case Type.FLOAT:
            return float(value)
        case _:
            assert_never(to)


def wrap(value: int) -> int:
    """Reduce an integer to 64 bits, two's complement."""
    return value if INT_MIN <= value <= INT_MAX else (value - INT_MIN) % _WORD + INT_MIN


def _saturate(value: float, rounding: Callable[[float], int]) -> int:
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return INT_MAX if value > 0 else INT_MIN
    return max(INT_MIN, min(INT_MAX, rounding(value)))


def _divide(left: float, right: float) -> float:
    if right:
        return left / right
    if left == 0 or left != left:
        return math.nan
    return math.copysign(math.inf, left) * math.copysign(1.0, right)


def _power(base: float, exponent: float) -> float:
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf
    except ValueError:
        if base:
            return math.nan  # a negative base and an exponent that is not whole
        return math.copysign(math.inf, base) if exponent % 2 == 1 else math.inf


def _hash(args: tuple[int, ...]) -> int:
    """Chain splitmix64's finaliser (Steele, Lea and Flood, 2014) over the arguments; non-negative."""
    state = 0
    for arg in args:
        state = (state + arg + 0x9E3779B97F4A7C15) % _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB % _WORD
        state ^= state >> 31
    return state // 2


def _int_divide(left: Value, right: Value) -> Value:
    return wrap(int(left // right)) if right else 0


def _int_power(base: Value, exponent: Value) -> Value:
    return wrap(pow(int(base), int(exponent), _WORD))


def _float_divide_down(left: Value, right: Value) -> Value:
    return left // right if right else _divide(left, right)


_COMPARISONS: dict[BinaryOp, Callable[[Value, Value], bool]] = {
    BinaryOp.LT: operator.lt,
    BinaryOp.LE: operator.le,
    BinaryOp.GT: operator.gt,
    BinaryOp.GE: operator.ge,
    BinaryOp.EQ: operator.eq,
    BinaryOp.NE: operator.ne,
}

_INT_OPERATIONS: dict[BinaryOp, Callable[[Value, Value], Value]] = {
    BinaryOp.ADD: lambda left, right: wrap(int(left + right)),
    BinaryOp.SUB: lambda left, right: wrap(int(left - right)),
    BinaryOp.MUL: lambda left, right: wrap(int(left * right)),
    BinaryOp.FLOORDIV: _int_divide,
    BinaryOp.MOD: lambda left, right: int(left % right) if right else 0,
    BinaryOp.POW: _int_power,
}

_FLOAT_OPERATIONS: dict[BinaryOp, Callable[[Value, Value], Value]] = {
    BinaryOp.ADD: operator.add,
    BinaryOp.SUB: operator.sub,
    BinaryOp.MUL: operator.mul,
    BinaryOp.DIV: _divide,
    BinaryOp.FLOORDIV: _float_divide_down,
    BinaryOp.MOD: lambda left, right: left % right if right else math.nan,
    BinaryOp.POW: _power,
}
