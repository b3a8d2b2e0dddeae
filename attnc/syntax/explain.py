"""Says a syntax error in the user's words: what was found, what was expected, and where possible how to mend it."""

from __future__ import annotations

from lark import UnexpectedInput

from attnc.diagnostics import Diagnostic
from attnc.source import SourceFile, Span
from attnc.syntax import errors


def explain_syntax_error(error: UnexpectedInput, source: SourceFile) -> Diagnostic:
    """Turn what the parser raised into a diagnostic."""
    start = error.pos_in_stream or 0
    span = Span(source, start, start + 1, error.line, error.column)
    return errors.syntax_error(span, repr(source.text[start : start + 1]), str(error))
