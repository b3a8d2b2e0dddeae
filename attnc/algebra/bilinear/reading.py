"""Files of schemes: JSON text in, a proven `Scheme` out, whoever wrote the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NoReturn

from attnc.algebra.bilinear.exactness import check_exact
from attnc.algebra.bilinear.scheme import Row, Scheme, SchemeError

MAX_BYTES = 1 << 20
"""The largest file that is read: 1 MiB."""

MAX_SIZE = 16
"""The largest m, k or n."""

MAX_DIGITS = 9
"""Digits of a numerator or denominator."""

MAX_TEXT = 1000
"""Characters of a name or source."""

_KEYS = ("name", "source", "shape", "rank", "U", "V", "W")
_NEEDED = ("shape", "U", "V", "W")
_NUMBER = re.compile(r"-?\d+(/\d+)?", re.ASCII)
_FORM = 'numbers are integers, or fractions such as "-1/2" in quotes'


def read_scheme(data: bytes) -> Scheme:
    """Read a scheme and prove that it multiplies matrices.

    Args:
        data: the file: `{"shape": [m, k, n], "U": ..., "V": ..., "W": ...}`, and optionally `name`, `source`, `rank`.
            `U`, `V`, `W` have a row for each entry of `A`, `B`, `C`, and a column for each product.

    Raises:
        SchemeError: it is too large, malformed, or does not multiply matrices.
    """
    scheme = _scheme(_parse(data))
    check_exact(scheme)
    return scheme


def write_scheme(scheme: Scheme) -> str:
    """Return a scheme as the text of a file, a line for each entry."""
    entries = {"name": scheme.name, "source": scheme.source, "shape": [scheme.m, scheme.k, scheme.n]}
    lines = [f'  "{key}": {json.dumps(value, ensure_ascii=False)},' for key, value in entries.items() if value]
    lines.append(f'  "rank": {scheme.rank},')
    matrices = (tuple(zip(*scheme.left, strict=True)), tuple(zip(*scheme.right, strict=True)), scheme.out)
    texts = []
    for name, matrix in zip("UVW", matrices, strict=True):
        rows = ",\n".join(f"    [{', '.join(map(_number_text, row))}]" for row in matrix)
        texts.append(f'  "{name}": [\n{rows}\n  ]')
    return "{\n" + "\n".join(lines) + "\n" + ",\n".join(texts) + "\n}\n"


def _number_text(entry: Fraction) -> str:
    return str(entry.numerator) if entry.denominator == 1 else f'"{entry}"'


def _parse(data: bytes) -> Mapping[str, Any]:
    if len(data) > MAX_BYTES:
        raise SchemeError("scheme-too-large", f"is larger than {MAX_BYTES} bytes")
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_integer,
            parse_float=_refuse_float,
            parse_constant=_refuse_float,
        )
    except UnicodeDecodeError:
        raise _malformed("is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg.lower()}") from None
    except RecursionError:
        raise _malformed("has lists inside each other beyond any need") from None
    if not isinstance(found, dict):
        raise _malformed("is not an object", help='it must be `{"shape": [m, k, n], "U": ..., "V": ..., "W": ...}`')
    for key in found:
        if key not in _KEYS:
            raise _malformed(f"has an unknown key {_shown(key)}", help=f"known: {', '.join(_KEYS)}")
    for key in _NEEDED:
        if key not in found:
            raise _malformed(f"has no `{key}`", help=f"needed: {', '.join(_NEEDED)}")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _malformed(f"has {_shown(next(name for name in names if names.count(name) > 1))} twice")
    return found


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise SchemeError("scheme-too-large", f"has a number of more than {MAX_DIGITS} digits: {_shown(text)}")
    return int(text)


def _refuse_float(text: str) -> NoReturn:
    raise _malformed(f"has the number {_shown(text)}", help=_FORM)


def _scheme(found: Mapping[str, Any]) -> Scheme:
    m, k, n = _shape(found["shape"])
    rank = len(found["U"][0]) if _is_matrix(found["U"]) else 0
    for key in ("U", "V", "W"):
        if not _is_matrix(found[key]):
            raise _malformed(f"has no matrix `{key}`", help="a matrix is a list of rows, and a row a list of numbers")
    if rank > m * k * n:
        raise _malformed(
            f"has {rank} products, and the product of {m} x {k} by {k} x {n} by definition takes {m * k * n}",
            help=_transposition_help(found["U"], m * k),
        )
    declared = found.get("rank", rank)
    if type(declared) is not int or declared != rank:
        raise _malformed(f"says `rank` {_shown(declared)}, and U has {rank} columns")
    rows = {"U": m * k, "V": k * n, "W": m * n}
    matrices = {key: _matrix(key, found[key], height, rank) for key, height in rows.items()}
    for key in ("name", "source"):
        text = found.get(key, "")
        if not isinstance(text, str) or len(text) > MAX_TEXT or not text.isprintable():
            raise _malformed(f"has a `{key}` that is no line of at most {MAX_TEXT} characters")
    left, right = (tuple(zip(*matrices[key], strict=True)) for key in ("U", "V"))
    return Scheme(
        m, k, n, left, right, matrices["W"], name=str(found.get("name", "")), source=str(found.get("source", ""))
    )


def _shape(value: Any) -> tuple[int, int, int]:
    right = isinstance(value, list) and len(value) == 3 and all(type(size) is int and size >= 1 for size in value)
    if not right or value == [1, 1, 1]:
        raise _malformed(
            f"has the shape {_shown(value)}", help="[m, k, n]: A has m rows and k columns, B k rows and n columns"
        )
    if max(value) > MAX_SIZE:
        raise SchemeError("scheme-too-large", f"has the shape {value}; sizes go up to {MAX_SIZE}")
    m, k, n = value
    return m, k, n


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, list) and row for row in value)


def _matrix(key: str, rows: list[list[Any]], height: int, width: int) -> tuple[Row, ...]:
    if len(rows) != height or any(len(row) != width for row in rows):
        widths = sorted({len(row) for row in rows})
        shown = str(widths[0]) if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        raise _malformed(
            f"has {len(rows)} rows of {shown} numbers in `{key}`, where its shape needs {height} rows of {width}",
            help=_transposition_help(rows, height),
        )
    return tuple(tuple(_number(key, entry) for entry in row) for row in rows)


def _transposition_help(rows: list[list[Any]], height: int) -> str:
    is_turned = all(len(row) == height for row in rows) and len(rows) != height
    return "transpose it: a row belongs to an entry, a column to a product" if is_turned else ""


def _number(key: str, entry: Any) -> Fraction:
    if type(entry) is int:
        return Fraction(entry)
    if not isinstance(entry, str) or not _NUMBER.fullmatch(entry):
        raise _malformed(f"has {_shown(entry)} in `{key}`", help=_FORM)
    numerator, _, denominator = entry.partition("/")
    below = _integer(denominator) if denominator else 1
    if below == 0:
        raise _malformed(f"has {_shown(entry)} in `{key}`, a division by 0")
    return Fraction(_integer(numerator), below)


def _malformed(message: str, *, help: str = "") -> SchemeError:
    return SchemeError("scheme-malformed", message, help=help)


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value) if not isinstance(value, str) else ascii(value)
    except RecursionError:
        text = "[...]"
    return text if len(text) <= 40 else f"{text[:37]}..."
