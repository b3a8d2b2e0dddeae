"""What the commands print: diagnostics in colour on a terminal, plain text elsewhere."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from attnc.diagnostics import CompileError, Diagnostic, Severity, render

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPE_WIDTH = 120
"""Columns of tables that do not go to a terminal."""

_CODE = re.compile(r"^(error|warning)\[[^\]]*\]")
_ARROW = re.compile(r"^ *(-->|:::|=) ")
_GUTTER = re.compile(r"^ *\d* \|")
_MARK = re.compile(r"(?<=\| ) *[\^-]+( .*)?$")


def output() -> Console:
    """Return the console of results. It follows `NO_COLOR`, and never colours what is not a terminal."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def messages() -> Console:
    """Return the console of diagnostics and progress."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)


def report(diagnostics: Iterable[Diagnostic]) -> None:
    """Print diagnostics to standard error, an empty line between them."""
    console = messages()
    for number, diagnostic in enumerate(diagnostics):
        if number:
            console.print()
        if console.is_terminal:
            console.print(_coloured(render(diagnostic), diagnostic.severity), soft_wrap=True)
        else:
            sys.stderr.write(render(diagnostic) + "\n")


def report_error(error: CompileError) -> None:
    """Print everything that a failed stage found."""
    report(error.diagnostics)


@contextlib.contextmanager
def progress_bar(total: int, *, shown: bool = True) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Show a progress bar on standard error while something long runs; nothing where that is not a terminal.

    Yields two functions: one says what is being worked on, one advances the bar by a step.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("", total=total)
        yield (lambda what: bar.update(task, description=what)), (lambda: bar.advance(task))


@contextlib.contextmanager
def spinner(label: str) -> Iterator[Callable[[str], None]]:
    """Show that something runs, and what it is at; yields the function that says so. Silent off a terminal."""
    console = messages()
    if not console.is_terminal:
        yield lambda what: None
        return
    with console.status(label) as status:
        yield lambda what: status.update(f"{label}: {what}")


def _coloured(text: str, severity: Severity) -> Text:
    from rich.text import Text

    tone = "bold red" if severity is Severity.ERROR else "bold yellow"
    painted = Text()
    for number, line in enumerate(text.split("\n")):
        part = Text(line)
        if number == 0:
            part.stylize("bold")
            part.highlight_regex(_CODE, tone)
        elif line.startswith("help:"):
            part.stylize("bold cyan", 0, len("help:"))
        elif _ARROW.match(line):
            part.highlight_regex(_ARROW, "blue")
        elif _GUTTER.match(line):
            if line.lstrip().startswith("|"):
                part.highlight_regex(_MARK, tone)
            part.highlight_regex(_GUTTER, "blue")
        painted.append_text(part)
        painted.append("\n")
    painted.rstrip()
    return painted
