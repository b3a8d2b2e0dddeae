"""Splits a mask into runs: groups of pairs whose keys, for the rows of a query tile, are one stretch each.

A run knows the keys that some row touches, `low .. high`, and the keys in it that every row may see,
`full_low .. full_high`. Both come from the row-wise extremes: where row i sees the keys `a(i) .. b(i)`, a tile touches
`min a .. max b`, and `max a .. min b` are full.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import islpy as isl

from attnc.algebra.bounds import Bound, BoundsWriter
from attnc.algebra.domains import RowDomain
from attnc.algebra.index_sets import OutOfBudgetError, attempt, budget, empty, included

MOST_PIECES = 8
"""A mask of more convex pieces than this is walked as one stretch."""

SMALLEST_TILE = 16
"""Full tiles matter from this many rows and keys on: no target has smaller ones."""


@dataclass(frozen=True, slots=True)
class Run:
    """One stretch of keys.

    Attributes:
        pairs: the pairs that it answers for; those of all runs together are the mask's `may`.
        low, high: first and last touched key where `present`.
        present: parameters for which any key is touched.
        contiguous: whether every key of the stretch is touched.
        full_low, full_high: the keys that all rows see, where `full_low <= full_high`; None if there are none worth
            a loop.
        full_present: parameters for which `full_low .. full_high` is right; elsewhere there is no full key.
        full_exact: whether no other key of the stretch is seen by all rows.
    """

    pairs: isl.Set
    low: Bound
    high: Bound
    present: isl.Set
    contiguous: bool
    full_low: Bound | None = None
    full_high: Bound | None = None
    full_present: isl.Set | None = None
    full_exact: bool = True


@dataclass(frozen=True, slots=True)
class RunFinder:
    """Finds the runs of one mask.

    Attributes:
        must, may: the mask in the tile's domain.
    """

    domain: RowDomain
    writer: BoundsWriter
    must: isl.Set
    may: isl.Set

    @property
    def context(self) -> isl.Context:
        """The isl context of all sets."""
        return self.may.get_ctx()

    def find(self) -> tuple[Run, ...]:
        """Return runs in an order in which none needs a key before an earlier one; empty if nothing is allowed."""
        if empty(self.may):
            return ()
        groups = attempt(self.context, self._groups) or [self.may]
        found = [self._run(group) for group in groups]
        runs = [run for run in found if run is not None]
        if len(runs) < len(found):
            return (self._whole(),)
        while True:
            ordered = self._ordered(runs)
            if ordered is not None:
                return tuple(ordered)
            merged = self._run(runs[0].pairs.union(runs[1].pairs))
            if merged is None:
                return (self._whole(),)
            runs = [merged, *runs[2:]]

    def _groups(self) -> list[isl.Set]:
        """Join convex pieces as long as each row's keys stay one stretch."""
        pieces = [isl.Set.from_basic_set(piece) for piece in self.may.coalesce().get_basic_sets()]
        if len(pieces) > MOST_PIECES:
            return [self.may]
        position = 0
        while position < len(pieces):
            for other in range(position + 1, len(pieces)):
                union = pieces[position].union(pieces[other]).coalesce()
                if union.n_basic_set() == 1 or row_contiguous(union):
                    pieces[position] = union
                    del pieces[other]
                    position = -1
                    break
            position += 1
        return pieces

    def _whole(self) -> Run:
        """Return the run of all keys: what is always right."""
        zero, last = (
            isl.Aff.read_from_str(self.context, "{ [0] }"),
            isl.Aff.read_from_str(self.context, "[M] -> { [M - 1] }"),
        )
        low = self.writer.bound(isl.PwAff.from_aff(zero))
        high = self.writer.bound(isl.PwAff.from_aff(last))
        assert low is not None
        assert high is not None
        return Run(self.may, low, high, self.domain.known, contiguous=False, full_exact=False)

    def _run(self, pairs: isl.Set) -> Run | None:
        """Return the run of a group of pairs, by its hull where exact bounds are out of reach."""
        exact = self._touched(pairs)
        run = exact if exact is not None else self._touched(self._relaxed(pairs))
        if run is None:
            return None
        contiguous = exact is not None and run.contiguous
        run = Run(pairs, run.low, run.high, run.present, contiguous, full_exact=empty(self.must))
        return self._with_full(run)

    def _relaxed(self, pairs: isl.Set) -> isl.Set:
        """Return a convex set around the pairs, without divisions."""
        return isl.Set.from_basic_set(pairs.remove_divs().simple_hull()).intersect(self.domain.pairs)

    def _touched(self, pairs: isl.Set) -> Run | None:
        try:
            with budget(self.context):
                keys = as_map(pairs).range().coalesce()
                low, high = keys.dim_min(0), keys.dim_max(0)
                present = keys.params().coalesce()
        except OutOfBudgetError:
            return None
        low_bound, high_bound = self.writer.bound(low), self.writer.bound(high)
        if low_bound is None or high_bound is None:
            return None
        contiguous = bool(attempt(self.context, lambda: between(keys, low, high).is_subset(keys)))
        return Run(pairs, low_bound, high_bound, present, contiguous)

    def _with_full(self, run: Run) -> Run:
        must = self.must.intersect(run.pairs)
        candidates = [must, *(isl.Set.from_basic_set(piece) for piece in must.coalesce().get_basic_sets())]
        if len(candidates) == 2:
            candidates.pop()
        for candidate in candidates[: MOST_PIECES + 1]:
            found = attempt(self.context, partial(self._full, run, candidate))
            if found is not None:
                return found
        return run

    def _full(self, run: Run, must: isl.Set) -> Run | None:
        if must.is_empty() or not row_contiguous(must):
            return None
        seen = as_map(must)
        low, high = seen.lexmin().range().dim_max(0), seen.lexmax().range().dim_min(0)
        rows = self.domain.rows.project_out(isl.dim_type.set, 1, 1)
        every_row = self.domain.known.subtract(rows.subtract(seen.domain()).params()).coalesce()
        low, high = low.intersect_domain(every_row), high.intersect_domain(every_row)
        if not self._worthwhile(low, high):
            return None
        full_low, full_high = self.writer.bound(low), self.writer.bound(high)
        if full_low is None or full_high is None:
            return None
        unseen = as_map(self.domain.pairs.subtract(self.must)).range()
        keys = as_map(self.domain.pairs).range()
        full = keys.subtract(unseen).coalesce()
        stretch = between(keys, full_low.value, full_high.value).intersect_params(self.domain.known)
        everywhere = bool(stretch.is_subset(full))
        here = between(keys, run.low.value, run.high.value)
        exact = bool(full.intersect(here).is_subset(stretch))
        return Run(
            run.pairs,
            run.low,
            run.high,
            run.present,
            run.contiguous,
            full_low,
            full_high,
            self.domain.known if everywhere else every_row,
            exact,
        )

    def _worthwhile(self, low: isl.PwAff, high: isl.PwAff) -> bool:
        """Tell whether any tile of useful size is full."""
        least = isl.PwAff.read_from_str(self.context, f"{{ [{SMALLEST_TILE - 1}] }}")
        tall = isl.Set.read_from_str(self.context, f"[i_lo, i_hi] -> {{ : i_hi - i_lo >= {SMALLEST_TILE - 1} }}")
        return not high.sub(low).ge_set(least).intersect(tall).is_empty()

    # -- order

    def _ordered(self, runs: list[Run]) -> list[Run] | None:
        """Sort runs so that none starts before an earlier one; None if that cannot be proven of any order."""
        waiting, ordered = list(runs), []
        while waiting:
            first = next((run for run in waiting if all(self._before(run, other) for other in waiting)), None)
            if first is None:
                return None
            ordered.append(first)
            waiting = [run for run in waiting if run is not first]
        return ordered

    def _before(self, first: Run, second: Run) -> bool:
        if first is second:
            return True
        both = first.present.intersect(second.present).intersect(self.domain.known)
        in_order = attempt(self.context, lambda: first.low.value.le_set(second.low.value))
        return in_order is not None and included(both, in_order)


def as_map(pairs: isl.Set) -> isl.Map:
    """Return a set of pairs as a map from rows to keys."""
    return isl.Map.from_range(pairs).move_dims(isl.dim_type.in_, 0, isl.dim_type.out, 0, 1)


def row_contiguous(pairs: isl.Set) -> bool:
    """Tell whether each row's keys are one stretch. Runs under the caller's budget."""
    keys = as_map(pairs)
    space = keys.get_space().range()
    upward, downward = isl.Map.lex_le(space), isl.Map.lex_ge(space)
    hull = keys.apply_range(upward).intersect(keys.apply_range(downward))
    return bool(hull.is_subset(keys))


def between(keys: isl.Set, low: isl.PwAff, high: isl.PwAff) -> isl.Set:
    """Return the keys `low .. high`, where `low` and `high` depend on parameters alone."""
    space = keys.get_space()
    key = isl.PwAff.from_aff(isl.Aff.var_on_domain(isl.LocalSpace.from_space(space), isl.dim_type.set, 0))
    first, last = low.insert_domain(space), high.insert_domain(space)
    return key.ge_set(first).intersect(key.le_set(last))
