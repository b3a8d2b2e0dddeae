"""How a plan came about: the coordinates of its passes, what was weighed, and what is computed before any pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from attnc.algebra.coordinates import CoordinateMap, Layout, MapKind
from attnc.algebra.counting import bounds_read
from attnc.algebra.counting import count_pairs as count_pairs_by_sets
from attnc.algebra.summaries import SUMMARIES, BlockExtreme, summary_source
from attnc.explanation_counts import Sizes
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Index, IndexName
from attnc.ir.program import Attention, Tensor
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.plan.cost import estimate_pass
from attnc.plan.kernel_plan import Pass, Plan
from attnc.plan.weighing import DENSE

RUN_SIZE = 4
"""Bytes of an element of the bounds of runs: int32."""

ELEMENT_SIZES = {Type.BOOL: 1, Type.INT: 8, Type.FLOAT: 4}
"""Bytes of an element of extremes, which have the input's own type: those of torch's usual ones."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """A way to compute the mask that the planner looked at.

    Attributes:
        passes: layout and mask of each.
        cost: expected time in pairs of one head, at the length for which the plan was weighed.
        relative: the same, in costs of the cheapest way.
    """

    passes: tuple[tuple[str, str], ...]
    cost: float
    relative: float

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `plan.choices`."""
        passes = [{"layout": layout, "mask": mask} for layout, mask in self.passes]
        return {"cost": self.cost, "relative": self.relative, "passes": passes}


@dataclass(frozen=True, slots=True)
class Costs:
    """What the chosen passes are expected to cost, in pairs of one head at the length for which they were weighed.

    Attributes:
        passes: of each.
        between: of further launches and of merging.
        density: pairs computed for each allowed one with tiles of `TILE`; None where data decides.
    """

    passes: tuple[float, ...]
    between: float
    density: float | None

    @property
    def is_dense(self) -> bool:
        """Whether so little is wasted that nothing else was looked for."""
        return self.density is not None and self.density <= DENSE


