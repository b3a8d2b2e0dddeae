"""Schedules of passes whose tiles are tested: what the tests exclude is left out, and the rest lies apart.

All tests of a pass are evaluated together, once for each pair of a slab of rows and a tile of keys. The keys that a
slab still visits are gathered, so that one call computes them. Where tiles are wholly allowed, no mask is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from attnc.runtime.bands import FULL, Band, Piece, condition_of, mask_period
from attnc.runtime.blocks import block_pairs, common_shape
from attnc.runtime.costs import KEPT_MASKS, MERGE, Cost, band_time
from attnc.runtime.pairs import Pairs
from attnc.runtime.program import Interval, Pass
from attnc.runtime.ranges import RangeFinder, Tile, unite
from attnc.runtime.schedule import BASE, Schedule, make_schedules
from attnc.runtime.sections import Frame, Section, equal_places

TILE = 64
"""Rows and keys of the tiles that are tested, where tests hold for so many."""

SPLIT = 128
"""Keys that every row sees from which on they get a call of their own, away from those that need a mask."""

MOST_ROWS = 256
"""Most rows of a slab that similar neighbours are joined to."""

WORTH = 0.85
"""Share of the usual time below which tiles are left out: estimates err, and many calls suffer from busy machines."""

MOST_UNITED = 8
"""Pieces of two neighbours up to which they may be joined where they differ."""

FEW_KEYS = 24
"""Keys that a call takes the time of besides its own."""

GATHERED_KEY = 24
"""Time of copying a key and its value into a gathered rectangle, in pairs."""


def choose_schedules(section: Section, cost: Cost) -> tuple[Schedule, ...]:
    """Return the schedules of a section: with tests, those that leave tiles out if that saves time."""
    if not any(interval.test or interval.whole for interval in section.frame.sweep.intervals):
        return make_schedules(section, cost)
    cost = replace(cost, masks=_count_masks(section))
    usual = make_schedules(section, cost)
    found = skipping_schedules(section, cost)
    times = [_time_of_all(section.frame, schedules, cost) for schedules in (found, usual)]
    return found if times[0] < WORTH * times[1] else usual


def _count_masks(section: Section) -> int:
    """Return how many entries and heads have masks of their own, as far as what intervals test tells them apart."""
    first = torch.zeros(1, 1, dtype=torch.long)
    at = block_pairs(section.heads, first, first)
    conditions = (condition_of(section.frame, number) for number in range(len(section.frame.sweep.intervals)))
    shapes = [condition(at).shape for condition in conditions if condition is not None]
    return math.prod(common_shape((1,), *shapes))


def skipping_schedules(section: Section, cost: Cost) -> tuple[Schedule, ...]:
    """Return schedules without what tests exclude."""
    finder = RangeFinder(section)
    entries, groups, members, rows = section.query.shape[:4]
    tiles = _tested_tiles(finder, rows)
    schedules = []
    for places, heads in equal_places(tiles, entries, groups * members, members):
        own = tiles[min(places[0], len(tiles) - 1)]
        slabs = own[min(heads[0], len(own) - 1)]
        count = (places[1] - places[0]) * (heads[1] - heads[0])
        shared = replace(cost, heads=count)
        bands = [band for slab in _joined(slabs, shared) for band in _bands(finder.frame, slab, shared)]
        schedules.append(Schedule(places, heads, *_in_order(_repeated(bands), rows)))
    return tuple(schedules)


# -- what tests leave


def _tested_tiles(finder: RangeFinder, rows: int) -> list[list[list[Tile]]]:
    """Return the slabs of each entry and head; a single entry or head where all are alike."""
    sweep = finder.frame.sweep
    step = min(TILE, sweep.query_tile)
    lows = list(range(0, rows, step))
    highs = [min(low + step, rows) for low in lows]
    bounds = finder.bounds(torch.tensor(lows), torch.tensor(highs))
    at, tile = _grid(finder, sweep)
    found: dict[tuple[int, int, int], list[Piece]] = {}
    places = [bound.unsqueeze(-1) for bound in bounds]
    states = [
        _states(interval, at, *places[2 * number : 2 * number + 2]) for number, interval in enumerate(sweep.intervals)
    ]
    shape = common_shape((1, 1, len(lows), 1), *(state.shape for state in states))
    for number, state in enumerate(states):
        begin, done = (bound.squeeze(-1).expand(shape[:3]).tolist() for bound in places[2 * number : 2 * number + 2])
        for entry, head, slab, first, last, is_full in _runs(state.expand(*shape[:3], -1)):
            low = max(begin[entry][head][slab], first * tile)
            high = min(done[entry][head][slab], last * tile)
            if low < high:
                _append(found.setdefault((entry, head, slab), []), (low, high, FULL if is_full else number))
    return [
        [
            [
                Tile(low, high, tuple(found.get((entry, head, slab), ())))
                for slab, (low, high) in enumerate(zip(lows, highs, strict=True))
            ]
            for head in range(shape[1])
        ]
        for entry in range(shape[0])
    ]


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece behind others, to the last one where it goes on."""
    if pieces and pieces[-1][1] == piece[0] and pieces[-1][2] == piece[2]:
        piece = (pieces.pop()[0], piece[1], piece[2])
    pieces.append(piece)


