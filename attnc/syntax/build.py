"""Builds the syntax tree while Lark parses: one method per rule of `grammar/attn.lark`, named as the rule is."""
# ruff: noqa: D102 - a method does what its rule says

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from lark import Token, Transformer, v_args

from attnc.diagnostics import InternalError
from attnc.source import SourceFile, Span
from attnc.syntax import tree

CURRENT_SOURCE: ContextVar[SourceFile] = ContextVar("CURRENT_SOURCE")
"""The file that is being parsed in this thread: one parser serves them all."""

_LONGEST_INTEGER = 40
"""Digits from which on an integer is not converted: it is out of range anyhow, and conversion takes quadratic time."""


@dataclass(frozen=True, slots=True)
class _Group:
    """An expression in parentheses, until the node around it has taken their place into its own span."""

    inner: tree.Expr
    span: Span


_Built = tree.Expr | _Group
_Node = TypeVar("_Node")


def span_of(token: Token) -> Span:
    """Return the place of a token in the current file."""
    start, end, line, column = token.start_pos, token.end_pos, token.line, token.column
    if start is None or end is None or line is None or column is None:
        raise InternalError(f"the token {token!r} has no place")
    return Span(CURRENT_SOURCE.get(), start, end, line, column)


def _bare(expr: _Built) -> tree.Expr:
    return expr.inner if isinstance(expr, _Group) else expr


def _name(token: Token) -> tree.Name:
    return tree.Name(str(token), span_of(token))


def _present(items: Sequence[_Node | None] | None) -> tuple[_Node, ...]:
    return tuple(item for item in items or () if item is not None)


