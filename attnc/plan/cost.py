"""What passes are expected to cost at one length, in pairs of one head: what the choice of layouts goes by.

The unit is the time of one pair in a full tile. Counts of tiles are exact; for long sequences they are those of evenly
spaced query tiles, scaled up.

The other times were fitted to the CPU program: five patterns in plain order and in their own layouts, from 128 to 4096
positions, one thread, float32, heads of 64. There a pair takes some 4 ns of one head, and of 30 ratios between the two
the mean one is predicted to a factor of 1.4; the wrong way is taken in two cases, where it loses less than 1.5 times.
A GPU computes pairs a thousand times faster, but also many heads and batch entries at once: a launch of 5 us is worth
2,000 to 20,000 pairs of each of a few hundred heads, so that one set of numbers has to serve both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from attnc.algebra.coordinates import Layout
from attnc.algebra.counting import bounds_differ_by_head, bounds_read
from attnc.algebra.summaries import BlockExtreme, summarize, summary_source, summary_tensor
from attnc.algebra.walking import Visit, count_keys, count_passing, is_full, row_tiles, walk_tiles
from attnc.ir.evaluate import Environment, Table
from attnc.ir.nodes import And, Expr, IndexName, Quantifier, Read, SizeName
from attnc.ir.program import Attention
from attnc.ir.types import Type
from attnc.ir.walk import children, walk
from attnc.plan.kernel_plan import Pass

TILE = 64
"""Rows and keys of the tiles that are counted."""

SMALLEST = 16
"""Rows and keys of the smallest tiles: those of classes with few positions."""

SAMPLED = 24
"""Query tiles of a pass that are walked."""

TESTS = 48
"""About so many tile tests of one stretch of tiles are evaluated."""

HEADS = 8
"""Heads of the call that is imagined; masks that differ between heads are walked for every third."""

PARTIAL = 1.15
"""Time of a pair in a partial tile: the mask is evaluated."""

TESTED = 150
"""Time of a tile test that fails."""

ROWS = 20
"""Time of loading and storing one query row: what a row more costs that shares its keys with many others."""

GATHERED = 1.1
"""Time of a pair whose key is not beside the one before it in memory."""

DOCUMENT = 512
"""Length of the runs of equal ids that are imagined."""

MERGED_ROW = 30
"""Time of merging one row of a further launch into what is there: traffic of an output in float32, which stays in the
cache while sequences are short. With 200, two passes of `strided` seemed to lose up to 2048 positions, at which they
were three times as fast as one."""

LONG_TEST = 300
"""Operations of a tile test beyond which it is evaluated for one tile of queries alone, `LONG_TESTS` times."""

LONG_TESTS = 16

LAUNCH = 10_000
"""Time of a further launch, shared by eight heads: 0.3 ms of a CPU. With 250,000, all splits seemed to lose up to 1024
positions, at which they were 2.5 times as fast as one pass."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one pass, or several together, are expected to cost at one length.

    Attributes:
        computed: pairs in visited tiles, padding included.
        cost: in pairs of one head.
    """

    computed: float
    cost: float


def estimate_passes(attention: Attention, passes: Sequence[Pass], length: int) -> Estimate:
    """Return what passes are expected to cost together, launches and merges included."""
    computed = total = 0.0
    launched: list[Layout] = []
    for one in passes:
        found = estimate_pass(attention, one, length)
        computed, total = computed + found.computed, total + found.cost
        if launched and not any(one.layout.query == other.query for other in launched):
            total += LAUNCH + MERGED_ROW * length * _share_of_rows(one.layout)
        launched.append(one.layout)
    return Estimate(computed, total)


def estimate_pass(attention: Attention, one: Pass, length: int) -> Estimate:
    """Return what one pass is expected to cost at a length."""
    env = imagined_call(attention, one, length)
    heads = range(1, HEADS, 3) if bounds_differ_by_head(one.tiles) else range(1)
    found = [_estimate_head(one, replace(env, indices={**env.indices, IndexName.HEAD: head})) for head in heads]
    count = len(found)
    return Estimate(sum(each.computed for each in found) / count, sum(each.cost for each in found) / count)


def _estimate_head(one: Pass, env: Environment) -> Estimate:
    rows, full, partial, tested = 0, 0.0, 0.0, 0.0
    tiles = list(row_tiles(env, one.layout, TILE))
    step = max(1, len(tiles) // SAMPLED)
    walked = tiles[step // 2 :: step]
    shares: dict[Expr, float] = {}
    for here in walked[::-1]:  # the last tiles first: of causal masks they visit the most, which tells shares best
        height = here.indices[IndexName.QUERY_HIGH] - here.indices[IndexName.QUERY_LOW] + 1
        rows += height
        area = _padded(height) * _padded(count_keys(here, one.layout))
        for visit in walk_tiles(one.tiles, here, TILE):
            if is_full(visit):
                full += (visit.end - visit.begin) * area
            else:
                touched = _touched(one, here, visit, shares)
                partial += touched * area
                tested += visit.end - visit.begin - touched
    scale = len(tiles) / len(walked) if walked else 0.0
    pairs = (full + PARTIAL * partial) * (1.0 if one.layout.is_plain else GATHERED)
    return Estimate((full + partial) * scale, (pairs + tested * TESTED + rows * ROWS) * scale)


def _padded(count: int) -> int:
    """Return the side of the tiles that so many rows or keys are cut into: a class may have far fewer than `TILE`."""
    return min(TILE, -(-count // SMALLEST) * SMALLEST)


def keys_walked(attention: Attention, one: Pass, length: int, rows: range) -> float:
    """Return about how many keys a pass walks for a tile of these rows, as far as no data decides it."""
    env = imagined_call(attention, one, length)
    first, last = rows[0], rows[-1]
    here = replace(env, indices={**env.indices, IndexName.QUERY_LOW: first, IndexName.QUERY_HIGH: last})
    return TILE * sum(_touched(one, here, visit, {}) for visit in walk_tiles(one.tiles, here, TILE))


def _touched(one: Pass, here: Environment, visit: Visit, shares: dict[Expr, float]) -> float:
    """Return how many tiles of a visit pass its test, as far as a few of them tell; data lets all of them pass.

    Args:
        one: the pass.
        here: the tile of queries.
        visit: one of its visits.
        shares: learns which share of their tiles pass the tests that are long, and answers for the next visits.
    """
    test, count = visit.interval.tile_test, visit.end - visit.begin
    known = None if test is None else _without_data(test)
    if known is None:
        return count
    if known in shares:
        return count * shares[known]
    interval = replace(visit.interval, tile_test=known)
    is_long = _effort(known) > LONG_TEST
    tested = range(visit.begin, visit.end, max(1, count // (LONG_TESTS if is_long else TESTS)))
    share = count_passing(interval, here, one.layout, tested, TILE) / len(tested)
    if is_long:
        shares[known] = share
    return count * share


@lru_cache(maxsize=256)
def _without_data(test: Expr) -> Expr | None:
    """Return the part of a test that no table decides; None if there is none."""
    parts = test.operands if isinstance(test, And) else (test,)
    known = tuple(part for part in parts if not any(isinstance(node, Read) and node.index for node in walk(part)))
    if len(known) < 2:
        return known[0] if known else None
    return And(known)


@lru_cache(maxsize=256)
def _effort(expr: Expr) -> int:
    """Return about how many operations it takes to evaluate an expression."""
    inner = 1 + sum(_effort(child) for child in children(expr))
    return inner * expr.count if isinstance(expr, Quantifier) else inner


def imagined_call(attention: Attention, one: Pass, length: int) -> Environment:
    """Return sizes, and values for the scalar inputs and tables that bounds read: as if nothing was cut off."""
    sizes = {
        SizeName.BATCH: 1,
        SizeName.HEADS: HEADS,
        SizeName.QUERIES: length,
        SizeName.KEYS: length,
        SizeName.HEAD_SIZE: 64,
        SizeName.GROUP: 1,
    }
    names = dict.fromkeys((*bounds_read(one.tiles), *(t.name for t in attention.tensors if not t.dims)))
    indices = {IndexName.BATCH: 0, IndexName.HEAD: 0, IndexName.SHIFT: 0}
    return Environment(indices, sizes, {name: _typical(attention, name, length) for name in names})


def _typical(attention: Attention, name: str, length: int) -> Table:
    """Return values for an input: ids are those of documents of `DOCUMENT`, and nothing else cuts anything off."""
    source = summary_source(name)
    tensor = summary_tensor(attention, name)
    if source is None or BlockExtreme.of(source[1]) is not None:
        value: Table = {Type.INT: length, Type.FLOAT: 1.0, Type.BOOL: True}[tensor.type]
    else:
        value = summarize([position // DOCUMENT for position in range(length)])[source[1]]
    for _ in tensor.dims if source is None else tensor.dims[1:]:
        value = [value]  # the entry of batch entry and head 0
    return value


def _share_of_rows(layout: Layout) -> float:
    """Return which share of all rows a pass has."""
    return 1.0 if layout.is_grid or layout.classes > 1 else layout.query.length / layout.query.period
