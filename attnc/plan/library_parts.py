"""Which pass of a plan a library may compute on a GPU: one whose pairs are a window or a rectangle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnc.algebra.windows import prove_dense
from attnc.ir.program import Attention
from attnc.plan.kernel_plan import LibraryPart, Pass
from attnc.plan.row_lengths import LENGTH, count_long_rows

LEAST_KEYS = 64
"""Keys that rows of such a pass have on average: handing the sums of a row on takes as long as some tens of keys."""


def find_library_part(attention: Attention, passes: Sequence[Pass]) -> LibraryPart | None:
    """Return the pass with the most pairs that a library could compute; None without one, or without others.

    Args:
        attention: simplified; its weights are the softmax of scaled dot products and nothing else.
        passes: of its plan.
    """
    if len(passes) < 2:
        return None
    proven = [prove_dense(replace(attention, mask=one.mask)) for one in passes]
    counts = [0 if one is None else one.count(LENGTH) for one in proven]
    number = max(range(len(passes)), key=lambda place: counts[place])
    pairs = proven[number]
    if pairs is None or counts[number] < LEAST_KEYS * LENGTH:
        return None
    others = [one for place, one in enumerate(passes) if place != number]
    return LibraryPart(number, pairs, count_long_rows(attention, others, LENGTH))
