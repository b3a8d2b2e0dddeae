"""How far the keys of a mask reach along the axes of a grid, and the tiles of a pass whose keys lie in boxes."""

from __future__ import annotations

from dataclasses import dataclass, field

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.bounds import Bound, BoundsWriter
from attnc.algebra.congruences import KEY, QUERY, PairSet
from attnc.algebra.coordinates import KEYS, Layout
from attnc.algebra.domains import whole_domain
from attnc.algebra.grids import Axis, Grid, Side
from attnc.algebra.index_sets import OutOfBudgetError, attempt, budget, included
from attnc.algebra.int_exprs import compare, constant, greatest, least, minus, plus, quotient, times
from attnc.algebra.key_intervals import Coverage, KeyInterval, TileSets
from attnc.ir.nodes import TRUE, And, BinaryOp, Expr, Index, IndexName
from attnc.ir.program import Attention
from attnc.ir.walk import substitute

NOTE = "the box of keys around a tile of queries may hold keys that none of them sees"

OPERATIONS = 60_000
"""What finding out how far a mask reaches along one axis may take; many axes are asked for, most of them in vain."""

MOST_FAILED = 6
"""After so many axes for which that was too little, no other one is tried."""

MOST_KEYS = 64
"""Keys of a tile."""

_SIZES = ("N", "M", "shift", "B", "H", "D", "g")
_LOW, _HIGH = Index(IndexName.QUERY_LOW), Index(IndexName.QUERY_HIGH)
_ENDLESS = 1 << 30
"""Coordinates along the outermost axis, of either sign, stay below it."""


@dataclass(frozen=True, slots=True)
class Reaches:
    """Finds how far the keys of one mask reach along the axes of grids.

    Attributes:
        pairs: answers questions about the mask's pairs.
    """

    pairs: PairSet
    mask: Expr
    _found: dict[tuple[int, int], Side] = field(default_factory=dict)
    _failed: list[tuple[int, int]] = field(default_factory=list)

    def side(self, stride: int, extent: int) -> Side:
        """Return how far boxes must reach along an axis; `Side(None, None)` where that is too hard to find."""
        if (stride, extent) not in self._found:
            context = self.pairs.translator.context
            found = None
            if len(self._failed) < MOST_FAILED:
                found = attempt(context, lambda: self._side(stride, extent), OPERATIONS)
            if found is None:
                self._failed.append((stride, extent))
            self._found[stride, extent] = found or Side(None, None)
        return self._found[stride, extent]

    def _side(self, stride: int, extent: int) -> Side | None:
        translator, points = self.pairs.translator, self.pairs.pairs(self.mask)
        if points is None:
            return None
        axis = Axis(stride, extent, 1)
        query, key = (translator.number(axis.coordinate(index)) for index in (QUERY, KEY))
        if query is None or key is None:
            return None
        seen = points.apply(isl.Map.from_pw_aff(query).flat_range_product(isl.Map.from_pw_aff(key)))
        seen = _without_sizes(seen).coalesce()
        tile = isl.Set.read_from_str(seen.get_ctx(), "[i_lo, i_hi] -> { [x, y] : i_lo <= x <= i_hi }")
        keys = seen.intersect(tile).project_out(isl.dim_type.set, 0, 1).coalesce()
        known = _known(translator, extent)
        writer = BoundsWriter(translator.opaques, known)
        low = high = None
        if keys.dim_has_lower_bound(isl.dim_type.set, 0):
            bound = writer.bound(keys.dim_min(0).coalesce())
            low = _inside(bound, known, extent, is_low=True, endless=translator.transposed)
        if keys.dim_has_upper_bound(isl.dim_type.set, 0):
            bound = writer.bound(keys.dim_max(0).coalesce())
            high = _inside(bound, known, extent, is_low=False, endless=True)
        return Side(low, high)


def _without_sizes(points: isl.Set) -> isl.Set:
    for name in _SIZES:
        position = points.find_dim_by_name(isl.dim_type.param, name)
        if position >= 0:
            points = points.project_out(isl.dim_type.param, position, 1)
    return points


def _known(translator: Translator, extent: int) -> isl.Set:
    """Return what holds of the first and the last coordinate of a tile, and of heads."""
    first, past = (0, extent) if extent else (-_ENDLESS, _ENDLESS)
    return isl.Set.read_from_str(
        translator.context, f"[i_lo, i_hi, b, h] -> {{ : {first} <= i_lo <= i_hi < {past} and b >= 0 and h >= 0 }}"
    )