@v_args(inline=True)
class TreeBuilder(Transformer[Token, tree.File]):
    """Callbacks of the parser. Optional parts that are absent arrive as None."""

    # --- declarations ---

    def file(self, *declarations: tree.Declaration) -> tree.File:
        return tree.File(CURRENT_SOURCE.get(), declarations)

    def use(self, keyword: Token, path: Token) -> tree.Use:
        return tree.Use(self.text(path), span_of(keyword).to(span_of(path)))

    def def_(
        self,
        keyword: Token,
        name: Token,
        _open: Token | None,
        params: tuple[tree.Param, ...] | None,
        _close: Token | None,
        body: _Built,
    ) -> tree.Def:
        return tree.Def(_name(name), params or (), _bare(body), span_of(keyword).to(body.span))

    def attention(
        self,
        keyword: Token,
        name: Token,
        _open: Token | None,
        params: tuple[tree.Param, ...] | None,
        _close: Token | None,
        body: tuple[tuple[tree.Statement, ...], Span],
    ) -> tree.Attention:
        return tree.Attention(_name(name), params or (), body[0], span_of(keyword).to(body[1]))

    def layer(
        self,
        keyword: Token,
        name: Token,
        _open: Token | None,
        params: tuple[tree.Param, ...] | None,
        _close: Token | None,
        body: tuple[tuple[tree.Statement, ...], Span],
    ) -> tree.Layer:
        return tree.Layer(_name(name), params or (), body[0], span_of(keyword).to(body[1]))

    def params(self, *params: tree.Param) -> tuple[tree.Param, ...]:
        return _present(params)

    def_params = params

    def param(self, name: Token, kind: Token, default: _Built | None) -> tree.Param:
        last = default.span if default is not None else span_of(kind)
        return tree.Param(_name(name), _name(kind), _bare(default) if default else None, span_of(name).to(last))

    def def_param(self, name: Token, kind: Token | None) -> tree.Param:
        span = span_of(name).to(span_of(kind)) if kind is not None else span_of(name)
        return tree.Param(_name(name), _name(kind) if kind is not None else None, None, span)

    # --- statements ---

    def body(self, *parts: tree.Statement | Token) -> tuple[tuple[tree.Statement, ...], Span]:
        *statements, close = parts
        assert isinstance(close, Token)
        return tuple(s for s in statements if not isinstance(s, Token)), span_of(close)

    def input(self, keyword: Token, name: Token, kind: tree.TensorType, ordered: Token | None) -> tree.Input:
        last = span_of(ordered) if ordered is not None else kind.span
        return tree.Input(_name(name), kind, ordered is not None, span_of(keyword).to(last))

    def learned(self, keyword: Token, name: Token, kind: tree.TensorType, initial: _Built | None) -> tree.Learned:
        last = initial.span if initial is not None else kind.span
        value = _bare(initial) if initial is not None else None
        return tree.Learned(_name(name), kind, value, span_of(keyword).to(last))

    def tensor_type(
        self, element: Token, dims: tuple[tree.Expr | tree.AnyLength, ...] | None, close: Token | None
    ) -> tree.TensorType:
        span = span_of(element).to(span_of(close)) if close is not None else span_of(element)
        return tree.TensorType(_name(element), dims or (), span)

    def dims(self, *dims: _Built | tree.AnyLength | None) -> tuple[tree.Expr | tree.AnyLength, ...]:
        return tuple(dim if isinstance(dim, tree.AnyLength) else _bare(dim) for dim in dims if dim is not None)

    def any_length(self, mark: Token) -> tree.AnyLength:
        return tree.AnyLength(span_of(mark))

    def let(self, keyword: Token, name: Token, value: _Built) -> tree.Let:
        return tree.Let(_name(name), _bare(value), span_of(keyword).to(value.span))

    def rule(self, keyword: Token, value: _Built) -> tree.Rule:
        return tree.Rule(_name(keyword), _bare(value), span_of(keyword).to(value.span))

    def form_rule(self, keyword: Token, form: tree.Form) -> tree.FormRule:
        return tree.FormRule(_name(keyword), form, span_of(keyword).to(form.span))

    def form(
        self, name: Token, opened: Token | None, arguments: tuple[tree.Argument, ...] | None, close: Token | None
    ) -> tree.Form:
        span = span_of(name).to(span_of(close)) if close is not None else span_of(name)
        return tree.Form(_name(name), (arguments or ()) if opened is not None else None, span)

    def assertion(self, keyword: Token, condition: _Built) -> tree.Assert:
        return tree.Assert(_bare(condition), span_of(keyword).to(condition.span))

    def item(self, word: Token, value: _Built, via_word: Token | None, via: tree.Form | None) -> tree.Item:
        last = via.span if via is not None else value.span
        return tree.Item(_name(word), _bare(value), via, span_of(word).to(last))

    def layer_norm(self, word: Token, value: Token) -> tree.Item:
        return tree.Item(_name(word), _name(value), None, span_of(word).to(span_of(value)))

    def assignment(self, word: Token, name: Token | None, value: _Built) -> tree.Assignment:
        named = _name(name) if name is not None else None
        return tree.Assignment(_name(word), named, _bare(value), span_of(word).to(value.span))

    def arguments(self, *arguments: tree.Argument | None) -> tuple[tree.Argument, ...]:
        return _present(arguments)

    def argument(
        self, name: Token | None, value: _Built, via_word: Token | None, via: tree.Form | None
    ) -> tree.Argument:
        first = span_of(name) if name is not None else value.span
        last = via.span if via is not None else value.span
        return tree.Argument(_bare(value), _name(name) if name is not None else None, via, span=first.to(last))

    # --- expressions ---

    def group(self, opened: Token, inner: _Built, closed: Token) -> _Group:
        return _Group(_bare(inner), span_of(opened).to(span_of(closed)))

    def conditional(self, then: _Built, _if: Token, condition: _Built, _else: Token, otherwise: _Built) -> tree.Expr:
        return tree.Conditional(_bare(condition), _bare(then), _bare(otherwise), then.span.to(otherwise.span))

    def disjunction(self, *parts: _Built | Token) -> tree.Expr:
        return _logic("or", parts)

    def conjunction(self, *parts: _Built | Token) -> tree.Expr:
        return _logic("and", parts)

    def negation(self, operator: Token, operand: _Built) -> tree.Expr:
        return tree.Unary("not", _bare(operand), span_of(operator).to(operand.span))

    def comparison(self, *parts: _Built | Token) -> tree.Expr:
        operands = tuple(part for part in parts if not isinstance(part, Token))
        operators = tuple(str(part) for part in parts if isinstance(part, Token))
        return tree.Comparison(tuple(map(_bare, operands)), operators, operands[0].span.to(operands[-1].span))

    def sum(self, left: _Built, operator: Token, right: _Built) -> tree.Expr:
        return tree.Binary(str(operator), _bare(left), _bare(right), left.span.to(right.span))

    product = power = sum

    def sign(self, operator: Token, operand: _Built) -> tree.Expr:
        return tree.Unary(str(operator), _bare(operand), span_of(operator).to(operand.span))

    def name(self, token: Token) -> tree.Name:
        return _name(token)

    def call(
        self, function: Token, _open: Token, arguments: tuple[tree.Argument, ...] | None, close: Token
    ) -> tree.Call:
        return tree.Call(_name(function), arguments or (), span_of(function).to(span_of(close)))

    def subscript(self, table: Token, index: tuple[tree.Expr, ...], close: Token) -> tree.Subscript:
        return tree.Subscript(_name(table), index, span_of(table).to(span_of(close)))

    def subscripts(self, *index: _Built | None) -> tuple[tree.Expr, ...]:
        return tuple(_bare(part) for part in index if part is not None)

    def number(self, token: Token) -> tree.Number:
        written = str(token)
        if not written.isdigit():
            return tree.Number(float(written), written, span_of(token))
        digits = written.lstrip("0") or "0"
        return tree.Number(int(digits) if len(digits) <= _LONGEST_INTEGER else 1 << 200, written, span_of(token))

    def literal(self, token: Token) -> tree.Literal:
        return tree.Literal(str(token), span_of(token))

    def text(self, token: Token) -> tree.Text:
        return tree.Text(str(token)[1:-1], span_of(token))


def _logic(operator: str, parts: tuple[_Built | Token, ...]) -> tree.Expr:
    operands = tuple(part for part in parts if not isinstance(part, Token))
    return tree.Logic(operator, tuple(map(_bare, operands)), operands[0].span.to(operands[-1].span))


setattr(TreeBuilder, "def", TreeBuilder.def_)  # the rule is called after the keyword
