"""A `BlockMask` of FlexAttention from a pattern's interval list: equal to `create_block_mask`'s, block for block.

`create_block_mask` evaluates the mask at every pair. Here the blocks that a row of blocks visits, and those that are
full, come from the bounds of intervals; the mask is evaluated at the pairs of the other visited blocks alone, and of
those that it makes equal because it has a period, at one's. Memory is that of the `BlockMask` itself, which has a
number for each pair of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.program import Formula

PAIRS_AT_ONCE = 1 << 21
"""Pairs at which the mask is evaluated together."""

SMALLEST_TILE = 16
"""Rows and keys of the smallest tiles that larger blocks are put together from."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's: `(b, h, q_idx, kv_idx) -> bool`."""


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys `start <= j < stop` of a tile of query rows; ranges are walked in order, each from where the last ended.

    Attributes:
        full: every pair is allowed; otherwise some may be.
        test: whether a tile of keys holds an allowed pair; None where every visited tile does, or nothing is known.
    """

    start: Formula
    stop: Formula
    full: bool = False
    test: Formula | None = None


@dataclass(frozen=True, slots=True)
class BlockSets:
    """What is known of a mask's blocks.

    Attributes:
        shift: position of the first query row.
        ranges: keys that a tile of query rows visits.
        may_hold: whether a tile may hold an allowed pair, by what tables hold along its rows and keys; None where that
            does not help.
        query_tile, key_tile: the largest tile for which their tests hold.
        period: the mask does not change when query and key move by so many positions together; 0 if it may.
        by_batch, by_head: whether the mask depends on the batch entry, on the head.
    """

    shift: Formula
    ranges: tuple[KeyRange, ...]
    query_tile: int
    key_tile: int
    by_batch: bool
    by_head: bool
    may_hold: Formula | None = None
    period: int = 0


def build_block_mask(
    sets: BlockSets, mask_mod: MaskMod, sizes: Sizes, tables: Mapping[str, Tensor], device: torch.device,
    block_size: tuple[int, int],
) -> BlockMask:  # fmt: skip
    """Return the block mask of a call; one row of blocks serves all batch entries, or heads, that share it.

    Args:
        sets: what is known of the mask.
        mask_mod: the mask; it is called with tensors that broadcast.
        sizes: of the call.
        tables: the tensors that bounds of intervals read.
        device: of the result.
        block_size: query rows and keys of a block.
    """
    tile = _tile(block_size[0], sets.query_tile), _tile(block_size[1], sets.key_tile)
    touched, full = _tiles(sets, mask_mod, sizes, tables, device, tile)
    touched, full = (_merged(tiles, block_size, tile, sizes) for tiles in (touched, full))
    partial = touched.any(-1).any(-2) & ~full.all(-1).all(-2)
    partial_count, partial_index = _ordered(partial)
    full_count, full_index = _ordered(full.all(-1).all(-2))
    return BlockMask.from_kv_blocks(
        partial_count,
        partial_index,
        full_count,
        full_index,
        BLOCK_SIZE=block_size,
        mask_mod=mask_mod,
        seq_lengths=(sizes.N, sizes.M),
    )


def _tile(block: int, largest: int) -> int:
    """Return the tile that a block is put together from: as large as the interval list serves, and dividing it."""
    if block <= largest:
        return block
    return next((size for size in range(largest, SMALLEST_TILE - 1, -1) if block % size == 0), block)


def _tiles(
    sets: BlockSets, mask_mod: MaskMod, sizes: Sizes, tables: Mapping[str, Tensor], device: torch.device,
    tile: tuple[int, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return which tiles hold an allowed pair, and which hold nothing else: bool `[B, H, N / rows, M / keys]`."""
    rows, keys = tile
    at = _tile_bounds(sets, sizes, tables, device, rows)
    assert at.i_lo is not None
    numbers = torch.arange(-(-sizes.M // keys), device=device)
    at.j_lo, at.j_hi = numbers * keys, (numbers * keys + keys - 1).clamp(max=sizes.M - 1)
    shape = (sizes.B if sets.by_batch else 1, sizes.H if sets.by_head else 1, at.i_lo.shape[2], len(numbers))
    visited, full = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(2))
    done = numbers.new_zeros(())
    small = rows <= sets.query_tile and keys <= sets.key_tile
    for span in sets.ranges:
        start, stop = (bound(at).clamp(0, sizes.M) for bound in (span.start, span.stop))
        up, down = (keys - 1, 0) if span.full else (0, keys - 1)
        begin = torch.maximum(done, (start + up) // keys)
        done = torch.maximum(begin, (stop + down) // keys)
        here = (numbers >= begin) & (numbers < done)
        if span.full:
            full |= here
        elif span.test is not None and small:
            visited |= here & span.test(at)
        else:
            visited |= here
    if sets.may_hold is not None:
        visited &= sets.may_hold(at)
    complete = _complete(sizes, tile, shape, device)
    visited, full = visited | (full & ~complete), full & complete
    return _evaluated(mask_mod, sizes, tile, visited, full, _Doubt.of(visited, complete, tile, sets.period))


def _tile_bounds(sets: BlockSets, sizes: Sizes, tables: Mapping[str, Tensor], device: torch.device, rows: int) -> Pairs:
    """Return the coordinates of tiles of query rows, `[B, H, tiles, 1]` and what broadcasts to that."""
    at = Pairs(sizes, tables, torch.float32, device)
    at.b = torch.arange(sizes.B, device=device).view(-1, 1, 1, 1)
    at.h = torch.arange(sizes.H, device=device).view(1, -1, 1, 1)
    at.shift = sets.shift(at)
    first = torch.arange(0, sizes.N, rows, device=device).view(1, 1, -1, 1)
    at.i_lo = first + at.shift
    at.i_hi = (first + rows - 1).clamp(max=sizes.N - 1) + at.shift
    return at


def _complete(sizes: Sizes, tile: tuple[int, int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return which tiles do not reach past the last query or key."""
    rows = torch.arange(1, shape[2] + 1, device=device).view(-1, 1) * tile[0] <= sizes.N
    return rows & (torch.arange(1, shape[3] + 1, device=device) * tile[1] <= sizes.M)


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Tiles in doubt, and those among them that are evaluated.

    Attributes:
        places: `[tiles, 4]`: batch entry, head, row of tiles, column of tiles.
        chosen: numbers of the tiles that are evaluated.
        like: for each tile, the number among the chosen ones of the tile that it is like.
    """

    places: Tensor
    chosen: Tensor
    like: Tensor

    @classmethod
    def of(cls, doubtful: Tensor, complete: Tensor, tile: tuple[int, int], period: int) -> _Doubt:
        """Choose one of the tiles that a mask with a period makes equal, but each where they end at the last pair."""
        places = doubtful.nonzero()
        numbers = torch.arange(len(places), device=places.device)
        if not period or not len(places):
            return cls(places, numbers, numbers)
        b, h, row, column = places.unbind(1)
        first = row * tile[0]
        ragged = ~complete.expand(doubtful.shape)[tuple(places.unbind(1))]
        # one number says what a tile is like: its heads, its distance from the diagonal, and where in the period it is
        last = doubtful.shape[2] * tile[0] + doubtful.shape[3] * tile[1]
        distance = first - column * tile[1] + last
        sign = ((b * doubtful.shape[1] + h) * 2 * last + distance) * period + first % period
        kinds, like = torch.unique(torch.where(ragged, -1 - numbers, sign), return_inverse=True)
        chosen = numbers.new_zeros(len(kinds)).scatter_(0, like, numbers)
        return cls(places, chosen, like)


def _evaluated(
    mask_mod: MaskMod, sizes: Sizes, tile: tuple[int, int], touched: Tensor, full: Tensor, doubt: _Doubt
) -> tuple[Tensor, Tensor]:
    """Settle the tiles in doubt by evaluating the mask at the pairs of the chosen ones."""
    touched = touched | full
    if not len(doubt.places):
        return touched, full
    rows, keys = (torch.arange(size, device=touched.device) for size in tile)
    some, every = [], []
    for chunk in torch.split(doubt.places[doubt.chosen], max(1, PAIRS_AT_ONCE // (tile[0] * tile[1]))):
        b, h, query, key = (place.view(-1, 1, 1) for place in chunk.unbind(1))
        query, key = query * tile[0] + rows.view(-1, 1), key * tile[1] + keys
        real = (query < sizes.N) & (key < sizes.M)
        allowed = mask_mod(b, h, query.clamp(max=sizes.N - 1), key.clamp(max=sizes.M - 1)) & real
        pairs = allowed.expand(len(chunk), *tile).flatten(1)
        some.append(pairs.any(1))
        every.append(pairs.all(1))
    where = doubt.places.unbind(1)
    touched[where] = torch.cat(some)[doubt.like]
    full[where] = torch.cat(every)[doubt.like]
    return touched, full


def extent(at: Pairs, name: str, axis: int, low: Tensor, high: Tensor, *places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest element of a table on positions `low .. high`; 0 stands outside of the table.

    Args:
        at: has the tables.
        name: of the table.
        axis: its dimension along which positions go.
        low: first position of each tile.
        high: last position of each tile.
        places: indices of the other dimensions, in order.
    """
    table = at.tables[name]
    reach = int((high - low).max()) + 1
    along = torch.minimum(low.unsqueeze(-1) + torch.arange(reach, device=at.device), high.unsqueeze(-1))
    index = [place.unsqueeze(-1) for place in places]
    index.insert(axis, along)
    inside = at.as_bool(True)
    for size, place in zip(table.shape, index, strict=True):
        inside = inside & (place >= 0) & (place < size)
    if table.numel() == 0:
        values = torch.zeros_like(inside, dtype=torch.int64)
    else:
        clamped = [place.clamp(0, size - 1) for size, place in zip(table.shape, index, strict=True)]
        values = torch.where(inside, table[tuple(clamped)].to(torch.int64), 0)
    least, greatest = torch.aminmax(values, dim=-1)
    return least, greatest


def _merged(tiles: Tensor, block: tuple[int, int], tile: tuple[int, int], sizes: Sizes) -> Tensor:
    """Lay tiles out as `[B, H, blocks, tiles in a block, blocks, tiles in a block]`, with empty ones at the end."""
    by_row, by_key = block[0] // tile[0], block[1] // tile[1]
    blocks = -(-sizes.N // block[0]), -(-sizes.M // block[1])
    padding = (0, blocks[1] * by_key - tiles.shape[3], 0, blocks[0] * by_row - tiles.shape[2])
    padded = torch.nn.functional.pad(tiles, padding)
    return padded.view(*tiles.shape[:2], blocks[0], by_row, blocks[1], by_key)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of each row are set, and their numbers followed by those of the others."""
    flags = blocks.to(torch.int32)
    return flags.sum(-1, dtype=torch.int32), torch.argsort(flags, dim=-1, descending=True, stable=True).to(torch.int32)
