"""Constants and functions of the language in Triton's terms."""

from __future__ import annotations

import math
from typing import assert_never

from attnc.ir.evaluate import evaluate
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
    Quantifier,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import children

CALLS = {
    Function.EXP: "tl.exp",
    Function.EXP2: "tl.exp2",
    Function.LOG: "tl.log",
    Function.LOG2: "tl.log2",
    Function.SQRT: "tl.sqrt",
    Function.SIGMOID: "tl.sigmoid",
    Function.ERF: "tl.erf",
    Function.TANH: "tanh",
    Function.SIN: "sin",
    Function.COS: "cos",
}
"""Functions of floats; a name without a dot is one of `runtime.kernel_math`."""

LEAST_NORMAL = 2.0**-126
GREATEST_FLOAT = (2.0 - 2.0**-23) * 2.0**127


def fold(expr: Expr) -> Expr:
    """Compute an operation on constants, and drop constants from `and`, `or`, `not`, `if`."""
    match expr:
        case Unary() | Binary() | Call() | Cast():
            operands = tuple(fold(child) for child in children(expr))
            if all(isinstance(operand, Const) for operand in operands):
                return Const(evaluate(expr), expr.type, span=expr.span)
            if isinstance(expr, Unary) and expr.op is UnaryOp.NOT and isinstance(operands[0], Unary):
                inner = operands[0]
                return fold(inner.operand) if inner.op is UnaryOp.NOT else expr
            return expr
        case And(operands=operands):
            return _fold_connective(And, TRUE, FALSE, operands)
        case Or(operands=operands):
            return _fold_connective(Or, FALSE, TRUE, operands)
        case Where(condition=condition, then=then, otherwise=otherwise):
            decided = fold(condition)
            if isinstance(decided, Const):
                return fold(then if decided.value else otherwise)
            return expr
        case _:
            return expr


def _fold_connective(kind: type[And] | type[Or], neutral: Const, deciding: Const, operands: tuple[Expr, ...]) -> Expr:
    """`x and true -> x`, `x and false -> false`, and the same for `or`; nested ones of one kind are flattened."""
    kept: dict[Expr, None] = {}
    for operand in map(fold, operands):
        if operand == deciding:
            return deciding
        if operand != neutral:
            kept.update(dict.fromkeys(operand.operands if isinstance(operand, kind) else (operand,)))
    match len(kept):
        case 0:
            return neutral
        case 1:
            return next(iter(kept))
        case _:
            return kind(tuple(kept))


def constant_text(constant: Const) -> str:
    """Return a literal, or a scalar tensor where Triton has no literal of the kind."""
    match constant.type:
        case Type.BOOL:
            return f"tl.full([], {int(constant.value)}, tl.int1)"
        case Type.INT:
            value = int(constant.value)
            return str(value) if -(2**31) <= value < 2**31 else f"tl.full([], {value}, tl.int64)"
        case Type.FLOAT:
            return float_text(float(constant.value))
        case _:
            assert_never(constant.type)


def float_text(value: float) -> str:
    """Return a literal of 32 bits: Triton takes one out of float32's range for 64 bits."""
    if math.isnan(value):
        return 'float("nan")'
    if abs(value) > GREATEST_FLOAT:
        return 'float("inf")' if value > 0 else 'float("-inf")'
    return repr(value) if abs(value) >= LEAST_NORMAL else "0.0"


def neutral(expr: Quantifier) -> Const:
    """Return the value of a quantifier over nothing."""
    return Const(evaluate(expr), expr.type)


def product(base: Expr, count: int, kind: Type) -> Expr:
    """Return `base ** count` as products, by repeated squaring."""
    if count == 0:
        return Const(1.0 if kind is Type.FLOAT else 1, kind)
    result: Expr | None = None
    square = base
    while True:
        if count & 1:
            result = square if result is None else Binary(BinaryOp.MUL, result, square, kind)
        count >>= 1
        if count == 0:
            return base if result is None else result
        square = Binary(BinaryOp.MUL, square, square, kind)


def factors_of(expr: Expr) -> tuple[Expr, ...]:
    """Return the factors of nested products, from left to right."""
    if isinstance(expr, Binary) and expr.op is BinaryOp.MUL:
        return (*factors_of(expr.left), *factors_of(expr.right))
    return (expr,)
