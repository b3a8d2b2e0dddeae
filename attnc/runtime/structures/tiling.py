"""How the product with a sparse matrix is cut into small dense products: rows with like columns are taken together.

A tile is a set of rows and the columns that any of them reads. Tiles with as many rows and columns each are computed by
one batched product. Where their columns are next to each other, and as far from one tile to the next, inputs are read
in place; elsewhere they are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TILE_ROWS = (8, 16, 32, 64, 128, 256)
"""Rows of a tile that are weighed."""

GATHERING = 8
"""What reading one input for a tile costs, in multiplications."""

SLACK = 1.25
"""Tiles are widened to the widest of their batch up to this factor."""

ROWS_ALIKE = 8
"""So many rows with the same columns are a tile of their own."""

MOST_AT_ONCE = 1 << 22
"""Pairs of row and column that are looked at together."""


@dataclass(frozen=True, slots=True, eq=False)
class TileBatch:
    """Tiles of one shape: `count` times `rows` by `width`.

    Attributes:
        outputs: the matrix's row of each row of each tile, (count * rows,); the number of rows where there is none.
        columns: (count, width); None where they are `first + number * step + 0 .. width - 1`.
        present: which elements of `outputs` are rows of the matrix.
        entries: numbers of the matrix's entries that lie in these tiles.
        places: where those lie among the count * rows * width elements.
        sources: the other way round: which entry each of the elements is, one behind the last where it is none; int32.
        held: the first entry where tiles are full, and their entries follow each other in order; None elsewhere.
        written: first, and how far from one tile and from one row to the next, where `outputs` are so and all exist.
    """

    count: int
    rows: int
    width: int
    outputs: Tensor
    columns: Tensor | None
    first: int
    step: int
    present: Tensor
    entries: Tensor
    places: Tensor
    sources: Tensor
    held: int | None
    written: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True, eq=False)
class Tiling:
    """A sparse matrix as batches of tiles.

    Attributes:
        rows, columns: of the matrix.
        row_places: where each row of the matrix is among the rows of all tiles, or behind them if it has no entry.
        entry_places: where each entry is among the entries of all batches.
    """

    rows: int
    columns: int
    batches: tuple[TileBatch, ...]
    row_places: Tensor
    entry_places: Tensor

    @property
    def work(self) -> int:
        """Multiplications for each token, padding included."""
        return sum(batch.count * batch.rows * batch.width for batch in self.batches)

    def to(self, device: torch.device) -> Tiling:
        """Return the same with its index tensors on a device."""
        moved = [
            replace(
                one,
                outputs=one.outputs.to(device),
                columns=None if one.columns is None else one.columns.to(device),
                present=one.present.to(device),
                entries=one.entries.to(device),
                places=one.places.to(device),
                sources=one.sources.to(device),
            )
            for one in self.batches
        ]
        places = self.row_places.to(device), self.entry_places.to(device)
        return Tiling(self.rows, self.columns, tuple(moved), *places)


def entries_of(rows: int, columns: int, condition: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return row and column of the entries for which a condition holds, row by row.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        condition: of rows (R, 1) and columns (1, C), both int64: a bool tensor that broadcasts to (R, C).
    """
    strip = max(1, MOST_AT_ONCE // max(columns, 1))
    across = torch.arange(columns, device="cpu")[None]
    found = []
    for start in range(0, rows, strip):
        down = torch.arange(start, min(start + strip, rows), device="cpu")[:, None]
        allowed = condition(down, across).expand(down.shape[0], columns)
        found.append(allowed.nonzero() + torch.tensor([start, 0], device="cpu"))
    both = torch.cat(found)
    return both[:, 0].contiguous(), both[:, 1].contiguous()


def band_entries(rows: int, columns: int, width: int) -> tuple[Tensor, Tensor]:
    """Return row and column of the entries with `abs(i * columns - j * rows) < width * max(rows, columns)`, by rows."""
    row = torch.arange(rows, dtype=torch.int64, device="cpu")
    reach = width * max(rows, columns)
    first = ((row * columns - reach) // rows + 1).clamp(min=0)
    last = (-((-row * columns - reach) // rows) - 1).clamp(max=columns - 1)
    counts = (last - first + 1).clamp(min=0)
    begins = counts.cumsum(0) - counts
    which = torch.arange(int(counts.sum()), device="cpu")
    return torch.repeat_interleave(row, counts), which + torch.repeat_interleave(first - begins, counts)


def tile_matrix(rows: int, columns: int, row_of: Tensor, column_of: Tensor) -> Tiling:
    """Cut a sparse matrix with at least one entry into tiles.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        row_of: of each entry.
        column_of: of each entry.
    """
    numbers = torch.argsort(row_of * columns + column_of)
    counts = torch.bincount(row_of, minlength=rows).tolist()
    read = list(zip(torch.split(column_of[numbers], counts), torch.split(numbers, counts), strict=True))
    tiles = list(_tiles_of_rows(read, columns))
    batches = [_batch(group, read, rows, numbers.numel()) for group in _batches_of(tiles, columns)]
    outputs = torch.cat([batch.outputs for batch in batches])
    row_places = torch.full((rows + 1,), outputs.numel(), dtype=torch.int64, device="cpu")
    row_places[outputs] = torch.arange(outputs.numel(), device="cpu")
    entry_places = torch.argsort(torch.cat([batch.entries for batch in batches]))
    return Tiling(rows, columns, tuple(batches), row_places[:-1].contiguous(), entry_places)


@dataclass(frozen=True, slots=True, eq=False)
class _RowTile:
    """Rows that are computed together, and what they read, in order."""

    rows: list[int]
    columns: Tensor

    @property
    def width(self) -> int:
        return self.columns.numel()

    @property
    def first(self) -> int:
        return int(self.columns[0])

    @property
    def is_stretch(self) -> bool:
        """Whether the columns are next to each other."""
        return int(self.columns[-1]) - self.first + 1 == self.width


def _tiles_of_rows(read: list[tuple[Tensor, Tensor]], columns: int) -> Iterator[_RowTile]:
    """Take rows with the same columns together, and cut the others into tiles of the cheapest height."""
    alike: dict[tuple[int, ...], list[_RowTile]] = {}
    for row, (of, _) in enumerate(read):
        if not of.numel():
            continue
        found = alike.setdefault((of.numel(), int(of[0]), int(of[-1]), int(of.sum())), [])
        same = next((tile for tile in found if torch.equal(tile.columns, of)), None)
        if same is None:
            found.append(_RowTile([row], of))
        else:
            same.rows.append(row)
    every = [tile for found in alike.values() for tile in found]
    yield from (tile for tile in every if len(tile.rows) >= ROWS_ALIKE)
    single = [(row, tile.columns) for tile in every if len(tile.rows) < ROWS_ALIKE for row in tile.rows]
    single.sort(key=lambda one: one[0])
    yield from min((_tiles_of_height(single, height, columns) for height in TILE_ROWS), key=_cost)


def _tiles_of_height(single: list[tuple[int, Tensor]], height: int, columns: int) -> list[_RowTile]:
    """Cut rows with different columns into tiles, each with all columns of its rows."""
    tiles = []
    for start in range(0, len(single), height):
        some = single[start : start + height]
        reads = torch.zeros(columns, dtype=torch.bool, device="cpu")
        reads[torch.cat([of for _, of in some])] = True
        tiles.append(_RowTile([row for row, _ in some], reads.nonzero()[:, 0]))
    return tiles


def _cost(tiles: list[_RowTile]) -> int:
    return sum(tile.width * (len(tile.rows) + GATHERING) for tile in tiles)


def _batches_of(tiles: list[_RowTile], columns: int) -> Iterator[list[_RowTile]]:
    """Yield tiles that one batched product computes: of about one shape, and in step where they are stretches."""
    stretches = sorted((tile for tile in tiles if tile.is_stretch), key=lambda tile: tile.rows[0])
    others = [tile for tile in tiles if not tile.is_stretch]
    others.sort(key=lambda tile: (len(tile.rows), tile.width, tile.rows[0]))
    for kind in (stretches, others):
        group: list[_RowTile] = []
        for tile in kind:
            if group and not (_even(group, tile) and (kind is others or _in_step(group, tile, columns))):
                yield group
                group = []
            group.append(tile)
        if group:
            yield group


def _even(group: list[_RowTile], tile: _RowTile) -> bool:
    """Tell whether a tile has about as many rows and columns as others."""
    widths = [one.width for one in (*group, tile)]
    heights = [len(one.rows) for one in (*group, tile)]
    return max(widths) <= SLACK * min(widths) and max(heights) <= SLACK * min(heights)


def _in_step(group: list[_RowTile], tile: _RowTile, columns: int) -> bool:
    """Tell whether a stretch goes on as others began, inside the matrix when it is as wide as the widest of them."""
    step = tile.first - group[-1].first
    widest = max(one.width for one in (*group, tile))
    return (
        step >= 0 and (len(group) < 2 or step == group[-1].first - group[-2].first) and tile.first + widest <= columns
    )


def _batch(tiles: list[_RowTile], read: list[tuple[Tensor, Tensor]], rows: int, total: int) -> TileBatch:
    """Lay out tiles of one batched product, those that are smaller than others padded; `total` entries are in all."""
    height, width = max(len(tile.rows) for tile in tiles), max(tile.width for tile in tiles)
    outputs = torch.full((len(tiles), height), rows, dtype=torch.int64, device="cpu")
    gathered = torch.zeros((len(tiles), width), dtype=torch.int64, device="cpu")
    entries, places = [], []
    for number, tile in enumerate(tiles):
        outputs[number, : len(tile.rows)] = torch.tensor(tile.rows, device="cpu")
        gathered[number, : tile.width] = tile.columns
        for place, row in enumerate(tile.rows):
            of_row, numbers = read[row]
            places.append(torch.searchsorted(tile.columns, of_row) + (number * height + place) * width)
            entries.append(numbers)
    stretch = all(tile.is_stretch for tile in tiles)
    held, at = torch.cat(entries), torch.cat(places)
    size, first = len(tiles) * height * width, int(held[0])
    sources = torch.full((size,), total, dtype=torch.int32, device="cpu")
    sources[at] = held.to(torch.int32)
    in_order = torch.equal(sources, torch.arange(first, first + size, dtype=torch.int32, device="cpu"))
    return TileBatch(
        count=len(tiles),
        rows=height,
        width=width,
        outputs=outputs.flatten(),
        columns=None if stretch else gathered,
        first=tiles[0].first if stretch else 0,
        step=tiles[1].first - tiles[0].first if stretch and len(tiles) > 1 else 0,
        present=(outputs.flatten() < rows).nonzero()[:, 0],
        entries=held,
        places=at,
        sources=sources,
        held=first if in_order else None,
        written=_steps(outputs, rows),
    )


def _steps(outputs: Tensor, rows: int) -> tuple[int, int, int] | None:
    """Return what the first row is and how far the next tile and the next row are; None where that is not even."""
    count, height = outputs.shape
    if int(outputs.max()) >= rows:
        return None
    first = int(outputs[0, 0])
    tile = int(outputs[1, 0]) - first if count > 1 else height
    row = int(outputs[0, 1]) - first if height > 1 else 1
    across, down = torch.arange(height, device="cpu"), torch.arange(count, device="cpu")[:, None]
    even = tile >= 0 and torch.equal(outputs, first + down * tile + across * row)
    return (first, tile, row) if even else None
