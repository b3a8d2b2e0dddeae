"""Pieces of pages: tables, lists of facts, lines of running text."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 120


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> list[str]:
    """Lay cells out; all but the first `names` columns are numbers."""
    ruler = "|" + "---|" * names + "---:|" * (len(headings) - names)
    return [f"| {' | '.join(headings)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)]


def paragraph(text: str) -> list[str]:
    """Break a text into lines; an empty one follows."""
    return [*textwrap.wrap(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False), ""]


def machine_line(machine: Mapping[str, Any]) -> str:
    """Say what was measured on."""
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    facts = (f"{machine['cores']} cores", threads, f"torch {machine['torch']}", f"Python {machine['python']}")
    return f"{machine['device']}, {', '.join(facts)}"


def load_line(data: Mapping[str, Any]) -> str:
    """Say what else the machine did; nothing where it did nothing."""
    load, cores = data.get("load", 0.0), data["machine"]["cores"]
    if load <= cores:
        return ""
    return f" Other programs ran at the same time: the load was up to {load:g} on {cores} cores."


def listed(names: Sequence[str]) -> str:
    """Write names with commas and an `and`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def png(figure: Any) -> bytes:
    """Return a picture's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
