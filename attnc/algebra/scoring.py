"""From the dot product of a pair to its score, in the form that kernels compute: base 2, without what cancels.

Under softmax a term that is the same for every key of a row cancels between numerator and denominator. It is left out
only where it is finite whatever the inputs hold: an infinite or NaN term does not cancel, it decides its row. So such a
term is made of positions, sizes, int inputs and constants; float inputs and learned tensors stay in the score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from attnc.algebra.derivation import Step
from attnc.algebra.simplify import simplify_expression
from attnc.algebra.terms import is_number, magnitude
from attnc.ir.nodes import (
    Binary,
    BinaryOp,
    Call,
    Const,
    Expr,
    Function,
    IndexName,
    Quantifier,
    QuantifierKind,
    Score,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import Attention, NormalizeKind
from attnc.ir.types import Type
from attnc.ir.walk import depends_on, substitute, walk

LOG2_E = Const(math.log2(math.e), Type.FLOAT, name="log2(e)")
LN_2 = Const(math.log(2.0), Type.FLOAT, name="log(2)")
_NATURAL_SCORE = Binary(BinaryOp.MUL, Score(), LN_2, Type.FLOAT)
_LINEAR = (BinaryOp.ADD, BinaryOp.SUB)


def derive_scoring(attention: Attention) -> tuple[Expr, Expr | None, Expr | None, tuple[Step, ...]]:
    """Derive how a kernel computes the score.

    Args:
        attention: after simplification.

    Returns:
        the score in natural units without dropped terms; under softmax the same in base 2, over a `Score()` that
        stands for `scale * log2(e) * dot` (else None); the sum of dropped terms, to be added to a returned
        log-sum-exp, or None; what was done, in order.
    """
    steps: list[Step] = []
    score, dropped = attention.score, None
    if attention.normalize.kind is not NormalizeKind.SOFTMAX:
        return score, None, None, ()
    if attention.normalize.sink is None:
        score, dropped = _drop_row_terms(score)
        if dropped is not None:
            steps.append(Step("drop-row-terms", attention.score, score))
            score, more = simplify_expression(score)
            dropped, others = simplify_expression(dropped)
            steps.extend((*more, *others))
            dropped = None if is_number(dropped, 0) else dropped
    if score == Score():
        steps.append(Step("identity-score", score, score))
    # regrouping constants is what brings log2(e) and the pattern's own factors together
    base_2, _ = simplify_expression(to_base_2(score))
    steps.append(Step("base-2", Binary(BinaryOp.MUL, score, LOG2_E, Type.FLOAT), base_2))
    return score, base_2, dropped, tuple(steps)


@dataclass(frozen=True, slots=True)
class _Term:
    """One of the summands of a score."""

    expr: Expr
    negative: bool


def _drop_row_terms(score: Expr) -> tuple[Expr, Expr | None]:
    """Split a sum into what stays and what is the same for all keys of a row."""
    terms = _terms(score, False)
    gone = [term for term in terms if _is_row_term(term.expr)]
    if not gone:
        return score, None
    dropped = _total(gone)
    # a score that is the same for every key is a sum of nothing: all its weights are equal
    return _without(score) or Const(0.0, Type.FLOAT), dropped


def _is_row_term(term: Expr) -> bool:
    reads_pair = depends_on(term, IndexName.KEY) or any(isinstance(node, Score) for node in walk(term))
    # a constant alone is as cheap to leave out, and cancels as well
    return not reads_pair and math.isfinite(magnitude(term))


def _terms(expr: Expr, negative: bool) -> list[_Term]:
    match expr:
        case Binary(op=BinaryOp.ADD, left=left, right=right):
            return [*_terms(left, negative), *_terms(right, negative)]
        case Binary(op=BinaryOp.SUB, left=left, right=right):
            return [*_terms(left, negative), *_terms(right, not negative)]
        case Unary(op=UnaryOp.NEG, operand=operand):
            return _terms(operand, not negative)
        case _:
            return [_Term(expr, negative)]


def _without(expr: Expr) -> Expr | None:
    """Return a sum without its row terms, otherwise grouped as it was; None if nothing remains."""
    match expr:
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB as op, left=left, right=right):
            kept, other = _without(left), _without(right)
            if other is None:
                return kept
            if kept is None:
                return other if op is BinaryOp.ADD else Unary(UnaryOp.NEG, other, Type.FLOAT)
            return expr if kept is left and other is right else replace(expr, left=kept, right=other)
        case Unary(op=UnaryOp.NEG, operand=operand):
            inner = _without(operand)
            return None if inner is None else expr if inner is operand else replace(expr, operand=inner)
        case _:
            return None if _is_row_term(expr) else expr


def _total(terms: list[_Term]) -> Expr:
    total: Expr = Const(0.0, Type.FLOAT)
    for term in terms:
        total = Binary(BinaryOp.SUB if term.negative else BinaryOp.ADD, total, term.expr, Type.FLOAT)
    return total


def to_base_2(score: Expr) -> Expr:
    """Return `score * log2(e)` over a score that is already multiplied by log2(e).

    The factor follows the path to the score through sums, choices and products; apart from that path a term is
    multiplied as a whole, so `slope * (j - i)` keeps its difference.
    """
    if not _uses_score(score):
        return _scaled(score)
    match score:
        case Score():
            return score
        case Binary(op=op, left=left, right=right) if op in _LINEAR:
            return replace(score, left=to_base_2(left), right=to_base_2(right))
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            if _follows(left):
                return replace(score, left=to_base_2(left), right=_natural(right))
            return replace(score, left=_natural(left), right=to_base_2(right))
        case Binary(op=BinaryOp.DIV, left=left, right=right) if _uses_score(left):
            return replace(score, left=to_base_2(left), right=_natural(right))
        case Unary(op=UnaryOp.NEG, operand=operand):
            return replace(score, operand=to_base_2(operand))
        case Where(condition=condition, then=then, otherwise=otherwise):
            return replace(score, condition=_natural(condition), then=to_base_2(then), otherwise=to_base_2(otherwise))
        case Call(function=Function.MIN | Function.MAX | Function.ABS, args=args):
            return replace(score, args=tuple(to_base_2(arg) for arg in args))
        case Quantifier(kind=QuantifierKind.SUM, body=body):
            return replace(score, body=to_base_2(body))
        case _:
            return _scaled(_natural(score))


def _follows(expr: Expr) -> bool:
    """Tell whether the factor can travel through an expression down to a score and vanish there."""
    match expr:
        case Score():
            return True
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB | BinaryOp.MUL, left=left, right=right):
            return _follows(left) or _follows(right)
        case Binary(op=BinaryOp.DIV, left=left):
            return _follows(left)
        case Unary(op=UnaryOp.NEG, operand=operand):
            return _follows(operand)
        case Where(then=then, otherwise=otherwise):
            return _follows(then) or _follows(otherwise)
        case Call(function=Function.MIN | Function.MAX | Function.ABS, args=args):
            return any(_follows(arg) for arg in args)
        case Quantifier(kind=QuantifierKind.SUM, body=body):
            return _follows(body)
        case _:
            return False


def _scaled(expr: Expr) -> Expr:
    """Multiply by log2(e): inside of a constant factor, else of one that is the same for all keys, else outside."""
    match expr:
        case Const(value=value):
            return Const(float(value) * float(LOG2_E.value), Type.FLOAT, span=expr.span)
        case Unary(op=UnaryOp.NEG, operand=operand):
            return replace(expr, operand=_scaled(operand))
        case Binary(op=BinaryOp.MUL, left=left, right=right) if _cost(right) < _cost(left):
            return replace(expr, right=_scaled(right))
        case Binary(op=BinaryOp.MUL | BinaryOp.DIV, left=left) if _cost(left) < _cost(expr):
            return replace(expr, left=_scaled(left))
        case _:
            return Binary(BinaryOp.MUL, expr, LOG2_E, Type.FLOAT, span=expr.span)


def _cost(expr: Expr) -> int:
    """Tell how often an expression is computed: not at run time, once a row, or for every pair."""
    if isinstance(expr, Const):
        return 0
    return 2 if depends_on(expr, IndexName.KEY) or _uses_score(expr) else 1


def _natural(expr: Expr) -> Expr:
    """Return the same value over a score in base 2."""
    return substitute(expr, {Score(): _NATURAL_SCORE})


def _uses_score(expr: Expr) -> bool:
    return any(isinstance(node, Score) for node in walk(expr))
