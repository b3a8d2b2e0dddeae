"""Which rectangles of pairs a call computes: slabs of query rows, the keys they touch, and equal ones in bands.

Everything here costs O(N / tile) and looks at no pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

from attnc.runtime.bands import (
    FAR,
    FULL,
    NOTHING,
    Band,
    Piece,
    cut_pieces,
    far_form_of,
    is_shared,
    is_shared_by_classes,
    mask_period,
)
from attnc.runtime.ranges import RangeFinder, Tile, unite
from attnc.runtime.sections import Frame, Run, Section, equal_places

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


@dataclass(frozen=True, slots=True)
class Schedule:
    """All bands of some entries and heads of a section.

    Attributes:
        entries, heads: index ranges; heads are query heads, whole groups of a key head or a single one.
        covered: every row is in some band.
    """

    entries: Run
    heads: Run
    bands: tuple[Band, ...]
    covered: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """What decides on a schedule.

    Attributes:
        pair: multiply-adds of one pair, all entries and heads.
        splits: unmasked keys from which on they get a call of their own, by what tells which keys beside them are
            allowed; dearer masks are kept smaller.
        widest: most keys of a masked rectangle of `BASE` rows.
        masks_everything: full rectangles need an additive term as well.
    """

    pair: float
    splits: tuple[tuple[int, int], ...]
    widest: int
    masks_everything: bool


def make_schedules(section: Section, cost: Cost) -> tuple[Schedule, ...]:
    """Return the schedules of a section, one for each set of entries and heads that share their bounds."""
    finder = RangeFinder(section)
    entries, groups, members, rows = section.query.shape[:4]
    lows = list(range(0, rows, BASE))
    tiles = finder.tiles(lows, [min(low + BASE, rows) for low in lows])
    schedules = []
    for places, heads in equal_places(tiles, entries, groups * members, members):
        own = tiles[min(places[0], len(tiles) - 1)]
        first = own[min(heads[0], len(own) - 1)]
        schedules.append(Schedule(places, heads, *_make_bands(finder, first, cost, (places, heads))))
    return tuple(schedules)


def _make_bands(
    finder: RangeFinder, tiles: list[Tile], cost: Cost, place: tuple[Run, Run]
) -> tuple[tuple[Band, ...], bool]:
    queries, keys = finder.frame.rows.count, finder.frame.keys.count
    tiles = _isolate_long_rows(finder, tiles, place, cost)
    joined = replace(cost, splits=tuple((kind, keys + 1) for kind, _ in cost.splits))
    best: tuple[tuple[Band, ...], bool] = (), False
    least = float("inf")
    for rows in SLABS:
        if rows > BASE and rows >= 2 * queries:
            break
        slabs = _merge_tiles(finder, tiles, rows, place, cost)
        for way in (cost, joined):
            bands = [_use_far_forms(finder, band) for band in _bands_of(slabs, way, keys)]
            found = _order(bands, queries)
            total = sum(_band_cost(finder.frame, band, cost) for band in found[0])
            if total < least:
                best, least = found, total
    return best


def _isolate_long_rows(finder: RangeFinder, tiles: list[Tile], place: tuple[Run, Run], cost: Cost) -> list[Tile]:
    """Halve tiles as long as that saves much: a few long rows must not make their neighbours long."""
    size = BASE
    candidates = list(tiles)
    final: list[Tile] = []
    while size > 1 and candidates:
        size //= 2
        wide = [tile for tile in candidates if tile.high - tile.low > size and tile.area * cost.pair > CALL]
        if not wide:
            break
        edges = [(tile.low, tile.low + size, tile.high) for tile in wide]
        found = finder.tiles([at for edge in edges for at in edge[:2]], [at for edge in edges for at in edge[1:]])
        parts = _of_place(found, place)
        split = set()
        again: list[Tile] = []
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


def _merge_tiles(finder: RangeFinder, tiles: list[Tile], rows: int, place: tuple[Run, Run], cost: Cost) -> list[Tile]:
    """Put neighbours into slabs of at most `rows` rows, aligned, unless one is much longer than the other."""
    slabs: list[Tile] = []
    for tile in tiles:
        last = slabs[-1] if slabs else None
        if last is None or last.low // rows != tile.low // rows or not (last.pieces or tile.pieces):
            slabs.append(tile)
            continue
        merged = unite(last, tile)
        lost = merged.area - last.area - tile.area
        uneven = tile.high - tile.low < BASE or last.high - last.low < BASE
        if uneven and lost * cost.pair > CALL:
            slabs.append(tile)
        else:
            slabs[-1] = merged
    if rows > finder.frame.sweep.query_tile:
        return slabs
    found = finder.tiles([slab.low for slab in slabs], [slab.high for slab in slabs])
    return _of_place(found, place)


def _of_place(found: list[list[list[Tile]]], place: tuple[Run, Run]) -> list[Tile]:
    """Return tiles that serve all of some entries and heads, whose longer or shorter tiles were equal."""
    entries, heads = (slice(*run) for run in place)
    lines = [line for of_entry in (found if len(found) == 1 else found[entries]) for line in (
        of_entry if len(of_entry) == 1 else of_entry[heads]
    )]  # fmt: skip
    if all(line == lines[0] for line in lines):
        return lines[0]
    return [reduce(unite, tiles) for tiles in zip(*lines, strict=True)]


def _segments(slab: Tile, cost: Cost, keys: int) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
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
        cut = cut_pieces(widths, start - first, min(start + widest, last) - first)
        yield start, tuple((stop - begin, kind) for begin, stop, kind in cut)


def _bands_of(slabs: list[Tile], cost: Cost, keys: int) -> list[Band]:
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


def _band_cost(frame: Frame, band: Band, cost: Cost) -> float:
    """Estimate a band's time. PyTorch's operator takes 32, 64 or 256 rows at once, and a few keys cost like many."""
    at_once = 0.91 if band.rows < 192 else 0.98 if band.rows < 768 else 1.0
    speed = at_once * band.rows / (band.rows + 1) * band.width / (band.width + 24)
    calls = 1 if band.count == 1 or band.key_step or not band.masked else band.count
    classes = frame.rows.classes
    masks = 0
    for width, kind in band.pieces if band.masked else ():
        period = mask_period(frame, kind)
        blocks = 1 if is_shared(frame, band, period) else band.count
        masks += width * blocks * (1 if is_shared_by_classes(frame, period) else classes)
    products = band.count * band.rows * band.width * cost.pair / speed * (1.05 if band.masked else 1.0)
    merges = 0.0 if band.first else band.count * band.rows * MERGE_ROW * cost.pair
    return products + masks * band.rows * MASK_PAIR + merges + calls * min(classes, band.count) * CALL


def _use_far_forms(finder: RangeFinder, band: Band) -> Band:
    """Use simpler conditions for the pieces of a band that lie wholly away from fixed positions."""
    pieces, offset = [], 0
    for width, kind in band.pieces:
        far = far_form_of(finder.frame, kind)
        is_far = far is not None and not finder.meets(far, band.part(0, band.count, offset, width))
        pieces.append((width, kind + FAR if is_far else kind))
        offset += width
    return replace(band, pieces=tuple(pieces))


def _order(bands: list[Band], rows: int) -> tuple[tuple[Band, ...], bool]:
    """Put bands with many rows first, and note which write their rows for the first time."""
    seen = bytearray(rows)
    ordered = []
    for band in sorted(bands, key=lambda band: -band.rows * band.count):
        start, stop = band.row, band.row + band.rows * band.count
        ordered.append(replace(band, first=not any(seen[start:stop])))
        seen[start:stop] = b"\x01" * (stop - start)
    return tuple(ordered), all(seen)
