"""All rules over every expression of an attention."""

from __future__ import annotations

from dataclasses import replace

from attnc.algebra.derivation import Step
from attnc.algebra.engine import BUDGET, rewrite, tabulate
from attnc.algebra.rules_arith import ARITH_RULES
from attnc.algebra.rules_bool import BOOL_RULES
from attnc.algebra.rules_score import SCORE_RULES
from attnc.algebra.terms import is_number
from attnc.ir.nodes import Binary, BinaryOp, Call, Cast, Const, Expr, Function, Size, SizeName
from attnc.ir.program import Align, AlignKind, Attention, Deferred, Normalize
from attnc.ir.types import Type

RULES = (*BOOL_RULES, *ARITH_RULES, *SCORE_RULES)
_TABLE = tabulate(RULES)

DEFAULT_SCALE = Binary(
    BinaryOp.DIV,
    Const(1.0, Type.FLOAT),
    Call(Function.SQRT, (Cast(Size(SizeName.HEAD_SIZE), Type.FLOAT),), Type.FLOAT),
    Type.FLOAT,
)


def simplify_expression(expr: Expr, *, budget: int = BUDGET) -> tuple[Expr, tuple[Step, ...]]:
    """Bring one expression to normal form, unless the budget runs out first; sound in either case."""
    return rewrite(expr, _TABLE, budget=budget)


def simplify_attention(attention: Attention) -> tuple[Attention, tuple[Step, ...]]:
    """Bring every expression of an attention to normal form.

    Returns:
        an attention of the same meaning (a second run changes nothing), and what was done, in order. Assertions and
        declarations stay as they were written.
    """
    steps: list[Step] = []

    def simplified(expr: Expr) -> Expr:
        result, done = simplify_expression(expr)
        steps.extend(done)
        return result

    def optional(expr: Expr | None) -> Expr | None:
        return None if expr is None else simplified(expr)

    return (
        replace(
            attention,
            mask=simplified(attention.mask),
            score=simplified(attention.score),
            scale=_without_default_scale(optional(attention.scale), attention.feature, steps),
            weight=_without_unit_weight(optional(attention.weight), steps),
            normalize=_simplify_normalize(
                replace(
                    attention.normalize,
                    sink=optional(attention.normalize.sink),
                    bias=optional(attention.normalize.bias),
                ),
                steps,
            ),
            align=_simplify_align(replace(attention.align, shift=simplified(attention.align.shift)), steps),
        ),
        tuple(steps),
    )


def _without_default_scale(scale: Expr | None, feature: Deferred | None, steps: list[Step]) -> Expr | None:
    """`scale 1 / sqrt(D)` says what holds without it, unless a map takes the place of the scaled exponential."""
    if scale != DEFAULT_SCALE or scale is None or (feature is not None and feature.form != "favor"):
        return scale
    steps.append(Step("default-scale", scale, scale))
    return None


def _without_unit_weight(weight: Expr | None, steps: list[Step]) -> Expr | None:
    """`weight 1` weighs nothing."""
    if weight is None or not is_number(weight, 1):
        return weight
    steps.append(Step("unit-weight", weight, weight))
    return None


def _simplify_normalize(normalize: Normalize, steps: list[Step]) -> Normalize:
    """A sink of minus infinity adds `exp(-inf) = 0`; a bias of 0 and a power of 1 are what holds without them."""
    sink, bias, power = normalize.sink, normalize.bias, normalize.power
    if sink is not None and is_number(sink, float("-inf")):
        steps.append(Step("empty-sink", sink, sink))
        normalize = replace(normalize, sink=None)
    if bias is not None and is_number(bias, 0):
        steps.append(Step("zero-bias", bias, bias))
        normalize = replace(normalize, bias=None)
    if power is not None and is_number(power, 1):
        steps.append(Step("unit-power", power, power))
        normalize = replace(normalize, power=None)
    return normalize


def _simplify_align(align: Align, steps: list[Step]) -> Align:
    """`align at(0)` is `align start`."""
    if align.kind is not AlignKind.AT or not is_number(align.shift, 0):
        return align
    steps.append(Step("align-start", align.shift, align.shift))
    return replace(align, kind=AlignKind.START)
