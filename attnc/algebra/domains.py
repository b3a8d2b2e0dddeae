"""The sets that questions range over: rows of a query tile with their keys, or every size, head and pair."""

from __future__ import annotations

from dataclasses import dataclass

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.coordinates import PLAIN, Layout
from attnc.ir.nodes import Binary, BinaryOp, Expr, Index, IndexName, Read, Size, SizeName
from attnc.ir.program import ORIGINAL_KEYS, AlignKind, Attention
from attnc.ir.types import Type

_KEY_HEAD = Binary(BinaryOp.FLOORDIV, Index(IndexName.HEAD), Size(SizeName.GROUP), Type.INT)
_ORIGINAL = Read(ORIGINAL_KEYS, (), Type.INT)
_AT_ORIGINAL_END = Binary(BinaryOp.SUB, _ORIGINAL, Size(SizeName.QUERIES), Type.INT)
_KEY_HEADS = Binary(BinaryOp.FLOORDIV, Size(SizeName.HEADS), Size(SizeName.GROUP), Type.INT)


@dataclass(frozen=True, slots=True)
class RowDomain:
    """What is known inside one query tile, with `i_lo`, `i_hi` as parameters.

    Attributes:
        pairs: real rows of the tile with real keys.
        rows: the same without a condition on keys.
        known: what is known of the parameters alone.
    """

    pairs: isl.Set
    rows: isl.Set
    known: isl.Set


def row_domain(translator: Translator) -> RowDomain:
    """Return the pairs of a query tile `i_lo .. i_hi` for all sizes, `N > M` included."""
    t = translator
    row = t.row()
    low, high = t.parameter("i_lo"), t.parameter("i_hi")
    first, last = (t.query_position(name) for name in (IndexName.QUERY_LOW, IndexName.QUERY_HIGH))
    reach = t.reach_of_queries
    parameters = size_constraints(t).intersect(low.le_set(high))
    parameters = parameters.intersect(t.within(first, reach)).intersect(t.within(last, reach))
    rows = parameters.intersect(row.ge_set(low)).intersect(row.le_set(high))
    keys = t.within(t.coordinate(IndexName.KEY), t.reach_of_keys)
    if not t.transposed:
        keys = keys.intersect(t.key().ge_set(t.constant(0)))
    parameters = parameters.intersect(_run_facts(t, first, last))
    rows = rows.intersect(parameters)
    return RowDomain(rows.intersect(keys), rows, parameters.params())


def _run_facts(translator: Translator, first: isl.PwAff, last: isl.PwAff) -> isl.Set:
    """Return how the bounds of runs lie to each other, and to the positions of the tile's first and last row."""
    t = translator
    zero, keys, known = t.constant(0), t.size(SizeName.KEYS), t.universe()
    for start, stop, full_start, full_stop in t.runs:
        known = (
            known.intersect(zero.le_set(start)).intersect(start.le_set(full_start)).intersect(full_start.le_set(keys))
        )
        known = known.intersect(zero.le_set(full_stop)).intersect(full_stop.le_set(stop)).intersect(stop.le_set(keys))
        known = known.intersect(start.le_set(first.max(zero)))
        known = known.intersect(stop.ge_set(last.add(t.constant(1)).min(keys)))
    return known


def whole_domain(translator: Translator) -> isl.Set:
    """Return every real pair of every size: `0 <= j < M`, `0 <= r < N`."""
    t = translator
    queries = t.within(t.coordinate(IndexName.QUERY), t.reach_of_queries)
    return queries.intersect(t.within(t.coordinate(IndexName.KEY), t.reach_of_keys)).intersect(size_constraints(t))


def proof_domain(translator: Translator, shift: Expr) -> isl.Set:
    """Return every pair that proofs range over: the whole domain, with `N <= M` under `align end`."""
    domain = whole_domain(translator)
    if translator.align is AlignKind.END:
        not_longer = isl.Set.read_from_str(translator.context, "[shift] -> { [i, j] : shift >= 0 }")
        return domain.intersect(not_longer)
    value = translator.number(shift)
    if value is None:
        return domain
    domain = domain.intersect(value.eq_set(translator.coordinate(IndexName.SHIFT)))
    return domain.intersect(_shortened(translator, value)) if shift == _AT_ORIGINAL_END else domain


def _shortened(translator: Translator, shift: isl.PwAff) -> isl.Set:
    """Return what holds of keys that were shortened, under `align end`: `N <= K`, and how many `K` positions leave."""
    t = translator
    known = shift.ge_set(t.constant(0))
    positions, keys = t.number(_ORIGINAL), t.size(SizeName.KEYS)
    if positions is None or t.keys is None or t.keys.form not in ("mean_pool", "conv"):
        return known
    names = ("window" if t.keys.form == "mean_pool" else "kernel", "stride")
    window, stride = (t.constant(int(t.keys.number(name))) for name in names)
    last = keys.sub(t.constant(1)).mul(stride).add(window)
    return known.intersect(last.le_set(positions)).intersect(positions.lt_set(last.add(stride)))


def size_constraints(translator: Translator) -> isl.Set:
    """Return what holds of sizes, heads and opaque values everywhere, as a set of pairs."""
    t = translator
    one, zero = t.constant(1), t.constant(0)
    known = t.size(SizeName.KEYS).ge_set(one).intersect(t.size(SizeName.QUERIES).ge_set(one))
    for name in (SizeName.BATCH, SizeName.HEADS, SizeName.HEAD_SIZE, SizeName.GROUP):
        known = known.intersect(t.size(name).ge_set(one))
    known = known.intersect(t.size(SizeName.GROUP).le_set(t.size(SizeName.HEADS)))
    for index, size in ((IndexName.HEAD, SizeName.HEADS), (IndexName.BATCH, SizeName.BATCH)):
        value = t.coordinate(index)
        known = known.intersect(value.ge_set(zero)).intersect(value.lt_set(t.size(size)))
    if t.layout.classes > 1:
        value = t.coordinate(IndexName.CLASS)
        known = known.intersect(value.ge_set(zero)).intersect(value.lt_set(t.constant(t.layout.classes)))
    return known.intersect(opaque_facts(t))


def opaque_facts(translator: Translator) -> isl.Set:
    """Return what holds of opaque values: bools are 0 or 1, and key heads number `H // g`, without remainder."""
    t = translator
    known = t.universe()
    for flag in t.flags():
        value = t.parameter(flag)
        known = known.intersect(value.ge_set(t.constant(0))).intersect(value.le_set(t.constant(1)))
    head, count = t.known_opaque(_KEY_HEAD), t.known_opaque(_KEY_HEADS)
    if head is not None:
        known = known.intersect(head.ge_set(t.constant(0))).intersect(head.le_set(t.coordinate(IndexName.HEAD)))
    if count is not None:
        known = known.intersect(count.ge_set(t.constant(1))).intersect(count.le_set(t.size(SizeName.HEADS)))
    return known if head is None or count is None else known.intersect(head.lt_set(count))


def new_translator(attention: Attention, context: isl.Context, layout: Layout = PLAIN) -> Translator:
    """Return a translator for the expressions of one attention."""
    return Translator(context, attention.align.kind, layout, attention.transposed, keys=attention.shorten)
