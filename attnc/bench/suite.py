"""The sparsity suite: sparse patterns, with what is computed beside what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from attnc.bench.cases import Shape
from attnc.bench.machine import describe
from attnc.bench.names import Mode
from attnc.bench.run import Comparison, Settings, compare, make_case
from attnc.bench.session import BenchRequest, pick
from attnc.bench.suite_report import as_markdown, one_line, summary
from attnc.bench.suite_row import SuiteRow
from attnc.bench.suite_run import Course, Pattern, Planned, Suite, choose, run
from attnc.bench.waste import pairs_in_tiles, pairs_multiplied
from attnc.diagnostics import CompileError
from attnc.plan.configs import default_config

TILE = 64
"""Rows and keys of the tiles that all patterns are compared with."""

SAMPLES = 3
"""Samples of each contender, at least: the longest cases take minutes for each."""

LENGTHS = (2048, 8192, 32768)

KERNEL_TARGET = "sm_90"
"""Whose default tiles are reported where kernels run."""


@dataclass(frozen=True, slots=True)
class SparsityCase:
    """A pattern at one length."""

    pattern: Pattern
    length: int

    @property
    def label(self) -> str:
        """Name it."""
        return f"{self.pattern.name} at {self.length}"


def run_suite(bench: BenchRequest, course: Course, patterns: Sequence[Pattern]) -> bool:
    """Measure every pattern at every length, the shortest first; tell whether every attnc module was right.

    Raises:
        CompileError: the device is not there, a name is unknown, the JSON file is of another kind of run, or a result
            cannot be written.
    """
    chosen = choose(patterns, course.only)
    device = pick(bench.device)
    machine = describe(device)
    planned = Planned()

    def measure(case: SparsityCase, say: Callable[[str], None]) -> SuiteRow:
        return _measure(case.pattern, bench.shape(case.length), bench, device, planned, say)

    suite = Suite(
        cases=[SparsityCase(pattern, length) for length in bench.lengths for pattern in chosen],
        key=lambda case: (case.pattern.name, case.length),
        measure=measure,
        read=SuiteRow.from_json,
        line=one_line,
        summary=summary,
        report=as_markdown,
        machine=machine,
        place=_place,
        settings=suite_settings(bench),
    )
    heading = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {bench.dtype}"
    return all(row.right for row in run(suite, course, heading))


def _measure(
    pattern: Pattern,
    shape: Shape,
    bench: BenchRequest,
    device: torch.device,
    planned: Planned,
    say: Callable[[str], None],
) -> SuiteRow:
    dtype, backward = getattr(torch, bench.dtype), bench.backward
    mode = Mode.BOTH if backward else Mode.FORWARD
    settings = Settings(device, dtype, bench.peers, mode, bench.seconds, least=SAMPLES, memory=backward)
    say("planning")
    try:
        plan, module = planned.get(pattern)
    except CompileError as error:
        message = error.diagnostics[0].message
        return SuiteRow(pattern.name, pattern.idea, shape.queries, problems={"attnc": message})
    comparison = compare(plan, module, shape, settings, say)
    say("counting what was computed")
    case = make_case(plan.operation, shape, settings)
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


def suite_settings(bench: BenchRequest) -> dict[str, object]:
    """Return what results that stand beside each other must have in common."""
    names = ("peers", "backward", "batch", "heads", "kv_heads", "head_size", "dtype", "device", "seconds")
    settings = {name: getattr(bench, name) for name in names}
    return {**settings, "peers": list(bench.peers)}


def _place(machine: Mapping[str, object]) -> dict[str, object]:
    """Return what machines have in common whose results may stand beside each other."""
    return {"machine": machine["device"], "threads": machine["threads"]}
