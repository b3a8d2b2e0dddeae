"""Which tiles of a mask are empty, partial or full at concrete sizes: as a grid of numbers, to count and to draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import torch

from attnc.algebra.key_intervals import Coverage, KeyInterval, TileSets
from attnc.blockwise import Inputs, mask_blocks
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

    Yields uint8 blocks of query tiles, each by all key tiles.

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
    return TileCounts(full, partial, total - full - partial)


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
        padded = torch.nn.functional.pad(allowed, (0, padding)).view(len(allowed), -1, key_tile)
        touched, full = padded.any(2).any(0), padded.all(2).all(0)
        yield (touched.to(torch.uint8) + full.to(torch.uint8)).unsqueeze(0)


def count_kinds(blocks: Iterator[torch.Tensor]) -> TileCounts:
    """Count the tiles of a grid by kind."""
    counts = torch.zeros(3, dtype=torch.int64)
    for block in blocks:
        counts += torch.bincount(block.flatten(), minlength=3)
    return TileCounts(int(counts[TileKind.FULL]), int(counts[TileKind.PARTIAL]), int(counts[TileKind.EMPTY]))
