"""Torch's pointwise operators as expressions of the language, each with torch's own rounding and promotion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attnc.flex.bits import bit_and, bit_or, bit_xor, shift_left, shift_right
from attnc.flex.errors import unsupported
from attnc.flex.forms import (
    ONE,
    ZERO,
    add,
    call,
    compare,
    conjunction,
    constant,
    convert,
    disjunction,
    floor_divide,
    modulo,
    multiply,
    negative,
    opposite,
    subtract,
    truncating_divide,
    where,
)
from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, Function
from attnc.ir.types import Type

WIDTHS = {torch.uint8: (8, False), torch.int8: (8, True), torch.int16: (16, True)}
"""Bits and sign of the integer dtypes that wrap around within the range of positions."""


def type_of(dtype: torch.dtype) -> Type:
    """Return the language's type of a dtype."""
    if dtype is torch.bool:
        return Type.BOOL
    if dtype.is_complex:
        raise unsupported("a complex number")
    return Type.FLOAT if dtype.is_floating_point else Type.INT


@dataclass(frozen=True, slots=True)
class Applied:
    """One operator applied.

    Attributes:
        args: expressions of the tensors and numbers that are operands, None for an operand that is left out.
        options: the other arguments by name.
        compared: the type in which torch would compare the operands.
        dtype: of the result.
    """

    name: str
    args: tuple[Expr | None, ...]
    options: Mapping[str, Any]
    compared: Type
    dtype: torch.dtype

    @property
    def type(self) -> Type:
        """Of the result."""
        return type_of(self.dtype)

    def operands(self, to: Type) -> list[Expr]:
        """Return all operands in one type."""
        return [convert(arg, to) for arg in self.args if arg is not None]


def pointwise(op: Applied) -> Expr | None:
    """Return what an operator computes; None if it is not one of these."""
    rule = _RULES.get(op.name) or _RULES.get(op.name.removesuffix("_"))
    if rule is None:
        return None
    return wrapped(convert(rule(op), op.type), op.dtype) if op.name in _WRAPPING else convert(rule(op), op.type)


def wrapped(expr: Expr, dtype: torch.dtype) -> Expr:
    """Wrap an int around as a narrow dtype does."""
    if dtype not in WIDTHS:
        return expr
    bits, signed = WIDTHS[dtype]
    half = Const(2 ** (bits - 1) if signed else 0, Type.INT)
    return subtract(modulo(add(expr, half), Const(2**bits, Type.INT)), half)


_WRAPPING = {"add", "sub", "rsub", "mul", "neg", "pow", "add_", "sub_", "mul_", "bitwise_left_shift", "__lshift__"}


def _scaled(op: Applied) -> tuple[Expr, Expr]:
    left, right = op.operands(op.type)
    alpha = op.options.get("alpha", 1)
    return left, multiply(convert(constant(alpha), op.type), right) if alpha != 1 else right


def _add(op: Applied) -> Expr:
    return disjunction(*op.operands(Type.BOOL)) if op.type is Type.BOOL else add(*_scaled(op))


def _rsub(op: Applied) -> Expr:
    left, right = op.operands(op.type)
    alpha = op.options.get("alpha", 1)
    return subtract(right, multiply(convert(constant(alpha), op.type), left) if alpha != 1 else left)


def _mul(op: Applied) -> Expr:
    if op.type is Type.BOOL:
        return conjunction(*op.operands(Type.BOOL))
    return multiply(*op.operands(op.type))


def _div(op: Applied) -> Expr:
    match op.options.get("rounding_mode"):
        case None:
            left, right = op.operands(Type.FLOAT)
            return Binary(BinaryOp.DIV, left, right, Type.FLOAT)
        case "floor":
            return _floor_divide(op)
        case _:
            _refuse_zero(op)
            return truncating_divide(*op.operands(op.type))


def _refuse_zero(op: Applied) -> None:
    divisor = op.args[1]
    if isinstance(divisor, Const) and divisor.value == 0 and op.type is Type.INT:
        raise unsupported("a division by the constant 0", "divide by something else")


def _floor_divide(op: Applied) -> Expr:
    _refuse_zero(op)
    return floor_divide(*op.operands(op.type))


def _remainder(op: Applied) -> Expr:
    _refuse_zero(op)
    return modulo(*op.operands(op.type))


def _fmod(op: Applied) -> Expr:
    _refuse_zero(op)
    left, right = op.operands(op.type)
    return subtract(left, multiply(right, truncating_divide(left, right)))


