"""Bilinear schemes as text: the literal that a generated module builds its `BilinearScheme` from."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from attnc.algebra.bilinear.scheme import Row, Scheme


def scheme_lines(scheme: Scheme, name: str) -> tuple[str, ...]:
    """Return the lines of `NAME = BilinearScheme(...)`, with its title and its source as comments."""
    title = f"{scheme.name} {scheme.title}" if scheme.name else scheme.title
    comments = [f"# {title}"] + ([f"# {line}" for line in _wrapped(scheme.source)] if scheme.source else [])
    lines = [*comments, f"{name} = BilinearScheme(", f"    m={scheme.m},", f"    k={scheme.k},", f"    n={scheme.n},"]
    for side, rows in (("left", scheme.left), ("right", scheme.right), ("out", scheme.out)):
        lines += [f"    {side}=(", *(f"        {text}" for row in rows for text in _row_lines(row)), "    ),"]
    return (*lines, ")")


def _row_lines(row: Row) -> list[str]:
    numbers = [_number(entry) for entry in row]
    text = f"({', '.join(numbers)}{',' if len(numbers) == 1 else ''}),"
    if len(text) <= 110:
        return [text]
    return ["(", *(f"    {line}," for line in _filled(numbers)), "),"]


def _number(entry: Fraction) -> str:
    return str(entry.numerator) if entry.denominator == 1 else f"{entry.numerator} / {entry.denominator}"


def _filled(numbers: Sequence[str]) -> list[str]:
    per_line = 24
    return [", ".join(numbers[start : start + per_line]) for start in range(0, len(numbers), per_line)]


def _wrapped(text: str, width: int = 110) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
