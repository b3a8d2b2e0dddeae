"""Which loops over keys may become one: each further loop of a kernel takes registers.

A loop over several intervals tests, in each tile, what remains to be tested in the interval that it belongs to, and
sets the scores of masked pairs to nothing there. That is enough where a weight is nothing else than what its score
says: a factor would need the mask again.

Only keys in plain order are walked so, which can be read by tensor descriptors. These look for the end of the keys in
any case; by pointers a loop over all tiles has to look for it in each, and takes more registers than it saves. For the
same reason kernels of gradients, which read by pointers, have several loops alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from attnc.algebra.coordinates import IDENTITY
from attnc.algebra.key_intervals import KeyInterval
from attnc.ir.program import Attention
from attnc.plan.kernel_plan import Pass


def fused_runs(intervals: Sequence[KeyInterval]) -> tuple[range, ...]:
    """Return which intervals one loop may walk: numbers of those that follow each other and test no whole tiles."""
    numbers = groupby(range(len(intervals)), key=lambda number: intervals[number].tile_test is None)
    runs = (list(run) for plain, run in numbers if plain)
    return tuple(range(run[0], run[-1] + 1) for run in runs if len(run) > 1)


def may_fuse(attention: Attention, passes: Iterable[Pass]) -> bool:
    """Tell whether a kernel of outputs that runs these passes can have fewer loops."""
    plain = (one.tiles.intervals for one in passes if one.layout.key == IDENTITY)
    return attention.weight is None and any(fused_runs(intervals) for intervals in plain)
