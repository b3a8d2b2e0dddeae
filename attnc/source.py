"""Source text and places in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Text of one `.attn` file.

    Attributes:
        name: what diagnostics print (a path relative to where the user stands, or `<string>`).
        text: the whole text, decoded from UTF-8.
        path: where it was read from; None for text that has no file.
    """

    name: str
    text: str = field(repr=False)
    path: Path | None = field(default=None, compare=False)

    def line(self, number: int) -> str:
        """Return line `number` (from 1) without its end of line; empty past the end."""
        lines = self.text.split("\n")
        return lines[number - 1].rstrip("\r") if 1 <= number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters `[start, end)` of one file.

    Lines and columns count from 1, in characters.
    """

    source: SourceFile
    start: int
    end: int
    line: int
    column: int

    @property
    def text(self) -> str:
        """The characters that the span covers."""
        return self.source.text[self.start : self.end]

    def to(self, other: Span) -> Span:
        """Return the span from the start of this one to the end of `other`."""
        return Span(self.source, self.start, max(self.end, other.end), self.line, self.column)

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"

    def __repr__(self) -> str:
        return f"Span({self})"
