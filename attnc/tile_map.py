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
    whole = pair_environment(attention, sizes, inputs, rows=torch.zeros(1, dtype=torch.int64))
    chosen = {IndexName.BATCH: torch.tensor(batch), IndexName.HEAD: torch.tensor(head)}
    env = replace(whole, indices=chosen)
    shift = int(evaluate_tensor(attention.align.shift, env))
    queries, keys = sizes[SizeName.QUERIES], sizes[SizeName.KEYS]
    key_low = torch.arange(0, keys, key_tile)
    at_once = max(1, GRID_CELLS // len(key_low))
    for first in range(0, queries, query_tile * at_once):
        low = torch.arange(first, min(queries, first + query_tile * at_once), query_tile).unsqueeze(1)
        indices = {
            **chosen,
            IndexName.SHIFT: torch.tensor(shift),
            IndexName.QUERY_LOW: low + shift,
            IndexName.QUERY_HIGH: (low + query_tile).clamp(max=queries) - 1 + shift,
            IndexName.KEY_LOW: key_low,
            IndexName.KEY_HIGH: (key_low + key_tile).clamp(max=keys) - 1,
        }
        yield _walk(tiles, replace(env, indices=indices), low, key_low, key_tile)


def _walk(
    tiles: TileSets, env: TensorEnvironment, low: torch.Tensor, key_low: torch.Tensor, key_tile: int
) -> torch.Tensor:
    """Walk the interval list for all query tiles of a block together."""
    kinds = torch.zeros(len(low), len(key_low), dtype=torch.uint8)
    numbers = torch.arange(len(key_low))
    done = torch.zeros_like(low)
    for interval in tiles.intervals:
        begin = torch.maximum(done, _rounded(interval.start, env, key_tile, up=interval.start_up))
        done = torch.maximum(begin, _rounded(interval.stop, env, key_tile, up=interval.stop_up))
        visited = (numbers >= begin) & (numbers < done) & _passes(interval, env)
        kinds[visited] = TileKind.FULL if interval.coverage is Coverage.FULL else TileKind.PARTIAL
    return kinds


def _rounded(bound: Expr, env: TensorEnvironment, key_tile: int, *, up: bool) -> torch.Tensor:
    position = evaluate_tensor(bound, env) + (key_tile - 1 if up else 0)
    return torch.div(position, key_tile, rounding_mode="floor")


def _passes(interval: KeyInterval, env: TensorEnvironment) -> torch.Tensor:
    return torch.tensor(True) if interval.tile_test is None else evaluate_tensor(interval.tile_test, env)


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
