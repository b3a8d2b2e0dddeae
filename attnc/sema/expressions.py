"""Checking expressions: from the syntax tree to typed IR.

A check returns None where the expression has no meaning; why was told then, and whoever gets None stays silent.

Spans: a node points to where it is written, if that is in the file of the attention; what a definition of another file
(the prelude included) writes points to the use of that definition. What a name stands for (a `let`, a `def`) points, at
its top, to the name or call. So every span of an attention lies in its own file.
"""

from __future__ import annotations

from typing import assert_never

from attnc.ir.arithmetic import INT_MAX, INT_MIN
from attnc.ir.nodes import And, Const, Expr, Index, Or, Read, Size, Unary, UnaryOp, Where
from attnc.ir.shortening import original_keys
from attnc.ir.types import Type
from attnc.sema import errors, expression_errors, operators
from attnc.sema.calls import check_call, inline
from attnc.sema.context import MAX_INLINED, MAX_LEVEL, Context
from attnc.sema.functions import need_ints
from attnc.sema.report import TooManyErrors
from attnc.sema.scopes import (
    BuiltinMeaning,
    DefinitionMeaning,
    IndexMeaning,
    OperationMeaning,
    OriginalKeysMeaning,
    QuantityMeaning,
    ScoreMeaning,
    SizeMeaning,
    TableMeaning,
)
from attnc.sema.unknown import report_unknown
from attnc.syntax import tree

_CONSTANTS = {
    "true": Const(True, Type.BOOL),
    "false": Const(False, Type.BOOL),
    "inf": Const(float("inf"), Type.FLOAT, name="inf"),
    "pi": Const(3.141592653589793, Type.FLOAT, name="pi"),
}


def check(expr: tree.Expr, context: Context) -> Expr | None:
    """Type an expression. Returns None after telling what is wrong with it.

    It calls itself, at most three Python frames deep for each level: `MAX_LEVEL` keeps it below Python's own limit.
    """
    workshop = context.workshop
    workshop.level += 1
    try:
        _refuse_too_much(expr, context)
        match expr:
            case tree.Number():
                return _number(expr, expr.value, context)
            case tree.Literal(word=word):
                constant = _CONSTANTS[word]
                return Const(constant.value, constant.type, name=constant.name, span=context.at(expr.span))
            case tree.Text():
                context.report.add(expression_errors.text_misplaced(expr.span))
                return None
            case tree.Name():
                return _name(expr, context)
            case tree.Call():
                return check_call(expr, context, check)
            case tree.Subscript():
                return _subscript(expr, context)
            case tree.Unary():
                return _unary(expr, context)
            case tree.Binary(operator=operator, left=left, right=right):
                spans = (expr.span, left.span, right.span)
                return operators.arithmetic(operator, check(left, context), check(right, context), context, spans)
            case tree.Comparison():
                operands = []
                for operand in expr.operands:
                    operands.append(check(operand, context))
                spans_of_operands = tuple(operand.span for operand in expr.operands)
                return operators.comparison(expr.operators, operands, context, spans_of_operands)
            case tree.Logic():
                return _logic(expr, context)
            case tree.Conditional():
                return _conditional(expr, context)
            case _:
                assert_never(expr)
    except _TooDeep:
        if workshop.level > 1:
            raise
        return None
    finally:
        workshop.level -= 1


class _TooDeep(Exception):  # noqa: N818 - it never leaves this file
    """The outermost expression is nested too deep, and that was told."""


def _refuse_too_much(expr: tree.Expr, context: Context) -> None:
    """Stop at expressions that are too deep, and at definitions that are written out too often.

    Definitions that use each other twice grow exponentially, even where the constants that they stand for do not.
    """
    workshop, report = context.workshop, context.report
    if report.uses:
        workshop.inlined += 1
        if workshop.inlined > MAX_INLINED:
            span = report.uses[0].span
            report.uses.clear()
            report.add(expression_errors.definitions_too_large(span))
            raise TooManyErrors
    if workshop.level > MAX_LEVEL:
        report.add(expression_errors.nesting_too_deep(expr.span, MAX_LEVEL))
        report.uses.clear()
        report.unselected = 0
        raise _TooDeep


def _number(expr: tree.Number, value: int | float, context: Context, negative: bool = False) -> Expr | None:
    if isinstance(value, int) and not INT_MIN <= (-value if negative else value) <= INT_MAX:
        context.report.add(expression_errors.integer_too_large(expr.span, None))
        return None
    if value == float("inf"):
        context.report.add(expression_errors.number_too_large(expr.span))
        return None
    value = -value if negative else value
    return Const(value, Type.INT if isinstance(value, int) else Type.FLOAT, span=context.at(expr.span))


