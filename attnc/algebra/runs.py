"""Splits a mask into runs, groups of pairs whose keys are one stretch each, and puts them in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations

import islpy as isl

from attnc.algebra.index_sets import attempt, empty, included
from attnc.algebra.stretches import Run, StretchFinder, row_contiguous
from attnc.ir.walk import walk

MOST_PIECES = 8
"""A mask of more convex pieces than this is walked as one stretch."""

MOST_PARTITIONED = 4
"""Up to this many pieces, every grouping is tried."""

_GAPS, _MISSED, _RARELY_MISSED, _NODES_PER_LOOP = 4, 8, 1, 2
"""What gaps, missed full tiles and long bounds are worth, in loops."""


@dataclass(slots=True)
class RunFinder:
    """Finds the runs of one mask.

    Attributes:
        stretches: finds the stretch of each group.
        may: pairs that the mask may allow, in the tile's domain.
    """

    stretches: StretchFinder
    may: isl.Set
    _found: dict[frozenset[int], Run | None] = field(default_factory=dict)

    @property
    def context(self) -> isl.Context:
        """The isl context of all sets."""
        return self.may.get_ctx()

    def find(self) -> tuple[Run, ...]:
        """Return runs in an order in which none needs a key before an earlier one; empty if nothing is allowed."""
        if empty(self.may):
            return ()
        pieces = attempt(self.context, self._pieces) or [self.may]
        partitions = sorted(_partitions(list(range(len(pieces)))), key=len)
        for gaps in (False, True):
            if gaps and len(pieces) >= MOST_PARTITIONED:
                partitions = [[list(range(len(pieces)))]]
            orders = [self._runs(pieces, partition, gaps=gaps) for partition in partitions]
            possible = [runs for runs in orders if runs is not None]
            if possible:
                return self._trimmed(min(possible, key=_effort))
        return (self.stretches.whole(self.may),)

    def _pieces(self) -> list[isl.Set]:
        """Return few sets, each convex up to congruences, that make up the mask."""
        pieces = [isl.Set.from_basic_set(piece) for piece in self.may.coalesce().get_basic_sets()]
        if len(pieces) > MOST_PIECES:
            return [self.may]
        while len(pieces) > MOST_PARTITIONED:
            pair = next((pair for pair in combinations(range(len(pieces)), 2) if _join(pieces, pair) is not None), None)
            joined = None if pair is None else _join(pieces, pair)
            if pair is None or joined is None:
                return [self.may]
            pieces = [joined, *(piece for position, piece in enumerate(pieces) if position not in pair)]
        return pieces

    def _runs(self, pieces: list[isl.Set], partition: list[list[int]], *, gaps: bool) -> tuple[Run, ...] | None:
        """Return the ordered runs of one grouping; None if no order holds.

        Groups of several pieces must be one stretch in each row, unless there may be gaps.
        """
        runs = []
        for group in partition:
            run = self._run(pieces, frozenset(group), gaps=gaps)
            if run is None:
                return None
            runs.append(run)
        return self._ordered(runs)

    def _run(self, pieces: list[isl.Set], group: frozenset[int], *, gaps: bool) -> Run | None:
        if group in self._found:
            return self._found[group]
        pairs = reduce(isl.Set.union, [pieces[position] for position in sorted(group)]).coalesce()
        if len(group) > 1 and not gaps and not attempt(self.context, lambda: row_contiguous(pairs)):
            return None
        self._found[group] = self.stretches.find(pairs)
        return self._found[group]

    def _trimmed(self, runs: tuple[Run, ...]) -> tuple[Run, ...]:
        """Take from small runs the keys that later runs visit anyway, where that keeps the order.

        So the first tiles of a sliding window with sinks belong to the window, and are full there.
        """
        for position, run in enumerate(runs[:-1]):
            if run.full_low is not None:
                continue
            trimmed = self.stretches.without(run, [later.pairs for later in runs[position + 1 :]])
            changed = [*runs[:position], trimmed, *runs[position + 1 :]] if trimmed is not None else None
            ordered = None if changed is None else self._ordered(changed)
            if trimmed is not None and ordered is not None and ordered[position] is trimmed:
                runs = ordered
        return runs

    # -- order

    def _ordered(self, runs: list[Run]) -> tuple[Run, ...] | None:
        """Sort runs so that none starts before an earlier one, and none is hidden by an earlier one."""
        waiting, ordered = list(runs), []
        while waiting:
            first = next((run for run in waiting if all(self._before(run, other) for other in waiting)), None)
            if first is None:
                return None
            ordered.append(first)
            waiting = [run for run in waiting if run is not first]
        hidden = any(self._hidden(later, earlier) for earlier, later in combinations(ordered, 2))
        return None if hidden else tuple(ordered)

    def _before(self, first: Run, second: Run) -> bool:
        if first is second:
            return True
        in_order = attempt(self.context, lambda: first.low.value.le_set(second.low.value))
        return in_order is not None and included(self._both(first, second), in_order)

    def _hidden(self, later: Run, earlier: Run) -> bool:
        """Tell whether `done` is past a run whenever it is reached."""
        past = attempt(self.context, lambda: later.high.value.le_set(earlier.high.value))
        always = later.present.subtract(earlier.present).is_empty()
        return past is not None and always and included(self._both(later, earlier), past)

    def _both(self, first: Run, second: Run) -> isl.Set:
        return first.present.intersect(second.present).intersect(self.stretches.domain.known)


def _join(pieces: list[isl.Set], pair: tuple[int, int]) -> isl.Set | None:
    joined = pieces[pair[0]].union(pieces[pair[1]]).coalesce()
    return joined if row_contiguous(joined) else None


def _partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Yield every way to group a few items."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for partition in _partitions(rest):
        yield [[first], *partition]
        for position, group in enumerate(partition):
            yield [*partition[:position], [first, *group], *partition[position + 1 :]]


def _effort(runs: tuple[Run, ...]) -> float:
    """Rate an interval list: loops cost registers, missed full tiles time, and long bounds the reader's patience."""
    effort = 0.0
    for run in runs:
        effort += 3 if run.full_low is not None else 1
        effort += 0 if run.contiguous else _GAPS
        effort += 0 if run.full_exact else _RARELY_MISSED if run.full_mostly else _MISSED
        bounds = [run.low, run.high, run.full_low, run.full_high]
        effort += sum(len(list(walk(bound.expr))) for bound in bounds if bound is not None) / _NODES_PER_LOOP
    return effort
