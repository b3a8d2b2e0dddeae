"""When programs end that are started in a given order: what uneven rows cost at the end of a launch."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

MOST_PROGRAMS = 1 << 14
"""Programs beyond which nothing is simulated: of so many the last ones are a small share."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The tiles of rows of a launch.

    Attributes:
        lengths: tiles of keys that tiles of rows visit, in the order in which those of one sequence are started: all of
            them, or some evenly spaced ones; empty if they are not known.
        tiles: of rows in a sequence, which is a head of a batch entry.
        sequences: number of those.
        turn: sequences that take turns, see `runtime.tiles.count_turn`.
    """

    lengths: tuple[float, ...] = ()
    tiles: int = 0
    sequences: int = 0
    turn: int = 1

    def in_order(self) -> Iterator[float]:
        """Yield the tiles of keys of every program, in the order in which programs are started."""
        for first in range(0, self.sequences, self.turn):
            members = min(self.turn, self.sequences - first)
            for number in range(self.tiles):
                length = self.lengths[number * len(self.lengths) // self.tiles]
                for _ in range(members):
                    yield length


UNKNOWN_ROWS = Rows()


@lru_cache(maxsize=4096)
def imbalance(rows: Rows, slots: int, start: float, *, dealt: bool = False) -> float:
    """Return how many times as long a launch takes as it would with all slots busy until the end.

    Args:
        rows: that it computes.
        slots: programs that run at the same time.
        start: what a tile of rows takes besides its tiles of keys, in the time of one of those.
        dealt: whether tiles of rows are dealt to persistent programs, one for each slot.
    """
    count = rows.tiles * rows.sequences
    if not rows.lengths or not slots < count <= MOST_PROGRAMS:
        return 1.0
    times = [length + start for length in rows.in_order()]
    return (last_dealt_end if dealt else last_end)(times, slots) * slots / sum(times)


def last_end(times: Sequence[float], slots: int) -> float:
    """Return when the last program ends: each is started, in order, where another one ends first."""
    ends = [0.0] * slots
    for time in times:
        heapq.heapreplace(ends, ends[0] + time)
    return max(ends)


def last_dealt_end(times: Sequence[float], slots: int) -> float:
    """Return when the last program ends to which tiles are dealt there and back, see `kernel_math.dealt_tile`."""
    ends = [0.0] * slots
    for number, time in enumerate(times):
        deal, place = divmod(number, slots)
        ends[slots - 1 - place if deal % 2 else place] += time
    return max(ends)
