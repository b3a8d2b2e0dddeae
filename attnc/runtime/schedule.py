"""Which rectangles of pairs a call computes: slabs of query rows, the keys they touch, and equal ones in bands.

Everything here costs O(N / tile), but for the search for jumps, which is O(N) and quick; nothing looks at a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

from attnc.runtime.bands import (
    FAR,
    FULL,
    NOTHING,
    Band,
    Piece,
    cut_pieces,
    far_form_of,
)
from attnc.runtime.costs import Cost, band_time
from attnc.runtime.ranges import RangeFinder, Tile, unite
from attnc.runtime.sections import Run, Section, equal_places

SLABS = (32, 64, 128, 256, 512, 1024)
"""Numbers of rows that slabs may have."""

BASE = SLABS[0]
ALIGN = 16
"""Rectangles are a multiple of this many keys wide, the float32 numbers in a vector register: 320 beat 319 by 12 %."""
GAP = 48
"""Untouched keys between two touched runs that are worth computing to save a call."""
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
    keys = finder.frame.keys.count
    together = replace(cost, splits=tuple((kind, keys + 1) for kind, _ in cost.splits))
    ways = {True: (cost,), False: (together,), None: (cost, together)}[cost.slabs.alone]
    best = _Choice((), False, float("inf"))
    chosen: tuple[list[Tile], Cost] = tiles, cost
    for slabs in _slabs(finder, tiles, cost, place):
        for way in ways:
            found = _choice(finder, slabs, way)
            if found.time < best.time:
                best, chosen = found, (slabs, way)
    merged = _choice(finder, _merge_lone(finder, *chosen, place), chosen[1])
    best = merged if merged.time < best.time else best
    return best.bands, best.covered


@dataclass(frozen=True, slots=True)
class _Choice:
    """Bands of a schedule, and the time that they are expected to take."""

    bands: tuple[Band, ...]
    covered: bool
    time: float


def _choice(finder: RangeFinder, slabs: list[Tile], cost: Cost) -> _Choice:
    bands = [_use_far_forms(finder, band) for band in _bands_of(slabs, cost, finder.frame.keys.count)]
    ordered, covered = _order(bands, finder.frame.rows.count)
    return _Choice(ordered, covered, sum(band_time(finder.frame, band, cost) for band in ordered))


def _merge_lone(finder: RangeFinder, slabs: list[Tile], cost: Cost, place: tuple[Run, Run]) -> list[Tile]:
    """Merge neighbouring slabs none of whose rectangles repeats, two and two, as long as that saves time."""
    keys = finder.frame.keys.count
    repeated = {
        band.row + number * band.row_step
        for band in _bands_of(slabs, cost, keys)
        if band.count > 1
        for number in range(band.count)
    }

    def time(slab: Tile) -> float:
        bands = _bands_of([slab], cost, keys)
        return sum(band_time(finder.frame, replace(band, first=True), cost) for band in bands)

    saves = True
    while saves:
        pairs: list[int] = []
        for number, (left, right) in enumerate(pairwise(slabs)):
            if left.low not in repeated and right.low not in repeated and (not pairs or pairs[-1] < number - 1):
                pairs.append(number)
        united = [unite(slabs[number], slabs[number + 1]) for number in pairs]
        exact = [tile for tile in united if tile.high - tile.low <= finder.frame.sweep.query_tile]
        if exact:
            found = _of_place(finder.tiles([tile.low for tile in exact], [tile.high for tile in exact]), place)
            known = {tile.low: tile for tile in found}
            united = [known.get(tile.low, tile) for tile in united]
        better = {
            tile.low: tile
            for number, tile in zip(pairs, united, strict=True)
            if time(tile) < time(slabs[number]) + time(slabs[number + 1])
        }
        gone = {slabs[number + 1].low for number in pairs if slabs[number].low in better}
        slabs = [better.get(slab.low, slab) for slab in slabs if slab.low not in gone]
        saves = bool(better)
    return slabs


def _slabs(finder: RangeFinder, tiles: list[Tile], cost: Cost, place: tuple[Run, Run]) -> Iterator[list[Tile]]:
    """Yield ways to cut the rows: into slabs of several lengths, counted from the first row or from every jump."""
    queries = finder.frame.rows.count
    jumps = finder.jumps(place, GAP)
    for origins in ([0], jumps) if len(jumps) * BASE <= queries else ([0],):
        if origins is jumps:
            lows = [low for start, stop in pairwise([*origins, queries]) for low in range(start, stop, BASE)]
            tiles = _of_place(finder.tiles(lows, [*lows[1:], queries]), place)
        longest = max(stop - start for start, stop in pairwise([*origins, queries]))
        isolated = _isolate_long_rows(finder, tiles, place, cost)
        possible = [rows for rows in SLABS if rows == BASE or rows < 2 * longest]
        for rows in [cost.slabs.rows] if cost.slabs.rows in possible else possible:
            if origins is not jumps or any(origin % rows for origin in origins):
                yield _merge_tiles(finder, isolated, (rows, origins), place, cost)


def _isolate_long_rows(finder: RangeFinder, tiles: list[Tile], place: tuple[Run, Run], cost: Cost) -> list[Tile]:
    """Halve tiles as long as that saves much: a few long rows must not make their neighbours long."""
    size = BASE
    candidates = list(tiles)
    final: list[Tile] = []
    while size > 1 and candidates:
        size //= 2
        wide = [tile for tile in candidates if tile.high - tile.low > size and tile.area * cost.pair > cost.call]
        if not wide:
            break
        edges = [(tile.low, tile.low + size, tile.high) for tile in wide]
        found = finder.tiles([at for edge in edges for at in edge[:2]], [at for edge in edges for at in edge[1:]])
        parts = _of_place(found, place)
        split = set()
        again: list[Tile] = []
        for number, tile in enumerate(wide):
            pair = parts[2 * number : 2 * number + 2]
            if (tile.area - pair[0].area - pair[1].area) * cost.pair > cost.call and (
                pair[0].area + pair[1].area < 0.7 * tile.area
            ):
                split.add(tile.low)
                again.extend(pair)
        final.extend(tile for tile in candidates if tile.low not in split)
        candidates = again
    final.extend(candidates)
    return sorted(final, key=lambda tile: tile.low)


def _merge_tiles(
    finder: RangeFinder, tiles: list[Tile], cut: tuple[int, list[int]], place: tuple[Run, Run], cost: Cost
) -> list[Tile]:
    """Put neighbours into slabs of at most so many rows, counted from origins, unless one is much longer."""
    rows, origins = cut
    slabs: list[Tile] = []
    starts = iter([*origins[1:], finder.frame.rows.count])
    origin, end = origins[0], next(starts)
    for tile in tiles:
        last = slabs[-1] if slabs else None
        if tile.low >= end:
            origin, end, last = end, next(starts), None
        if (
            last is None
            or (last.low - origin) // rows != (tile.low - origin) // rows
            or not (last.pieces or tile.pieces)
        ):
            slabs.append(tile)
            continue
        merged = unite(last, tile)
        lost = merged.area - last.area - tile.area
        uneven = tile.high - tile.low < BASE or last.high - last.low < BASE
        if uneven and lost * cost.pair > cost.call:
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
    """Add keys that nothing sees until the width is a multiple of `ALIGN`, before or behind, where there are any.

    Before, if possible: then the last rectangle of a window has the same keys beside it as those above.
    """
    first, last = pieces[0][0], pieces[-1][1]
    missing = (first - last) % ALIGN
    if not missing or last - first < ALIGN or all(kind == FULL for _, _, kind in pieces):
        return pieces
    if first >= missing:
        return [(first - missing, first, NOTHING), *pieces]
    return [*pieces, (last, last + missing, NOTHING)] if last + missing <= keys else pieces


def _rectangles(pieces: list[Piece], widest: int) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
    widths = tuple((stop - start, kind) for start, stop, kind in pieces)
    first, last = pieces[0][0], pieces[-1][1]
    for start in range(first, last, widest):
        cut = cut_pieces(widths, start - first, min(start + widest, last) - first)
        yield start, tuple((stop - begin, kind) for begin, stop, kind in cut)


def _bands_of(slabs: list[Tile], cost: Cost, keys: int) -> list[Band]:
    """Make one band of the equal rectangles of slabs at equal distances."""
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
                row_step = band.row_step or slab.low - band.row
                key_step = row_step if name is moving else 0
                if band.row + row_step * band.count == slab.low and (band.count == 1 or band.key_step == key_step):
                    bands[number] = replace(band, count=band.count + 1, row_step=row_step, key_step=key_step)
                    break
            else:
                number = len(bands)
                bands.append(Band(slab.low, rows, key, pieces))
            open_bands[moving] = open_bands[still] = number
    return bands


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
        own = [
            slice(start, start + band.rows)
            for start in (band.row + number * band.row_step for number in range(band.count))
        ]
        ordered.append(replace(band, first=not any(any(seen[places]) for places in own)))
        for places in own:
            seen[places] = b"\x01" * band.rows
    return tuple(ordered), all(seen)
