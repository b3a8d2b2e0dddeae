"""What the compiler says to its user when something is wrong, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from attnc.source import Span

TAB_WIDTH = 4
"""Columns that a tab takes in a printed source line."""


class Severity(Enum):
    """How bad it is: an error stops the compilation, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Label:
    """A place in the source and what is to be said of it."""

    span: Span
    text: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One message: what is wrong, where, and how to mend it.

    Attributes:
        code: kebab-case name, stable over releases.
        message: one sentence without a full stop.
        labels: the first is the place that the message is about; the others explain it.
        help: how to mend it; empty if there is nothing to say.
        notes: further facts, a line each.
    """

    code: str
    message: str
    labels: tuple[Label, ...] = ()
    help: str = ""
    notes: tuple[str, ...] = ()
    severity: Severity = field(default=Severity.ERROR)

    def __str__(self) -> str:
        return render(self)


class CompileError(Exception):
    """The user's mistakes in a pattern, all that one stage found, in the order of the source.

    Attributes:
        diagnostics: at least one, of severity error; warnings may stand among them.
    """

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(*diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = diagnostics

    def __str__(self) -> str:
        return "\n\n".join(render(diagnostic) for diagnostic in self.diagnostics)


class InternalError(Exception):
    """A mistake of the compiler's own: never the user's fault."""


def render(diagnostic: Diagnostic) -> str:
    """Lay a diagnostic out as text, without a final end of line.

    The first label is underlined with `^`, the others with `-`; a label over several lines is underlined to the end
    of its first one.
    """
    lines = [f"{diagnostic.severity.value}[{diagnostic.code}]: {diagnostic.message}"]
    width = len(str(max((label.span.line for label in diagnostic.labels), default=1)))
    margin = " " * (width + 2)
    previous = None
    for position, label in enumerate(diagnostic.labels):
        span = label.span
        if previous != span.source.name or position == 0:
            lines.append(f"{margin[1:]}--> {span}" if position == 0 else f"{margin[1:]}::: {span}")
        if span.source.text:  # a file that could not be read has a name, and nothing to show
            lines.append(f"{margin}|")
            lines.extend(_excerpt(label, width, "^" if position == 0 else "-"))
        previous = span.source.name
    lines.extend(f"{margin}= note: {note}" if diagnostic.labels else f"note: {note}" for note in diagnostic.notes)
    if diagnostic.help:
        lines.append(f"help: {diagnostic.help}")
    return "\n".join(lines)


def _excerpt(label: Label, width: int, mark: str) -> list[str]:
    span = label.span
    raw = span.source.line(span.line)
    before, under = raw[: span.column - 1], raw[span.column - 1 : span.column - 1 + max(1, span.end - span.start)]
    shown = raw.expandtabs(TAB_WIDTH)
    start = len(before.expandtabs(TAB_WIDTH))
    length = max(1, len((before + under).expandtabs(TAB_WIDTH)) - start)
    shown, start, length = _shorten(shown, start, length)
    tail = f" {label.text}" if label.text else ""
    return [f" {span.line:>{width}} | {shown}".rstrip(), f" {' ' * width} | {' ' * start}{mark * length}{tail}"]


def _shorten(line: str, start: int, length: int, limit: int = 160) -> tuple[str, int, int]:
    """Cut a very long line to a window around its label, so that a message stays readable."""
    length = min(length, limit // 2)
    if len(line) <= limit:
        return line, start, length
    begin = max(0, start - limit // 4)
    cut = line[begin : begin + limit]
    prefix = "..." if begin else ""
    suffix = "..." if begin + limit < len(line) else ""
    return prefix + cut + suffix, start - begin + len(prefix), length
