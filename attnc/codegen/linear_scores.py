"""Scores that are a multiple of the dot product plus a bias."""

from __future__ import annotations

from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, Score, Unary, UnaryOp
from attnc.ir.types import Type
from attnc.ir.walk import walk


def split_linear(score: Expr) -> tuple[float, Expr | None] | None:
    """Return `(a, b)` where the score is `a * s + b` with a constant `a` and a `b` free of `s`; None if it is not."""
    match score:
        case Score():
            return 1.0, None
        case Unary(op=UnaryOp.NEG, operand=operand):
            return _times(split_linear(operand), -1.0)
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB as op, left=left, right=right):
            sign = 1.0 if op is BinaryOp.ADD else -1.0
            if not _uses_score(right):
                inner = split_linear(left)
                return None if inner is None else (inner[0], _add(inner[1], right, op))
            if not _uses_score(left):
                inner = _times(split_linear(right), sign)
                return (
                    None
                    if inner is None
                    else (inner[0], left if inner[1] is None else _add(left, inner[1], BinaryOp.ADD))
                )
            return None
        case Binary(op=BinaryOp.MUL, left=Const(value=value), right=right):
            return _times(split_linear(right), float(value))
        case Binary(op=BinaryOp.MUL, left=left, right=Const(value=value)):
            return _times(split_linear(left), float(value))
        case Binary(op=BinaryOp.DIV, left=left, right=Const(value=value)) if value != 0:
            return _times(split_linear(left), 1.0 / float(value))
        case _:
            return None


def _times(split: tuple[float, Expr | None] | None, factor: float) -> tuple[float, Expr | None] | None:
    if split is None:
        return None
    inner, bias = split
    if bias is None or factor == 1.0:
        return inner * factor, bias
    return inner * factor, Binary(BinaryOp.MUL, Const(factor, Type.FLOAT), bias, Type.FLOAT)


def _add(left: Expr | None, right: Expr, op: BinaryOp) -> Expr:
    if left is None:
        return right if op is BinaryOp.ADD else Unary(UnaryOp.NEG, right, Type.FLOAT)
    return Binary(op, left, right, Type.FLOAT)


def _uses_score(expr: Expr) -> bool:
    return any(isinstance(node, Score) for node in walk(expr))
