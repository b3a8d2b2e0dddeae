"""Says a syntax error in the user's words: what was found, what was expected, and where possible how to mend it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from attnc.diagnostics import Diagnostic
from attnc.source import SourceFile, Span
from attnc.syntax import errors
from attnc.syntax.lines import RESERVED

_OPERATORS = frozenset({"PLUS", "MINUS", "TIMES", "POWER", "COMPARE", "AND", "OR", "IF"})
_OPERANDS = frozenset({"NAME", "NUMBER", "LPAR", "TRUE", "FALSE", "INF", "PI", "STRING"})
_DECLARATIONS = frozenset({"USE", "DEF", "ATTENTION", "LAYER"})
_STATEMENTS = frozenset(
    {
        "INPUT", "LEARNED", "LET", "MASK", "SCORE", "SCALE", "WEIGHT", "NORMALIZE", "FEATURE", "PREPARE", "KEYS",
        "DECOMPOSE", "ALIGN", "ASSERT",
    }
)  # fmt: skip
_WORDS = {
    "NAME": "a name",
    "STRING": 'a path in `"..."`',
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "EQUAL": "`=`",
    "QUESTION": "`?`",
    "SORTED": "`sorted`",
    "ELSE": "`else`",
    "VIA": "`via`",
    "_SEP": "the end of the statement",
    "$END": "the end of the file",
}
"""How messages call what the grammar calls otherwise."""

_FOREIGN_SIGNS = (
    ("&&", "write `and`"),
    ("||", "write `or`"),
    ("<<", "multiply by a power of two; there are no bit operators"),
    (">>", "divide with `//` by a power of two; there are no bit operators"),
    ("<>", "write `!=`"),
    ("=<", "write `<=`"),
    ("=>", "write `>=`"),
    ("->", "a definition's value follows `=`"),
    ("!", "write `not`"),
    ("&", "there are no bit operators; write `and` for conditions"),
    ("|", "there are no bit operators; write `or` for conditions"),
    ("^", "there are no bit operators; write `**` for powers, `!=` for exclusive or of conditions"),
    ("~", "there are no bit operators; write `not` for conditions"),
    ("'", 'strings stand in `"..."`'),
    ("\u2018", 'strings stand in `"..."`'),
    ("\u201c", 'strings stand in `"..."`'),
    ("\u2264", "write `<=`"),
    ("\u2265", "write `>=`"),
    ("\u2260", "write `!=`"),
    ("\u00d7", "write `*`"),
    ("\u2212", "write `-`"),
    ("\u2227", "write `and`"),
    ("\u2228", "write `or`"),
    ("\u00ac", "write `not`"),
    ("\u00a0", "this is a no-break space; write a plain one"),
    ("//*", "a comment starts with `#`"),
    ("/*", "a comment starts with `#`"),
    ("\\", "a statement goes on after an operator, a comma, or inside parentheses"),
)
"""Signs of other languages, longer ones before their beginnings, and what to write here."""

_FOREIGN_WORDS = {
    "in": "compare with `==`, or use `any(t < n, ...)`",
    "is": "write `==`",
    "then": "write `A if C else B`",
    "elif": "write `A if C else (B if ...)`",
    "lambda": "write `def name(x) = ...` at the top of the file",
    "return": "a definition's value follows `=`",
    "xor": "write `!=`",
    "mod": "write `%`",
    "div": "write `//`",
}

_NUMBER_AROUND = re.compile(r"[0-9][0-9A-Za-z_.]*|\.[0-9][0-9A-Za-z_.]*")
_TOKENS = re.compile(r'"[^"\n]*"|#[^\n]*|[()\[\]{}]')
_WORD = re.compile(r"\w+")
_CLOSER = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Stop:
    """Where the parser stopped.

    Attributes:
        position: offset of what it could not read; the length of the text at its end.
        kind: the grammar's name of the token; None for a character that begins no token.
        accepted: the grammar's names of the tokens that it could have read.
    """

    position: int
    kind: str | None
    accepted: frozenset[str]


def explain(stop: Stop, source: SourceFile) -> Diagnostic:
    """Turn a parser's stop into a diagnostic."""
    return (
        _explain_number(stop, source)
        or _explain_string(stop, source)
        or _explain_sign(stop, source)
        or _explain_reserved(stop, source)
        or _explain_brackets(stop, source)
        or _explain_word(stop, source)
        or _explain_token(stop, source)
    )