def _grid(finder: RangeFinder, sweep: Pass) -> tuple[Pairs, int]:
    """Return the coordinates of all tiles, `[X, heads, slabs, tiles]` and what broadcasts to it, and keys of a tile."""
    known, keys, tile = finder.at, finder.frame.keys.count, min(TILE, sweep.key_tile)
    heads = finder.section.heads

    def column(tensor: Tensor | None) -> Tensor | None:
        return tensor.unsqueeze(-1) if tensor is not None and tensor.dim() else tensor

    # floats as in the mask: what rounds there must not be told apart here
    at = Pairs(heads.sizes, heads.tables, heads.dtype, heads.device)
    at.b, at.h, at.c, at.shift = column(known.b), column(known.h), column(known.c), column(known.shift)
    at.i_lo, at.i_hi = column(known.i_lo), column(known.i_hi)
    at.j_lo = torch.arange(0, keys, tile)
    at.j_hi = (at.j_lo + tile - 1).clamp(max=keys - 1)
    return at, tile


def _states(interval: Interval, at: Pairs, begin: Tensor, done: Tensor) -> Tensor:
    """Return 0 for tiles that an interval does not visit, 2 for those that are wholly allowed, else 1."""
    assert at.j_lo is not None
    assert at.j_hi is not None
    here = (at.j_hi >= begin) & (at.j_lo < done)
    if interval.full:
        return here.to(torch.uint8) * 2
    visited = here if interval.test is None else here & interval.test(at)
    state = visited.to(torch.uint8)
    return state if interval.whole is None else state + (visited & interval.whole(at)).to(torch.uint8)


def _runs(state: Tensor) -> Iterator[tuple[int, int, int, int, int, bool]]:
    """Yield entry, head and slab, first tile and the one past the last of each run of equal tiles, and whether full."""
    before = torch.nn.functional.pad(state, (1, 0))[..., :-1]
    after = torch.nn.functional.pad(state, (0, 1))[..., 1:]
    opens = (state != before) & (state != 0)
    closes = ((state != after) & (state != 0)).nonzero()[:, -1]
    for place, last, kind in zip(opens.nonzero().tolist(), closes.tolist(), state[opens].tolist(), strict=True):
        entry, head, slab, first = place
        yield entry, head, slab, first, last + 1, kind == 2


# -- bands


def _joined(slabs: list[Tile], cost: Cost) -> list[Tile]:
    """Join neighbours, two by two and again, where one call for both takes less time."""
    size = max((slab.high - slab.low for slab in slabs), default=MOST_ROWS)
    while size < MOST_ROWS:
        size *= 2
        joined: list[Tile] = []
        for slab in slabs:
            last = joined[-1] if joined else None
            both = None
            if last is not None and last.low // size == slab.low // size and last.pieces and slab.pieces:
                both = _both(last, slab)
            if last is None or both is None or _slab_time(both, cost) > _slab_time(last, cost) + _slab_time(slab, cost):
                joined.append(slab)
            else:
                joined[-1] = both
        slabs = joined
    return slabs


def _both(left: Tile, right: Tile) -> Tile | None:
    """Return two neighbours as one; None where they hardly have the same keys."""
    if left.pieces == right.pieces:
        return Tile(left.low, right.high, left.pieces)
    return unite(left, right) if len(left.pieces) + len(right.pieces) <= MOST_UNITED else None


