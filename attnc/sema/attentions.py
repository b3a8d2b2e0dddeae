"""Checking an attention: its statements, in order, become one IR `Attention`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from attnc.ir.nodes import TRUE, And, Binary, BinaryOp, Const, Expr, Score, Size, SizeName
from attnc.ir.program import (
    Align,
    AlignKind,
    Assertion,
    Attention,
    Deferred,
    Normalize,
    NormalizeKind,
    Tensor,
    map_expressions,
)
from attnc.ir.shortening import end_shift, implied_tensors, resolve
from attnc.ir.types import Type
from attnc.sema import errors, expression_errors, form_errors
from attnc.sema.context import Context
from attnc.sema.declarations import ParameterValue, declare, declare_input, declare_learned, declare_params
from attnc.sema.expressions import check
from attnc.sema.forms import check_align, check_deferred, check_normalize
from attnc.sema.operators import widen
from attnc.sema.restrict import PER_QUERY, obeys
from attnc.sema.scopes import QuantityMeaning, Scope, nearest
from attnc.source import Span
from attnc.syntax import tree

_ONCE = ("scale", "normalize", "feature", "keys", "decompose", "align")
"""Statements that occur at most once."""

STATEMENTS = (
    "input", "learned", "let", "mask", "score", "scale", "weight", "normalize", "feature", "prepare", "keys",
    "decompose", "align", "assert",
)  # fmt: skip
"""Words that begin a statement of an attention."""


_UNCHANGED: Expr = Score()


@dataclass(slots=True)
class _Parts:
    """What the statements said so far."""

    tensors: list[Tensor] = field(default_factory=list)
    masks: list[Expr] = field(default_factory=list)
    score: Expr = _UNCHANGED
    scale: Expr | None = None
    weights: list[Expr] = field(default_factory=list)
    normalize: Normalize | None = None
    align: Align | None = None
    assertions: list[Assertion] = field(default_factory=list)
    deferred: list[Deferred] = field(default_factory=list)
    first: dict[str, tree.Name] = field(default_factory=dict)


def check_attention(
    declaration: tree.Attention, context: Context, values: Mapping[str, ParameterValue], required: bool
) -> Attention:
    """Check an attention.

    Args:
        declaration: its tree.
        context: the scope of its file.
        values: what is given for parameters, by name; names that it does not declare are ignored.
        required: whether a parameter without value and default is an error.

    Returns:
        The attention; what is wrong with it is in the report, and then parts of it are missing.
    """
    scope = Scope(context.scope, later=_declared_names(declaration))
    shortened = any(isinstance(s, tree.FormRule) and s.keyword.text == "keys" for s in declaration.statements)
    context = replace(context, scope=scope, shortened=shortened)
    params = declare_params(declaration.params, declaration.name, context, values, required)
    parts = _Parts()
    for statement in declaration.statements:
        _check_statement(statement, parts, context)
    return _assemble(declaration, params, parts, context)


def _declared_names(declaration: tree.Attention) -> dict[str, Span]:
    names = [param.name for param in declaration.params]
    names += [s.name for s in declaration.statements if isinstance(s, tree.Input | tree.Learned | tree.Let)]
    return {name.text: name.span for name in reversed(names)}


def _check_statement(statement: tree.Statement, parts: _Parts, context: Context) -> None:
    match statement:
        case tree.Input():
            tensor = declare_input(statement, context)
            parts.tensors += [tensor] if tensor is not None else []
        case tree.Learned():
            tensor = declare_learned(statement, context)
            parts.tensors += [tensor] if tensor is not None else []
        case tree.Let():
            value = check(statement.value, context)
            declare(statement.name, QuantityMeaning(value, statement.name.span, "a `let`"), context)
        case tree.Rule():
            _once(statement.keyword, parts, context)
            _check_rule(statement, parts, context)
        case tree.FormRule():
            _once(statement.keyword, parts, context)
            _check_form(statement, parts, context)
        case tree.Assert(condition=tree.Name(text="nonempty")):
            parts.assertions.append(Assertion(None, span=statement.span))
        case tree.Assert():
            condition = check(statement.condition, context)
            if condition is not None and condition.type is not Type.BOOL:
                context.report.add(expression_errors.assertion_not_boolean(statement.condition.span, condition.type))
            elif condition is not None:
                parts.assertions.append(Assertion(condition, span=statement.span))
        case tree.Item(word=word, value=value):
            _unknown_statement(word, context)
        case tree.Assignment(word=word):
            if statement.name is None:
                context.report.add(form_errors.missing_let(statement.span, word.text))
                value = check(statement.value, context)
                declare(word, QuantityMeaning(value, word.span, "a `let`"), context)
            else:
                _unknown_statement(word, context)
        case _:
            assert_never(statement)


def _unknown_statement(word: tree.Name, context: Context) -> None:
    if word.text == "gate":
        context.report.add(expression_errors.reserved_for_later(word.span, "`gate`"))
    else:
        context.report.add(form_errors.unknown_statement(word.span, word.text, nearest(word.text, STATEMENTS)))


def _once(keyword: tree.Name, parts: _Parts, context: Context) -> None:
    first = parts.first.setdefault(keyword.text, keyword)
    if first is not keyword and keyword.text in _ONCE:
        context.report.add(form_errors.statement_repeated(keyword.span, keyword.text, first.span))


def _check_rule(statement: tree.Rule, parts: _Parts, context: Context) -> None:
    keyword, span = statement.keyword.text, statement.value.span
    value = check(statement.value, replace(context, score=parts.score) if keyword == "score" else context)
    if value is None:
        if keyword == "score":
            parts.score = _UNCHANGED  # one line too many is told once, not for each line after it
        return
    if keyword == "mask":
        if value.type is not Type.BOOL:
            context.report.add(expression_errors.mask_not_boolean(span, value.type))
        else:
            parts.masks.append(value)
        return
    if not value.type.is_number:
        context.report.add(expression_errors.not_a_number(span, f"a {keyword}", value.type))
        return
    wide = widen(value, Type.FLOAT, context, span)
    if wide is None:
        return
    match keyword:
        case "score":
            parts.score = wide
        case "weight":
            parts.weights.append(wide)
        case _ if obeys(wide, span, replace(PER_QUERY, where="`scale`"), context):
            parts.scale = wide


def _check_form(statement: tree.FormRule, parts: _Parts, context: Context) -> None:
    match statement.keyword.text:
        case "normalize":
            parts.normalize = check_normalize(statement, context) or parts.normalize
        case "align":
            inputs = frozenset(tensor.name for tensor in parts.tensors if tensor.initial is None)
            parts.align = check_align(statement, inputs, context) or parts.align
        case _:
            parts.deferred += check_deferred(statement, context)


def _assemble(
    declaration: tree.Attention, params: tuple[tuple[str, Const], ...], parts: _Parts, context: Context
) -> Attention:
    span = declaration.name.span
    keys = next((one for one in parts.deferred if one.statement == "keys"), None)
    feature = any(deferred.statement == "feature" for deferred in parts.deferred)
    default = Normalize(NormalizeKind.ROWS if feature else NormalizeKind.SOFTMAX)
    end = Binary(BinaryOp.SUB, Size(SizeName.KEYS), Size(SizeName.QUERIES), Type.INT)
    mask = parts.masks[0] if len(parts.masks) == 1 else TRUE
    if len(parts.masks) > 1:
        mask = context.finish(And(tuple(parts.masks), span=parts.masks[0].span), span) or TRUE
    attention = Attention(
        name=declaration.name.text,
        params=params,
        tensors=(*parts.tensors, *(() if keys is None else implied_tensors(keys))),
        mask=mask,
        score=parts.score,
        scale=parts.scale,
        weight=_product(parts.weights, context),
        normalize=parts.normalize or default,
        align=parts.align or Align(AlignKind.END, end),
        assertions=tuple(parts.assertions),
        deferred=tuple(parts.deferred),
        span=span,
        statements=tuple(statement.span for statement in declaration.statements),
    )
    if keys is None:
        return attention
    implied = {one.name for one in implied_tensors(keys)}
    for tensor in parts.tensors:
        if tensor.name in implied:
            what = "an input" if tensor.initial is None else "a learned tensor"
            why = f"is a tensor of `keys {keys.form}`"
            context.report.add(errors.name_not_allowed(tensor.span or span, tensor.name, what, why))
    return _shortened(attention, keys)


def _shortened(attention: Attention, keys: Deferred) -> Attention:
    """Say in terms of the shortened keys what is said of original positions."""
    align = attention.align
    if align.kind is AlignKind.END:
        attention = replace(attention, align=Align(AlignKind.AT, end_shift(), span=align.span))
    return map_expressions(attention, lambda expr: resolve(expr, keys))


def _product(factors: list[Expr], context: Context) -> Expr | None:
    product: Expr | None = None
    for factor in factors:
        if product is None:
            product = factor
        elif factor.span is not None:
            node = Binary(BinaryOp.MUL, product, factor, Type.FLOAT, span=factor.span)
            product = context.finish(node, factor.span) or product
    return product
