"""Reading what the command line gives as text: `-D name=value`, `-n 1024,4096`."""

from __future__ import annotations

import re
from collections.abc import Iterable

Value = bool | int | float | str
"""What a text may stand for; a text that is no number stays a text, and the checker says what it should have been."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf")


LARGEST_LENGTH = 1 << 30
"""Positions lie below this."""


class MalformedParameterError(ValueError):
    """A text that cannot be read as what the command line asks for."""


def parse_parameters(definitions: Iterable[str]) -> dict[str, Value]:
    """Turn `["window=512", "cap=30.0", "on=true"]` into names and values.

    Raises:
        MalformedParameterError: one is not `name=value`, or a name is given twice.
    """
    values: dict[str, Value] = {}
    for definition in definitions:
        name, equals, text = definition.partition("=")
        name, text = name.strip(), text.strip()
        if not equals or not text or not _NAME.fullmatch(name):
            raise MalformedParameterError(f"{definition!r} is not name=value, as in window=512")
        if name in values:
            raise MalformedParameterError(f"{name!r} is given twice")
        values[name] = parse_value(text)
    return values


def parse_value(text: str) -> Value:
    """Read a bool, an int or a float; any other text is returned as it is."""
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text) and len(text) <= 4000:  # Python refuses to read integers of more digits
        return int(text)
    return float(text) if _REAL.fullmatch(text) else text


def parse_names(text: str, known: Iterable[str], what: str) -> tuple[str, ...]:
    """Turn `"sdpa,flex"` into names, each once; `what` is one of them, in words.

    Raises:
        MalformedParameterError: one is not known.
    """
    known = tuple(known)
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in known:
            raise MalformedParameterError(f"{name!r} is not {what}: {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def parse_counts(text: str, most: int, what: str) -> tuple[int, ...]:
    """Turn `"64,128"` into numbers from 1 to `most`, each once; `what` is one of them, in words.

    Raises:
        MalformedParameterError: one is none of those.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isascii() or not part.isdigit() or len(part) > 10 or not 1 <= int(part) <= most:
            raise MalformedParameterError(f"{part!r} is not {what}, a number from 1 to {most}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def parse_values(value: Value) -> tuple[Value, ...]:
    """Split the values of a parameter that was given several, `"8,16"`; any other value is the only one."""
    if not isinstance(value, str):
        return (value,)
    return tuple(dict.fromkeys(parse_value(part.strip()) for part in value.split(",")))


def parse_lengths(text: str) -> tuple[int, ...]:
    """Turn `"1024,4096"` into lengths, each once.

    Raises:
        MalformedParameterError: one is not a whole number from 1 to 2**30.
    """
    lengths = []
    for part in text.split(","):
        part = part.strip()
        if not part.isascii() or not part.isdigit() or len(part) > 10 or not 1 <= int(part) <= LARGEST_LENGTH:
            raise MalformedParameterError(f"{part!r} is not a length, as in 1024,4096")
        lengths.append(int(part))
    return tuple(dict.fromkeys(lengths))