def span_at(source: SourceFile, start: int, end: int) -> Span:
    """Return the span of a range of characters, counting its line and column."""
    line = source.text.count("\n", 0, start) + 1
    return Span(source, start, end, line, start - (source.text.rfind("\n", 0, start) + 1) + 1)


def _explain_number(stop: Stop, source: SourceFile) -> Diagnostic | None:
    """`1.`, `.5`, `12abc`, `0x10`, `1_000`: the parser stops inside or right after the digits."""
    for match in _NUMBER_AROUND.finditer(source.text, *_line_bounds(stop.position, source)):
        if not match.start() <= stop.position < match.end():
            continue
        before = source.text[match.start() - 1 : match.start()]
        written = match[0]
        if before.isalnum() or before == "_" or re.fullmatch(r"[0-9]+(\.[0-9]+)?", written):
            return None
        span = span_at(source, match.start(), match.end())
        return errors.bad_number(span, written, _mend_number(written))
    return None


def _mend_number(written: str) -> str:
    if written.startswith("."):
        return f"write `0{written}`"
    if re.fullmatch(r"[0-9]+\.", written):
        return f"write `{written}0`"
    if re.fullmatch(r"[0-9]+(_[0-9]+)+", written):
        return f"write `{written.replace('_', '')}`"
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,15}", written):
        return f"write it in decimal: `{int(written, 16)}`"
    return "numbers are written `12`, `0.5` or `1e-3`; names do not begin with a digit; a product needs its `*`"


def _line_bounds(position: int, source: SourceFile) -> tuple[int, int]:
    start = source.text.rfind("\n", 0, position) + 1
    end = source.text.find("\n", position)
    return start, len(source.text) if end < 0 else end


def _explain_string(stop: Stop, source: SourceFile) -> Diagnostic | None:
    if source.text[stop.position : stop.position + 1] != '"' or stop.kind == "STRING":
        return None
    return errors.unterminated_string(span_at(source, stop.position, _line_bounds(stop.position, source)[1]))


def _explain_sign(stop: Stop, source: SourceFile) -> Diagnostic | None:
    """Signs that other languages have. The parser may stop at their second character."""
    text = source.text
    for offset in (0, -1):
        start = stop.position + offset
        for sign, mend in _FOREIGN_SIGNS:
            fits = start >= 0 and text.startswith(sign, start) and (offset == 0 or len(sign) > 1)
            if fits and not (sign == "!" and text.startswith("!=", start)):
                return errors.unexpected_character(span_at(source, start, start + len(sign)), sign, mend)
    if stop.kind == "EQUAL" and "COMPARE" in stop.accepted:
        span = span_at(source, stop.position, stop.position + 1)
        return errors.syntax_error(span, "`=`", "an operator", "to compare, write `==`")
    if text.startswith("=", stop.position - 1) and text.startswith("=", stop.position) and stop.kind == "EQUAL":
        span = span_at(source, stop.position - 1, stop.position + 1)
        return errors.syntax_error(span, "`==`", "`=`", "a declaration has one `=`")
    if stop.kind is None and stop.position < len(text):
        character = text[stop.position]
        shown = character if character.isprintable() else f"U+{ord(character):04X}"
        mend = "names are made of the letters A to Z, digits and `_`" if character.isalpha() else ""
        return errors.unexpected_character(span_at(source, stop.position, stop.position + 1), shown, mend)
    return None


def _explain_brackets(stop: Stop, source: SourceFile) -> Diagnostic | None:
    """A closing bracket without its partner, or an opening one, where the parser stopped because of it."""
    stack: list[int] = []
    for match in _TOKENS.finditer(source.text, 0, stop.position):
        sign = match[0]
        if sign in _CLOSER:
            stack.append(match.start())
        elif stack and sign == _CLOSER[source.text[stack[-1]]]:
            stack.pop()
    found = source.text[stop.position : stop.position + 1]
    if found and found in ")]}" and stop.kind is not None:
        if not stack:
            return errors.unmatched_bracket(span_at(source, stop.position, stop.position + 1), found)
        wanted = _CLOSER[source.text[stack[-1]]]
        if found != "}" and wanted == "}":
            return errors.unmatched_bracket(span_at(source, stop.position, stop.position + 1), found)
        if found != wanted:
            opened = span_at(source, stack[-1], stack[-1] + 1)
            return errors.unclosed_bracket(opened, span_at(source, stop.position, stop.position + 1))
        return None
    at_end = stop.position >= len(source.text)
    in_parentheses = bool(stack) and source.text[stack[-1]] in "(["
    begins_statement = stop.kind in _STATEMENTS | _DECLARATIONS
    if stack and (at_end or (in_parentheses and begins_statement)):
        opened = span_at(source, stack[-1], stack[-1] + 1)
        found_at = None if at_end else _word_span(stop.position, source)
        return errors.unclosed_bracket(opened, found_at)
    return None