def _pow(op: Applied) -> Expr:
    base, exponent = (arg for arg in op.args if arg is not None)
    if op.type is not Type.INT:
        if isinstance(exponent, Const) and exponent.value == 1:
            return convert(base, Type.FLOAT)
        if isinstance(base, Const) and base.value == 2:
            return call(Function.EXP2, convert(exponent, Type.FLOAT))
        return Binary(BinaryOp.POW, convert(base, Type.FLOAT), convert(exponent, Type.FLOAT), Type.FLOAT)
    if isinstance(exponent, Const) and exponent.value >= 0:
        return Binary(BinaryOp.POW, convert(base, Type.INT), convert(exponent, Type.INT), Type.INT)
    if not (isinstance(base, Const) and base.value == 2):
        raise unsupported(
            "an integer to the power of a position", "use a float base, or a captured table of the powers"
        )
    # the power of 2 is a float in the language; what it may be off by is far less than a half
    return _rounded_down(add(call(Function.EXP2, convert(exponent, Type.FLOAT)), constant(0.5)))


def _rounded_down(expr: Expr) -> Expr:
    from attnc.ir.nodes import Call

    return Call(Function.FLOOR, (expr,), Type.INT)


def _unary(function: Function) -> Callable[[Applied], Expr]:
    return lambda op: call(function, *op.operands(Type.FLOAT))


def _same(build: Callable[..., Expr]) -> Callable[[Applied], Expr]:
    return lambda op: build(*op.operands(op.type))


def _floats(build: Callable[..., Expr]) -> Callable[[Applied], Expr]:
    return lambda op: build(*op.operands(Type.FLOAT))


def _of_bools(build: Callable[..., Expr]) -> Callable[[Applied], Expr]:
    return lambda op: build(*op.operands(Type.BOOL))


def _comparison(kind: BinaryOp) -> Callable[[Applied], Expr]:
    def build(op: Applied) -> Expr:
        to = op.compared
        if to is Type.BOOL and kind not in (BinaryOp.EQ, BinaryOp.NE):
            to = Type.INT
        left, right = op.operands(to)
        if to is Type.BOOL:
            for one, other in ((left, right), (right, left)):
                if isinstance(one, Const):
                    return other if bool(one.value) is (kind is BinaryOp.EQ) else opposite(other)
        return compare(kind, left, right)

    return build


def _bitwise(of_bools: Callable[..., Expr], of_ints: Callable[..., Expr]) -> Callable[[Applied], Expr]:
    return lambda op: (of_bools if op.type is Type.BOOL else of_ints)(*op.operands(op.type))


def _bitwise_not(op: Applied) -> Expr:
    (operand,) = op.operands(op.type)
    return opposite(operand) if op.type is Type.BOOL else subtract(negative(operand), ONE)


def _differ(left: Expr, right: Expr) -> Expr:
    return compare(BinaryOp.NE, left, right)


def _integral(build: Callable[[Expr], Expr]) -> Callable[[Applied], Expr]:
    """Round a float; an int is round already."""
    return lambda op: op.operands(Type.INT)[0] if op.type is Type.INT else build(op.operands(Type.FLOAT)[0])


def _floor(x: Expr) -> Expr:
    return convert(_rounded_down(x), Type.FLOAT)


def _round(op: Applied) -> Expr:
    """Round to the nearest, ties to even."""
    if op.options.get("decimals"):
        raise unsupported("`round` to decimals")
    if op.type is Type.INT:
        return op.operands(Type.INT)[0]
    (x,) = op.operands(Type.FLOAT)
    down = _rounded_down(x)
    rest = subtract(x, convert(down, Type.FLOAT))
    tie = add(down, modulo(down, constant(2)))
    up = where(compare(BinaryOp.GT, rest, constant(0.5)), add(down, ONE), tie)
    return convert(where(compare(BinaryOp.LT, rest, constant(0.5)), down, up), Type.FLOAT)


def _sign(op: Applied) -> Expr:
    (x,) = op.operands(op.type)
    zero, one = convert(ZERO, op.type), convert(ONE, op.type)
    below = where(compare(BinaryOp.LT, x, zero), negative(one), zero)
    return where(compare(BinaryOp.GT, x, zero), one, below)


def _clamp(op: Applied) -> Expr:
    low, high = (None if arg is None else convert(arg, op.type) for arg in (*op.args[1:], None, None)[:2])
    assert op.args[0] is not None
    value = convert(op.args[0], op.type)
    value = value if low is None else call(Function.MAX, value, low)
    return value if high is None else call(Function.MIN, value, high)


def _where(op: Applied) -> Expr:
    condition, then, otherwise = (arg for arg in op.args if arg is not None)
    return where(convert(condition, Type.BOOL), convert(then, op.type), convert(otherwise, op.type))


def _masked_fill(op: Applied) -> Expr:
    value, condition, filled = (arg for arg in op.args if arg is not None)
    return where(convert(condition, Type.BOOL), convert(filled, op.type), convert(value, op.type))


