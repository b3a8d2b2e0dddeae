"""What kernels do with tiles of a size, at the lengths in hand: how many they visit, and which rows visit the most."""

from __future__ import annotations

import torch

from attnc.bench.cases import Shape, make_data, on_shortened
from attnc.bench.waste import pairs_in_tiles
from attnc.plan.choose import with_known_sizes
from attnc.plan.fusing import may_fuse
from attnc.plan.kernel_plan import Plan, Trend
from attnc.plan.row_lengths import row_counts, trend_together
from attnc.plan.transposed import transposed_plan
from attnc.runtime.tiles import BY_HEADS, IN_TURNS, Tiles, assume_target, count_programs, count_turn
from attnc.tuning.model import Work
from attnc.tuning.schedule import Rows

FORWARD, QUERIES, KEYS = "forward", "query gradient", "key gradient"

PRODUCTS = {FORWARD: 2, QUERIES: 3, KEYS: 4}
"""Products of matrices for each tile."""

DEVICE = torch.device("meta")
"""What is assumed to be the target."""


def passes_of(plan: Plan, shape: Shape, part: str) -> Plan:
    """Return the plan that the kernels of a part have at a length: for gradients of keys the transposed one."""
    own = plan.at(max(shape.queries, shape.keys))
    return transposed_plan(own) if part == KEYS else own


def trend_of_part(plan: Plan, shape: Shape, part: str) -> Trend:
    """Return how the rows of a part's kernels change in length."""
    return trend_together(one.trend for one in passes_of(plan, shape, part).passes)


def part_fuses(plan: Plan, shape: Shape, part: str) -> bool:
    """Tell whether kernels of a part can have fewer loops."""
    return part == FORWARD and may_fuse(plan.attention, passes_of(plan, shape, part).passes)


class TileCounter:
    """Counts what a target's kernels visit, for tiles of each size once."""

    def __init__(self, plan: Plan, gpu: str, shape: Shape, element_size: int) -> None:
        plan = with_known_sizes(plan, shape.keys, shape.head_size)
        _, shape = on_shortened(plan.attention, shape)
        self._plan, self._gpu, self._shape, self._element_size = plan, gpu, shape, element_size
        self._data = make_data(plan.attention, shape, seed=0)
        self._known: dict[tuple[int, int], float] = {}
        self._plans: dict[str, Plan] = {}
        self._lengths: dict[tuple[str, int, int], tuple[float, ...]] = {}

    def work(self, part: str, tiles: Tiles) -> Work:
        """Return what the kernels of a part do with such tiles, all passes together."""
        sizes, shape = (tiles.query, tiles.key), self._shape
        if sizes not in self._known:
            self._known[sizes] = pairs_in_tiles(self._plan, shape, self._data, *sizes)
        heads = shape.heads * shape.batch
        rows, size = (shape.keys, tiles.key) if part == KEYS else (shape.queries, tiles.query)
        own = heads // shape.group if part == KEYS else heads
        count = -(-rows // size)
        visited = self._known[sizes] * heads / (tiles.query * tiles.key)
        return Work(visited, count * own, PRODUCTS[part], self._rows(part, tiles, count, own))

    def _rows(self, part: str, tiles: Tiles, count: int, sequences: int) -> Rows:
        shape = self._shape
        if part not in self._plans:
            self._plans[part] = passes_of(self._plan, shape, part)
        trend = trend_together(one.trend for one in self._plans[part].passes)
        lengths = self._counts(part, tiles)
        if trend in (Trend.RISING, Trend.FALLING):
            lengths = tuple(sorted(lengths, reverse=True))
        walked = shape.group * shape.queries if part == KEYS else shape.keys
        size = walked * (shape.head_size + shape.value_size) * self._element_size
        order = tiles.order or (BY_HEADS if trend in (Trend.LEVEL, Trend.MIXED) else IN_TURNS)
        with assume_target(self._gpu):
            dealt = count_programs(tiles, count * sequences, DEVICE) if tiles.persistent else 0
            together = 1 if part == KEYS else shape.group
            turn = count_turn(order, sequences, together, size, DEVICE, dealt=dealt)
        return Rows(lengths, count, sequences, turn)

    def _counts(self, part: str, tiles: Tiles) -> tuple[float, ...]:
        """Return the lengths of rows where all passes have the same ones, in plain order; else nothing."""
        rows, keys = (tiles.key, tiles.query) if part == KEYS else (tiles.query, tiles.key)
        if (part, rows, keys) not in self._lengths:
            plan, length = self._plans[part], max(self._shape.queries, self._shape.keys)
            found: tuple[float, ...] = ()
            if all(one.layout.is_plain for one in plan.passes):
                counts = [row_counts(plan.attention, one, length, rows, keys) for one in plan.passes]
                found = tuple(float(sum(each)) for each in zip(*counts, strict=True))
            self._lengths[part, rows, keys] = found
        return self._lengths[part, rows, keys]
