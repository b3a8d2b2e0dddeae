"""Nested calls and tuples as formatted lines: on one line where they fit, else one element a line."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH = 100
"""A call or tuple that is longer is spread over lines, which formatters leave alone."""
LINE = 120
"""What formatters take to fit on a line."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """`opening item, item, ... closing`; an item may have a keyword, or none (an empty string)."""

    opening: str
    items: tuple[tuple[str, str | Bracket], ...]
    closing: str = ")"


def call(function: str, *arguments: tuple[str, str | Bracket]) -> Bracket:
    """Return a call with keyword arguments."""
    return Bracket(f"{function}(", arguments)


def sequence(items: list[str] | list[Bracket] | list[str | Bracket]) -> Bracket:
    """Return a tuple."""
    return Bracket("(", tuple(("", item) for item in items))


def lay_out(prefix: str, value: str | Bracket, depth: int = 0, suffix: str = "") -> list[str]:
    """Return lines, indented by `depth` steps: `prefix`, the value, `suffix`."""
    margin = "    " * depth
    flat = f"{margin}{prefix}{one_line(value)}{suffix}"
    if isinstance(value, str) or not value.items or (len(flat) <= WIDTH and not _is_deep(value)):
        return [flat]
    if value.opening == "(" and len(value.items) == 1 and len(flat) <= LINE:
        return [flat]  # formatters never spread a tuple of one element that fits
    lines = [f"{margin}{prefix}{value.opening}"]
    for keyword, item in value.items:
        lines.extend(lay_out(f"{keyword}=" if keyword else "", item, depth + 1, ","))
    return [*lines, f"{margin}{value.closing}{suffix}"]


def one_line(value: str | Bracket) -> str:
    """Return a value on one line."""
    if isinstance(value, str):
        return value
    items = [f"{keyword}={one_line(item)}" if keyword else one_line(item) for keyword, item in value.items]
    tail = "," if value.opening == "(" and len(items) == 1 else ""
    return f"{value.opening}{', '.join(items)}{tail}{value.closing}"


def _is_deep(value: Bracket) -> bool:
    return any(isinstance(item, Bracket) and item.opening != "(" for _, item in value.items) or len(value.items) > 6
