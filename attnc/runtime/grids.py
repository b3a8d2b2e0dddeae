"""Tiles of queries in a grid, and the boxes of keys around them: which rows and keys each has, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.runtime.calls import Call, Store
from attnc.runtime.pairs import Pairs
from attnc.runtime.places import Listed
from attnc.runtime.program import Formula, GridAxis, QueryGrid

BOX_ALIGN = 16
"""Boxes are filled up to a multiple of so many keys, the float32 numbers in a vector register."""

GATHERED_AT_ONCE = 1 << 19
"""About so many numbers of keys are gathered at once: the copies stay in the caches."""

_LARGEST_LISTS = 1 << 21
"""Most rows and keys of the lists of a call for them to be remembered."""


@dataclass(frozen=True, slots=True)
class GridTiles:
    """Some tiles of queries whose boxes have one number of keys.

    Attributes:
        rows, keys: those of the tiles, one tile after the other.
        tile: rows of each.
        alike: whether all have one mask.
    """

    rows: Listed
    keys: Listed
    tile: int
    alike: bool


@dataclass(frozen=True, slots=True)
class _TileTable:
    """All tiles that have a row.

    Attributes:
        rows: index of each point `[tiles, points]`.
        real: which points are rows.
        lows, widths: box of each tile along each axis, `[tiles, axes]`.
        apart: from the tile's first point to the box's first one, likewise.
    """

    rows: Tensor
    real: Tensor
    lows: Tensor
    widths: Tensor
    apart: Tensor


_GRID_TILES: Store[tuple[GridTiles, ...]] = Store(64)


def grid_tiles(
    call: Call, number: int, batch: tuple[int, int], heads: tuple[int, int], shift: int
) -> tuple[GridTiles, ...]:
    """Return the tiles of a pass, those with equal boxes together.

    Args:
        call: that the pass belongs to.
        number: of the pass; it has a grid.
        batch: entries that are computed together.
        heads: query heads that are computed together: where boxes differ between them, all get the widest.
        shift: position of the first row.
    """
    program = call.program
    grid = program.passes[number].grid
    assert grid is not None
    name = (program, call.sizes, number, batch, heads, shift)
    found = _GRID_TILES.get(name)
    if found is None or program.bound_tables:
        table = _make_table(call, grid, batch, heads, shift)
        found = tuple(_groups(call, grid, table, heads, (number, batch, heads, shift)))
        if not program.bound_tables and sum(one.rows.count + one.keys.count for one in found) <= _LARGEST_LISTS:
            _GRID_TILES.put(name, found, 1)
    return found


def _make_table(call: Call, grid: QueryGrid, batch: tuple[int, int], heads: tuple[int, int], shift: int) -> _TileTable:
    axes, sizes = grid.axes, call.sizes
    bounds = [(shift // axes[0].stride, (shift + sizes.N - 1) // axes[0].stride)]
    bounds += [(0, axis.extent - 1) for axis in axes[1:]]
    starts = _mesh([_tile_starts(axis, *bound) for axis, bound in zip(axes, bounds, strict=True)])
    points = _mesh([torch.arange(axis.tile) for axis in axes])
    coordinates = starts.unsqueeze(1) + points
    strides = torch.tensor([axis.stride for axis in axes])
    rows = (coordinates * strides).sum(-1) - shift
    inner = torch.tensor([axis.extent for axis in axes[1:]], dtype=torch.int64)
    real = (rows >= 0) & (rows < sizes.N)
    real &= ((coordinates[..., 1:] >= 0) & (coordinates[..., 1:] < inner)).all(-1)
    kept = real.any(-1)
    starts, rows, real = starts[kept], rows[kept], real[kept]
    lows, highs = [], []
    for place, (axis, (least, most)) in enumerate(zip(axes, bounds, strict=True)):
        first, last = (starts[:, place] + more for more in (0, axis.tile - 1))
        at = _tile_pairs(call, batch, heads, first.clamp(least, most), last.clamp(least, most))
        end = axis.extent - 1 if place else (sizes.M - 1) // axis.stride
        lows.append(_extreme(axis.low, at, 0, len(starts), torch.amin))
        highs.append(_extreme(axis.high, at, end, len(starts), torch.amax).clamp(max=end))
    low = torch.stack(lows, -1)
    widths = (torch.stack(highs, -1) - low + 1).clamp(min=0)
    return _TileTable(rows.clamp(0, sizes.N - 1), real, low, widths, low - starts)


def _tile_starts(axis: GridAxis, first: int, last: int) -> Tensor:
    """Return the first coordinates of the tiles that have coordinates `first .. last`."""
    begin, end = ((place + axis.lead) // axis.tile for place in (first, last))
    return torch.arange(begin, end + 1) * axis.tile - axis.lead


def _mesh(axes: list[Tensor]) -> Tensor:
    """Return all points of a product of axes, `[points, axes]`, the last axis fastest."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def _tile_pairs(call: Call, batch: tuple[int, int], heads: tuple[int, int], first: Tensor, last: Tensor) -> Pairs:
    """Return what bounds of boxes are evaluated at: `[entries, heads, tiles]`."""
    at = Pairs(call.sizes, call.heads.tables, torch.float64, torch.device("cpu"))
    at.b = torch.arange(*batch).view(-1, 1, 1)
    at.h = torch.arange(*heads).view(1, -1, 1)
    at.i_lo, at.i_hi = first.view(1, 1, -1), last.view(1, 1, -1)
    return at


