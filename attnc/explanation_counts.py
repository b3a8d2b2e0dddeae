"""What the passes of a plan visit at concrete sizes: tiles, and the pairs in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from attnc.algebra.coordinates import Layout
from attnc.algebra.counting import bounds_differ_by_head, bounds_read, count_tiles
from attnc.algebra.counting import count_pairs as count_pairs_by_sets
from attnc.algebra.key_intervals import TileSets
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import IndexName, SizeName
from attnc.ir.program import Attention
from attnc.ir.show import show
from attnc.ir.walk import depends_on, tables
from attnc.plan.kernel_plan import Pass

MOST_WALKED = 1 << 14
"""Steps of a walk over tiles in plain Python; more of them are walked by tensors."""

MOST_TILES = 1 << 28
"""Steps beyond which tiles are not counted."""

Sizes = Mapping[SizeName, int]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of one head, the mean over heads where they differ; None where data decides.

    Attributes:
        full: all real pairs are allowed; those that reach past the last key, which a kernel tests, included.
        partial: visited, and not full.
        empty: of the pass's own grid of tiles, each class of queries by its class of keys.
    """

    query: int
    key: int
    full: int | float | None
    partial: int | float | None
    empty: int | float | None


@dataclass(frozen=True, slots=True)
class PassCost:
    """What one pass computes.

    Attributes:
        mask: the pairs that it answers for, as `.attn` text.
        pairs: allowed pairs of this mask, one head; None where sets cannot count them.
        pairs_computed: pairs in visited tiles, one head, padding included; None where data decides.
    """

    layout: str
    form: str
    library: str | None
    mask: str
    pairs: int | float | None
    pairs_computed: int | float | None
    tiles: Tiles


def count_pass(attention: Attention, one: Pass, sizes: Sizes) -> tuple[PassCost, str]:
    """Count what one pass visits, and say why the counts are a bound or missing."""
    own = replace(attention, mask=one.mask)
    tiles, note = _tiles(own, one.tiles, one.layout, sizes)
    library = None if one.library is None else one.library.value
    pairs = None
    if not tables(one.mask) and not tables(attention.align.shift):
        pairs = count_pairs_by_sets(
            own,
            sizes[SizeName.QUERIES],
            sizes[SizeName.KEYS],
            sizes[SizeName.HEADS],
            head_size=sizes[SizeName.HEAD_SIZE],
        )
    computed = None
    if tiles.full is not None and tiles.partial is not None:
        computed = number(Fraction(tiles.full + tiles.partial) * tiles.query * tiles.key)
    found = None if pairs is None else number(pairs)
    return PassCost(str(one.layout), one.form.value, library, show(one.mask), found, computed, tiles), note


def together(passes: tuple[PassCost, ...]) -> Tiles:
    """Return the tiles of all passes; of the sizes that the first one has."""
    first = passes[0].tiles

    def total(kind: str) -> int | float | None:
        counts = [getattr(one.tiles, kind) for one in passes]
        return None if any(count is None for count in counts) else sum(counts)

    return Tiles(first.query, first.key, total("full"), total("partial"), total("empty"))


def _tiles(attention: Attention, tiles: TileSets, layout: Layout, sizes: Sizes) -> tuple[Tiles, str]:
    query_tile, key_tile = tiles.query_tile, tiles.key_tile
    if bounds_read(tiles) or tables(attention.align.shift):
        return Tiles(query_tile, key_tile, None, None, None), "the data of a call decides which tiles are visited"
    looked_at = _steps(tiles, layout, sizes)
    if looked_at > MOST_TILES:
        return Tiles(query_tile, key_tile, None, None, None), "too many tiles to count: try a smaller -n"
    note = "" if tiles.exact else "visited tiles are an upper bound: a tile may turn out empty when it is computed"
    if looked_at > MOST_WALKED:
        return _tiles_by_tensors(attention, tiles, layout, sizes), note
    indices = {IndexName.BATCH: 0, IndexName.HEAD: 0}
    counts = count_tiles(
        tiles,
        sizes[SizeName.QUERIES],
        sizes[SizeName.KEYS],
        int(evaluate(attention.align.shift, Environment(indices, sizes))),
        query_tile,
        key_tile,
        sizes[SizeName.HEADS],
        head_size=sizes[SizeName.HEAD_SIZE],
        layout=layout,
    )
    ends = _whole_ends(attention, tiles, layout, sizes)
    full, partial = counts.full + ends, counts.partial - ends
    return Tiles(query_tile, key_tile, number(full), number(partial), number(counts.empty)), note


def _steps(tiles: TileSets, layout: Layout, sizes: Sizes) -> int:
    """Return how many query tiles are walked, or how many tiles are looked at where they are tested one by one."""
    classes = min(layout.classes, sizes[SizeName.QUERIES])
    down = classes * -(-sizes[SizeName.QUERIES] // (layout.classes * tiles.query_tile))
    if all(interval.tile_test is None for interval in tiles.intervals):
        return down
    return down * -(-sizes[SizeName.KEYS] // (layout.classes * tiles.key_tile))


def _whole_ends(attention: Attention, tiles: TileSets, layout: Layout, sizes: Sizes) -> Fraction:
    """Return how many ragged tiles at the end of the keys allow all their real pairs, the mean over heads."""
    if layout.is_grid or (layout.is_plain and sizes[SizeName.KEYS] % tiles.key_tile == 0) or tables(attention.mask):
        return Fraction(0)
    from attnc.tile_map import count_whole_ends

    differ = depends_on(attention.mask, IndexName.HEAD)
    shape = (tiles.query_tile, tiles.key_tile)
    found = [
        count_whole_ends(attention, sizes, query_tile=shape[0], key_tile=shape[1], layout=layout, head=head)
        for head in (range(sizes[SizeName.HEADS]) if differ else range(1))
    ]
    return Fraction(sum(found), len(found))


def _tiles_by_tensors(attention: Attention, tiles: TileSets, layout: Layout, sizes: Sizes) -> Tiles:
    from attnc.tile_map import count_planned

    differ = bounds_differ_by_head(tiles) or depends_on(attention.mask, IndexName.HEAD)
    shape = (tiles.query_tile, tiles.key_tile)
    counts = [
        count_planned(attention, tiles, sizes, query_tile=shape[0], key_tile=shape[1], layout=layout, head=head)
        for head in (range(sizes[SizeName.HEADS]) if differ else range(1))
    ]
    sums = (sum(getattr(one, kind) for one in counts) for kind in ("full", "partial", "empty"))
    return Tiles(*shape, *(number(Fraction(total, len(counts))) for total in sums))


def call_sizes(length: int, heads: int, head_size: int) -> dict[SizeName, int]:
    """Return the sizes of one batch entry of self-attention."""
    return {
        SizeName.BATCH: 1,
        SizeName.HEADS: heads,
        SizeName.QUERIES: length,
        SizeName.KEYS: length,
        SizeName.HEAD_SIZE: head_size,
        SizeName.GROUP: 1,
    }


def number(value: Fraction) -> int | float:
    """Return an int where the number is whole: JSON readers tell them apart."""
    return int(value) if value.denominator == 1 else float(value)
