"""Which tiles of a mask are empty, partial or full at concrete sizes: as a grid of numbers, to count and to draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import torch

from attnc.algebra.key_intervals import Coverage, KeyInterval, TileSets
from attnc.blockwise import BLOCK_PAIRS, Inputs, mask_blocks, reads_data
from attnc.ir.nodes import Expr, IndexName, SizeName
from attnc.ir.program import Attention
from attnc.reference import TensorEnvironment, evaluate_tensor, pair_environment

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
    """Classify the tiles that a program visits, from its interval list.

    Yields uint8 blocks of query tiles, each by all key tiles. A tile at the end is full where all its real pairs are
    allowed, although a kernel has to test it.

    Bounds hold for tiles of any size, so a coarser grid than the kernel's is as exact.

    Args:
        attention: whose alignment and inputs count.
        tiles: its interval list.
        sizes: all that bounds use.
        inputs: values of the inputs that bounds, tile tests and alignment read.
        query_tile: rows of a query tile.
        key_tile: keys of a key tile.
        batch: the batch entry.
        head: the query head.
    """
    key_low = torch.arange(0, sizes[SizeName.KEYS], key_tile)
    place = (batch, head)
    known = bool(inputs) or not reads_data(attention)
    whole = _whole_ends(attention, sizes, inputs, query_tile, key_tile, place) if known else None
    for env in _row_tiles(attention, sizes, inputs, query_tile, place, max(1, GRID_CELLS // len(key_low))):
        key_high = (key_low + key_tile).clamp(max=sizes[SizeName.KEYS]) - 1
        keys = {IndexName.KEY_LOW: key_low, IndexName.KEY_HIGH: key_high}
        here = replace(env, indices={**env.indices, **keys})
        kinds = torch.zeros(len(env.indices[IndexName.QUERY_LOW]), len(key_low), dtype=torch.uint8)
        numbers = torch.arange(len(key_low))
        for interval, begin, end in _walk(tiles, here, key_tile):
            visited = (numbers >= begin) & (numbers < end)
            if interval.tile_test is not None:
                visited &= evaluate_tensor(interval.tile_test, here)
            kinds[visited] = TileKind.FULL if interval.coverage is Coverage.FULL else TileKind.PARTIAL
        if whole is not None:
            rows = env.indices[IndexName.QUERY_LOW].flatten() - env.indices[IndexName.SHIFT].flatten()
            kinds[:, -1].masked_fill_(whole[rows // query_tile], TileKind.FULL)
        yield kinds


def count_planned(
    attention: Attention,
    tiles: TileSets,
    sizes: Mapping[SizeName, int],
    *,
    query_tile: int,
    key_tile: int,
    head: int = 0,
) -> TileCounts:
    """Count the tiles that a program visits in one head.

    Without tile tests it takes time linear in the length; with them every tile is looked at.
    """
    if any(interval.tile_test is not None for interval in tiles.intervals):
        return count_kinds(planned_grid(attention, tiles, sizes, query_tile=query_tile, key_tile=key_tile, head=head))
    full = partial = 0
    for env in _row_tiles(attention, sizes, None, query_tile, (0, head), GRID_CELLS):
        for interval, begin, end in _walk(tiles, env, key_tile):
            count = int((end - begin).sum())
            full += count if interval.coverage is Coverage.FULL else 0
            partial += count if interval.coverage is not Coverage.FULL else 0
    total = -(-sizes[SizeName.QUERIES] // query_tile) * -(-sizes[SizeName.KEYS] // key_tile)
    ends = count_whole_ends(attention, sizes, query_tile=query_tile, key_tile=key_tile, head=head)
    return TileCounts(full + ends, partial - ends, total - full - partial)


def count_whole_ends(
    attention: Attention, sizes: Mapping[SizeName, int], *, query_tile: int, key_tile: int, head: int = 0
) -> int:
    """Count the tiles at the end of the keys that are ragged, and allow all their real pairs.

    A kernel tests them, so that interval lists call them partial; they are full to whoever counts tiles. Where the mask
    reads data, none is counted.
    """
    if reads_data(attention):
        return 0
    found = _whole_ends(attention, sizes, None, query_tile, key_tile, (0, head))
    return 0 if found is None else int(found.sum())


def _whole_ends(
    attention: Attention,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None,
    query_tile: int,
    key_tile: int,
    place: tuple[int, int],
) -> torch.Tensor | None:
    """Tell of each query tile whether all its real pairs in a ragged last key tile are allowed; None without one."""
    length, queries = sizes[SizeName.KEYS], sizes[SizeName.QUERIES]
    if length % key_tile == 0:
        return None
    numbers = torch.arange(-(-queries // query_tile))
    keys = torch.arange(length - length % key_tile, length)
    corners = torch.tensor([0, query_tile - 1]), keys[[0, -1]]
    for offsets, columns in (corners, (torch.arange(query_tile), keys)):  # few tiles that are not full pass the first
        copies = sizes[SizeName.BATCH] * sizes[SizeName.HEADS]
        at_once = max(1, BLOCK_PAIRS // (len(offsets) * len(columns) * copies))
        kept = [numbers[:0]]
        for start in range(0, len(numbers), at_once):
            some = numbers[start : start + at_once]
            rows = (some.unsqueeze(1) * query_tile + offsets).clamp(max=queries - 1).flatten()
            env = pair_environment(attention, sizes, inputs, rows=rows, keys=columns)
            shape = (sizes[SizeName.BATCH], sizes[SizeName.HEADS], len(rows), len(columns))
            chosen = evaluate_tensor(attention.mask, env).expand(shape)[place]
            kept.append(some[chosen.all(1).view(-1, len(offsets)).all(1)])
        numbers = torch.cat(kept)
    found = torch.zeros(-(-queries // query_tile), dtype=torch.bool)
    found[numbers] = True
    return found


def _row_tiles(
    attention: Attention,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None,
    query_tile: int,
    place: tuple[int, int],
    at_once: int,
) -> Iterator[TensorEnvironment]:
    """Yield the environments of blocks of query tiles, their bounds as columns, for one batch entry and head."""
    one = torch.zeros(1, dtype=torch.int64)
    chosen = {IndexName.BATCH: torch.tensor(place[0]), IndexName.HEAD: torch.tensor(place[1])}
    env = replace(pair_environment(attention, sizes, inputs, rows=one, keys=one), indices=chosen)
    shift = evaluate_tensor(attention.align.shift, env)
    queries = sizes[SizeName.QUERIES]
    for first in range(0, queries, query_tile * at_once):
        low = torch.arange(first, min(queries, first + query_tile * at_once), query_tile).unsqueeze(1)
        high = (low + query_tile).clamp(max=queries) - 1
        bounds = {IndexName.SHIFT: shift, IndexName.QUERY_LOW: low + shift, IndexName.QUERY_HIGH: high + shift}
        yield replace(env, indices={**chosen, **bounds})


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