def _name(expr: tree.Name, context: Context) -> Expr | None:
    meaning = context.scope.lookup(expr.text)
    span = context.at(expr.span)
    match meaning:
        case None:
            report_unknown(expr, context)
            return None
        case IndexMeaning(name=name, axis=axis):
            return Index(name, axis, span=span)
        case SizeMeaning(name=size):
            return Size(size, span=span)
        case ScoreMeaning():
            if context.score is None:
                context.report.add(expression_errors.score_misplaced(expr.span))
                return None
            return context.respan(context.score, expr.span)
        case OriginalKeysMeaning():
            if not context.shortened:
                context.report.add(expression_errors.original_keys_misplaced(expr.span))
                return None
            return original_keys(span)
        case QuantityMeaning(expr=value):
            return None if value is None else context.respan(value, expr.span)
        case TableMeaning(tensor=tensor):
            context.report.add(expression_errors.table_needs_index(expr.span, tensor.name, len(tensor.dims)))
            return None
        case BuiltinMeaning(name=function):
            context.report.add(expression_errors.function_needs_arguments(expr.span, function))
            return None
        case DefinitionMeaning():
            return inline(meaning, (), expr, context, check)
        case OperationMeaning():
            context.report.add(errors.not_a_value(expr.span, meaning.declaration.name.text, meaning.span))
            return None
        case _:
            assert_never(meaning)


def _subscript(expr: tree.Subscript, context: Context) -> Expr | None:
    name = expr.table.text
    meaning = context.scope.lookup(name)
    if isinstance(meaning, ScoreMeaning) or (meaning is None and name in ("query", "key")):
        context.report.add(expression_errors.reserved_for_later(expr.span, f"`{name}[...]`"))
        return None
    index = []
    for part in expr.index:
        index.append(check(part, context))
    match meaning:
        case TableMeaning(tensor=tensor):
            pass
        case None:
            report_unknown(expr.table, context)
            return None
        case QuantityMeaning(expr=None):
            return None
        case _:
            context.report.add(expression_errors.not_a_table(expr.table.span, name))
            return None
    known = [part for part in index if part is not None]
    if len(index) != len(tensor.dims):
        context.report.add(
            expression_errors.wrong_index_count(expr.span, name, len(tensor.dims), len(index), meaning.span)
        )
        return None
    if len(known) < len(index):
        return None
    if not need_ints(known, f"an index of `{name}`", context, [part.span for part in expr.index]):
        return None
    return context.finish(Read(tensor.name, tuple(known), tensor.type, span=context.at(expr.span)), expr.span)


def _unary(expr: tree.Unary, context: Context) -> Expr | None:
    if expr.operator == "-" and isinstance(expr.operand, tree.Number):
        negative = _number(expr.operand, expr.operand.value, context, negative=True)
        return None if negative is None else context.respan(negative, expr.span)
    operand = check(expr.operand, context)
    if expr.operator != "not":
        return operators.sign(expr.operator, operand, context, (expr.span, expr.operand.span))
    operand = operators.need_bool(operand, "`not`", context, expr.operand.span)
    if operand is None:
        return None
    return context.finish(Unary(UnaryOp.NOT, operand, Type.BOOL, span=context.at(expr.span)), expr.span)


def _logic(expr: tree.Logic, context: Context) -> Expr | None:
    """Type `and` or `or`. After a constant that decides, operands are not selected: their values do not matter."""
    deciding = expr.operator == "or"
    decided = False
    operands: list[Expr | None] = []
    for part in expr.operands:
        context.report.unselected += decided
        operand = operators.need_bool(check(part, context), f"`{expr.operator}`", context, part.span)
        context.report.unselected -= decided
        operands.append(operand)
        decided = decided or (isinstance(operand, Const) and operand.value is deciding)
    known = tuple(operand for operand in operands if operand is not None)
    if decided and None not in operands:
        return Const(deciding, Type.BOOL, span=context.at(expr.span))
    if len(known) < len(operands):
        return None
    node = Or(known, span=context.at(expr.span)) if deciding else And(known, span=context.at(expr.span))
    return context.finish(node, expr.span)


def _conditional(expr: tree.Conditional, context: Context) -> Expr | None:
    condition = operators.need_bool(
        check(expr.condition, context), "the condition of `if`", context, expr.condition.span
    )
    selected = condition.value if isinstance(condition, Const) else None
    parts: list[Expr | None] = []
    for part, unselected in ((expr.then, selected is False), (expr.otherwise, selected is True)):
        context.report.unselected += unselected
        parts.append(check(part, context))
        context.report.unselected -= unselected
    then, otherwise = parts[0], parts[1]
    if then is None or otherwise is None:
        return None
    both = operators.unify([then, otherwise], "`if ... else`", context, [expr.then.span, expr.otherwise.span])
    if condition is None or both is None:
        return None
    if selected is not None:
        return both[0] if selected else both[1]
    node = Where(condition, both[0], both[1], both[0].type, span=context.at(expr.span))
    return context.finish(node, expr.span)
