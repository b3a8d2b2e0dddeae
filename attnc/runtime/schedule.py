"""Which rectangles of pairs a call computes: slabs of query rows, the keys they touch, and equal ones in bands.

Everything here costs O(N / tile) and looks at no pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.runtime.blocks import common_shape
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.program import Far, Program

Run = tuple[int, int]
"""Keys `start <= j < stop`."""

SLABS = (32, 64, 128, 256, 512, 1024)
"""Numbers of rows that slabs may have."""

BASE = SLABS[0]
ALIGN = 16
"""Rectangles are a multiple of this many keys wide, the float32 numbers in a vector register: 320 beat 319 by 12 %."""
GAP = 48
"""Untouched keys between two touched runs that are worth computing to save a call."""
CALL = 2.0e6
"""Time of one call, in multiply-adds."""
MERGE_ROW = 120
"""Time of merging a row of a further call into the output, in pairs."""
MASK_PAIR = 400
"""Time of evaluating the mask at a pair, in multiply-adds."""
MASK_ELEMENTS = 1 << 22
"""Most elements of a mask that is materialised at once."""


FULL, MASK, NOTHING = -1, -2, -3
"""What tells which pairs of a piece are allowed: all, the whole mask, none. From 0 on: an interval's residual."""
FAR = 1 << 20
"""Added to a kind (a residual's or `MASK`): what it is away from fixed positions, see `Far`."""


