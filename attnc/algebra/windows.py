"""Which masks are plain windows around the diagonal, or plain rectangles: proven as equal sets, over every length."""

from __future__ import annotations

from dataclasses import dataclass

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.domains import new_translator, proof_domain
from attnc.algebra.index_sets import OutOfBudgetError, allowance, attempt, integer, new_context
from attnc.ir.program import AlignKind, Attention

Window = tuple[int, int]
"""Keys before and behind a query that it sees, besides the one at its place; -1 for all that there are."""

Stretch = tuple[int, int | None]
"""The first position, and the first one past the last; None where that is the end of the sequence."""

UNBOUNDED = -1

EVERYTHING: Window = (UNBOUNDED, UNBOUNDED)

WHOLE: Stretch = (0, None)


@dataclass(frozen=True, slots=True)
class Dense:
    """Pairs that are a window around the diagonal, or a rectangle, for as many keys as queries.

    Attributes:
        rows: queries that see any key; each of them does.
        keys: those that are seen. Of a window that is no rectangle they are those of `rows`, up to the last one.
        window: which of these a query sees.
    """

    rows: Stretch
    keys: Stretch
    window: Window

    @property
    def is_rectangle(self) -> bool:
        """Whether every query sees all of the keys."""
        return self.window == EVERYTHING

    def count(self, length: int) -> int:
        """Return how many pairs there are for so many queries and keys."""
        rows, keys = (max(0, min(length, length if past is None else past) - first) for first, past in self._sides)
        if self.is_rectangle:
            return rows * keys
        before, behind = (rows - 1 if side == UNBOUNDED else min(side, rows - 1) for side in self.window)
        return rows + sum(side * rows - side * (side + 1) // 2 for side in (before, behind)) if rows else 0

    @property
    def _sides(self) -> tuple[Stretch, Stretch]:
        return self.rows, self.keys


def prove_window(attention: Attention) -> Window | None:
    """Return the window that a mask is for as many keys as queries, whatever their number; None if it is none.

    The allowed pairs are exactly those with `i - before <= j <= i + behind` then, in every batch entry and head. None
    as well where data has a say, where a query does not see its own place, and where the operation budget is exhausted.
    """
    found = prove_dense(attention)
    return found.window if found is not None and found.rows == found.keys == WHOLE else None


def prove_dense(attention: Attention) -> Dense | None:
    """Return the window or the rectangle that a mask is for as many keys as queries, whatever their number.

    None where it is neither, and where `prove_window` gives none for the same reasons.
    """
    if attention.align.kind is AlignKind.AT:
        return None
    translator = new_translator(attention, new_context())
    try:
        with allowance(translator.context):
            return attempt(translator.context, lambda: _dense(attention, translator))
    except OutOfBudgetError:
        return None


def _dense(attention: Attention, translator: Translator) -> Dense | None:
    truth = translator.truth(attention.mask)
    if not truth.exact:
        return None
    as_many = translator.queries().eq_set(translator.parameter("M"))
    square = proof_domain(translator, attention.align.shift).intersect(as_many)
    allowed = truth.may.intersect(square)
    if allowed.is_empty():
        return None
    rows, keys = (_stretch(allowed, axis) for axis in "ij")
    box = _between(_between(square, translator, translator.row(), rows), translator, translator.key(), keys)
    if allowed.is_equal(box):
        return Dense(rows, keys, EVERYTHING)
    least, most = _reach(allowed, "j - i")
    sees_itself = (least is None or least <= 0) and (most is None or most >= 0)
    if rows != keys or rows[1] is not None or not sees_itself:
        return None
    distance = translator.key().sub(translator.row())
    window = box if least is None else box.intersect(distance.ge_set(translator.constant(least)))
    if most is not None:
        window = window.intersect(distance.le_set(translator.constant(most)))
    if not allowed.is_equal(window):
        return None
    return Dense(rows, keys, (UNBOUNDED if least is None else -least, UNBOUNDED if most is None else most))


def _between(pairs: isl.Set, translator: Translator, position: isl.PwAff, stretch: Stretch) -> isl.Set:
    """Return the pairs whose position lies in a stretch."""
    first, past = stretch
    pairs = pairs.intersect(position.ge_set(translator.constant(first)))
    return pairs if past is None else pairs.intersect(position.lt_set(translator.constant(past)))


def _stretch(allowed: isl.Set, axis: str) -> Stretch:
    """Return between which positions along an axis all pairs lie, for any parameters."""
    first, last = _reach(allowed, axis)
    return first or 0, None if last is None else last + 1


def _reach(allowed: isl.Set, distance: str) -> tuple[int | None, int | None]:
    """Return the least and the greatest value of a set of pairs `[i, j]`, for any parameters; None where there is none.

    Args:
        allowed: the pairs, of which there is one.
        distance: over `i` and `j`, as isl reads it.
    """
    apart = isl.Map.read_from_str(allowed.get_ctx(), f"{{ [i, j] -> [{distance}] }}")
    found = allowed.apply(apart)
    found = found.project_out(isl.dim_type.param, 0, found.dim(isl.dim_type.param))
    least, most = found.dim_min_val(0), found.dim_max_val(0)
    return integer(least) if least.is_int() else None, integer(most) if most.is_int() else None
