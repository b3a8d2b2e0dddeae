"""Which tiles of a mask are empty, partial or full at concrete sizes: as a grid of numbers, to count and to draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch

from attnc.algebra.coordinates import KEYS, LOCAL_KEY, LOCAL_QUERY, PLAIN, Layout
from attnc.algebra.counting import bounds_read
from attnc.algebra.key_intervals import Coverage, KeyInterval, TileSets
from attnc.algebra.summaries import summary_source
from attnc.algebra.walking import rows_within
from attnc.blockwise import BLOCK_PAIRS, Inputs, mask_blocks, reads_data
from attnc.ir.nodes import Binary, BinaryOp, Expr, Index, IndexName, Size, SizeName
from attnc.ir.program import Attention
from attnc.ir.types import Type
from attnc.reference import TensorEnvironment, evaluate_tensor, pair_environment
from attnc.runtime.summaries import summarize

GRID_CELLS = 1 << 22
"""Tiles that are classified at once."""


class TileKind(IntEnum):
    """What a program does in a tile; the values are those of a grid's cells."""

    EMPTY = 0
    PARTIAL = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class TileCounts:
    """Tiles of one head."""

    full: int
    partial: int
    empty: int


@dataclass(frozen=True, slots=True)
class TileRows:
    """Some query tiles of a pass, for one batch entry and head.

    Attributes:
        env: what bounds are evaluated at: first and last row, class and shift, each a column or a single number.
        keys: how many keys each tile's class or box has, a column.
    """

    env: TensorEnvironment
    keys: torch.Tensor

    def __len__(self) -> int:
        return len(self.keys)


