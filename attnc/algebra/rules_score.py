"""Rules over scores: constant factors brought together.

A product of constants has one rounding where there were two, so the result is at least as precise. Factors are brought
together only within `2**-60 .. 2**60`, where no product of two leaves the range of a float32 that did not before. They
are never spread over a sum: `slope * (j - i)` must not become `slope * j - slope * i`.
"""

from __future__ import annotations

from attnc.algebra.engine import Rule
from attnc.algebra.terms import constant, mentions
from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, Quantifier, QuantifierKind, Unary
from attnc.ir.types import Type

SMALLEST, LARGEST = 2.0**-60, 2.0**60


def _factor(expr: Expr) -> tuple[Expr, float] | None:
    """Take `x * c` or `x / c` apart."""
    if not isinstance(expr, Binary) or not isinstance(expr.right, Const) or expr.type is not Type.FLOAT:
        return None
    value = abs(float(expr.right.value))
    if expr.op not in (BinaryOp.MUL, BinaryOp.DIV) or not SMALLEST <= value <= LARGEST:
        return None
    return expr.left, float(expr.right.value)


def _constant_factors(node: Binary) -> Expr | None:
    outer = _factor(node)
    inner = _factor(node.left)
    if outer is None or inner is None or not isinstance(node.left, Binary):
        return None
    operand, first = inner
    second = outer[1]
    multiplied, multiplies = node.left.op is BinaryOp.MUL, node.op is BinaryOp.MUL
    if multiplied == multiplies:
        return Binary(node.op, operand, constant(first * second, Type.FLOAT), Type.FLOAT)
    ratio = second / first if multiplies else first / second
    return Binary(BinaryOp.MUL, operand, constant(ratio, Type.FLOAT), Type.FLOAT)


def _negated_factor(node: Binary) -> Expr | None:
    """Floats only: a sign moves into the constant."""
    if _factor(node) is None or not isinstance(node.left, Unary):
        return None
    factor = constant(-float(node.right.value) if isinstance(node.right, Const) else 0.0, Type.FLOAT)
    return Binary(node.op, node.left.operand, factor, Type.FLOAT)


def _sum_of_same(node: Quantifier) -> Expr | None:
    """A sum of instances that do not differ is a product."""
    if node.kind is not QuantifierKind.SUM or node.count < 2 or mentions(node.body, node.variable):
        return None
    return Binary(BinaryOp.MUL, node.body, constant(node.count, node.type), node.type)


SCORE_RULES = (
    # s * 2.0 / 8.0 -> s * 0.25
    Rule("constant-factors", "s * 2.0 / 8.0 -> s * 0.25", (Binary,), _constant_factors),
    # -s * 2.0 -> s * -2.0
    Rule("negated-factor", "-s * 2.0 -> s * -2.0", (Binary,), _negated_factor),
    # sum(t < 4, s) -> s * 4.0
    Rule("sum-of-same", "sum(t < 4, s) -> s * 4.0", (Quantifier,), _sum_of_same),
)
"""In the order in which they are tried."""
