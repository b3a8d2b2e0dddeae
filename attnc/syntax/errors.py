"""What can be wrong with a file's text: one factory of a diagnostic for each code."""

from __future__ import annotations

from difflib import get_close_matches

from attnc.diagnostics import Diagnostic, Label
from attnc.source import SourceFile, Span


def cannot_read(name: str, reason: str) -> Diagnostic:
    """The file is missing, a folder, or not readable."""
    return Diagnostic("cannot-read", f"cannot read `{name}`: {reason}")


def file_too_large(name: str) -> Diagnostic:
    """More than 1 MiB."""
    return Diagnostic(
        "file-too-large",
        f"`{name}` is larger than 1 MiB",
        help="a pattern is a few lines of text; is this the right file?",
    )


def not_text(name: str, offset: int, found: str) -> Diagnostic:
    """Not UTF-8, or with NUL bytes in it: binary data."""
    return Diagnostic(
        "not-text",
        f"`{name}` is not UTF-8 text: it has {found} at offset {offset}",
        help="save it as UTF-8; if it is a binary file, it is the wrong one",
    )


def empty_file(source: SourceFile) -> Diagnostic:
    """No declaration at all."""
    return Diagnostic(
        "empty-file",
        f"`{source.name}` declares nothing",
        help="write at least one declaration, for example `attention gpt { mask causal }`",
    )


def nesting_too_deep(span: Span, limit: int) -> Diagnostic:
    """Brackets or operators inside each other beyond the limit."""
    return Diagnostic(
        "nesting-too-deep",
        f"expressions may be nested at most {limit} deep",
        (Label(span, "this goes deeper"),),
        help="name parts of it with `let` or `def`; a long sum nests once for each of its operators",
    )


def statement_too_long(span: Span, limit: int) -> Diagnostic:
    """One statement with more tokens than anybody writes."""
    return Diagnostic(
        "statement-too-long",
        f"a statement may have at most {limit} words and signs",
        (Label(span, "this goes on"),),
        help="name parts of it with `let` or `def`, or give the data as an `input`",
    )


def unexpected_character(span: Span, text: str, mend: str) -> Diagnostic:
    """A character that no token starts with."""
    return Diagnostic("unexpected-character", f"the language has no `{text}`", (Label(span),), help=mend)


def unterminated_string(span: Span) -> Diagnostic:
    """A `"` without its partner on the same line."""
    return Diagnostic(
        "unterminated-string",
        "this string has no end",
        (Label(span),),
        help='close it with `"` on the same line',
    )


def bad_number(span: Span, text: str, mend: str) -> Diagnostic:
    """`1.`, `.5`, `12abc`, `0x10`."""
    return Diagnostic("bad-number", f"`{text}` is not a number", (Label(span),), help=mend)


def reserved_name(span: Span, word: str) -> Diagnostic:
    """A keyword where a name must be declared."""
    return Diagnostic(
        "reserved-name",
        f"`{word}` is a word of the language",
        (Label(span, "it cannot be a name"),),
        help=f"choose another name, for example `{word}_`",
    )


def unclosed_bracket(opened: Span, found: Span | None) -> Diagnostic:
    """An opening bracket whose partner is missing. `found` is where that showed; None at the end of the file."""
    sign = opened.text
    partner = {"(": ")", "[": "]", "{": "}"}[sign]
    labels = (Label(opened, "opened here"),)
    return Diagnostic(
        "unclosed-bracket",
        f"this `{sign}` is never closed",
        labels if found is None else (*labels, Label(found, f"expected `{partner}` before this")),
    )


def unmatched_bracket(span: Span, sign: str) -> Diagnostic:
    """A closing bracket that nothing opened."""
    return Diagnostic("unmatched-bracket", f"this `{sign}` closes nothing", (Label(span),), help="remove it")


def unknown_declaration(span: Span, word: str) -> Diagnostic:
    """A word at the top of a file that begins no declaration."""
    close = get_close_matches(word, ("use", "def", "attention", "layer"), n=1)
    mend = f"did you mean `{close[0]}`?" if close else "statements such as `mask` stand inside `attention NAME { ... }`"
    return Diagnostic(
        "unknown-declaration",
        f"there is no declaration `{word}`",
        (Label(span, "expected `use`, `def`, `attention` or `layer`"),),
        help=mend,
    )


def syntax_error(span: Span, found: str, expected: str, mend: str = "") -> Diagnostic:
    """Anything else that the grammar does not allow."""
    label = f"expected {expected}" if expected else ""
    return Diagnostic("syntax", f"unexpected {found}", (Label(span, label),), help=mend)
