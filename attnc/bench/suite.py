"""A run over many patterns and lengths that can stop and go on: each case is written down as soon as it is measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnc import terminal
from attnc.bench.cases import Shape
from attnc.bench.machine import describe
from attnc.bench.run import Comparison, Settings, compare, make_case
from attnc.bench.session import BenchRequest, pick
from attnc.bench.suite_report import as_markdown, one_line, summary
from attnc.bench.suite_row import SuiteRow
from attnc.bench.waste import pairs_in_tiles, pairs_multiplied
from attnc.compiler import Compiled, import_compiled
from attnc.diagnostics import CompileError, Diagnostic
from attnc.files import STANDARD, write_text
from attnc.plan.configs import default_config
from attnc.plan.kernel_plan import Plan

TILE = 64
"""Rows and keys of the tiles that all patterns are compared with."""

SAMPLES = 3
"""Samples of each contender, at least: the longest cases take minutes for each."""

LENGTHS = (2048, 8192, 32768)

KERNEL_TARGET = "sm_90"
"""Whose default tiles are reported where kernels run."""


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
class SuiteRequest:
    """What to measure, and where the results go.

    Attributes:
        budget: seconds after which no further case begins; None for no end.
        only: names of the patterns to measure; all if empty.
        redo: measure again what the JSON file has already.
        markdown: file for the report; None for none.
    """

    bench: BenchRequest
    budget: float | None
    only: tuple[str, ...]
    redo: bool
    markdown: Path | None


def run_suite(request: SuiteRequest, patterns: Sequence[Pattern]) -> bool:
    """Measure every pattern at every length, the shortest first; tell whether every attnc module was right.

    Raises:
        CompileError: the device is not there, a name is unknown, the JSON file is of another kind of run, or a result
            cannot be written.
    """
    chosen = _chosen(patterns, request.only)
    device = pick(request.bench.device)
    machine = describe(device)
    store = Store.open(request, machine)
    console = terminal.messages() if str(request.bench.json) == STANDARD else terminal.output()
    console.print(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {request.bench.dtype}")
    begin = time.monotonic()
    planned = Planned()
    cases = [(pattern, length) for length in request.bench.lengths for pattern in chosen]
    left = 0
    for number, (pattern, length) in enumerate(cases, start=1):
        if store.has(pattern.name, length):
            continue
        if request.budget is not None and time.monotonic() - begin > request.budget:
            left += 1
            continue
        label = f"{number} of {len(cases)}: {pattern.name} at {length}"
        with terminal.spinner(label) as say:
            row = _measure(pattern, request.bench.shape(length), request.bench, device, planned, say)
        store.add(row)
        console.print(one_line(row), markup=False, highlight=False, soft_wrap=True)
    store.write()  # the report may be new even where no case is
    rows = store.of({(pattern.name, length) for pattern, length in cases})
    if str(request.bench.json) == STANDARD:
        print(store.text(), end="")
    console.print()
    console.print(summary(rows))
    if left:
        console.print(f"The budget ended: {left} of {len(cases)} cases are left; the same command goes on with them.")
    return all(row.right for row in rows)


def _chosen(patterns: Sequence[Pattern], only: Sequence[str]) -> list[Pattern]:
    known = {pattern.name for pattern in patterns}
    for name in only:
        if name not in known:
            help_text = f"the suite has {', '.join(sorted(known))}"
            raise CompileError(Diagnostic("unknown-pattern", f"the suite has no pattern `{name}`", help=help_text))
    return [pattern for pattern in patterns if not only or pattern.name in only]


class Planned:
    """The latest patterns' plans and modules, so that a pattern is planned once for all lengths."""

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


def _measure(
    pattern: Pattern,
    shape: Shape,
    bench: BenchRequest,
    device: torch.device,
    planned: Planned,
    say: Callable[[str], None],
) -> SuiteRow:
    dtype, backward = getattr(torch, bench.dtype), bench.backward
    settings = Settings(device, dtype, bench.peers, backward, bench.seconds, least=SAMPLES, memory=backward)
    say("planning")
    try:
        plan, module = planned.get(pattern)
    except CompileError as error:
        message = error.diagnostics[0].message
        return SuiteRow(pattern.name, pattern.idea, shape.queries, problems={"attnc": message})
    comparison = compare(plan, module, shape, settings, say)
    say("counting what was computed")
    case = make_case(plan.attention, shape, settings)
    in_tiles = pairs_in_tiles(plan, shape, case.data, TILE, TILE)
    if device.type == "cuda":
        config = default_config(KERNEL_TARGET, case.query.element_size(), shape.head_size)
        tile = f"{config.query} x {config.key}"
        computed: float | None = pairs_in_tiles(plan, shape, case.data, config.query, config.key)
    else:
        function = getattr(module, plan.attention.name)
        tile = "slabs"
        computed = None
        if any(result.name == "attnc" and result.timing for result in comparison.results):
            with torch.no_grad():
                computed = pairs_multiplied(lambda: function(case.query, case.key, case.value, **case.data), shape)
    layouts = tuple(str(one.layout) for one in plan.at(shape.queries).passes)
    return _row(pattern, comparison, layouts, in_tiles, tile, computed)


