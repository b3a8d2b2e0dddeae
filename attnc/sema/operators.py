"""Typing of operators: widening, comparisons, and what a constant divisor must be. Operands are finished IR."""

from __future__ import annotations

from attnc.ir.nodes import And, Binary, BinaryOp, Cast, Const, Expr, Parameter, Unary, UnaryOp
from attnc.ir.types import Type, common_number
from attnc.sema import expression_errors
from attnc.sema.context import Context
from attnc.source import Span

_ARITHMETIC = {op.value: op for op in BinaryOp if not op.is_comparison}
_COMPARISONS = {op.value: op for op in BinaryOp if op.is_comparison}


def widen(expr: Expr, to: Type, context: Context, span: Span) -> Expr | None:
    """Return the expression as a `to`: unchanged, or an int widened to float. The caller made sure that it can be."""
    if expr.type is to:
        return expr
    if isinstance(expr, Const):
        return Const(float(expr.value), to, name=expr.name, span=expr.span)
    return context.finish(Cast(expr, to, span=expr.span), span)


def need_number(expr: Expr | None, what: str, context: Context, span: Span) -> Expr | None:
    """Return the expression if it is a number. `what` needs it."""
    if expr is not None and not expr.type.is_number:
        context.report.add(expression_errors.operand_not_number(span, what))
        return None
    return expr


def need_bool(expr: Expr | None, what: str, context: Context, span: Span) -> Expr | None:
    """Return the expression if it is a bool. `what` needs it."""
    if expr is not None and expr.type is not Type.BOOL:
        context.report.add(expression_errors.operand_not_boolean(span, what, expr.type))
        return None
    return expr


def arithmetic(
    operator: str, left: Expr | None, right: Expr | None, context: Context, spans: tuple[Span, Span, Span]
) -> Expr | None:
    """Type `left operator right`. `spans` are those of the whole, of the left and of the right operand."""
    whole, left_span, right_span = spans
    left = need_number(left, f"`{operator}`", context, left_span)
    right = need_number(right, f"`{operator}`", context, right_span)
    if right is not None and operator in ("/", "//", "%") and not _is_divisor(operator, right, context, right_span):
        right = Const(1, right.type) if context.report.unselected else None
    if left is None or right is None:
        return None
    op = _ARITHMETIC[operator]
    kind = _result_type(op, left, right)
    if op is BinaryOp.POW and kind is Type.INT:
        return context.finish(Binary(op, left, right, kind, span=context.at(whole)), whole)
    wide_left, wide_right = widen(left, kind, context, left_span), widen(right, kind, context, right_span)
    if wide_left is None or wide_right is None:
        return None
    return context.finish(Binary(op, wide_left, wide_right, kind, span=context.at(whole)), whole)


def _result_type(op: BinaryOp, left: Expr, right: Expr) -> Type:
    match op:
        case BinaryOp.DIV:
            return Type.FLOAT
        case BinaryOp.POW:
            if left.type is not Type.INT or right.type is not Type.INT:
                return Type.FLOAT
            if isinstance(right, Parameter):  # its value is not known yet; a negative one will make it a float
                return Type.INT
            return Type.INT if isinstance(right, Const) and right.value >= 0 else Type.FLOAT
        case _:
            return common_number(left.type, right.type)


def _is_divisor(operator: str, divisor: Expr, context: Context, span: Span) -> bool:
    """Refuse a constant divisor of 0, and a negative one where rounding would depend on its sign."""
    if not isinstance(divisor, Const):
        return True
    if divisor.value == 0:
        context.report.add_of_value(expression_errors.division_by_zero(span, operator, divisor.name))
        return False
    if operator != "/" and not divisor.value > 0:
        context.report.add_of_value(expression_errors.divisor_not_positive(span, operator, divisor.value))
        return False
    return True


def sign(operator: str, operand: Expr | None, context: Context, spans: tuple[Span, Span]) -> Expr | None:
    """Type `-x` or `+x`. `spans` are those of the whole and of the operand."""
    whole, operand_span = spans
    operand = need_number(operand, f"`{operator}`", context, operand_span)
    if operand is None or operator == "+":
        return operand
    return context.finish(Unary(UnaryOp.NEG, operand, operand.type, span=context.at(whole)), whole)


def comparison(
    operators: tuple[str, ...], operands: list[Expr | None], context: Context, spans: tuple[Span, ...]
) -> Expr | None:
    """Type a chain `a < b <= c`, which is the conjunction of its links. `spans` are those of the operands."""
    links: list[Expr] = []
    for position, operator in enumerate(operators):
        link = _link(
            operator, operands[position], operands[position + 1], context, (spans[position], spans[position + 1])
        )
        if link is not None:
            links.append(link)
    if len(links) < len(operators):
        return None
    if len(links) == 1:
        return links[0]
    whole = spans[0].to(spans[-1])
    return context.finish(And(tuple(links), span=context.at(whole)), whole)


def _link(
    operator: str, left: Expr | None, right: Expr | None, context: Context, spans: tuple[Span, Span]
) -> Expr | None:
    op = _COMPARISONS[operator]
    whole = spans[0].to(spans[1])
    if left is None or right is None:
        return None
    kinds = (left.type, right.type)
    if Type.BOOL in kinds:
        if kinds != (Type.BOOL, Type.BOOL) or op not in (BinaryOp.EQ, BinaryOp.NE):
            context.report.add(expression_errors.cannot_compare(whole, operator, *kinds))
            return None
        kind = Type.BOOL
    else:
        kind = common_number(*kinds)
    wide_left, wide_right = widen(left, kind, context, spans[0]), widen(right, kind, context, spans[1])
    if wide_left is None or wide_right is None:
        return None
    return context.finish(Binary(op, wide_left, wide_right, Type.BOOL, span=context.at(whole)), whole)


def unify(parts: list[Expr], what: str, context: Context, spans: list[Span]) -> list[Expr] | None:
    """Bring operands that must be of one type to it: all bools, or all numbers, ints widened if one is a float."""
    kinds = {part.type for part in parts}
    if Type.BOOL in kinds and len(kinds) > 1:
        odd = next(index for index, part in enumerate(parts) if part.type is not parts[0].type)
        context.report.add(
            expression_errors.operands_differ(spans[odd], what, parts[odd].type, parts[0].type, spans[0])
        )
        return None
    kind = Type.FLOAT if Type.FLOAT in kinds else parts[0].type
    wide = [widen(part, kind, context, span) for part, span in zip(parts, spans, strict=True)]
    return [part for part in wide if part is not None] if None not in wide else None