def _bands(frame: Frame, slab: Tile, cost: Cost) -> Iterator[Band]:
    """Yield the bands of a slab.

    Many keys that every row sees are a band of their own, without a mask; so is what other slabs may repeat.
    """
    full = tuple(piece for piece in slab.pieces if piece[2] == FULL)
    rest = tuple(piece for piece in slab.pieces if piece[2] != FULL)
    repeats = all(mask_period(frame, kind) for _, _, kind in rest)
    many = sum(stop - start for start, stop, _ in full) >= (1 if repeats else SPLIT)
    for pieces in (some for some in ((full, rest) if many else (slab.pieces,)) if some):
        band = _gathered(slab, pieces)
        narrow = band.masked or cost.masks_everything
        widest = max(64, cost.widest * BASE // band.rows) if narrow else band.width
        if widest >= band.width:
            yield band
            continue
        for offset in range(0, band.width, widest):
            yield band.part(0, 1, offset, min(widest, band.width - offset))


def _repeated(bands: list[Band]) -> list[Band]:
    """Make one band of equal rectangles of consecutive slabs, at the same keys or at keys that move with the rows."""
    found: list[Band] = []
    known: dict[object, int] = {}
    for band in bands:
        moving, still = (True, band.rows, band.key - band.row, band.pieces), (False, band.rows, band.key, band.pieces)
        for name, step in ((moving, band.rows), (still, 0)):
            number = known.get(name)
            last = None if number is None or band.starts else found[number]
            if last is None or last.row + last.rows * last.count != band.row:
                continue
            if last.count == 1 or last.key_step == step:
                assert number is not None
                found[number] = replace(last, count=last.count + 1, row_step=last.rows, key_step=step)
                break
        else:
            number = len(found)
            found.append(band)
        if not band.starts:
            known[moving] = known[still] = number
    return found


def _in_order(bands: list[Band], rows: int) -> tuple[tuple[Band, ...], bool]:
    """Put bands with many rows first and note which write their rows first; tell whether all rows are written."""
    seen = bytearray(rows)
    ordered = []
    for band in sorted(bands, key=lambda band: -band.rows * band.count):
        start, stop = band.row, band.row + band.rows * band.count
        ordered.append(replace(band, first=not any(seen[start:stop])))
        seen[start:stop] = b"\x01" * (stop - start)
    return tuple(ordered), all(seen)


def _gathered(slab: Tile, pieces: tuple[Piece, ...]) -> Band:
    widths = tuple((stop - start, kind) for start, stop, kind in pieces)
    apart = any(one[1] != other[0] for one, other in pairwise(pieces))
    starts = tuple(start for start, _, _ in pieces) if apart else ()
    return Band(slab.low, slab.high - slab.low, pieces[0][0], widths, starts=starts)


def _slab_time(slab: Tile, cost: Cost) -> float:
    """Estimate the time of a slab that shares no mask with others."""
    rows, width = slab.high - slab.low, sum(stop - start for start, stop, _ in slab.pieces)
    masked = sum(stop - start for start, stop, kind in slab.pieces if kind != FULL)
    calls = 2 if masked and width - masked >= SPLIT else 1
    pairs = rows * (width + FEW_KEYS * calls) * cost.pair
    merged = rows * (calls - 1) * cost.heads * cost.elements * MERGE / 2
    copied = width * GATHERED_KEY * cost.pair if len(slab.pieces) > 1 else 0.0
    return pairs + merged + copied + masked * rows * cost.mask_pair + calls * cost.call


def _time_of_all(frame: Frame, schedules: tuple[Schedule, ...], cost: Cost) -> float:
    """Estimate the time of schedules together, whose masks are made again by each call where they are too many."""
    masks = sum(
        _of_heads(cost, one).copies * sum(band.rows * band.width for band in one.bands if band.masked)
        for one in schedules
    )
    cost = replace(cost, remembers=cost.remembers and masks <= KEPT_MASKS)
    return sum(_time(frame, one, _of_heads(cost, one)) for one in schedules)


def _of_heads(cost: Cost, schedule: Schedule) -> Cost:
    """Return the cost of the entries and heads that a schedule is for."""
    return replace(cost, heads=(schedule.entries[1] - schedule.entries[0]) * (schedule.heads[1] - schedule.heads[0]))


def _time(frame: Frame, schedule: Schedule, cost: Cost) -> float:
    """Estimate the time of a schedule; `cost` is that of its heads."""
    copied = sum(band.width * GATHERED_KEY * cost.pair for band in schedule.bands if band.starts)
    return copied + sum(band_time(frame, band, cost) for band in schedule.bands)
