"""Cells of reports in Markdown: numbers, times, sizes, and a dash where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from attnc.bench.report import duration, size

NOTHING = "-"
"""A cell without a figure."""


def line(cells: Sequence[str]) -> str:
    """Lay a row of a table out."""
    return f"| {' | '.join(cells)} |"


def table(names: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay a table out: columns of names, on the left, then columns of figures; those without any are left out."""
    count = len(names)
    kept = [at for at in range(len(columns)) if any(row[count + at] != NOTHING for row in rows)]
    lines = [line((*names, *(columns[at] for at in kept)))]
    lines.append(line((*("---",) * count, *("---:",) * len(kept))))
    return lines + [line((*row[:count], *(row[count + at] for at in kept))) for row in rows]


def escaped(text: str) -> str:
    """Keep a text from ending its cell."""
    return text.replace("|", "\\|")


def plain(value: object) -> str:
    """Print a setting."""
    return "+".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def number(value: float | None) -> str:
    """Print a ratio."""
    return NOTHING if value is None else f"{value:.2f}"


def whole(value: float | None) -> str:
    """Print a large count."""
    return NOTHING if value is None else f"{value:,.0f}"


def time(seconds: float | None) -> str:
    """Print a time."""
    return NOTHING if seconds is None else duration(seconds)


def volume(count: int | None) -> str:
    """Print a number of bytes."""
    return NOTHING if count is None else size(count)


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean of positive numbers; None of none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None
