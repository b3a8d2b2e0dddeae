"""From text to the syntax tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from lark import Lark, Token, UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from attnc.diagnostics import CompileError, InternalError
from attnc.resources import grammar_text
from attnc.source import SourceFile, Span
from attnc.syntax import errors, tree
from attnc.syntax.build import CURRENT_SOURCE, TreeBuilder
from attnc.syntax.explain import Stop, explain
from attnc.syntax.lines import MAX_NESTING, MAX_TOKENS, StatementEnds, TooDeep, TooLong
from attnc.syntax.read import check_text

_BYTE_ORDER_MARK = "\ufeff"
_STRING_OR_COMMENT = re.compile(r'"[^"\n]*"|#[^\n]*')


def parse_source(source: SourceFile) -> tree.File:
    """Parse a file.

    Raises:
        CompileError: the text breaks the grammar or one of the limits of LANGUAGE.md section 1. Only the first mistake
            is told: what follows one cannot be read with confidence.
    """
    check_text(source)
    text = source.text
    if text.startswith(_BYTE_ORDER_MARK):
        text = " " + text[1:]
    token = CURRENT_SOURCE.set(source)
    try:
        file = _parser().parse(text)
    except UnexpectedInput:
        raise CompileError(explain(_stop(text), source)) from None
    except TooDeep as error:
        raise CompileError(errors.nesting_too_deep(_token_span(source, error.token), MAX_NESTING)) from None
    except TooLong as error:
        raise CompileError(errors.statement_too_long(_token_span(source, error.token), MAX_TOKENS)) from None
    finally:
        CURRENT_SOURCE.reset(token)
    assert isinstance(file, tree.File)
    if not file.declarations:
        raise CompileError(errors.empty_file(source))
    _refuse_deep_expressions(file)
    return tree.File(source, file.declarations, tuple(_comments(source)))


@cache
def _parser() -> Lark:
    return Lark(
        grammar_text(),
        start="file",
        parser="lalr",
        lexer="contextual",
        transformer=TreeBuilder(),
        postlex=StatementEnds(),
        maybe_placeholders=True,
    )


def _stop(text: str) -> Stop:
    """Parse a wrong text again, step by step, to learn what could have followed."""
    interactive = _parser().parse_interactive(text)
    try:
        interactive.exhaust_lexer()
        interactive.feed_eof()  # type: ignore[no-untyped-call]
    except UnexpectedToken as error:
        position = error.token.start_pos
        kind: str | None = error.token.type
        if position is None or kind == "$END":
            position = len(text)
    except UnexpectedCharacters as error:
        position, kind = error.pos_in_stream, None
    else:
        raise InternalError("a text that could not be parsed was parsed the second time")
    accepted: set[str] = interactive.accepts()  # type: ignore[no-untyped-call]
    return Stop(position if position is not None else len(text), kind, frozenset(accepted))


def _token_span(source: SourceFile, token: Token) -> Span:
    return Span(source, token.start_pos or 0, token.end_pos or 0, token.line or 1, token.column or 1)


def _comments(source: SourceFile) -> Iterator[tree.Comment]:
    line, line_start, seen = 1, 0, 0
    for match in _STRING_OR_COMMENT.finditer(source.text):
        if match[0].startswith('"'):
            continue
        line += source.text.count("\n", seen, match.start())
        line_start = source.text.rfind("\n", 0, match.start()) + 1
        seen = match.start()
        span = Span(source, match.start(), match.end(), line, match.start() - line_start + 1)
        yield tree.Comment(match[0].rstrip(), span)


def _refuse_deep_expressions(file: tree.File) -> None:
    """Later stages walk expressions recursively; this one must not, since it is what protects them."""
    pending: list[tuple[tree.Expr, int]] = [(expr, 0) for expr in tree.expressions(file)]
    while pending:
        expr, depth = pending.pop()
        if depth > MAX_NESTING:
            raise CompileError(errors.nesting_too_deep(expr.span, MAX_NESTING))
        pending.extend((child, depth + 1) for child in tree.operands(expr))