def _inside(bound: Bound | None, known: isl.Set, extent: int, *, is_low: bool, endless: bool) -> Expr | None:
    """Return a bound that stays on its axis even where no key is seen, for which nothing was asked of it.

    Args:
        bound: first or last coordinate of the keys.
        known: of the coordinates of tiles.
        extent: of the axis; 0 for the outermost one.
        is_low: whether it is the first coordinate.
        endless: whether the outermost axis has no end on this side.
    """
    if bound is None:
        return None
    limit = isl.PwAff.read_from_str(known.get_ctx(), f"{{ [{0 if is_low else extent - 1}] }}")
    if endless and not extent:
        return bound.expr
    within = bound.value.ge_set(limit) if is_low else bound.value.le_set(limit)
    if included(known, within):
        return bound.expr
    return greatest(constant(0), bound.expr) if is_low else least(constant(extent - 1), bound.expr)


def derive_boxes(attention: Attention, translator: Translator, layout: Layout, key_tile: int) -> TileSets:
    """Return the interval list of a pass whose queries lie in tiles of a grid: the box of each tile.

    Args:
        attention: with the mask of the pass.
        translator: in plain order.
        layout: a grid's.
        key_tile: most keys of a key tile that are wanted; boxes are filled up to whole ones, so that few are better.
    """
    grid, mask = layout.query.grid, attention.mask
    interval = KeyInterval(
        Coverage.PARTIAL,
        constant(0),
        layout.key.end_before(KEYS),
        False,
        True,
        _residual(translator, mask, layout),
        ragged=True,
        label="box",
    )
    alike = bool(attempt(translator.context, lambda: _is_alike(translator, mask, grid)))
    return TileSets((interval,), False, grid.rows, min(key_tile, MOST_KEYS), (*translator.reasons, NOTE), alike)


def _is_alike(translator: Translator, mask: Expr, grid: Grid) -> bool:
    """Tell whether a mask stays the same when query and key move by a tile along any axis without leaving the grid."""
    truth = translator.truth(mask)
    if not truth.exact:
        return False
    for axis in grid.axes:
        step = axis.tile * axis.stride
        move = isl.Map.read_from_str(translator.context, f"{{ [i, j] -> [i + {step}, j + {step}] }}")
        staying = whole_domain(translator)
        if axis.extent:
            last = translator.constant(axis.extent - axis.tile)
            for index in (QUERY, KEY):
                coordinate = translator.number(axis.coordinate(index))
                assert coordinate is not None
                staying = staying.intersect(coordinate.lt_set(last))
        moved = truth.must.intersect(staying).apply(move)
        if not moved.is_equal(truth.must.intersect(staying.apply(move))):
            return False
    return True


def _residual(translator: Translator, mask: Expr, layout: Layout) -> Expr:
    """Return what remains of a mask to be tested in the boxes of whole tiles, which hold those of their parts.

    Each condition is held against the boxes alone: what several of them imply together is rarely worth the search.
    """
    grid, sides = layout.query.grid, layout.key.sides
    conditions = [condition for number, side in enumerate(sides) for condition in _conditions(grid, number, side)]
    if not conditions:
        return mask
    try:
        with budget(translator.context):
            boxes = translator.truth(conditions[0] if len(conditions) == 1 else And(tuple(conditions))).may
            boxes = boxes.intersect(whole_domain(translator)).coalesce()
    except OutOfBudgetError:
        return mask
    operands = mask.operands if isinstance(mask, And) else (mask,)
    kept = tuple(one for one in operands if not _implied(translator, boxes, one))
    if len(kept) < 2:
        return kept[0] if kept else TRUE
    return And(kept)


def _implied(translator: Translator, known: isl.Set, condition: Expr) -> bool:
    return bool(attempt(translator.context, lambda: bool(known.is_subset(translator.truth(condition).must))))


def _conditions(grid: Grid, number: int, side: Side) -> list[Expr]:
    """Return when a key lies in the box of its query's tile along an axis."""
    axis = grid.axes[number]
    query, key = axis.coordinate(QUERY), axis.coordinate(KEY)
    lead = constant(axis.lead)
    first = minus(times(quotient(plus(query, lead), axis.tile), axis.tile), lead)
    last = plus(first, constant(axis.tile - 1))
    if axis.extent:
        first, last = greatest(constant(0), first), least(constant(axis.extent - 1), last)
    tile: dict[Expr, Expr] = {_LOW: first, _HIGH: last}
    found = []
    if side.low is not None:
        found.append(compare(BinaryOp.GE, key, substitute(side.low, tile)))
    if side.high is not None:
        found.append(compare(BinaryOp.LE, key, substitute(side.high, tile)))
    return found
