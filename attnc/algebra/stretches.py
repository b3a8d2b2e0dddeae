"""The keys that the rows of a query tile touch, and those that all of them see, of one group of pairs.

Both come from the row-wise extremes: where row i sees the keys `a(i) .. b(i)`, a tile touches `min a .. max b`, and
`max a .. min b` are full. The last two are written from tiles of useful size alone, where they are simple, and then
shown to hold elsewhere too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.bounds import Bound, BoundsWriter
from attnc.algebra.domains import RowDomain
from attnc.algebra.index_sets import OutOfBudgetError, attempt, budget
from attnc.ir.nodes import Call, Function
from attnc.ir.program import AlignKind
from attnc.ir.types import Type

MOST_CANDIDATES = 6
"""So many convex parts of a stretch are searched for full keys."""

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
        full_exact: whether no other tile of useful size in the stretch is full.
        full_mostly: whether that holds but for a bounded number of rows.
    """

    pairs: isl.Set
    low: Bound
    high: Bound
    present: isl.Set
    contiguous: bool
    full_low: Bound | None = None
    full_high: Bound | None = None
    full_present: isl.Set | None = None
    full_exact: bool = False
    full_mostly: bool = False


@dataclass(frozen=True, slots=True)
class StretchFinder:
    """Finds the stretch of a group of pairs.

    Attributes:
        must: pairs that the mask allows for certain, in the tile's domain.
        full: keys that all rows of the tile see; None where that is too hard to find.
        align: under `END`, full tiles are looked for where `N <= M`.
        first_key, last_key: numbers of the first and the last real key.
    """

    domain: RowDomain
    writer: BoundsWriter
    must: isl.Set
    full: isl.Set | None
    align: AlignKind
    first_key: isl.PwAff
    last_key: isl.PwAff

    @classmethod
    def of(cls, domain: RowDomain, writer: BoundsWriter, must: isl.Set, translator: Translator) -> StretchFinder:
        """Make a finder for a mask."""

        def full_keys() -> isl.Set:
            keys = as_map(domain.pairs).range()
            return keys.subtract(as_map(domain.pairs.subtract(must)).range()).coalesce()

        full = attempt(must.get_ctx(), full_keys)
        return cls(domain, writer, must, full, translator.align, translator.first_key(), translator.last_key())

    @property
    def context(self) -> isl.Context:
        """The isl context of all sets."""
        return self.must.get_ctx()

    def find(self, pairs: isl.Set) -> Run | None:
        """Return the stretch of a group of pairs, by a convex hull where it has gaps or exact bounds are too hard."""
        run = self._touched(pairs)
        if run is None or not run.contiguous:
            run = attempt(self.context, lambda: self._touched(self._relaxed(pairs))) or run
            if run is None:
                return None
            run = replace(run, contiguous=False)
        return self._with_full(replace(run, pairs=pairs))

    def whole(self, pairs: isl.Set) -> Run:
        """Return the stretch of all keys: what is always right.

        Raises:
            OutOfBudgetError: there is no budget left to write even that.
        """
        first, last = self.writer.bound(self.first_key), self.writer.bound(self.last_key)
        if first is None or last is None:
            raise OutOfBudgetError
        return Run(pairs, first, last, self.domain.known, contiguous=False)

    def without(self, run: Run, others: list[isl.Set]) -> Run | None:
        """Return a run without full keys, less the keys that other groups of pairs touch; None if that is too hard."""

        def rest() -> isl.Set:
            keys = as_map(run.pairs).range()
            return reduce(isl.Set.subtract, [as_map(pairs).range() for pairs in others], keys).coalesce()

        keys = attempt(self.context, rest)
        found = None if keys is None else self._stretch(run.pairs, keys)
        if found is None:
            return None
        return found if self.full is None else self._judged(found, self.full)

    def _relaxed(self, pairs: isl.Set) -> isl.Set:
        """Return a convex set around the pairs, without divisions."""
        return isl.Set.from_basic_set(pairs.remove_divs().simple_hull()).intersect(self.domain.pairs)

    def _touched(self, pairs: isl.Set) -> Run | None:
        keys = attempt(self.context, lambda: as_map(pairs).range().coalesce())
        return None if keys is None else self._stretch(pairs, keys)

    def _stretch(self, pairs: isl.Set, keys: isl.Set) -> Run | None:
        try:
            with budget(self.context):
                low, high = keys.dim_min(0), keys.dim_max(0)
                present = keys.params().coalesce()
        except OutOfBudgetError:
            return None
        low_bound, high_bound = self.writer.bound(low), self.writer.bound(high)
        if low_bound is None or high_bound is None:
            return None
        every_key = as_map(self.domain.pairs).range()
        contiguous = bool(attempt(self.context, lambda: between(every_key, low, high).is_subset(keys)))
        return Run(pairs, low_bound, high_bound, present, contiguous)

    # -- full keys

    def _with_full(self, run: Run) -> Run:
        must = attempt(self.context, lambda: self.must.intersect(run.pairs).coalesce())
        if must is None:
            return run
        parts = [isl.Set.from_basic_set(part) for part in must.get_basic_sets()]
        full = self.full
        if full is None:
            return run
        for candidate in [must, *parts][: MOST_CANDIDATES if len(parts) > 1 else 1]:
            found = attempt(self.context, partial(self._full, run, candidate, full))
            if found is not None:
                return self._judged(found, full)
        return self._judged(run, full)

    def _full(self, run: Run, must: isl.Set, full: isl.Set) -> Run | None:
        if must.is_empty() or not row_contiguous(must):
            return None
        seen = as_map(must)
        low, high = seen.lexmin().range().dim_max(0), seen.lexmax().range().dim_min(0)
        rows = self.domain.rows.project_out(isl.dim_type.set, 1, 1)
        every_row = self.domain.known.subtract(rows.subtract(seen.domain()).params()).coalesce()
        low, high = (value.intersect_domain(every_row).coalesce() for value in (low, high))
        useful = self._useful(low, high).coalesce()
        if useful.is_empty():
            return None
        full_low = self.writer.bound(low.intersect_domain(useful))
        full_high = self.writer.bound(high.intersect_domain(useful))
        if full_low is None or full_high is None:
            return None
        full_high = self._real(full_low, full_high)
        stretch = between(as_map(self.domain.pairs).range(), full_low.value, full_high.value)
        for right in (self.domain.known, every_row, useful):
            if stretch.intersect_params(right).is_subset(full):
                return replace(run, full_low=full_low, full_high=full_high, full_present=right)
        return None

    def _real(self, low: Bound, high: Bound) -> Bound:
        """Keep a last full key below `M`, whatever the rows."""
        last = self.last_key
        past = high.value.gt_set(last).intersect(low.value.le_set(high.value)).intersect(self.domain.known)
        if past.is_empty():
            return high
        written = self.writer.bound(last)
        assert written is not None
        return Bound(Call(Function.MIN, (high.expr, written.expr), Type.INT), high.value.min(last).coalesce())

    def _judged(self, run: Run, full: isl.Set) -> Run:
        """Find out which full tiles a run misses."""

        def missed() -> isl.Set:
            missing = full.intersect(between(full, run.low.value, run.high.value))
            if run.full_low is not None and run.full_high is not None and run.full_present is not None:
                stretch = between(full, run.full_low.value, run.full_high.value)
                missing = missing.subtract(stretch.intersect_params(run.full_present))
            return self._useful(missing.dim_min(0), missing.dim_max(0))

        missing = attempt(self.context, missed)
        if missing is None:
            return run
        exact = bool(missing.is_empty())
        return replace(run, full_exact=exact, full_mostly=exact or _bounded(missing, "i_lo"))

    def is_crossed(self, run: Run) -> bool:
        """Tell whether a full tile of useful size may begin in a run and reach past it: no run knows of such."""
        full = self.full
        if full is None:
            return True
        reach = SMALLEST_TILE - 1

        def crossing() -> isl.Set:
            keys = as_map(self.domain.pairs).range()
            last = run.high.value
            held = isl.Map.read_from_str(self.context, f"{{ [key] -> [first] : first <= key <= first + {reach} }}")
            ending = isl.Map.read_from_str(self.context, f"{{ [key] -> [key - {reach}] }}")
            starts = between(keys, _plus(last, 1 - reach), last)
            starts = starts.intersect(keys.apply(ending)).subtract(keys.subtract(full).apply(held))
            return starts.params().intersect(self._tall())

        found = attempt(self.context, crossing)
        return found is None or not found.is_empty()

    def _useful(self, low: isl.PwAff, high: isl.PwAff) -> isl.Set:
        """Return when `low .. high` can hold a tile of useful size."""
        least = isl.PwAff.read_from_str(self.context, f"{{ [{SMALLEST_TILE - 1}] }}")
        return high.sub(low).ge_set(least).intersect(self._tall())

    def _tall(self) -> isl.Set:
        """Return when a query tile is of useful size, and full tiles are looked for."""
        tall = isl.Set.read_from_str(self.context, f"[i_lo, i_hi] -> {{ : i_hi - i_lo >= {SMALLEST_TILE - 1} }}")
        if self.align is AlignKind.END:
            tall = tall.intersect(isl.Set.read_from_str(self.context, "[shift] -> { : shift >= 0 }"))
        return tall


