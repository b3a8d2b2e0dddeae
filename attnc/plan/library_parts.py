"""Which passes of a plan a library may compute: on a GPU the largest window or rectangle, on a CPU causal attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnc.algebra.windows import UNBOUNDED, Dense, prove_dense
from attnc.ir.program import Attention
from attnc.plan.kernel_plan import Form, Library, LibraryPart, Pass, Plan
from attnc.plan.row_lengths import LENGTH, count_long_rows

CAUSAL = (UNBOUNDED, 0)

LEAST_KEYS = 64
"""Keys that rows of such a pass have on average: handing the sums of a row on takes as long as some tens of keys."""


def with_library_parts(plan: Plan) -> Plan:
    """Return a plan of several passes that says which of them a library may compute.

    Args:
        plan: its weights are the softmax of scaled dot products and nothing else.
    """
    if len(plan.passes) < 2:
        return plan
    proven = [prove_dense(replace(plan.attention, mask=one.mask)) for one in plan.passes]
    passes = tuple(_by_library(one, pairs) for one, pairs in zip(plan.passes, proven, strict=True))
    return replace(plan, passes=passes, part=_find_part(plan.attention, passes, proven))


def _by_library(one: Pass, pairs: Dense | None) -> Pass:
    """Return a pass that is one call on a CPU as such.

    That has a flag for causal attention alone: rectangles are one call anyway, and windows would be masks of all pairs.
    """
    if pairs is None or pairs.window != CAUSAL or not one.layout.is_plain:
        return one
    return replace(one, form=Form.LIBRARY, library=Library.CAUSAL, first=pairs.rows[0])


def _find_part(attention: Attention, passes: Sequence[Pass], proven: Sequence[Dense | None]) -> LibraryPart | None:
    """Return the pass with the most pairs that a library could compute on a GPU; None without one."""
    counts = [0 if one is None else one.count(LENGTH) for one in proven]
    number = max(range(len(passes)), key=lambda place: counts[place])
    pairs = proven[number]
    if pairs is None or counts[number] < LEAST_KEYS * LENGTH:
        return None
    others = [one for place, one in enumerate(passes) if place != number]
    return LibraryPart(number, pairs, count_long_rows(attention, others, LENGTH))
