"""What every suite does: go through its cases, write each one down as soon as it is measured, stop and go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from attnc import terminal
from attnc.compiler import Compiled, import_compiled
from attnc.diagnostics import CompileError, Diagnostic
from attnc.files import STANDARD, write_text
from attnc.plan.kernel_plan import Plan

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of a suite.

    Attributes:
        idea: where it comes from, the first comment of its file.
        plan: takes it as far as its plans, once its turn has come.
    """

    name: str
    idea: str
    plan: Callable[[], Compiled]


@dataclass(frozen=True, slots=True)
class Course:
    """How far a run goes, and where its results go.

    Attributes:
        budget: seconds after which no further case begins; None for no end.
        only: names of the patterns to measure; all if empty.
        redo: measure again what the JSON file has already.
        json, markdown: files to write after every case; None for none.
    """

    budget: float | None
    only: tuple[str, ...]
    redo: bool
    json: Path | None
    markdown: Path | None


class Case(Protocol):
    """What is measured at once. Frozen, so that it can be looked up."""

    @property
    def label(self) -> str:
        """What a person calls it."""


class Row(Protocol):
    """The result of a case."""

    @property
    def key(self) -> Hashable:
        """Which case it is of."""

    @property
    def right(self) -> bool:
        """Whether attnc's module computed the right thing."""

    def as_json(self) -> dict[str, Any]:
        """Return it for `json.dumps`."""


C = TypeVar("C", bound=Case)
R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Suite(Generic[C, R]):
    """What one suite is.

    Attributes:
        cases: in the order in which they are measured.
        key: of a case, as its row has it.
        measure: a case; the function that it is given is told what comes next.
        read: makes a row of what `as_json` wrote.
        line: a row in one line, printed once it is measured.
        summary: of rows, printed at the end.
        report: of rows, as Markdown.
        machine: what is measured on, for reports.
        place: what of a machine must be the same for results to stand beside each other, by the names of settings.
        settings: what else must be.
    """

    cases: Sequence[C]
    key: Callable[[C], Hashable]
    measure: Callable[[C, Callable[[str], None]], R]
    read: Callable[[Mapping[str, Any]], R]
    line: Callable[[R], str]
    summary: Callable[[Sequence[R]], Table]
    report: Callable[[Sequence[R], Mapping[str, object], Mapping[str, object]], str]
    machine: Mapping[str, object]
    place: Callable[[Mapping[str, object]], dict[str, object]]
    settings: Mapping[str, object]


def run(suite: Suite[C, R], course: Course, heading: str) -> list[R]:
    """Measure the cases that are left and return the rows of all, printing them as they come.

    Raises:
        CompileError: the JSON file is of another kind of run, or a result cannot be written.
    """
    store = Store.open(suite, course)
    to_output = str(course.json) == STANDARD
    console = terminal.messages() if to_output else terminal.output()
    left = sum(not store.has(suite.key(case)) for case in suite.cases)
    console.print(f"{heading}; {left} of {len(suite.cases)} cases to measure")
    begin = time.monotonic()
    left = 0
    for number, case in enumerate(suite.cases, start=1):
        if store.has(suite.key(case)):
            continue
        if course.budget is not None and time.monotonic() - begin > course.budget:
            left += 1
            continue
        with terminal.spinner(f"{number} of {len(suite.cases)}: {case.label}") as say:
            row = suite.measure(case, say)
        store.add(row)
        console.print(suite.line(row), markup=False, highlight=False, soft_wrap=True)
    store.write()  # the report may be new even where no case is
    keys = {suite.key(case) for case in suite.cases}
    rows = [row for row in store.rows if row.key in keys]
    if to_output:
        print(store.text(), end="")
    console.print()
    console.print(suite.summary(rows))
    if left:
        again = (
            "the same command goes on with them"
            if course.json is not None and not to_output
            else "with --json FILE, the same command would go on with them"
        )
        console.print(f"The budget ended: {left} of {len(suite.cases)} cases are left; {again}.")
    return rows


def choose(patterns: Sequence[Pattern], only: Sequence[str]) -> list[Pattern]:
    """Return the patterns of these names; all where there are none.

    Raises:
        CompileError: a name is unknown.
    """
    known = {pattern.name for pattern in patterns}
    for name in only:
        if name not in known:
            help_text = f"the suite has {', '.join(sorted(known))}"
            raise CompileError(Diagnostic("unknown-pattern", f"the suite has no pattern `{name}`", help=help_text))
    return [pattern for pattern in patterns if not only or pattern.name in only]


class Planned:
    """The latest patterns' plans and modules, so that a pattern is planned once for all its cases."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[Plan, ModuleType] | CompileError] = {}

    def get(self, pattern: Pattern) -> tuple[Plan, ModuleType]:
        """Return the plan and the module of a pattern's only attention.

        Raises:
            CompileError: it cannot be compiled.
        """
        if pattern.name not in self.known:
            try:
                compiled = pattern.plan()
                self.known[pattern.name] = compiled.plans[0], import_compiled(compiled)
            except CompileError as error:
                self.known[pattern.name] = error
        found = self.known[pattern.name]
        if isinstance(found, CompileError):
            raise found
        return found


class Store(Generic[C, R]):
    """The rows measured so far, and the files that have them."""

    def __init__(self, suite: Suite[C, R], course: Course, rows: list[R]) -> None:
        self.suite = suite
        self.course = course
        self.rows = rows
        self.fresh = {row.key for row in rows} if not course.redo else set()

    @classmethod
    def open(cls, suite: Suite[C, R], course: Course) -> Store[C, R]:
        """Read what earlier runs have written.

        Raises:
            CompileError: the file is something else, or its runs had other settings.
        """
        path = course.json
        if path is None or str(path) == STANDARD or not path.exists() or not path.stat().st_size:
            return cls(suite, course, [])
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            settings, rows = found["settings"], [suite.read(row) for row in found["cases"]]
            there = suite.place(found["machine"])
        except (OSError, ValueError, KeyError, TypeError):
            raise CompileError(Diagnostic("not-a-suite", f"`{path}` holds no results of this suite")) from None
        settings = {**there, **settings}
        wanted = {**suite.place(suite.machine), **suite.settings}
        if settings != wanted:
            differ = ", ".join(name for name in wanted if settings.get(name) != wanted[name]) or "names"
            raise CompileError(
                Diagnostic(
                    "other-settings",
                    f"the results in `{path}` were measured with other settings: {differ}",
                    help="write to another file, or give the same options",
                )
            )
        return cls(suite, course, rows)

    def has(self, key: Hashable) -> bool:
        """Tell whether a case need not be measured."""
        return key in self.fresh

    def add(self, row: R) -> None:
        """Put a row in its place, and write the files.

        Raises:
            CompileError: a file cannot be written.
        """
        self.rows = [one for one in self.rows if one.key != row.key] + [row]
        self.fresh.add(row.key)
        self.write()

    def text(self) -> str:
        """Return all rows as JSON."""
        found: dict[str, Any] = {"machine": dict(self.suite.machine), "settings": dict(self.suite.settings)}
        return json.dumps({**found, "cases": [row.as_json() for row in self.rows]}, indent=1) + "\n"

    def write(self) -> None:
        """Write all rows."""
        if self.course.json is not None and str(self.course.json) != STANDARD:
            write_text(self.course.json, self.text())
        if self.course.markdown is not None:
            report = self.suite.report(self.rows, self.suite.machine, self.suite.settings)
            write_text(self.course.markdown, report)