def _plus(value: isl.PwAff, amount: int) -> isl.PwAff:
    return value.add_constant_val(isl.Val.int_from_si(value.get_ctx(), amount))


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


def bounded_below(pairs: isl.Set) -> bool:
    """Tell whether the keys of a tile's rows are known to have a first one.

    What a division is larger than would count as a bound, so that divisions are left out before.
    """
    keys = attempt(pairs.get_ctx(), lambda: as_map(pairs).range().remove_divs())
    return keys is not None and bool(keys.dim_has_lower_bound(isl.dim_type.set, 0))


def between(keys: isl.Set, low: isl.PwAff, high: isl.PwAff) -> isl.Set:
    """Return those of some keys that are in `low .. high`, where `low` and `high` depend on parameters alone."""
    space = keys.get_space()
    key = isl.PwAff.from_aff(isl.Aff.var_on_domain(isl.LocalSpace.from_space(space), isl.dim_type.set, 0))
    inside = key.ge_set(low.insert_domain(space)).intersect(key.le_set(high.insert_domain(space)))
    return inside.intersect(keys)


def _bounded(points: isl.Set, name: str) -> bool:
    """Tell whether a parameter has an upper bound in a set, whatever the others."""
    position = points.find_dim_by_name(isl.dim_type.param, name)
    if position < 0:
        return False
    line = isl.Set.from_params(points).move_dims(isl.dim_type.set, 0, isl.dim_type.param, position, 1)
    line = line.project_out(isl.dim_type.param, 0, line.dim(isl.dim_type.param))
    return bool(line.dim_has_upper_bound(isl.dim_type.set, 0))
