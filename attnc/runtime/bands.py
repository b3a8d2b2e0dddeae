"""Equal rectangles of pairs at equal distances, and how their masks repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from attnc.runtime.program import Far, Formula, Program
from attnc.runtime.sections import Frame

FULL, MASK, NOTHING = -1, -2, -3
"""What tells which pairs of a piece are allowed: all, the whole mask, none. From 0 on: an interval's residual."""
FAR = 1 << 20
"""Added to a kind (a residual's or `MASK`): what it is away from fixed positions, see `Far`."""

ALIKE = -1
"""In place of a period: all blocks of a band are alike."""

Piece = tuple[int, int, int]
"""Keys from `start` up to, and without, `stop`, and what tells which are allowed."""


@dataclass(frozen=True, slots=True)
class Band:
    """Equal rectangles: block n has rows `row + n * row_step ...` and keys `key + n * key_step ...`.

    Attributes:
        pieces: width of each stretch of keys and what tells which of its pairs are allowed.
        starts: first key of each piece where they do not lie side by side, of a single block; else empty.
        row_step: at least `rows` if there are several blocks, so that no two share a row.
        first: no earlier band of its pass has any of these rows.
    """

    row: int
    rows: int
    key: int
    pieces: tuple[tuple[int, int], ...]
    count: int = 1
    row_step: int = 0
    key_step: int = 0
    first: bool = False
    starts: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Keys of each block."""
        return sum(width for width, _ in self.pieces)

    @property
    def masked(self) -> bool:
        """Whether some pair may be masked."""
        return any(kind != FULL for _, kind in self.pieces)

    def as_one_block(self) -> Band:
        """Return neighbouring blocks that read the same keys as a single one, which does where nothing is masked."""
        if self.count == 1 or self.key_step or self.row_step != self.rows:
            return self
        return replace(self, rows=self.rows * self.count, count=1, row_step=0)

    def part(self, first: int, count: int, offset: int, width: int) -> Band:
        """Return some of the blocks, and of the keys of each."""
        pieces = cut_pieces(self.pieces, offset, offset + width)
        key, starts = self.key + first * self.key_step + offset, self._starts_of(offset, offset + width)
        return replace(
            self,
            row=self.row + first * self.row_step,
            key=starts[0] if starts else key,
            pieces=tuple((stop - start, kind) for start, stop, kind in pieces),
            count=count,
            starts=starts,
        )

    def _starts_of(self, first: int, last: int) -> tuple[int, ...]:
        """Return where the parts of the pieces begin that lie between two offsets."""
        found, at = [], 0
        for start, (width, _) in zip(self.starts, self.pieces, strict=bool(self.starts)):
            if max(at, first) < min(at + width, last):
                found.append(start + max(at, first) - at)
            at += width
        return tuple(found)

    def runs(self) -> list[tuple[int, int]]:
        """Return the first key and the width of each piece of a single block."""
        widths = [width for width, _ in self.pieces]
        starts = self.starts or [self.key + sum(widths[:number]) for number in range(len(widths))]
        return list(zip(starts, widths, strict=True))


def bands_in_step(bands: Sequence[Band]) -> Iterator[tuple[Band, ...]]:
    """Yield bands in order, those together whose blocks with one number lie side by side, between other numbers'."""
    for (count, row_step, key_step), group in groupby(bands, lambda band: (band.count, band.row_step, band.key_step)):
        found = tuple(group)
        span = max(band.row + band.rows for band in found) - min(band.row for band in found)
        if count > 1 and key_step and span <= row_step:
            yield found
        else:
            yield from ((band,) for band in found)


def cut_pieces(pieces: tuple[tuple[int, int], ...], start: int, stop: int) -> list[Piece]:
    """Return the parts of consecutive pieces that lie between two offsets."""
    found, at = [], 0
    for width, kind in pieces:
        low, high = max(at, start), min(at + width, stop)
        if low < high:
            found.append((low, high, kind))
        at += width
    return found


def condition_of(frame: Frame, kind: int) -> Formula | None:
    """Return what tells which pairs of a kind of piece are allowed; None for all or nothing."""
    if kind >= FAR + MASK:
        far = far_form_of(frame, kind - FAR)
        return None if far is None else far.condition
    if kind in (FULL, NOTHING):
        return None
    return frame.sweep.mask if kind == MASK else frame.sweep.intervals[kind].residual


def mask_period(frame: Frame, kind: int) -> int:
    """Return the period of what tells which pairs of a piece are allowed, or `ALIKE`."""
    if kind in (FULL, NOTHING):
        return 1
    if frame.alike:
        return ALIKE
    if kind >= FAR + MASK:
        far = far_form_of(frame, kind - FAR)
        return 0 if far is None else far.period
    return frame.sweep.period if kind == MASK else frame.sweep.intervals[kind].period


def far_form_of(frame: Frame, kind: int) -> Far | None:
    """Return what a mask or residual is away from fixed positions."""
    if kind in (FULL, NOTHING):
        return None
    return frame.sweep.far if kind == MASK else frame.sweep.intervals[kind].far


def mask_periods(program: Program, frame: Frame, band: Band) -> list[int]:
    """Return the periods of everything that is added to the products of a band."""
    periods = [mask_period(frame, kind) for _, kind in band.pieces]
    return periods if program.bias is None else [*periods, program.bias_period]


def follows_diagonals(program: Program, frame: Frame, masked: bool) -> bool:
    """Tell whether what is added to the products of a frame is told by the distance of query and key alone.

    Args:
        program: of the call.
        frame: rows and keys.
        masked: whether some pair may be masked.
    """
    if program.bias is None or program.bias_period != 1 or frame.sweep.grid is not None or frame.rows.classes > 1:
        return False
    step = frame.rows.distance(1)
    if step is None or step != frame.keys.distance(1):
        return False
    return not masked or (frame.sweep.mask is not None and frame.sweep.period == 1)


def is_shared(frame: Frame, band: Band, period: int) -> bool:
    """Tell whether an expression with this period is the same on all blocks of a band."""
    if band.count == 1 or period == 0:
        return False
    if period == ALIKE:
        return True
    rows, keys = frame.rows.distance(band.row_step), frame.keys.distance(band.key_step)
    return rows is not None and rows == keys and rows % period == 0


def is_shared_by_classes(frame: Frame, period: int) -> bool:
    """Tell whether an expression with this period is the same in all classes: they are one position apart."""
    return frame.rows.classes > 1 and period == 1
