"""Which loops over keys may become one: each further loop of a kernel takes registers.

A loop over several intervals tests, in each tile, what remains to be tested in the interval that it belongs to, and
sets the scores of masked pairs to nothing there. That is enough where a weight is nothing else than what its score
says: a factor, or a slope of the score that need not be finite in masked pairs, would need the mask again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from attnc.algebra.gradients import ONE, differentiate, read_gradients, write_out_sums
from attnc.algebra.key_intervals import KeyInterval
from attnc.ir.nodes import Score
from attnc.ir.program import Attention
from attnc.plan.kernel_plan import Pass, Scoring
from attnc.plan.row_state import state_of


def fused_runs(intervals: Sequence[KeyInterval]) -> tuple[range, ...]:
    """Return which intervals one loop may walk: numbers of those that follow each other and test no whole tiles."""
    numbers = groupby(range(len(intervals)), key=lambda number: intervals[number].tile_test is None)
    runs = (list(run) for plain, run in numbers if plain)
    return tuple(range(run[0], run[-1] + 1) for run in runs if len(run) > 1)


def may_fuse(attention: Attention, scoring: Scoring, passes: Iterable[Pass], *, gradients: bool = False) -> bool:
    """Tell whether a kernel of these passes can have fewer loops.

    Args:
        attention: of the plan, or the transposed one.
        scoring: of the same.
        passes: that the kernel runs.
        gradients: whether it computes gradients.
    """
    if attention.weight is not None or not any(fused_runs(one.tiles.intervals) for one in passes):
        return False
    if not gradients:
        return True
    score = scoring.score_log2
    if state_of(attention) != "lse" or score is None:
        return False
    score = write_out_sums(score)
    return differentiate(score, Score()) == ONE and not read_gradients(score)