def _explain_reserved(stop: Stop, source: SourceFile) -> Diagnostic | None:
    """Keywords where a name is declared."""
    match = _WORD.match(source.text, stop.position)
    only_a_name = "NAME" in stop.accepted and not stop.accepted & (_STATEMENTS | _OPERANDS - {"NAME"})
    if match is None or match[0] not in RESERVED or not only_a_name:
        return None
    return errors.reserved_name(_word_span(stop.position, source), match[0])


def _explain_word(stop: Stop, source: SourceFile) -> Diagnostic | None:
    """Words of other languages, and words that belong elsewhere."""
    match = _WORD.match(source.text, stop.position)
    if match is None:
        return None
    word, span = match[0], _word_span(stop.position, source)
    if stop.accepted >= _DECLARATIONS:
        return errors.unknown_declaration(span, word)
    if stop.kind == "NAME" and word in _FOREIGN_WORDS and stop.accepted & (_OPERATORS | {"_SEP"}):
        return errors.syntax_error(span, f"`{word}`", _expected(stop.accepted), _FOREIGN_WORDS[word])
    if stop.kind in _DECLARATIONS and stop.accepted >= _STATEMENTS:
        mend = "declarations stand at the top of the file, outside of braces"
        return errors.syntax_error(span, f"`{word}`", "a statement", mend)
    if stop.kind in _STATEMENTS | _DECLARATIONS and "_SEP" in stop.accepted:
        mend = "a statement ends with its line, or with `;`"
        return errors.syntax_error(span, f"`{word}`", _expected(stop.accepted), mend)
    return None


def _word_span(position: int, source: SourceFile) -> Span:
    match = _WORD.match(source.text, position)
    return span_at(source, position, match.end() if match is not None else position + 1)


def _explain_token(stop: Stop, source: SourceFile) -> Diagnostic:
    """Whatever has no explanation of its own."""
    text, position = source.text, stop.position
    expected = _expected(stop.accepted)
    if position >= len(text):
        last = max(0, len(text.rstrip()) - 1)
        return errors.syntax_error(span_at(source, last, last + 1), "end of the file", f"{expected} after this")
    if text[position] in "\r\n":
        mend = ""
        if "LBRACE" in stop.accepted:
            mend = "put the `{` on the same line"
        elif stop.accepted & _OPERANDS:
            mend = "a statement may go on in the next line after an operator, a comma, or inside parentheses"
        return errors.syntax_error(span_at(source, position, position + 1), "end of the line", expected, mend)
    match = _WORD.match(text, position) or re.compile(r'"[^"\n]*"|[*/]{2}|[<>=!]=|.').match(text, position)
    end = match.end() if match is not None else position + 1
    return errors.syntax_error(span_at(source, position, end), f"`{text[position:end]}`", expected, _mend(stop))


def _mend(stop: Stop) -> str:
    if stop.accepted == {"COLON"}:
        return "a type follows the name, for example `x: int`"
    if stop.kind in _OPERATORS and stop.accepted >= _STATEMENTS:
        return "to go on in a new line, end the line before it with the operator"
    if stop.kind == "EQUAL" and stop.accepted == {"RPAR", "COMMA"}:
        return "arguments of a definition have no defaults"
    return ""


def _expected(accepted: frozenset[str]) -> str:
    """Sum up what the parser could have read."""
    words = []
    rest = set(accepted)
    for group, word in (
        (_STATEMENTS, "a statement"),
        (_DECLARATIONS, "`use`, `def`, `attention` or `layer`"),
        (_OPERANDS, "an expression"),
        (_OPERATORS, "an operator"),
    ):
        if group <= rest:
            words.append(word)
            rest -= group | {"NOT", "PLUS", "MINUS"} if group is _OPERANDS else group
            if group is _STATEMENTS:
                rest -= {"NAME", "_SEP"}
            if group is _OPERATORS:
                rest -= {"LPAR", "LSQB", "VIA", "EQUAL"}
    rest -= {"SEMICOLON", "NEWLINE", "NOT"} | _OPERATORS
    if len(rest) > 1:
        rest.discard("$END")
    order = list(_WORDS)
    words += [_WORDS[kind] for kind in sorted(rest & set(order), key=order.index)]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"
