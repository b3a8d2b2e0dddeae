"""Which key tiles a query tile visits, which of them are full, and what remains to be tested in the others.

Everything is derived once, over symbolic tile bounds in positions: `start`, `stop` of each interval are expressions
that the kernel evaluates. See `key_intervals` for the contract, and docs/architecture.md for the idea.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.bounds import Bound, BoundsWriter, chosen, plus_one
from attnc.algebra.boxes import derive_boxes
from attnc.algebra.coordinates import KEY_REACH, PLAIN, Layout, query_reach
from attnc.algebra.data_tests import data_test
from attnc.algebra.domains import RowDomain, new_translator, row_domain
from attnc.algebra.extents import TileExtents, TileLimits
from attnc.algebra.index_sets import (
    DEFAULT_OPERATIONS,
    OutOfBudgetError,
    allowance,
    attempt,
    budget,
    empty,
    included,
    new_context,
)
from attnc.algebra.int_exprs import ZERO
from attnc.algebra.key_intervals import Coverage, KeyInterval, TileSets
from attnc.algebra.residuals import Residuals
from attnc.algebra.runs import RunFinder
from attnc.algebra.stretches import Run, StretchFinder, as_map, between, bounded_below
from attnc.algebra.summaries import Summaries
from attnc.algebra.tile_tests import tile_test
from attnc.algebra.truths import Truth, exactly
from attnc.ir.nodes import (
    FALSE,
    TRUE,
    And,
    Binary,
    BinaryOp,
    Call,
    Expr,
    Function,
    Index,
    IndexName,
    Where,
)
from attnc.ir.program import Attention
from attnc.ir.types import Type
from attnc.ir.walk import indices, walk

RELAXED = "operation budget: bounds are those of a part of the mask's conditions"
OUT_OF_BUDGET = "operation budget: the mask is tested everywhere"

VISITED_OPERATIONS = 10_000
"""What leaving out the keys of an earlier range may take."""

MOST_VISITED_DIVISIONS = 12
"""What a range can visit, with more divisions than this in its pieces, is known as their convex hull alone: tests are
simplified by the one as by the other for all masks that were tried, in a twentieth of the time."""

MANY_DIVISIONS, MANY_DIVISIONS_TOIL = 3, 4
"""From so many divisions in one piece of a mask on, a question gets as many times fewer operations: each takes several
times as long, and what 50,000 of them do not answer, 200,000 did not either for any such mask that was tried."""


_DIAGONAL = Binary(BinaryOp.LE, Index(IndexName.KEY), Index(IndexName.QUERY), Type.BOOL)


class _Place(Enum):
    """Where a range stands in its run."""

    ALONE = "alone"
    LEFT = "left"
    MIDDLE = "middle"
    RIGHT = "right"


@dataclass(frozen=True, slots=True)
class _Range:
    """A key interval before its residual is known: bounds with their values as sets."""

    place: _Place
    start: Bound
    stop: Bound
    run: Run

    @property
    def coverage(self) -> Coverage:
        return Coverage.FULL if self.place is _Place.MIDDLE else Coverage.PARTIAL

    @property
    def start_up(self) -> bool:
        return self.coverage is Coverage.FULL

    @property
    def stop_up(self) -> bool:
        return self.coverage is Coverage.PARTIAL


def derive_tiles(
    attention: Attention,
    *,
    query_tile: int = 128,
    key_tile: int = 128,
    layout: Layout = PLAIN,
    operations: int = DEFAULT_OPERATIONS,
    summaries: bool = False,
) -> TileSets:
    """Derive the interval list of an attention's mask.

    Args:
        attention: with a mask free of parameters. The positions that the layout leaves out are taken to be masked.
        layout: the order of queries and keys. Bounds are numbers in it; residuals are about positions, as the mask is.
        operations: what one question about the mask may take; with fewer, more masks are tested everywhere.
        summaries: whether bounds and tests may read summaries of the inputs.
        query_tile: most rows of a query tile for which residuals must hold.
        key_tile: most keys of a key tile for which residuals must hold.
    """
    if layout.is_grid:
        translator = new_translator(attention, new_context())
        with allowance(translator.context, operations) as exhausted:
            tiles = derive_boxes(attention, translator, layout, key_tile)
        return replace(tiles, unfinished=exhausted[0] > 0)
    translator, derivation = new_translator(attention, new_context(), layout), None
    translator.is_open = attention.transposed
    if summaries:
        translator.summaries = Summaries.of(attention)
    try:
        if attention.transposed:
            derivation = _open_derivation(attention, translator, query_tile, key_tile, operations)
        if attention.transposed and derivation is None:
            translator = replace(new_translator(attention, new_context(), layout), summaries=translator.summaries)
        with allowance(translator.context, operations) as first:
            derivation = derivation or _Derivation.of(attention, translator, query_tile, key_tile)
        with allowance(translator.context, operations // derivation.toil) as second:
            tiles = derivation.tiles()
        return replace(tiles, unfinished=first[0] + second[0] > 0)
    except OutOfBudgetError:
        relaxed = _relaxed(attention.mask)
        summaries = summaries and bool(translator.runs)
        if summaries or relaxed is not None:
            mask = attention.mask if relaxed is None else relaxed
            known = replace(attention, mask=mask)
            tiles = derive_tiles(
                known, query_tile=query_tile, key_tile=key_tile, layout=layout, operations=operations,
                summaries=summaries and relaxed is not None,
            )  # fmt: skip
            return tiles if relaxed is None else _tested(tiles, attention.mask)
        return everywhere(attention, query_tile, key_tile, layout)


def _open_derivation(
    attention: Attention, translator: Translator, query_tile: int, key_tile: int, operations: int
) -> _Derivation | None:
    """Begin without a first query; None where the mask does not say by itself where the queries of a tile begin."""
    try:
        with allowance(translator.context, operations):
            derivation = _Derivation.of(attention, translator, query_tile, key_tile)
            return derivation if bounded_below(derivation.truth.may) else None
    except OutOfBudgetError:
        return None


def _relaxed(mask: Expr) -> Expr | None:
    """Return a mask without those of its conditions that are hard for sets; None if there are none, or no others."""
    if not isinstance(mask, And):
        return None
    kept = tuple(operand for operand in mask.operands if not any(_is_hard(node) for node in walk(operand)))
    if not kept or len(kept) == len(mask.operands):
        return None
    return kept[0] if len(kept) == 1 else And(kept)


def _is_hard(node: Expr) -> bool:
    return isinstance(node, Binary) and node.op in (BinaryOp.MOD, BinaryOp.FLOORDIV) and bool(indices(node.left))


def _tested(tiles: TileSets, mask: Expr) -> TileSets:
    """Return the intervals of a wider mask for a mask that is tested in all of them."""
    joined: list[KeyInterval] = []
    for interval in tiles.intervals:
        tested = replace(
            interval,
            coverage=Coverage.PARTIAL,
            start_up=False,
            stop_up=True,
            residual=mask,
            ragged=True,
            label="stretch",
        )
        if joined and joined[-1].stop == tested.start and joined[-1].tile_test == tested.tile_test:
            tested = replace(tested, start=joined.pop().start)
        joined.append(tested)
    return replace(tiles, intervals=tuple(joined), exact=False, notes=(*tiles.notes, RELAXED), unfinished=True)


def everywhere(attention: Attention, query_tile: int, key_tile: int, layout: Layout = PLAIN) -> TileSets:
    """Return the interval list that tests the whole mask at every pair: what is always right."""
    keys = query_reach(attention.align.kind) if attention.transposed else KEY_REACH
    interval = KeyInterval(
        Coverage.PARTIAL,
        ZERO if keys.first == ZERO else layout.key.first_from(keys.first),
        layout.key.end_before(keys.past),
        False,
        True,
        attention.mask,
        ragged=True,
        label="stretch",
    )
    return TileSets((interval,), False, query_tile, key_tile, (OUT_OF_BUDGET,), unfinished=True)


@dataclass(frozen=True, slots=True)
class _Derivation:
    mask: Expr
    translator: Translator
    domain: RowDomain
    writer: BoundsWriter
    truth: Truth
    extents: TileExtents
    query_tile: int
    key_tile: int
    notes: tuple[str, ...]

    @classmethod
    def of(cls, attention: Attention, translator: Translator, query_tile: int, key_tile: int) -> _Derivation:
        notes: tuple[str, ...] = ()
        try:
            with budget(translator.context):
                whole = translator.truth(attention.mask)
        except OutOfBudgetError:
            notes = (OUT_OF_BUDGET,)
            everything = translator.universe()
            whole = Truth(everything.subtract(everything), everything)
        domain = row_domain(translator)
        truth = _within(whole, domain.pairs)
        writer = BoundsWriter(translator.opaques, domain.known)
        limits, summaries = TileLimits(query_tile, key_tile), translator.summaries.allowed
        extents = TileExtents.of(attention, limits, translator.layout, summaries=summaries)
        return cls(attention.mask, translator, domain, writer, truth, extents, query_tile, key_tile, notes)

    @property
    def toil(self) -> int:
        """How many times as long isl's operations take: with many divisions they are on large matrices."""
        divisions = max((part.dim(isl.dim_type.div) for part in self.truth.may.get_basic_sets()), default=0)
        return MANY_DIVISIONS_TOIL if divisions >= MANY_DIVISIONS else 1

    def tiles(self) -> TileSets:
        stretches = StretchFinder.of(self.domain, self.writer, self.truth.must, self.translator)
        runs = RunFinder(stretches, self.truth.may).find()
        ranges = [piece for position, run in enumerate(runs) for piece in self._ranges(run, runs[position + 1 :])]
        intervals, exact, notes = self._intervals(ranges)
        walked = [piece.run for piece in ranges if piece.place is _Place.MIDDLE]
        written = all(run.full_low is None or any(run is other for other in walked) for run in runs)
        found = written and all(run.full_exact for run in runs)
        if self.truth.exact and not (found and not any(map(stretches.is_crossed, runs[:-1]))):
            exact = False
            notes.append("some full tiles are tested")
        exact = exact and self.truth.exact
        return TileSets(
            intervals, exact, self.query_tile, self.key_tile, (*self.notes, *self.translator.reasons, *notes)
        )

    # -- bounds

    def _ranges(self, run: Run, later: tuple[Run, ...]) -> list[_Range]:
        low, stop = run.low, plus_one(run.high)
        full = self._full_bounds(run, stop)
        bounds = [low, stop] if full is None else [low, *full, stop]
        guarded = attempt(self.translator.context, lambda: self._guarded(bounds, run, moves=bool(later)))
        if guarded is None and not later:
            guarded = [self._real(bound) for bound in bounds]  # where the run is absent, tiles are visited for nothing
        if guarded is None:
            guarded = [self._no_keys(), self._all_keys()]
            full = None
        if full is None:
            return [_Range(_Place.ALONE, guarded[0], guarded[1], run)]
        first, full_start, full_stop, last = guarded
        ranges = [
            _Range(_Place.LEFT, first, full_start, run),
            _Range(_Place.MIDDLE, full_start, full_stop, run),
            _Range(_Place.RIGHT, full_stop, last, run),
        ]
        return ranges[1:] if self._visits_nothing(full_start) else ranges

    def _real(self, bound: Bound) -> Bound:
        """Keep a bound from passing the last key."""
        keys = self._all_keys()
        if included(self.domain.known, bound.value.le_set(keys.value)):
            return bound
        return Bound(Call(Function.MIN, (bound.expr, keys.expr), Type.INT), bound.value.min(keys.value))

    def _all_keys(self) -> Bound:
        count = _shifted(self.translator.last_key(), 1)
        past = self.translator.reach_of_keys.past
        return self.writer.bound(count) or Bound(self.translator.layout.key.end_before(past), count)

    def _no_keys(self) -> Bound:
        """Return the number of the first key, before which nothing is visited."""
        first = self.translator.first_key()
        reach = self.translator.reach_of_keys
        return self.writer.bound(first) or Bound(self.translator.layout.key.first_from(reach.first), first)

    def _visits_nothing(self, bound: Bound) -> bool:
        return included(self.domain.known, bound.value.le_set(self._no_keys().value))

    def _full_bounds(self, run: Run, stop: Bound) -> tuple[Bound, Bound] | None:
        if run.full_low is None or run.full_high is None or run.full_present is None:
            return None
        start, end = run.full_low, plus_one(run.full_high)
        if not included(self.domain.known, run.full_present):
            written = self.writer.written_condition(run.full_present)
            if written is None:
                return None
            start, end = (_where(*written, bound, stop) for bound in (start, end))
        if not included(self.domain.known.intersect(run.present), start.value.le_set(stop.value)):
            start = Bound(Call(Function.MIN, (start.expr, stop.expr), Type.INT), start.value.min(stop.value).coalesce())
        return start, end

    def _guarded(self, bounds: list[Bound], run: Run, *, moves: bool) -> list[Bound] | None:
        """Make an absent run visit nothing, and leave `done` alone where later runs follow."""
        absent = attempt(self.translator.context, lambda: self.domain.known.subtract(run.present))
        if absent is None:
            return None
        first = self._no_keys()
        nothing = included(absent, bounds[-1].value.le_set(first.value)) and all(
            included(absent, bound.value.le_set(first.value)) for bound in (bounds if moves else bounds[1:])
        )
        if nothing:
            return bounds
        written = self.writer.written_condition(run.present)
        if written is None:
            return None
        return [_where(*written, bound, first) for bound in bounds]

    # -- residuals

    def _intervals(self, ranges: list[_Range]) -> tuple[tuple[KeyInterval, ...], bool, list[str]]:
        intervals: list[KeyInterval] = []
        kept: list[_Range] = []
        exact, notes = True, []
        for piece in ranges:
            visited = self._visited(piece, kept)
            if empty(visited.intersect(self.domain.pairs)):
                continue
            interval = self._interval(piece, visited)
            if interval is None:
                continue
            if interval.coverage is Coverage.PARTIAL and not self._all_touched(piece):
                test, sharp = self._tile_test(piece)
                interval = replace(interval, tile_test=test)
                exact = exact and sharp
                if not sharp:
                    notes.append("some visited tiles hold no allowed pair")
            intervals.append(self._with_data_test(interval))
            kept.append(piece)
        return tuple(intervals), exact, list(dict.fromkeys(notes))

    def _all_touched(self, piece: _Range) -> bool:
        """Tell whether every key of a range is touched."""
        if piece.run.contiguous:
            return True

        def touched() -> bool:
            keys = as_map(self.domain.pairs).range()
            stretch = between(keys, piece.start.value, _shifted(piece.stop.value, -1))
            return bool(stretch.is_subset(as_map(self.truth.may).range()))

        return bool(attempt(self.translator.context, touched))

    def _tile_test(self, piece: _Range) -> tuple[Expr | None, bool]:
        """Derive when a tile of a range holds an allowed pair."""
        reach = self.key_tile - 1
        first = _parameter(self.translator, "j_lo").ge_set(_shifted(piece.start.value, -reach))
        last = _parameter(self.translator, "j_lo").lt_set(piece.stop.value)
        return tile_test(
            self.translator, self.writer, first.intersect(last).intersect(self.domain.known), self.truth.may
        )

    def _with_data_test(self, interval: KeyInterval) -> KeyInterval:
        """Skip tiles that data excludes."""
        if self.translator.layout.is_grid or interval.coverage is Coverage.FULL:
            return interval
        test = data_test(interval.residual, self.extents, self._is_covered)
        if test is None:
            return interval
        return replace(interval, tile_test=test if interval.tile_test is None else And((interval.tile_test, test)))

    def _is_covered(self, condition: Expr) -> bool:
        """Tell whether bounds of runs say where a comparison may hold."""
        translator = self.translator
        if not isinstance(condition, Binary) or condition.op not in (BinaryOp.EQ, BinaryOp.NE):
            return False
        return translator.summaries.run_bounds(condition, translator.layout, translator.reach_of_queries) is not None

    def _interval(self, piece: _Range, visited: isl.Set) -> KeyInterval | None:
        if piece.coverage is Coverage.FULL:
            return KeyInterval(Coverage.FULL, piece.start.expr, piece.stop.expr, True, False, label="full")
        known = visited.intersect(self.domain.pairs)
        if sum(part.dim(isl.dim_type.div) for part in known.get_basic_sets()) > MOST_VISITED_DIVISIONS:
            known = isl.Set.from_basic_set(known.simple_hull())
        residual = Residuals(self.translator).simplify(self.mask, known)
        if residual == FALSE:
            return None
        ragged = self._reaches_past_last_key(residual, visited)
        return KeyInterval(
            Coverage.PARTIAL,
            piece.start.expr,
            piece.stop.expr,
            False,
            True,
            residual,
            ragged,
            label=_label(residual, piece),
        )

    def _reaches_past_last_key(self, residual: Expr, visited: isl.Set) -> bool:
        truth = attempt(self.translator.context, lambda: self.translator.truth(residual))
        allowed = visited if truth is None else visited.intersect(truth.may)
        past = self.translator.key().gt_set(self.translator.last_key().insert_domain(allowed.get_space()))
        return not empty(allowed.intersect(self.domain.rows).intersect(past))

    def _visited(self, piece: _Range, earlier: list[_Range]) -> isl.Set:
        """Return rows and keys of the tiles that a range can visit, whatever the tile sizes up to the largest.

        Where it is too hard to say, there are more of them: then more is tested.
        """
        margin, context = self.key_tile - 1, self.translator.context
        start_margin = 0 if piece.start_up else margin
        pairs = self._query_rows()
        # a range that stops at the first key visits nothing
        pairs = pairs.intersect_params(piece.stop.value.gt_set(self.translator.first_key()))
        pairs = pairs.intersect(self._keys_from(piece.start.value, start_margin))
        pairs = pairs.intersect(self._keys_up_to(piece.stop.value, margin if piece.stop_up else 0))
        for before in earlier:
            for bound, up in ((before.start, before.start_up), (before.stop, before.stop_up)):
                later = partial(self._keys_from, bound.value, 0 if up else margin)
                question = partial(_intersected, pairs, later)
                pairs = attempt(context, question, VISITED_OPERATIONS, counts=False) or pairs
        return attempt(context, lambda: pairs.detect_equalities().coalesce()) or pairs

    def _query_rows(self) -> isl.Set:
        short = isl.Set.read_from_str(
            self.translator.context, f"[i_lo, i_hi] -> {{ : i_hi - i_lo < {self.query_tile} }}"
        )
        return self.domain.rows.intersect_params(short)

    def _keys_from(self, bound: isl.PwAff, margin: int) -> isl.Set:
        return self.translator.key().ge_set(_shifted(bound, -margin).insert_domain(self.domain.pairs.get_space()))

    def _keys_up_to(self, bound: isl.PwAff, margin: int) -> isl.Set:
        return self.translator.key().lt_set(_shifted(bound, margin).insert_domain(self.domain.pairs.get_space()))


