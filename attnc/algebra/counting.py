"""Exact numbers of pairs and tiles at concrete sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.coordinates import PLAIN, Layout
from attnc.algebra.domains import new_translator, whole_domain
from attnc.algebra.index_sets import OutOfBudgetError, budget, new_context
from attnc.algebra.key_intervals import TileSets
from attnc.algebra.walking import count_keys, count_passing, is_full, row_tiles, walk_tiles
from attnc.ir.evaluate import Environment, Table, evaluate
from attnc.ir.nodes import Expr, IndexName, SizeName
from attnc.ir.program import AlignKind, Attention
from attnc.ir.walk import depends_on, tables

COUNT_OPERATIONS = 50_000_000
"""isl operations that counting one head may take."""

CountHead = Callable[[int], int]
"""Counts the allowed pairs of one head by evaluating the mask."""


def count_pairs(
    attention: Attention,
    queries: int,
    keys: int,
    heads: int = 8,
    *,
    group: int = 1,
    head_size: int = 64,
    evaluate_head: CountHead | None = None,
    operations: int = COUNT_OPERATIONS,
) -> Fraction | None:
    """Count the allowed pairs of one head, the mean over heads where they differ.

    Args:
        attention: whose mask and alignment count.
        queries: N.
        keys: M.
        heads: H.
        group: query heads per key head.
        head_size: D.
        evaluate_head: counts by evaluation what sets cannot count (a hash, a product of indices).
        operations: that counting one head by sets may take.

    Returns:
        The exact number; None where data decides, or where sets cannot count and there is no `evaluate_head`.
    """
    if tables(attention.mask) or tables(attention.align.shift):
        return None
    sizes = {
        SizeName.QUERIES: queries,
        SizeName.KEYS: keys,
        SizeName.HEADS: heads,
        SizeName.GROUP: group,
        SizeName.HEAD_SIZE: head_size,
        SizeName.BATCH: 1,
    }
    differ = depends_on(attention.mask, IndexName.HEAD) or depends_on(attention.align.shift, IndexName.HEAD)
    total = 0
    for head in range(heads) if differ else range(1):
        count = _count_by_sets(attention, sizes, head, operations)
        if count is None and evaluate_head is not None:
            count = evaluate_head(head)
        if count is None:
            return None
        total += count
    return Fraction(total, heads if differ else 1)


def _count_by_sets(attention: Attention, sizes: Mapping[SizeName, int], head: int, operations: int) -> int | None:
    translator = new_translator(attention, new_context())
    try:
        with budget(translator.context, operations):
            truth = translator.truth(attention.mask)
            if not truth.exact:
                return None
            allowed = _at(truth.must.intersect(whole_domain(translator)), attention, translator, sizes, head)
            count: str | None = allowed.count_val().to_str()
            return None if count is None else int(count)  # None: the budget ran out inside the count
    except OutOfBudgetError:
        return None


def _at(
    pairs: isl.Set, attention: Attention, translator: Translator, sizes: Mapping[SizeName, int], head: int
) -> isl.Set:
    """Give every parameter its value."""
    env = Environment({IndexName.HEAD: head, IndexName.BATCH: 0}, sizes)
    shift = int(evaluate(attention.align.shift, env))
    env = Environment({**env.indices, IndexName.SHIFT: shift}, sizes)
    values = {name.value: value for name, value in sizes.items() if name is not SizeName.QUERIES}
    values |= {"h": head, "b": 0}
    if translator.align is not AlignKind.START:
        values["shift"] = shift
    if translator.align is not AlignKind.END:
        values["N"] = sizes[SizeName.QUERIES]
    values |= {name: int(evaluate(expr, env)) for name, expr in translator.opaques.items()}
    for name, value in values.items():
        position = pairs.find_dim_by_name(isl.dim_type.param, name)
        if position >= 0:
            pairs = pairs.fix_val(isl.dim_type.param, position, isl.Val.int_from_si(pairs.get_ctx(), value))
    return pairs.project_out(isl.dim_type.param, 0, pairs.dim(isl.dim_type.param))


@dataclass(frozen=True, slots=True)
class TileCounts:
    """Tiles of one head, the mean over heads where they differ.

    Attributes:
        full: visited without a test.
        partial: visited with a test.
        empty: not visited, or skipped by a tile test.
    """

    query_tile: int
    key_tile: int
    full: Fraction
    partial: Fraction
    empty: Fraction

    @property
    def visited(self) -> Fraction:
        """Tiles that are computed."""
        return self.full + self.partial

    @property
    def pairs_computed(self) -> Fraction:
        """Pairs in visited tiles, padding included."""
        return self.visited * (self.query_tile * self.key_tile)


def count_tiles(
    tiles: TileSets,
    queries: int,
    keys: int,
    shift: int,
    query_tile: int,
    key_tile: int,
    heads: int = 1,
    *,
    group: int = 1,
    head_size: int = 64,
    data: Mapping[str, Table] | None = None,
    layout: Layout = PLAIN,
) -> TileCounts:
    """Count the tiles that an interval list visits.

    Args:
        tiles: the interval list.
        queries: N.
        keys: M.
        shift: `i - r`.
        query_tile: rows of a query tile.
        key_tile: keys of a key tile.
        heads: H; each is counted if bounds depend on `h`.
        group: query heads per key head.
        head_size: D.
        data: values of the scalar inputs and tables that bounds read.
        layout: of the interval list.
    """
    sizes = {
        SizeName.QUERIES: queries,
        SizeName.KEYS: keys,
        SizeName.HEADS: heads,
        SizeName.GROUP: group,
        SizeName.HEAD_SIZE: head_size,
        SizeName.BATCH: 1,
    }
    counted = range(heads) if bounds_differ_by_head(tiles) else range(1)
    full = partial = total = 0
    for head in counted:
        indices = {IndexName.HEAD: head, IndexName.BATCH: 0, IndexName.SHIFT: shift}
        for env in row_tiles(Environment(indices, sizes, data or {}), layout, query_tile):
            total += -(-count_keys(env, layout) // key_tile)
            for visit in walk_tiles(tiles, env, key_tile):
                if is_full(visit):
                    full += visit.end - visit.begin
                elif visit.interval.tile_test is None:
                    partial += visit.end - visit.begin
                else:
                    visited = range(visit.begin, visit.end)
                    partial += count_passing(visit.interval, env, layout, visited, key_tile)
    means = [Fraction(count, len(counted)) for count in (full, partial, total - full - partial)]
    return TileCounts(query_tile, key_tile, *means)


def bounds_differ_by_head(tiles: TileSets) -> bool:
    """Tell whether heads of one batch entry visit different tiles."""
    return any(depends_on(expr, IndexName.HEAD) for expr in _bounds(tiles))


def bounds_read(tiles: TileSets) -> tuple[str, ...]:
    """Return the names of the inputs that decide which tiles are visited."""
    return tuple(dict.fromkeys(name for expr in _bounds(tiles) for name in tables(expr)))


def _bounds(tiles: TileSets) -> list[Expr]:
    bounds = [bound for interval in tiles.intervals for bound in (interval.start, interval.stop)]
    return bounds + [interval.tile_test for interval in tiles.intervals if interval.tile_test is not None]
