"""Scores that are the dot product times something plus something: what `scaled_dot_product_attention` can take."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, Score, Unary, UnaryOp
from attnc.ir.types import Type
from attnc.ir.walk import walk

ONE, ZERO = Const(1.0, Type.FLOAT), Const(0.0, Type.FLOAT)


@dataclass(frozen=True, slots=True)
class AffineScore:
    """`factor * s + offset`, neither of which contains `s`."""

    factor: Expr
    offset: Expr


def affine_score(expr: Expr) -> AffineScore | None:
    """Read a score as `factor * s + offset`; None where it is nothing of the kind."""
    if not any(isinstance(node, Score) for node in walk(expr)):
        return AffineScore(ZERO, expr)
    match expr:
        case Score():
            return AffineScore(ONE, ZERO)
        case Unary(op=UnaryOp.NEG, operand=operand):
            inner = affine_score(operand)
            return inner and AffineScore(_negated(inner.factor), _negated(inner.offset))
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB, left=left, right=right):
            return _sum(expr.op, affine_score(left), affine_score(right))
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            return _product(affine_score(left), affine_score(right))
        case Binary(op=BinaryOp.DIV, left=left, right=right):
            top, bottom = affine_score(left), affine_score(right)
            if top is None or bottom is None or bottom.factor != ZERO:
                return None
            return AffineScore(_applied(BinaryOp.DIV, top.factor, right), _applied(BinaryOp.DIV, top.offset, right))
        case _:
            return None


def _sum(op: BinaryOp, left: AffineScore | None, right: AffineScore | None) -> AffineScore | None:
    if left is None or right is None:
        return None
    return AffineScore(_applied(op, left.factor, right.factor), _applied(op, left.offset, right.offset))


def _product(left: AffineScore | None, right: AffineScore | None) -> AffineScore | None:
    if left is None or right is None or ZERO not in (left.factor, right.factor):
        return None
    scaled, by = (right, left.offset) if left.factor == ZERO else (left, right.offset)
    return AffineScore(_applied(BinaryOp.MUL, scaled.factor, by), _applied(BinaryOp.MUL, scaled.offset, by))


def _applied(op: BinaryOp, left: Expr, right: Expr) -> Expr:
    """Build `left op right` without the additions and products that change nothing."""
    match op:
        case BinaryOp.ADD if left == ZERO:
            return right
        case BinaryOp.ADD | BinaryOp.SUB if right == ZERO:
            return left
        case BinaryOp.SUB if left == ZERO:
            return _negated(right)
        case BinaryOp.MUL if left == ONE:
            return right
        case BinaryOp.MUL | BinaryOp.DIV if right == ONE or left == ZERO:
            return left
        case BinaryOp.MUL if right == ZERO:
            return right
        case _:
            return Binary(op, left, right, Type.FLOAT)


def _negated(expr: Expr) -> Expr:
    return expr if expr == ZERO else Unary(UnaryOp.NEG, expr, Type.FLOAT)
