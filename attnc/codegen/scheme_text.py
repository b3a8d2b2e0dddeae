"""Bilinear schemes as text: the literal that a generated module builds its `BilinearScheme` from."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from attnc.algebra.bilinear.scheme import Row, Scheme
from attnc.codegen.expr_torch import printable


def scheme_lines(scheme: Scheme, name: str, *, fused: str = "") -> tuple[str, ...]:
    """Return the lines of `NAME = BilinearScheme(...)`, with its title and its source as comments.

    Args:
        scheme: proven exact.
        name: of the variable.
        fused: what its fused kernels are called; empty where there are none.
    """
    comments = [f"# {line}" for line in source_lines(scheme)]
    lines = [*comments, f"{name} = BilinearScheme(", f"    m={scheme.m},", f"    k={scheme.k},", f"    n={scheme.n},"]
    for side, rows in (("left", scheme.left), ("right", scheme.right), ("out", scheme.out)):
        lines += [f"    {side}=(", *(f"        {text}" for row in rows for text in _row_lines(row)), "    ),"]
    return (*lines, *((f"    fused={fused},",) if fused else ()), ")")


def source_lines(scheme: Scheme) -> tuple[str, ...]:
    """Return the title of a scheme and who found it, in lines that fit into a comment."""
    title = f"{printable(scheme.name)} {scheme.title}" if scheme.name else scheme.title
    return (title, *(_wrapped(scheme.source) if scheme.source else ()))


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
    for word in printable(text).split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