@dataclass(frozen=True, slots=True)
class Prepass:
    """Tables that are made of an input before any pass, on the device and in each call.

    Attributes:
        kinds: which summaries; see `algebra.summaries`. All are bounds of runs, or none is.
        bytes: of all of them together for one batch entry; None where a dimension is only known at a call.
    """

    table: str
    kinds: tuple[str, ...]
    bytes: int | None

    @property
    def of_runs(self) -> bool:
        """Whether they are bounds of runs of equal ids, and not extremes of blocks."""
        return self.kinds[0] in SUMMARIES

    @property
    def work(self) -> str:
        """What making them takes."""
        return "M log M" if self.of_runs else f"elements of {self.table}"

    @property
    def names(self) -> tuple[str, ...]:
        """What the summaries are called in bounds."""
        return tuple(f"{self.table}.{kind}" for kind in self.kinds)

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `prepasses`."""
        return {"input": self.table, "tables": list(self.names), "bytes": self.bytes, "work": self.work}


def weighed_choices(plan: Plan) -> tuple[Weighed, ...]:
    """Return the ways that were weighed, the cheapest first."""
    least = plan.choices[0].cost if plan.choices else 0.0
    return tuple(
        Weighed(
            tuple((str(one.layout), show(one.mask)) for one in choice.passes),
            choice.cost,
            choice.cost / least if least else 1.0,
        )
        for choice in plan.choices
    )


def expected_costs(plan: Plan) -> Costs | None:
    """Return what the chosen passes are expected to cost, as the planner reckons; None where it had no choice."""
    if not plan.choices:
        return None
    attention, total = plan.attention, plan.choices[0].cost
    reads = any(bounds_read(one.tiles) for one in plan.passes)
    if len(plan.passes) == 1 and reads:  # tiles that data decides are dear to walk
        return Costs((total,), 0.0, None)
    estimates = [estimate_pass(attention, one, plan.weighed_at) for one in plan.passes]
    pairs = None if reads else count_pairs_by_sets(attention, plan.weighed_at, plan.weighed_at)
    density = sum(one.computed for one in estimates) / float(pairs) if pairs else None
    costs = tuple(one.cost for one in estimates)
    return Costs(costs, max(0.0, total - sum(costs)), density)


def find_prepasses(attention: Attention, passes: tuple[Pass, ...], sizes: Sizes) -> tuple[Prepass, ...]:
    """Return the tables that the bounds of some pass read and that no caller gives."""
    found: dict[tuple[str, bool], dict[str, None]] = {}
    for name in (name for one in passes for name in bounds_read(one.tiles)):
        source = summary_source(name)
        if source is not None:
            found.setdefault((source[0], source[1] in SUMMARIES), {})[source[1]] = None
    made = []
    for (table, of_runs), kinds in found.items():
        ordered = tuple(kind for kind in SUMMARIES if kind in kinds) if of_runs else tuple(sorted(kinds))
        counts = [_bytes(attention.tensor(table), kind, sizes) for kind in ordered]
        known = [count for count in counts if count is not None]
        made.append(Prepass(table, ordered, sum(known) if len(known) == len(counts) else None))
    return tuple(made)


def _bytes(table: Tensor, kind: str, sizes: Sizes) -> int | None:
    extreme = BlockExtreme.of(kind)
    cut = {} if extreme is None else dict(extreme.blocks)
    lengths = []
    for axis, dim in enumerate(table.dims):
        if dim is None:
            return None
        lengths.append(-(-int(evaluate(dim, Environment(sizes=sizes))) // cut.get(axis, 1)))
    return math.prod(lengths) * (RUN_SIZE if extreme is None else ELEMENT_SIZES[table.type])


def layout_reason(layout: Layout) -> str:
    """Say which coordinates a layout has, and what of its pairs allows them."""
    if layout.is_plain:
        return "in plain order"
    query, key = layout.query, layout.key
    if layout.is_grid:
        return _grid_reason(layout)
    if query.kind is MapKind.RESIDUE:
        step = f"(i - j) % {query.period}` is 0" if not key.first else f"(j - i) % {query.period}` is {key.first}"
        keys = "keys" if not key.first else f"the keys of class `(c + {key.first}) % {query.period}`"
        return (
            f"`{step} for all its pairs: {query.period} classes `c = i % {query.period}` that share no pair, each with "
            f"its queries in the order of `i // {query.period}`, and {keys} likewise, where the pairs lie side by side"
        )
    parts = [
        f"`{index} % {one.period}` is {_residues(one)} for all its pairs: only these {what} are walked, run after run"
        for index, what, one in (("i", "queries", query), ("j", "keys", key))
        if one.kind is MapKind.RUNS
    ]
    return "; ".join(parts) if parts else str(layout)


def _grid_reason(layout: Layout) -> str:
    axes = layout.query.axes
    point = ", ".join(show(axis.coordinate(Index(IndexName.QUERY))) for axis in axes)
    tile = " x ".join(str(axis.tile) for axis in axes)
    leads = [str(-axis.lead) for axis in axes]
    start = f", the first one from ({', '.join(leads)}) on" if any(axis.lead for axis in axes) else ""
    return (
        f"position i is the point `({point})` of a grid, and all pairs lie near each other there: queries in tiles of"
        f" {tile} points{start}, each with the box of keys around it, gathered row by row"
    )


def _residues(one: CoordinateMap) -> str:
    return f"{one.first} .. {one.first + one.length - 1}" if one.length > 1 else str(one.first)


def numbering(layout: Layout) -> str:
    """Say what the numbers in a pass's bounds stand for; nothing in plain order, where they are positions."""
    if layout.is_plain:
        return ""
    if layout.is_grid:
        return "i_lo and i_hi are the tile's first and last coordinate along each axis."
    if layout.query.kind is MapKind.RESIDUE:
        return f"Numbers count the positions of one class: number n is position {show_position(layout.query)}."
    walked = [
        f"{what} number n is position {show_position(one)}"
        for what, one in (("query", layout.query), ("key", layout.key))
        if one.kind is MapKind.RUNS
    ]
    return f"Numbers count the positions that are walked: {', '.join(walked)}."


def show_position(one: CoordinateMap) -> str:
    """Return the position that number `n` stands for."""
    match one.kind:
        case MapKind.RESIDUE:
            return f"n * {one.period} + c"
        case MapKind.RUNS if one.length == 1:
            return f"n * {one.period} + {one.first}"
        case MapKind.RUNS:
            return f"n // {one.length} * {one.period} + n % {one.length} + {one.first}"
        case _:
            return "n"
