"""Which masks are plain windows around the diagonal: proven as equal sets, over every length."""

from __future__ import annotations

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.domains import new_translator, proof_domain
from attnc.algebra.index_sets import OutOfBudgetError, allowance, attempt, integer, new_context
from attnc.ir.program import AlignKind, Attention

Window = tuple[int, int]
"""Keys before and behind a query that it sees, besides the one at its place; -1 for all that there are."""

UNBOUNDED = -1


def prove_window(attention: Attention) -> Window | None:
    """Return the window that a mask is for as many keys as queries, whatever their number; None if it is none.

    The allowed pairs are exactly those with `i - before <= j <= i + behind` then, in every batch entry and head. None
    as well where data has a say, where a query does not see its own place, and where the operation budget is exhausted.
    """
    if attention.align.kind is AlignKind.AT:
        return None
    translator = new_translator(attention, new_context())
    try:
        with allowance(translator.context):
            return attempt(translator.context, lambda: _window(attention, translator))
    except OutOfBudgetError:
        return None


def _window(attention: Attention, translator: Translator) -> Window | None:
    truth = translator.truth(attention.mask)
    if not truth.exact:
        return None
    as_many = translator.queries().eq_set(translator.parameter("M"))
    square = proof_domain(translator, attention.align.shift).intersect(as_many)
    allowed = truth.may.intersect(square)
    least, most = _reach(allowed)
    if (least is not None and least > 0) or (most is not None and most < 0):
        return None
    window = square
    distance = translator.key().sub(translator.row())
    if least is not None:
        window = window.intersect(distance.ge_set(translator.constant(least)))
    if most is not None:
        window = window.intersect(distance.le_set(translator.constant(most)))
    if allowed.is_empty() or not allowed.is_equal(window):
        return None
    return UNBOUNDED if least is None else -least, UNBOUNDED if most is None else most


def _reach(allowed: isl.Set) -> tuple[int | None, int | None]:
    """Return the least and the greatest `j - i` of a set of pairs, for any parameters; None where there is none."""
    apart = isl.Map.read_from_str(allowed.get_ctx(), "{ [i, j] -> [j - i] }")
    distances = allowed.apply(apart)
    distances = distances.project_out(isl.dim_type.param, 0, distances.dim(isl.dim_type.param))
    if distances.is_empty():
        return None, None
    least, most = distances.dim_min_val(0), distances.dim_max_val(0)
    return integer(least) if least.is_int() else None, integer(most) if most.is_int() else None
