"""Conditions under which a tile holds any allowed pair, for masks with gaps."""

from __future__ import annotations

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.bounds import BoundsWriter
from attnc.algebra.index_sets import attempt
from attnc.ir.nodes import TRUE, Expr

MOST_COMPARISONS = 64
"""So many comparisons of single numbers take less time than a tile."""

MOST_KNOWN_PIECES = 4
"""Of what is known in more pieces than this the convex hull is used: a longer test, but one that is found in time."""


def tile_test(translator: Translator, writer: BoundsWriter, known: isl.Set, may: isl.Set) -> tuple[Expr | None, bool]:
    """Derive when the tile `i_lo .. i_hi` by `j_lo .. j_hi` holds a pair of `may`.

    Args:
        translator: that made the set.
        writer: for the condition.
        known: of the tiles that are tested, over parameters.
        may: pairs of the tile's rows that the mask may allow.

    Returns:
        The condition (None if it always holds, is long, or is out of budget), and whether it is exact.
    """
    context = translator.context
    key = translator.key()
    tile = key.ge_set(translator.parameter("j_lo")).intersect(key.le_set(translator.parameter("j_hi")))
    real = isl.Set.read_from_str(context, "[j_lo, j_hi] -> { : j_lo <= j_hi }")
    first, last = (isl.PwAff.read_from_str(context, f"[{name}] -> {{ [{name}] }}") for name in ("j_lo", "j_hi"))
    real = real.intersect_params(last.le_set(translator.last_key()))
    if not translator.is_open:
        real = real.intersect_params(first.ge_set(translator.first_key()))
    touched = attempt(context, lambda: may.intersect(tile).params().coalesce())
    if touched is None:
        return None, False
    known = known.intersect(real)
    if len(known.get_basic_sets()) > MOST_KNOWN_PIECES:
        known = isl.Set.from_basic_set(known.simple_hull())
    condition = BoundsWriter(writer.opaques, known).condition(touched, MOST_COMPARISONS)
    if condition is None:
        return None, False
    return (None, True) if condition == TRUE else (condition, True)