def _extreme(bound: Formula | None, at: Pairs, default: int, count: int, reduce: Callable[..., Tensor]) -> Tensor:
    """Return the bound that serves all entries and heads, tile by tile."""
    if bound is None:
        return torch.full((count,), default)
    found = bound(at)
    found = found.expand(*found.shape[:-1], count) if found.dim() else found.expand(1, 1, count)
    return reduce(found, (0, 1))


def _groups(
    call: Call, grid: QueryGrid, table: _TileTable, heads: tuple[int, int], name: tuple[object, ...]
) -> Iterator[GridTiles]:
    """Yield tiles with boxes of one size; those that lie alike around their tile, where that tells their mask."""
    sizes = call.sizes
    strides = torch.tensor([axis.stride for axis in grid.axes])
    counts = table.widths.prod(-1)
    filled = torch.where(counts > BOX_ALIGN, (counts + BOX_ALIGN - 1) // BOX_ALIGN * BOX_ALIGN, counts).clamp(min=1)
    last = ((table.lows + table.widths - 1) * strides).sum(-1)
    whole = (last < sizes.M) & table.real.all(-1)
    marks = filled.unsqueeze(1)
    if grid.alike:
        # a tile with points that are no rows has a mask of its own, and so has a box with keys past the last one
        lying = torch.cat([table.widths, table.apart], -1)
        marks = torch.cat([marks, torch.where(whole.unsqueeze(1), lying, -1)], -1)
    _, group = marks.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
    for one in range(int(group.max()) + 1):
        members = (group == one).nonzero().flatten()
        width = int(filled[members[0]])
        alike = grid.alike and bool(whole[members[0]])
        each = width * max(sizes.D, sizes.value_size) * (heads[1] - heads[0]) // sizes.g
        for part, tiles in enumerate(torch.split(members, max(1, GATHERED_AT_ONCE // each))):
            yield _listed(table, tiles, width, strides, sizes.M, alike, (*name, one, part))


def _listed(
    table: _TileTable, tiles: Tensor, width: int, strides: Tensor, keys: int, alike: bool, name: tuple[object, ...]
) -> GridTiles:
    rest = torch.arange(width).unsqueeze(0)
    inside = rest < table.widths[tiles].prod(-1, keepdim=True)
    positions = torch.zeros(len(tiles), width, dtype=torch.int64)
    for axis in range(len(strides) - 1, -1, -1):
        own = table.widths[tiles, axis].clamp(min=1).unsqueeze(1)
        step = rest % own if axis else rest
        rest = rest // own
        positions += (table.lows[tiles, axis].unsqueeze(1) + step) * strides[axis]
    positions = torch.where(inside & (positions < keys), positions, keys).flatten()
    rows, real = table.rows[tiles].flatten(), table.real[tiles].flatten()
    return GridTiles(
        Listed((*name, "rows"), rows, None if bool(real.all()) else real.nonzero().flatten()),
        Listed(
            (*name, "keys"), positions, None if bool((positions < keys).all()) else (positions < keys).nonzero()[:, 0]
        ),
        table.rows.shape[1],
        alike,
    )
