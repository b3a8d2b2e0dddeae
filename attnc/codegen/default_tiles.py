"""What decides which of the default tiles a kernel gets: what it keeps in registers."""

from __future__ import annotations

from attnc.algebra.coordinates import MapKind
from attnc.codegen.gradient_loops import GradientBody
from attnc.codegen.kernel_pieces import is_long_test, pair_work
from attnc.codegen.loops import Body, Loop, Weighing
from attnc.codegen.sweeps import Sweep
from attnc.plan.configs import Traits

HEAVY_WORK = 6
"""Operations on pairs beyond which a kernel gets smaller tiles: kernels of the examples spill from there on."""
MOST_LOOPS = 5
"""Loops over keys beyond which a kernel gets smaller tiles: one with seven spills without."""
MOST_KEY_LOOPS = 3
"""The same of kernels of gradients whose rows are keys: they have two sums of rows."""

RESUMED_KEYS = 32
"""Keys of a tile of such kernels: those of 4 warps spill with 64 at head size 64 on sm_90."""

MOST_READS = 2
"""Reads of data for bounds of loops beyond which such a kernel gets smaller tiles."""

MOST_WIDE = 8
"""Lines with 64-bit numbers for bounds of loops beyond which such a kernel does: each takes two registers."""


def forward_traits(sweep: Sweep, weighing: Weighing, loops: tuple[Loop[Body], ...]) -> Traits:
    """Tell what a kernel of outputs is."""
    # sums of earlier kernels take registers as much arithmetic does, and so do many loops
    heavy = _is_heavy(sweep, weighing) or bool(sweep.before) or len(loops) > MOST_LOOPS
    return Traits(heavy, gathered=_gathers(loops), tested=_is_tested(sweep))


def key_limit(sweep: Sweep) -> int:
    """Return the most keys of a default tile: classes of few rows that begin with sums have registers for few."""
    resumed_classes = bool(sweep.before) and sweep.query.kind is MapKind.RESIDUE
    return min(sweep.key_tile, RESUMED_KEYS) if resumed_classes else sweep.key_tile


def gradient_traits(
    sweep: Sweep, weighing: Weighing, loops: tuple[Loop[GradientBody], ...], *, of_keys: bool, adds: bool, shifted: bool
) -> Traits:
    """Tell the same of a kernel of gradients.

    Args:
        sweep: what it walks.
        weighing: of pairs.
        loops: over tiles.
        of_keys: whether its own rows are keys.
        adds: whether it adds to what other kernels have left.
        shifted: whether positions of queries are others than their rows.
    """
    if of_keys:
        # two sums of rows leave few registers for more bounds of loops, for bounds that are read, or for numbers that
        # compilers keep between loops where positions are rows; arithmetic of pairs takes none that last
        reads = sum("tl.load(" in line for loop in loops for line in loop.setup)
        wide = sum("tl.int64" in line for loop in loops for line in loop.setup)
        heavy = len(loops) > MOST_KEY_LOOPS or reads > MOST_READS or wide > MOST_WIDE or not shifted
    else:
        heavy = _is_heavy(sweep, weighing) or len(loops) > MOST_LOOPS
    return Traits(heavy, gathered=_gathers(loops), adds=adds, tested=_is_tested(sweep))


def _gathers(loops: tuple[Loop[Body], ...] | tuple[Loop[GradientBody], ...]) -> bool:
    return any(loop.order is not None for loop in loops)


def _is_heavy(sweep: Sweep, weighing: Weighing) -> bool:
    """Tell whether pairs take so much arithmetic that tiles must be small to keep it in registers."""
    work = pair_work(weighing.score) + (pair_work(weighing.factor) if weighing.factor is not None else 0)
    masks = (pair_work(interval.residual) for one in sweep.passes for interval in one.tiles.intervals)
    return work + max(masks, default=0) > HEAVY_WORK


def _is_tested(sweep: Sweep) -> bool:
    return any(is_long_test(interval.tile_test) for one in sweep.passes for interval in one.tiles.intervals)
