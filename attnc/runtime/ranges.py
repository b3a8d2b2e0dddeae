"""The keys that ranges of rows touch, found from the bounds of a pass without looking at any pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.runtime.bands import FULL, MASK, Band, Piece
from attnc.runtime.blocks import common_shape
from attnc.runtime.pairs import Pairs
from attnc.runtime.program import Far
from attnc.runtime.sections import Run, Section

_JUMP_ELEMENTS = 1 << 21
"""Most rows, over entries and heads, that are searched for jumps one by one."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows `low <= r < high` of a section and the keys that they touch, disjoint and in order."""

    low: int
    high: int
    pieces: tuple[Piece, ...]

    @property
    def area(self) -> int:
        """Pairs of rows and touched keys."""
        return (self.high - self.low) * sum(stop - start for start, stop, _ in self.pieces)

    def runs(self, *, full: bool) -> list[Run]:
        """Return the touched keys, or those alone that every row sees."""
        return [(start, stop) for start, stop, kind in self.pieces if not full or kind == FULL]


class RangeFinder:
    """Evaluates the bounds of the interval list for many row ranges of a section at once."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.frame = section.frame
        heads = section.heads
        assert heads.b is not None
        assert heads.h is not None
        at = Pairs(heads.sizes, heads.tables, torch.float64, torch.device("cpu"))
        at.b = heads.b.reshape(-1, 1, 1)
        at.h = heads.h.reshape(1, -1, 1)
        at.c = torch.arange(self.frame.rows.classes).view(-1, 1, 1) + self.frame.first_class
        at.shift = section.call.program.shift(at)
        self.at = at

    def tiles(self, lows: list[int], highs: list[int]) -> list[list[list[Tile]]]:
        """Return the tiles of the row ranges, by entry and head; a single entry or head where all are alike."""
        table = self._bounds(torch.tensor(lows), torch.tensor(highs))
        if table is None:
            return [[[Tile(low, high, ()) for low, high in zip(lows, highs, strict=True)]]]
        for axis in (0, 1):
            if table.shape[axis] > 1 and bool((table == table.narrow(axis, 0, 1)).all()):
                table = table.narrow(axis, 0, 1)
        full = [interval.full for interval in self.frame.sweep.intervals]
        return [
            [
                [_tile(low, high, line, full) for low, high, line in zip(lows, highs, of_head, strict=True)]
                for of_head in of_entry
            ]
            for of_entry in table.tolist()
        ]

    def jumps(self, place: tuple[Run, Run], least: int) -> list[int]:
        """Return the rows of some entries and heads where the keys begin or end much further on than one row earlier.

        Args:
            place: the entries and heads.
            least: keys of a jump. The first row always counts as one.
        """
        rows = torch.arange(self.frame.rows.count)
        if rows.numel() * self.at_most > _JUMP_ELEMENTS:
            return [0]
        table = self._bounds(rows, rows + 1)
        if table is None or rows.numel() < 2:
            return [0]
        for axis, run in enumerate(place):
            table = table[(slice(None),) * axis + (slice(*run),)] if table.shape[axis] > 1 else table
        far = (table.diff(dim=2).abs() >= least).flatten(0, 1).any(0).any(-1)
        return [0, *(far.nonzero().flatten() + 1).tolist()]

    @property
    def at_most(self) -> int:
        """Entries and heads that bounds may differ by."""
        return self.section.query.shape[:3].numel()

    def _bounds(self, lows: Tensor, highs: Tensor) -> Tensor | None:
        """Return where each interval begins and ends, `[X, heads, ranges, 2 * intervals]`; None without intervals."""
        bounds = self.bounds(lows, highs)
        if not bounds:
            return None
        shape = common_shape(*(bound.shape for bound in bounds), (1, 1, lows.numel()))
        return torch.stack([bound.expand(shape) for bound in bounds], dim=-1)

    def bounds(self, lows: Tensor, highs: Tensor) -> list[Tensor]:
        """Return first key, and first key past the last, of each interval for row ranges: `[X, heads, ranges]`."""
        at, keys = self.at, self.frame.keys.count
        low = at.shift if self.frame.low is None else self.frame.low
        assert low is not None
        at.i_lo = lows.view(1, 1, -1) + low
        at.i_hi = highs.view(1, 1, -1) - 1 + low
        done = torch.zeros((), dtype=torch.int64)
        bounds = []
        for interval in self.frame.sweep.intervals:
            begin = torch.maximum(done, interval.start(at).clamp(0, keys))
            done = torch.maximum(begin, interval.stop(at).clamp(0, keys))
            bounds.extend([begin, done])
        return bounds

    def meets(self, far: Far, band: Band) -> bool:
        """Tell whether a band may meet the lines near which a condition is not what it is far away."""
        at = self.at
        assert at.shift is not None
        shift = at.shift.view(*at.shift.shape[:2], 1, 1) if at.shift.dim() else at.shift
        rows, keys = self.frame.rows, self.frame.keys
        apart = torch.tensor([0, rows.classes - 1]).view(2, 1, 1, 1)
        for block in self._outermost(band):
            row, key = band.row + block * band.row_step, band.key + block * band.key_step
            at.r = torch.tensor([rows.index(row), rows.index(row + band.rows - 1)]).view(1, 1, 2, 1) + apart
            at.i = at.r + shift
            at.j = torch.tensor([keys.index(key), keys.index(key + band.width - 1)]).view(1, 1, 1, 2) + apart
            if bool(far.near(at).any()):
                return True
        return False

    def _outermost(self, band: Band) -> Iterator[int]:
        """Yield blocks of a band between which all others lie: the first and the last where positions are linear."""
        if self.frame.rows.is_view and self.frame.keys.is_view:
            yield from {0, band.count - 1}
        else:
            yield from range(band.count)


def _tile(low: int, high: int, bounds: list[int], full: list[bool]) -> Tile:
    pieces = [
        (start, stop, FULL if is_full else number)
        for number, (start, stop, is_full) in enumerate(zip(bounds[::2], bounds[1::2], full, strict=True))
        if stop > start
    ]
    return Tile(low, high, tuple(pieces))


def join(runs: list[Run], gap: int) -> tuple[Run, ...]:
    """Return the union of runs as disjoint runs in order; gaps of at most `gap` keys are filled."""
    joined: list[Run] = []
    for start, stop in sorted(runs):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return tuple(joined)


def meet(left: tuple[Run, ...], right: tuple[Run, ...]) -> tuple[Run, ...]:
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


def unite(left: Tile, right: Tile) -> Tile:
    """Return the tile of the rows of two neighbours: full where both are, the mask elsewhere."""
    touched = join(left.runs(full=False) + right.runs(full=False), 0)
    both = meet(join(left.runs(full=True), 0), join(right.runs(full=True), 0))
    pieces: list[Piece] = []
    for start, stop in touched:
        at = start
        for low, high in meet(((start, stop),), both):
            if low > at:
                pieces.append((at, low, MASK))
            pieces.append((low, high, FULL))
            at = high
        if stop > at:
            pieces.append((at, stop, MASK))
    return Tile(left.low, right.high, tuple(pieces))
