"""Where statements end: turns line breaks, `;` and `}` into `_SEP` tokens (LANGUAGE.md section 1).

A line break inside `( )` or `[ ]`, or after a token that cannot end a statement, is dropped. Several separators in a
row become one. A `}` ends the statement before it and the declaration that it closes.
"""

from __future__ import annotations

from collections.abc import Iterator

from lark import Token

MAX_NESTING = 200
"""How deep brackets may be nested."""

RESERVED = frozenset(
    {
        "use", "def", "attention", "layer", "input", "learned", "let", "mask", "score", "scale", "weight", "normalize",
        "feature", "prepare", "keys", "decompose", "align", "assert", "sorted", "and", "or", "not", "if", "else",
        "true", "false", "inf", "pi",
    }
)  # fmt: skip
"""Words that cannot be declared."""

_OPENING = frozenset({"LPAR", "LSQB"})
_CLOSING = frozenset({"RPAR", "RSQB"})
_CONTINUING = frozenset(
    {
        "LBRACE", "COMMA", "COLON", "EQUAL", "POWER", "TIMES", "PLUS", "MINUS", "COMPARE", "AND", "OR", "NOT", "IF",
        "ELSE",
    }
)  # fmt: skip
"""Tokens after which a line break does not end a statement."""


MAX_TOKENS = 50_000
"""Tokens of one statement."""


class TooLong(Exception):  # noqa: N818 - it never leaves this package
    """A statement with more tokens than the limit; carries the token that goes too far."""

    def __init__(self, token: Token) -> None:
        super().__init__(token)
        self.token = token


class TooDeep(Exception):  # noqa: N818 - it never leaves this package
    """Brackets nested deeper than the limit; carries the bracket that goes too far."""

    def __init__(self, token: Token) -> None:
        super().__init__(token)
        self.token = token


class StatementEnds:
    """Lark's interface of a filter between lexer and parser; it has no state of its own."""

    always_accept = ("NEWLINE", "SEMICOLON", "RBRACE", "NAME", "NUMBER")

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """Yield the tokens that the grammar speaks of.

        Raises:
            TooDeep: brackets are nested deeper than `MAX_NESTING`.
            TooLong: a statement has more than `MAX_TOKENS` tokens.
        """
        depth = 0
        length = 0
        last = "_SEP"
        for token in stream:
            kind = token.type
            length = 0 if last in ("_SEP", "LBRACE") else length + 1
            if length > MAX_TOKENS:
                raise TooLong(token)
            if kind in _OPENING:
                depth += 1
                if depth > MAX_NESTING:
                    raise TooDeep(token)
            elif kind in _CLOSING:
                depth = max(0, depth - 1)
            elif kind == "NAME" and token.value in RESERVED:
                # The contextual lexer knows a keyword only where one may stand; elsewhere it must not pass for a name.
                token.type = kind = token.value.upper()
            elif kind == "NEWLINE":
                if depth or last in _CONTINUING or last == "_SEP":
                    continue
                token.type = kind = "_SEP"
            elif kind == "SEMICOLON":
                if last in ("_SEP", "LBRACE"):
                    continue
                token.type = kind = "_SEP"
            elif kind == "RBRACE":
                if last not in ("_SEP", "LBRACE"):
                    yield Token.new_borrow_pos("_SEP", "", token)
                yield token
                token = Token.new_borrow_pos("_SEP", "", token)
                kind = "_SEP"
                depth = 0
            yield token
            last = kind
        if last != "_SEP":
            yield Token("_SEP", "")