def _is_infinite(x: Expr) -> Expr:
    return compare(BinaryOp.EQ, call(Function.ABS, x), constant(math.inf))


def _one_over(x: Expr) -> Expr:
    return Binary(BinaryOp.DIV, constant(1.0), x, Type.FLOAT)


def _shifted_exponential(x: Expr) -> Expr:
    return subtract(call(Function.EXP, x), constant(1.0))


def _log_of_one_plus(x: Expr) -> Expr:
    return call(Function.LOG, add(constant(1.0), x))


def _log10(x: Expr) -> Expr:
    return Binary(BinaryOp.DIV, call(Function.LOG, x), constant(math.log(10.0)), Type.FLOAT)


def _silu(x: Expr) -> Expr:
    return multiply(x, call(Function.SIGMOID, x))


def _tan(x: Expr) -> Expr:
    return Binary(BinaryOp.DIV, call(Function.SIN, x), call(Function.COS, x), Type.FLOAT)


_RULES: dict[str, Callable[[Applied], Expr]] = {
    "add": _add,
    "sub": lambda op: subtract(*_scaled(op)),
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "fmod": _fmod,
    "pow": _pow,
    "neg": _same(negative),
    "abs": _same(lambda x: call(Function.ABS, x)),
    "sign": _sign,
    "sgn": _sign,
    "maximum": _same(lambda x, y: call(Function.MAX, x, y)),
    "minimum": _same(lambda x, y: call(Function.MIN, x, y)),
    "fmax": _same(lambda x, y: call(Function.MAX, x, y)),
    "fmin": _same(lambda x, y: call(Function.MIN, x, y)),
    "clamp": _clamp,
    "clamp_min": _same(lambda x, low: call(Function.MAX, x, low)),
    "clamp_max": _same(lambda x, high: call(Function.MIN, x, high)),
    "relu": _same(lambda x: call(Function.MAX, x, convert(ZERO, x.type))),
    "floor": _integral(_floor),
    "ceil": _integral(lambda x: negative(_floor(negative(x)))),
    "trunc": _integral(lambda x: convert(convert(x, Type.INT), Type.FLOAT)),
    "frac": _floats(lambda x: subtract(x, convert(convert(x, Type.INT), Type.FLOAT))),
    "round": _round,
    "where": _where,
    "masked_fill": _masked_fill,
    "eq": _comparison(BinaryOp.EQ),
    "ne": _comparison(BinaryOp.NE),
    "lt": _comparison(BinaryOp.LT),
    "le": _comparison(BinaryOp.LE),
    "gt": _comparison(BinaryOp.GT),
    "ge": _comparison(BinaryOp.GE),
    "logical_and": _of_bools(conjunction),
    "logical_or": _of_bools(disjunction),
    "logical_not": _of_bools(opposite),
    "logical_xor": _of_bools(_differ),
    "bitwise_and": _bitwise(conjunction, bit_and),
    "bitwise_or": _bitwise(disjunction, bit_or),
    "bitwise_xor": _bitwise(_differ, bit_xor),
    "__and__": _bitwise(conjunction, bit_and),
    "__or__": _bitwise(disjunction, bit_or),
    "__xor__": _bitwise(_differ, bit_xor),
    "bitwise_not": _bitwise_not,
    "bitwise_left_shift": _same(shift_left),
    "bitwise_right_shift": _same(shift_right),
    "__lshift__": _same(shift_left),
    "__rshift__": _same(shift_right),
    "isnan": _floats(lambda x: compare(BinaryOp.NE, x, x)),
    "isinf": _floats(_is_infinite),
    "isneginf": _floats(lambda x: compare(BinaryOp.EQ, x, constant(-math.inf))),
    "isposinf": _floats(lambda x: compare(BinaryOp.EQ, x, constant(math.inf))),
    "exp": _unary(Function.EXP),
    "exp2": _unary(Function.EXP2),
    "log": _unary(Function.LOG),
    "log2": _unary(Function.LOG2),
    "log10": _floats(_log10),
    "log1p": _floats(_log_of_one_plus),
    "expm1": _floats(_shifted_exponential),
    "sqrt": _unary(Function.SQRT),
    "rsqrt": _floats(lambda x: _one_over(call(Function.SQRT, x))),
    "reciprocal": _floats(_one_over),
    "tanh": _unary(Function.TANH),
    "sigmoid": _unary(Function.SIGMOID),
    "silu": _floats(_silu),
    "erf": _unary(Function.ERF),
    "sin": _unary(Function.SIN),
    "cos": _unary(Function.COS),
    "tan": _floats(_tan),
    "_to_copy": lambda op: op.operands(op.compared)[0],
}
