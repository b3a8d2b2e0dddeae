"""How many pairs are computed for each allowed one: by the tiles of a plan, and by the products that really ran."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from attnc.algebra.counting import bounds_differ_by_head
from attnc.algebra.key_intervals import TileSets
from attnc.bench.cases import Data, Shape
from attnc.ir.nodes import IndexName
from attnc.ir.walk import depends_on
from attnc.plan.kernel_plan import Plan
from attnc.tile_map import count_planned

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"

CAUSAL = 4
"""Position of its argument `is_causal`."""

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
"""Operators that multiply matrices, the last two of their tensor arguments, and call no other one that does."""


def pairs_in_tiles(plan: Plan, shape: Shape, data: Data, query_tile: int, key_tile: int) -> float:
    """Count the pairs in the tiles that all passes visit, padding included: one head, the mean over batch and heads.

    The passes are those of the variant for the lengths of the shape.

    Args:
        plan: whose residuals hold for tiles of this size.
        shape: the sizes.
        data: values of the inputs, which may decide which tiles are visited.
        query_tile: rows of a tile.
        key_tile: keys of a tile.
    """
    known: Data = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in data.items()}
    total = Fraction(0)
    for one in plan.at(max(shape.queries, shape.keys)).passes:
        own = replace(plan.attention, mask=one.mask)
        heads = range(shape.heads if bounds_differ_by_head(one.tiles) else 1)
        batches = range(shape.batch if _differ_by_batch(one.tiles) else 1)
        counts = [
            count_planned(
                own,
                one.tiles,
                shape.sizes(),
                known,
                query_tile=min(query_tile, one.tiles.query_tile),
                key_tile=min(key_tile, one.tiles.key_tile),
                layout=one.layout,
                batch=batch,
                head=head,
            )
            for batch in batches
            for head in heads
        ]
        area = min(query_tile, one.tiles.query_tile) * min(key_tile, one.tiles.key_tile)
        total += Fraction(sum(count.full + count.partial for count in counts) * area, len(counts))
    return float(total)


def _differ_by_batch(tiles: TileSets) -> bool:
    bounds = [bound for interval in tiles.intervals for bound in (interval.start, interval.stop)]
    tests = [interval.tile_test for interval in tiles.intervals if interval.tile_test is not None]
    return any(depends_on(bound, IndexName.BATCH) for bound in (*bounds, *tests))


def pairs_multiplied(work: Callable[[], object], shape: Shape) -> float | None:
    """Count the pairs of one head whose products a call on a CPU really computes; the mean over batch and heads.

    They are the multiply-adds of every product of matrices that torch's profiler sees, divided by those of one pair:
    rectangles of rows and keys count as a whole, causal calls as triangles. None where the call multiplies without
    torch's operators.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports its start and end on standard error
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        work()
    total = 0
    for event in profile.events() or ():
        sizes = [list(each) for each in event.input_shapes or () if each]
        if event.name == FLASH and len(sizes) >= 3:
            query, key, value = sizes[:3]
            total += math.prod(query[:2]) * _pairs(event, query[2], key[2]) * (query[3] + value[3])
        elif event.name in PRODUCTS and len(sizes) >= 2:
            left, right = sizes[-2:]
            total += math.prod(left) * right[-1]
    pairs = total / ((shape.head_size + shape.value_size) * shape.heads * shape.batch)
    return pairs or None


def _pairs(event: Any, queries: int, keys: int) -> int:
    concrete = getattr(event, "concrete_inputs", None) or ()
    causal = len(concrete) > CAUSAL and concrete[CAUSAL] in (True, "True")
    if not causal:
        return queries * keys
    short = min(queries, keys)
    return short * (short + 1) // 2 + (queries - short) * keys
