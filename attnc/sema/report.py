"""Collects what is wrong with a file, so that all of it can be told at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from attnc.diagnostics import CompileError, Diagnostic, Label, Severity
from attnc.source import SourceFile, Span

MAX_ERRORS = 100
"""Errors of one file after which the check gives up: nobody reads more, and suggestions take time."""


class TooManyErrors(Exception):  # noqa: N818 - caught by check_program
    """It makes no sense to go on; what was found so far is in the report."""


@dataclass(frozen=True, slots=True)
class Use:
    """A definition that is being inlined: its name, where it is used, and whether another file declares it."""

    name: str
    span: Span
    foreign: bool


@dataclass(slots=True)
class Report:
    """Diagnostics in the order in which they were found, each place told once.

    Attributes:
        sources: files in the order in which they were opened: that of the final sorting.
        unselected: how many enclosing operands are known not to be selected. What is wrong with a *value* there (a
            division by zero) does not matter; what is wrong with a type still does.
        uses: definitions that are being inlined, outermost first.
    """

    sources: list[SourceFile] = field(default_factory=list)
    found: list[Diagnostic] = field(default_factory=list)
    unselected: int = 0
    uses: list[Use] = field(default_factory=list)
    _told: set[tuple[str, Span | None]] = field(default_factory=set)

    def add(self, diagnostic: Diagnostic) -> None:
        """Record a diagnostic, unless the same was said of the same place. Raises TooManyErrors."""
        if self.uses and diagnostic.labels:
            diagnostic = replace(diagnostic, labels=self._seen_from_the_use(diagnostic.labels))
        place = diagnostic.labels[0].span if diagnostic.labels else None
        if place is not None and (diagnostic.code, place) in self._told:
            return
        self._told.add((diagnostic.code, place))
        self.found.append(diagnostic)
        if len(self.found) >= MAX_ERRORS:
            raise TooManyErrors

    def add_of_value(self, diagnostic: Diagnostic) -> None:
        """Record what is wrong with a value, if the value matters."""
        if not self.unselected:
            self.add(diagnostic)

    @property
    def has_errors(self) -> bool:
        """Whether anything but warnings was found."""
        return any(diagnostic.severity is Severity.ERROR for diagnostic in self.found)

    def sorted(self) -> tuple[Diagnostic, ...]:
        """Return the diagnostics in the order of the source; those that have no place come first."""
        order = {source.name: position for position, source in enumerate(self.sources)}

        def key(diagnostic: Diagnostic) -> tuple[int, int]:
            if not diagnostic.labels:
                return -1, 0
            span = diagnostic.labels[0].span
            return order.get(span.source.name, len(order)), span.start

        return tuple(sorted(self.found, key=key))

    def raise_errors(self) -> None:
        """Raise everything that was found as one CompileError, if there is an error among it."""
        if self.has_errors:
            raise CompileError(*self.sorted())

    def _seen_from_the_use(self, labels: tuple[Label, ...]) -> tuple[Label, ...]:
        """Say where the definition was used: first, where the definition is in a file that the user did not write."""
        foreign = next((use for use in self.uses if use.foreign), None)
        use = foreign or self.uses[0]
        label = Label(use.span, f"in this use of `{use.name}`")
        return (label, *labels) if foreign else (*labels, label)