@dataclass(frozen=True, slots=True)
class Band:
    """Equal rectangles: block n has rows `row + n * rows ...` and keys `key + n * key_step ...`.

    Attributes:
        pieces: width of each stretch of keys and what tells which of its pairs are allowed.
        first: no earlier band has any of these rows.
    """

    row: int
    rows: int
    key: int
    pieces: tuple[tuple[int, int], ...]
    count: int = 1
    key_step: int = 0
    first: bool = False

    @property
    def width(self) -> int:
        """Keys of each block."""
        return sum(width for width, _ in self.pieces)

    @property
    def masked(self) -> bool:
        """Whether some pair may be masked."""
        return any(kind != FULL for _, kind in self.pieces)

    def part(self, first: int, count: int, offset: int, width: int) -> Band:
        """Return some of the blocks, and of the keys of each."""
        return replace(
            self,
            row=self.row + first * self.rows,
            key=self.key + first * self.key_step + offset,
            pieces=tuple((stop - start, kind) for start, stop, kind in _cut(self.pieces, offset, offset + width)),
            count=count,
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """All bands of some batch entries and heads.

    Attributes:
        batch, heads: index ranges; heads are query heads, whole groups of a key head.
        covered: every row is in some band.
    """

    batch: Run
    heads: Run
    bands: tuple[Band, ...]
    covered: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """What decides on a schedule.

    Attributes:
        pair: multiply-adds of one pair, all heads.
        splits: unmasked keys from which on they get a call of their own, by what tells which keys beside them are
            allowed; dearer masks are kept smaller.
        widest: most keys of a masked rectangle of `BASE` rows.
        masks_everything: full rectangles need an additive term as well.
    """

    pair: float
    splits: tuple[tuple[int, int], ...]
    widest: int
    masks_everything: bool


Piece = tuple[int, int, int]
"""Keys `start <= j < stop`, and what tells which are allowed."""


@dataclass(frozen=True, slots=True)
class _Tile:
    """Rows `low <= r < high` and the keys that they touch, disjoint and in order."""

    low: int
    high: int
    pieces: tuple[Piece, ...]

    @property
    def area(self) -> int:
        return (self.high - self.low) * sum(stop - start for start, stop, _ in self.pieces)

    def runs(self, *, full: bool) -> list[Run]:
        return [(start, stop) for start, stop, kind in self.pieces if not full or kind == FULL]


def make_schedules(program: Program, sizes: Sizes, tables: Mapping[str, Tensor], cost: Cost) -> tuple[Schedule, ...]:
    """Return the schedules of a call, one for each set of batch entries and heads that share their bounds."""
    finder = _RangeFinder(program, sizes, tables)
    lows = list(range(0, sizes.N, BASE))
    tiles = finder.tiles(lows, [min(low + BASE, sizes.N) for low in lows])
    schedules = []
    for batch, heads in _equal_places(tiles, sizes):
        bands, covered = _make_bands(finder, tiles[batch[0]][heads[0]], sizes, cost, (batch[0], heads[0]))
        schedules.append(Schedule(batch, heads, bands, covered))
    return tuple(schedules)


class _RangeFinder:
    """Evaluates the bounds of the interval list for many row ranges at once."""

    def __init__(self, program: Program, sizes: Sizes, tables: Mapping[str, Tensor]) -> None:
        self.program = program
        self.sizes = sizes
        device = torch.device("cpu")
        at = Pairs(sizes, tables, torch.float64, device)
        at.b = torch.arange(sizes.B).view(-1, 1, 1)
        at.h = torch.arange(sizes.H).view(1, -1, 1)
        at.shift = program.shift(at)
        self.at = at

    def tiles(self, lows: list[int], highs: list[int]) -> list[list[list[_Tile]]]:
        """Return the tiles of the row ranges, by batch entry and head; single entries where bounds do not depend."""
        at = self.at
        assert at.shift is not None
        at.i_lo = torch.tensor(lows).view(1, 1, -1) + at.shift
        at.i_hi = torch.tensor(highs).view(1, 1, -1) - 1 + at.shift
        done = torch.zeros((), dtype=torch.int64)
        bounds = []
        for interval in self.program.intervals:
            begin = torch.maximum(done, interval.start(at).clamp(0, self.sizes.M))
            done = torch.maximum(begin, interval.stop(at).clamp(0, self.sizes.M))
            bounds.extend([begin, done])
        if not bounds:
            return [[[_Tile(low, high, ()) for low, high in zip(lows, highs, strict=True)]]]
        full = [interval.full for interval in self.program.intervals]
        shape = common_shape(*(bound.shape for bound in bounds), (1, 1, len(lows)))
        table = torch.stack([bound.expand(shape) for bound in bounds], dim=-1)
        return [
            [
                [_tile(low, high, line, full) for low, high, line in zip(lows, highs, of_head, strict=True)]
                for of_head in of_batch
            ]
            for of_batch in table.tolist()
        ]

    def meets(self, far: Far, band: Band) -> bool:
        """Tell whether a band may meet the lines near which a condition is not what it is far away."""
        at = self.at
        assert at.shift is not None
        last = (band.count - 1) * band.rows, (band.count - 1) * band.key_step
        for row, key in ((band.row, band.key), (band.row + last[0], band.key + last[1])):
            at.r = torch.tensor([row, row + band.rows - 1]).view(1, 1, 2, 1)
            at.i = at.r + at.shift.view(*at.shift.shape[:2], 1, 1) if at.shift.dim() else at.r + at.shift
            at.j = torch.tensor([key, key + band.width - 1]).view(1, 1, 1, 2)
            if bool(far.near(at).any()):
                return True
        return False


def _tile(low: int, high: int, bounds: list[int], full: list[bool]) -> _Tile:
    pieces = [
        (start, stop, FULL if is_full else number)
        for number, (start, stop, is_full) in enumerate(zip(bounds[::2], bounds[1::2], full, strict=True))
        if stop > start
    ]
    return _Tile(low, high, tuple(pieces))


def _cut(pieces: tuple[tuple[int, int], ...], start: int, stop: int) -> list[Piece]:
    """Return the parts of consecutive pieces that lie between two offsets."""
    found, at = [], 0
    for width, kind in pieces:
        low, high = max(at, start), min(at + width, stop)
        if low < high:
            found.append((low, high, kind))
        at += width
    return found


def _join(runs: list[Run], gap: int) -> tuple[Run, ...]:
    """Return the union of runs as disjoint runs in order; gaps of at most `gap` keys are filled."""
    joined: list[Run] = []
    for start, stop in sorted(runs):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return tuple(joined)


def _meet(left: tuple[Run, ...], right: tuple[Run, ...]) -> tuple[Run, ...]:
    """Return the intersection of two lists of disjoint runs in order."""
    met, a, b = [], 0, 0
    while a < len(left) and b < len(right):
        start, stop = max(left[a][0], right[b][0]), min(left[a][1], right[b][1])
        if start < stop:
            met.append((start, stop))
        if left[a][1] < right[b][1]:
            a += 1
        else:
            b += 1
    return tuple(met)


def _equal_places(tiles: list[list[list[_Tile]]], sizes: Sizes) -> Iterator[tuple[Run, Run]]:
    """Yield ranges of batch entries and heads whose tiles are equal: neighbours together."""
    by_head = len(tiles[0]) > 1
    for first, last in _stretches(tiles):
        batch = (0, sizes.B) if len(tiles) == 1 else (first, last)
        if not by_head:
            yield batch, (0, sizes.H)
            continue
        groups = [tiles[first][start : start + sizes.g] for start in range(0, sizes.H, sizes.g)]
        if any(group.count(group[0]) != len(group) for group in groups):
            for entry in range(sizes.H):
                yield batch, (entry, entry + 1)
            continue
        for start, stop in _stretches(groups):
            yield batch, (start * sizes.g, stop * sizes.g)


def _stretches(items: list) -> Iterator[Run]:  # type: ignore[type-arg]
    start = 0
    for at in range(1, len(items) + 1):
        if at == len(items) or items[at] != items[start]:
            yield start, at
            start = at


def _make_bands(
    finder: _RangeFinder, tiles: list[_Tile], sizes: Sizes, cost: Cost, place: tuple[int, int]
) -> tuple[tuple[Band, ...], bool]:
    tiles = _isolate_long_rows(finder, tiles, place, cost)
    joined = replace(cost, splits=tuple((kind, sizes.M + 1) for kind, _ in cost.splits))
    best: tuple[tuple[Band, ...], bool] = (), False
    least = float("inf")
    for rows in SLABS:
        if rows > BASE and rows >= 2 * sizes.N:
            break
        slabs = _merge_tiles(finder, tiles, rows, place, cost)
        for way in (cost, joined):
            bands = [_use_far_forms(finder, band) for band in _bands_of(slabs, way, sizes.M)]
            found = _order(bands, sizes.N)
            total = sum(_band_cost(finder.program, band, cost) for band in found[0])
            if total < least:
                best, least = found, total
    return best


def _isolate_long_rows(finder: _RangeFinder, tiles: list[_Tile], place: tuple[int, int], cost: Cost) -> list[_Tile]:
    """Halve tiles as long as that saves much: a few long rows must not make their neighbours long."""
    size = BASE
    candidates = list(tiles)
    final: list[_Tile] = []
    while size > 1 and candidates:
        size //= 2
        wide = [tile for tile in candidates if tile.high - tile.low > size and tile.area * cost.pair > CALL]
        if not wide:
            break
        edges = [(tile.low, tile.low + size, tile.high) for tile in wide]
        found = finder.tiles([at for edge in edges for at in edge[:2]], [at for edge in edges for at in edge[1:]])
        parts = _of_place(found, place)
        split = set()
        again: list[_Tile] = []
        for number, tile in enumerate(wide):
            pair = parts[2 * number : 2 * number + 2]
            if (tile.area - pair[0].area - pair[1].area) * cost.pair > CALL and (
                pair[0].area + pair[1].area < 0.7 * tile.area
            ):
                split.add(tile.low)
                again.extend(pair)
        final.extend(tile for tile in candidates if tile.low not in split)
        candidates = again
    final.extend(candidates)
    return sorted(final, key=lambda tile: tile.low)


def _merge_tiles(
    finder: _RangeFinder, tiles: list[_Tile], rows: int, place: tuple[int, int], cost: Cost
) -> list[_Tile]:
    """Put neighbours into slabs of at most `rows` rows, aligned, unless one is much longer than the other."""
    slabs: list[_Tile] = []
    for tile in tiles:
        last = slabs[-1] if slabs else None
        if last is None or last.low // rows != tile.low // rows or not (last.pieces or tile.pieces):
            slabs.append(tile)
            continue
        merged = _unite(last, tile)
        lost = merged.area - last.area - tile.area
        uneven = tile.high - tile.low < BASE or last.high - last.low < BASE
        if uneven and lost * cost.pair > CALL:
            slabs.append(tile)
        else:
            slabs[-1] = merged
    if rows > finder.program.query_tile:
        return slabs
    found = finder.tiles([slab.low for slab in slabs], [slab.high for slab in slabs])
    return _of_place(found, place)


def _unite(left: _Tile, right: _Tile) -> _Tile:
    """Return the tile of the rows of two neighbours: full where both are, the mask elsewhere."""
    touched = _join(left.runs(full=False) + right.runs(full=False), 0)
    both = _meet(_join(left.runs(full=True), 0), _join(right.runs(full=True), 0))
    pieces: list[Piece] = []
    for start, stop in touched:
        at = start
        for low, high in _meet(((start, stop),), both):
            if low > at:
                pieces.append((at, low, MASK))
            pieces.append((low, high, FULL))
            at = high
        if stop > at:
            pieces.append((at, stop, MASK))
    return _Tile(left.low, right.high, tuple(pieces))


def _of_place(found: list[list[list[_Tile]]], place: tuple[int, int]) -> list[_Tile]:
    of_batch = found[min(place[0], len(found) - 1)]
    return of_batch[min(place[1], len(of_batch) - 1)]


def _segments(slab: _Tile, cost: Cost, keys: int) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
    """Yield first key and pieces of each rectangle of a slab; `keys` is M."""
    widest = max(128, cost.widest * BASE // (slab.high - slab.low))
    gathered: list[Piece] = []
    splits = dict(cost.splits)
    for number, piece in enumerate(slab.pieces):
        beside = [
            other[2]
            for other in slab.pieces[max(0, number - 1) : number + 2]
            if other[2] != FULL and (other[1] == piece[0] or other[0] == piece[1])
        ]
        split = min((splits[kind] for kind in beside), default=0)
        alone = piece[2] == FULL and piece[1] - piece[0] >= split
        far = gathered and piece[0] - gathered[-1][1] > GAP
        if gathered and (alone or far):
            yield from _rectangles(_padded(gathered, keys), widest)
            gathered = []
        if alone:
            start, stop, _ = piece
            follows = number + 1 < len(slab.pieces) and slab.pieces[number + 1][0] == stop
            spare = (stop - start) % ALIGN if follows and slab.pieces[number + 1][2] != FULL else 0
            whole = (start, stop - spare, FULL)
            yield from _rectangles([whole], widest if cost.masks_everything else stop - spare - start)
            if spare:
                gathered.append((stop - spare, stop, FULL))
            continue
        if gathered and piece[0] > gathered[-1][1]:
            gathered.append((gathered[-1][1], piece[0], NOTHING))
        gathered.append(piece)
    if gathered:
        yield from _rectangles(_padded(gathered, keys), widest)


def _padded(pieces: list[Piece], keys: int) -> list[Piece]:
    """Add keys that nothing sees until the width is a multiple of `ALIGN`, before or behind, where there are any."""
    first, last = pieces[0][0], pieces[-1][1]
    missing = (first - last) % ALIGN
    if not missing or last - first < ALIGN:
        return pieces
    if last + missing <= keys:
        return [*pieces, (last, last + missing, NOTHING)]
    return [(first - missing, first, NOTHING), *pieces] if first >= missing else pieces


def _rectangles(pieces: list[Piece], widest: int) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
    widths = tuple((stop - start, kind) for start, stop, kind in pieces)
    first, last = pieces[0][0], pieces[-1][1]
    for start in range(first, last, widest):
        cut = _cut(widths, start - first, min(start + widest, last) - first)
        yield start, tuple((stop - begin, kind) for begin, stop, kind in cut)


def _bands_of(slabs: list[_Tile], cost: Cost, keys: int) -> list[Band]:
    """Make one band of the equal rectangles of consecutive slabs."""
    bands: list[Band] = []
    open_bands: dict[object, int] = {}
    for slab in slabs:
        rows = slab.high - slab.low
        for key, pieces in _segments(slab, cost, keys):
            moving, still = (True, rows, key - slab.low, pieces), (False, rows, key, pieces)
            for name in (moving, still):
                number = open_bands.get(name)
                if number is None:
                    continue
                band = bands[number]
                step = rows if name is moving else 0
                if band.row + band.rows * band.count == slab.low and (band.count == 1 or band.key_step == step):
                    bands[number] = replace(band, count=band.count + 1, key_step=step)
                    break
            else:
                number = len(bands)
                bands.append(Band(slab.low, rows, key, pieces))
            open_bands[moving] = open_bands[still] = number
    return bands


def _band_cost(program: Program, band: Band, cost: Cost) -> float:
    """Estimate a band's time. PyTorch's operator takes 32, 64 or 256 rows at once, and a few keys cost like many."""
    at_once = 0.91 if band.rows < 192 else 0.98 if band.rows < 768 else 1.0
    speed = at_once * band.rows / (band.rows + 1) * band.width / (band.width + 24)
    calls = 1 if band.count == 1 or band.key_step or not band.masked else band.count
    masks = sum(
        width * (1 if is_shared(band, mask_period(program, kind)) else band.count) for width, kind in band.pieces
    )
    products = band.count * band.rows * band.width * cost.pair / speed * (1.05 if band.masked else 1.0)
    merges = 0.0 if band.first else band.count * band.rows * MERGE_ROW * cost.pair
    return products + masks * band.rows * MASK_PAIR * (1 if band.masked else 0) + merges + calls * CALL


def mask_period(program: Program, kind: int) -> int:
    """Return the period of what tells which pairs of a piece are allowed."""
    if kind in (FULL, NOTHING):
        return 1
    if kind >= FAR + MASK:
        far = far_form_of(program, kind - FAR)
        return 0 if far is None else far.period
    return program.period if kind == MASK else program.intervals[kind].period


def far_form_of(program: Program, kind: int) -> Far | None:
    """Return what a mask or residual is away from fixed positions."""
    if kind in (FULL, NOTHING):
        return None
    return program.far if kind == MASK else program.intervals[kind].far


def _use_far_forms(finder: _RangeFinder, band: Band) -> Band:
    """Use simpler conditions for the pieces of a band that lie wholly away from fixed positions."""
    pieces, offset = [], 0
    for width, kind in band.pieces:
        far = far_form_of(finder.program, kind)
        is_far = far is not None and not finder.meets(far, band.part(0, band.count, offset, width))
        pieces.append((width, kind + FAR if is_far else kind))
        offset += width
    return replace(band, pieces=tuple(pieces))


def is_shared(band: Band, period: int) -> bool:
    """Tell whether an expression with this period is the same on all blocks of a band."""
    return band.count > 1 and period > 0 and band.key_step == band.rows and band.rows % period == 0


def _order(bands: list[Band], rows: int) -> tuple[tuple[Band, ...], bool]:
    """Put bands with many rows first, and note which write their rows for the first time."""
    seen = bytearray(rows)
    ordered = []
    for band in sorted(bands, key=lambda band: -band.rows * band.count):
        start, stop = band.row, band.row + band.rows * band.count
        ordered.append(replace(band, first=not any(seen[start:stop])))
        seen[start:stop] = b"\x01" * (stop - start)
    return tuple(ordered), all(seen)