def planned_rows(
    attention: Attention,
    tiles: TileSets,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None = None,
    *,
    query_tile: int,
    key_tile: int,
    layout: Layout = PLAIN,
    batch: int = 0,
    head: int = 0,
) -> Iterator[tuple[TileRows, torch.Tensor]]:
    """Classify the tiles that a pass visits, from its interval list.

    Yields query tiles, class after class, with a uint8 grid of them by all key tiles of a class; where a class has
    fewer keys than another one, the cells past its end are empty. A tile at the end is full where all its real pairs
    are allowed, although a kernel has to test it.

    Bounds hold for tiles of any size, so a coarser grid than the kernel's is as exact.

    Args:
        attention: whose alignment and inputs count, with the mask of the pass.
        tiles: its interval list.
        sizes: all that bounds use.
        inputs: values of the inputs that bounds, tile tests and alignment read.
        query_tile: rows of a query tile.
        key_tile: keys of a key tile.
        layout: of the interval list.
        batch: the batch entry.
        head: the query head.
    """
    most = -(-sizes[SizeName.KEYS] // layout.key.period) if layout.classes > 1 else sizes[SizeName.KEYS]
    at_once = max(1, GRID_CELLS // max(1, -(-most // key_tile)))
    known = bool(inputs) or not reads_data(attention)
    for rows in _row_tiles(attention, sizes, inputs, layout, query_tile, (batch, head), at_once, bounds_read(tiles)):
        key_low = torch.arange(0, max(1, int(rows.keys.max())), key_tile)
        key_high = torch.minimum(key_low + key_tile, rows.keys) - 1
        here = replace(rows.env, indices={**rows.env.indices, IndexName.KEY_LOW: key_low, IndexName.KEY_HIGH: key_high})
        kinds = torch.zeros(len(rows), len(key_low), dtype=torch.uint8)
        numbers = torch.arange(len(key_low))
        for interval, begin, end in _walk(tiles, here, key_tile):
            visited = (numbers >= begin) & (numbers < end)
            if interval.tile_test is not None:
                visited &= evaluate_tensor(interval.tile_test, here)
            kinds[visited] = TileKind.FULL if interval.coverage is Coverage.FULL else TileKind.PARTIAL
        if known:
            whole = _whole_ends(attention, rows, layout, query_tile, key_tile)
            last = (rows.keys[whole] - 1).div(key_tile, rounding_mode="floor")
            kinds[whole] = kinds[whole].scatter(1, last, int(TileKind.FULL))
        yield rows, kinds


def planned_grid(
    attention: Attention,
    tiles: TileSets,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None = None,
    *,
    query_tile: int,
    key_tile: int,
    batch: int = 0,
    head: int = 0,
) -> Iterator[torch.Tensor]:
    """Classify the tiles that a program visits in plain order; yields blocks of query tiles by all key tiles."""
    for _, kinds in planned_rows(
        attention, tiles, sizes, inputs, query_tile=query_tile, key_tile=key_tile, batch=batch, head=head
    ):
        yield kinds


def count_planned(
    attention: Attention,
    tiles: TileSets,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None = None,
    *,
    query_tile: int,
    key_tile: int,
    layout: Layout = PLAIN,
    batch: int = 0,
    head: int = 0,
) -> TileCounts:
    """Count the tiles that a pass visits in one batch entry and head; see `planned_rows` for the arguments.

    Without tile tests it takes time linear in the length; with them every tile is looked at.
    """
    full = partial = total = 0
    if any(interval.tile_test is not None for interval in tiles.intervals):
        for rows, kinds in planned_rows(
            attention,
            tiles,
            sizes,
            inputs,
            query_tile=query_tile,
            key_tile=key_tile,
            layout=layout,
            batch=batch,
            head=head,
        ):
            total += _key_tiles(rows, key_tile)
            full += int((kinds == TileKind.FULL).sum())
            partial += int((kinds == TileKind.PARTIAL).sum())
        return TileCounts(full, partial, total - full - partial)
    place, known = (batch, head), bool(inputs) or not reads_data(attention)
    for rows in _row_tiles(attention, sizes, inputs, layout, query_tile, place, GRID_CELLS, bounds_read(tiles)):
        total += _key_tiles(rows, key_tile)
        for interval, begin, end in _walk(tiles, rows.env, key_tile):
            count = int((end - begin).sum())
            full += count if interval.coverage is Coverage.FULL else 0
            partial += count if interval.coverage is not Coverage.FULL else 0
        ends = int(_whole_ends(attention, rows, layout, query_tile, key_tile).sum()) if known else 0
        full, partial = full + ends, partial - ends
    return TileCounts(full, partial, total - full - partial)


def count_whole_ends(
    attention: Attention,
    sizes: Mapping[SizeName, int],
    *,
    query_tile: int,
    key_tile: int,
    layout: Layout = PLAIN,
    head: int = 0,
) -> int:
    """Count the tiles at the end of the keys that are ragged, and allow all their real pairs.

    A kernel tests them, so that interval lists call them partial; they are full to whoever counts tiles. Where the mask
    reads data, none is counted.
    """
    if reads_data(attention):
        return 0
    blocks = _row_tiles(attention, sizes, None, layout, query_tile, (0, head), GRID_CELLS)
    return sum(int(_whole_ends(attention, rows, layout, query_tile, key_tile).sum()) for rows in blocks)


def _key_tiles(rows: TileRows, key_tile: int) -> int:
    return int((rows.keys + key_tile - 1).div(key_tile, rounding_mode="floor").sum())


def _whole_ends(attention: Attention, rows: TileRows, layout: Layout, query_tile: int, key_tile: int) -> torch.Tensor:
    """Tell of each query tile whether all its real pairs in a ragged last key tile of its class are allowed.

    Boxes of keys have no such tiles: what is no key may lie anywhere in them.
    """
    found = torch.zeros(len(rows), dtype=torch.bool)
    if layout.is_grid:
        return found
    numbers = (rows.keys.flatten() % key_tile).nonzero().flatten()
    for step in (query_tile - 1, 1):  # few tiles that are not full pass the test of their corners
        offsets = torch.arange(0, query_tile, max(1, step))
        columns = torch.arange(0, key_tile, max(1, key_tile - 1 if step > 1 else 1))
        at_once = max(1, BLOCK_PAIRS // (len(offsets) * len(columns)))
        kept = [numbers[:0]]
        for some in torch.split(numbers, at_once):
            allowed = evaluate_tensor(attention.mask, _pairs_at(rows, some, layout, offsets, columns, key_tile))
            kept.append(some[allowed.expand(len(some), len(offsets), len(columns)).flatten(1).all(1)])
        numbers = torch.cat(kept)
    found[numbers] = True
    return found


def _pairs_at(
    rows: TileRows,
    chosen: torch.Tensor,
    layout: Layout,
    offsets: torch.Tensor,
    columns: torch.Tensor,
    key_tile: int,
) -> TensorEnvironment:
    """Return chosen query tiles' pairs with the last key tile: `(tiles, offsets, columns)`, clipped to real pairs."""
    indices = {name: value[chosen] if len(value.shape) > 1 else value for name, value in rows.env.indices.items()}
    low, high, keys = indices[IndexName.QUERY_LOW], indices[IndexName.QUERY_HIGH], rows.keys[chosen]
    last = keys - 1
    local = {
        IndexName.LOCAL_QUERY: torch.minimum(low + offsets, high).unsqueeze(2),
        IndexName.LOCAL_KEY: torch.minimum(last - last % key_tile + columns, last).unsqueeze(1),
    }
    indices = {name: value.unsqueeze(2) if len(value.shape) > 1 else value for name, value in indices.items()} | local
    env = replace(rows.env, indices=indices)
    query = evaluate_tensor(layout.query.position(LOCAL_QUERY), env)
    key = evaluate_tensor(layout.key.position(LOCAL_KEY), env)
    pair = {IndexName.QUERY: query, IndexName.KEY: key, IndexName.ROW: query - indices[IndexName.SHIFT]}
    return replace(env, indices={**indices, **pair})


def _row_tiles(
    attention: Attention,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None,
    layout: Layout,
    query_tile: int,
    place: tuple[int, int],
    at_once: int,
    read: Sequence[str] = (),
) -> Iterator[TileRows]:
    """Yield blocks of query tiles, class after class or through a grid, for one batch entry and head.

    `read` names the inputs that bounds read; summaries among them are made from the inputs that they sum up.
    """
    one = torch.zeros(1, dtype=torch.int64)
    chosen = {IndexName.BATCH: torch.tensor(place[0]), IndexName.HEAD: torch.tensor(place[1])}
    env = replace(pair_environment(attention, sizes, inputs, rows=one, keys=one), indices=chosen)
    env = replace(env, tables={**env.tables, **_summaries(env, read)})
    shift = evaluate_tensor(attention.align.shift, env)
    rows = torch.arange(min(sizes[SizeName.QUERIES], layout.classes))
    classes: torch.Tensor = ((rows + shift) % layout.classes).unique()  # type: ignore[no-untyped-call]
    env = replace(env, indices={**chosen, IndexName.SHIFT: shift, IndexName.CLASS: classes})
    past = Binary(BinaryOp.ADD, Index(IndexName.SHIFT), Size(SizeName.QUERIES), Type.INT)
    bounds = layout.query.first_from(Index(IndexName.SHIFT)), layout.query.end_before(past)
    start, stop = (evaluate_tensor(bound, env).expand(classes.shape) for bound in bounds)
    query_tile = rows_within(layout, query_tile)
    counts = (stop - start + query_tile - 1).div(query_tile, rounding_mode="floor").clamp(min=0)
    before = counts.cumsum(0) - counts
    owner = torch.repeat_interleave(torch.arange(len(classes)), counts)
    for part in torch.split(torch.arange(len(owner)), at_once):
        mine = owner[part]
        low = start[mine] + (part - before[mine]) * query_tile
        high = torch.minimum(low + query_tile, stop[mine]) - 1
        found = {IndexName.QUERY_LOW: low, IndexName.QUERY_HIGH: high, IndexName.CLASS: classes[mine]}
        columns = {name: value.unsqueeze(1) for name, value in found.items()}
        here = replace(env, indices={**env.indices, **columns})
        yield TileRows(here, evaluate_tensor(layout.key.end_before(KEYS), here).expand(len(part), 1))


def _summaries(env: TensorEnvironment, read: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the summaries among the tables that bounds read; those of unknown inputs stay unknown."""
    wanted = [(name, source) for name in read if (source := summary_source(name)) is not None]
    return {name: summarize(env.tables[table], kind) for name, (table, kind) in wanted if table in env.tables}


def _walk(
    tiles: TileSets, env: TensorEnvironment, key_tile: int
) -> Iterator[tuple[KeyInterval, torch.Tensor, torch.Tensor]]:
    """Walk the interval list for all query tiles of a block together; yields tiles `begin .. end - 1` of each."""
    done = torch.zeros_like(env.indices[IndexName.QUERY_LOW])
    for interval in tiles.intervals:
        begin = torch.maximum(done, _rounded(interval.start, env, key_tile, up=interval.start_up))
        done = torch.maximum(begin, _rounded(interval.stop, env, key_tile, up=interval.stop_up))
        yield interval, begin, done


def _rounded(bound: Expr, env: TensorEnvironment, key_tile: int, *, up: bool) -> torch.Tensor:
    position = evaluate_tensor(bound, env) + (key_tile - 1 if up else 0)
    return torch.div(position, key_tile, rounding_mode="floor")


def evaluated_grid(
    attention: Attention,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None = None,
    *,
    query_tile: int,
    key_tile: int,
    batch: int = 0,
    head: int = 0,
) -> Iterator[torch.Tensor]:
    """Classify tiles by evaluating every pair; yields one row of tiles after the other, uint8 `(1, key tiles)`."""
    padding = -sizes[SizeName.KEYS] % key_tile
    for block in mask_blocks(attention, sizes, inputs, rows_at_once=query_tile):
        batches, heads = block.allowed.shape[:2]
        allowed = block.allowed[min(batch, batches - 1), min(head, heads - 1)]
        touched = _by_tile(allowed, padding, key_tile, value=False).any(2).any(0)
        full = _by_tile(allowed, padding, key_tile, value=True).all(2).all(0)
        yield (touched.to(torch.uint8) + full.to(torch.uint8)).unsqueeze(0)


def _by_tile(allowed: torch.Tensor, padding: int, key_tile: int, *, value: bool) -> torch.Tensor:
    return torch.nn.functional.pad(allowed, (0, padding), value=value).view(len(allowed), -1, key_tile)


def count_kinds(blocks: Iterator[torch.Tensor]) -> TileCounts:
    """Count the tiles of a grid by kind."""
    counts = torch.zeros(3, dtype=torch.int64)
    for block in blocks:
        counts += torch.bincount(block.flatten(), minlength=3)
    return TileCounts(int(counts[TileKind.FULL]), int(counts[TileKind.PARTIAL]), int(counts[TileKind.EMPTY]))