def _row(
    pattern: Pattern,
    comparison: Comparison,
    layouts: tuple[str, ...],
    in_tiles: float,
    tile: str,
    computed: float | None,
) -> SuiteRow:
    timed = {result.name: result.timing.median for result in comparison.results if result.timing is not None}
    builds = {one.name: one.build_seconds for one in comparison.results if one.build_seconds is not None}
    return SuiteRow(
        pattern.name,
        pattern.idea,
        comparison.shape.queries,
        comparison.pairs,
        comparison.density,
        layouts,
        in_tiles,
        tile,
        computed,
        {**timed, "dense": comparison.dense_seconds},
        {name: builds[name] for name in timed if name in builds},
        comparison.floor_seconds,
        {result.name: result.problem for result in comparison.results if result.timing is None},
        asdict(comparison),
    )


class Store:
    """The rows measured so far, and the files that have them."""

    def __init__(self, request: SuiteRequest, machine: Mapping[str, object], rows: list[SuiteRow]) -> None:
        self.request = request
        self.machine = dict(machine)
        self.rows = rows
        self.fresh = {(row.pattern, row.length) for row in rows} if not request.redo else set()

    @classmethod
    def open(cls, request: SuiteRequest, machine: Mapping[str, object]) -> Store:
        """Read what earlier runs have written.

        Raises:
            CompileError: the file is something else, or its runs had other settings.
        """
        path = request.bench.json
        if path is None or str(path) == STANDARD or not path.exists() or not path.stat().st_size:
            return cls(request, machine, [])
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            settings, rows = found["settings"], [SuiteRow.from_json(row) for row in found["cases"]]
            there = _place(found["machine"])
        except (OSError, ValueError, KeyError, TypeError):
            raise CompileError(Diagnostic("not-a-suite", f"`{path}` holds no results of a suite")) from None
        settings = {**there, **settings}
        wanted = {**_place(machine), **suite_settings(request.bench)}
        if settings != wanted:
            differ = ", ".join(name for name in wanted if settings.get(name) != wanted[name]) or "names"
            raise CompileError(
                Diagnostic(
                    "other-settings",
                    f"the results in `{path}` were measured with other settings: {differ}",
                    help="write to another file, or give the same options",
                )
            )
        return cls(request, machine, rows)

    def has(self, pattern: str, length: int) -> bool:
        """Tell whether a case need not be measured."""
        return (pattern, length) in self.fresh

    def of(self, cases: set[tuple[str, int]]) -> list[SuiteRow]:
        """Return the rows of some cases."""
        return [row for row in self.rows if (row.pattern, row.length) in cases]

    def add(self, row: SuiteRow) -> None:
        """Put a row in its place, and write the files.

        Raises:
            CompileError: a file cannot be written.
        """
        key = (row.pattern, row.length)
        self.rows = [one for one in self.rows if (one.pattern, one.length) != key] + [row]
        self.fresh.add(key)
        self.write()

    def text(self) -> str:
        """Return all rows as JSON."""
        found: dict[str, Any] = {"machine": self.machine, "settings": suite_settings(self.request.bench)}
        return json.dumps({**found, "cases": [row.as_json() for row in self.rows]}, indent=1) + "\n"

    def write(self) -> None:
        """Write all rows."""
        bench = self.request.bench
        if bench.json is not None and str(bench.json) != STANDARD:
            write_text(bench.json, self.text())
        if self.request.markdown is not None:
            write_text(self.request.markdown, as_markdown(self.rows, self.machine, suite_settings(bench)))


def suite_settings(bench: BenchRequest) -> dict[str, object]:
    """Return what results that stand beside each other must have in common."""
    names = ("peers", "backward", "batch", "heads", "kv_heads", "head_size", "dtype", "device", "seconds")
    settings = {name: getattr(bench, name) for name in names}
    return {**settings, "peers": list(bench.peers)}


def _place(machine: Mapping[str, object]) -> dict[str, object]:
    """Return what machines have in common whose results may stand beside each other."""
    return {"machine": machine["device"], "threads": machine["threads"]}
