"""Values of parameters as the command line gives them: `-D name=value`."""

from __future__ import annotations

import re
from collections.abc import Iterable

Value = bool | int | float | str
"""What a text may stand for; a text that is no number stays a text, and the checker says what it should have been."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf")


class MalformedParameterError(ValueError):
    """A text that is not `name=value`."""


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