def _intersected(points: isl.Set, others: Callable[[], isl.Set]) -> isl.Set:
    return points.intersect(others())


def _within(truth: Truth, domain: isl.Set) -> Truth:
    if truth.exact:
        return exactly(truth.must.intersect(domain).coalesce())
    return Truth(truth.must.intersect(domain).coalesce(), truth.may.intersect(domain).coalesce())


def _parameter(translator: Translator, name: str) -> isl.PwAff:
    return isl.PwAff.read_from_str(translator.context, f"[{name}] -> {{ [{name}] }}")


def _shifted(value: isl.PwAff, amount: int) -> isl.PwAff:
    return value.add_constant_val(isl.Val.int_from_si(value.get_ctx(), amount))


def _where(condition: Expr, holds: isl.Set, then: Bound, otherwise: Bound) -> Bound:
    if condition == TRUE or then.expr == otherwise.expr:
        return then
    return Bound(Where(condition, then.expr, otherwise.expr, Type.INT), chosen(holds, then.value, otherwise.value))


def _label(residual: Expr, piece: _Range) -> str:
    """Name a partial range for comments in generated code."""
    if residual == TRUE:
        return "tail"
    if piece.place is _Place.LEFT:
        return "left edge"
    if piece.place is _Place.RIGHT:
        return "diagonal" if residual == _DIAGONAL else "right edge"
    return "stretch"
