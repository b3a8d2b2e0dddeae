"""Which of the default tiles suit a kernel: by what it keeps in registers."""

from __future__ import annotations

from attnc.codegen.gradient_loops import GradientBody
from attnc.codegen.kernel_pieces import is_long_test, pair_work
from attnc.codegen.loops import Body, Loop, Weighing
from attnc.codegen.sweeps import Sweep
from attnc.plan.configs import TileRow, gradient_tile_rows, tile_rows

HEAVY_WORK = 6
"""Operations on pairs beyond which a kernel gets smaller tiles: kernels of the examples spill from there on."""
MOST_LOOPS = 5
"""Loops over keys beyond which a kernel gets smaller tiles: one with seven spills without."""
MOST_KEY_LOOPS = 3
"""The same of kernels of gradients whose rows are keys: they have two sums of rows."""


def forward_tiles(sweep: Sweep, weighing: Weighing, loops: tuple[Loop[Body], ...]) -> tuple[TileRow, ...]:
    """Return the default tiles of a kernel of outputs."""
    # sums of earlier kernels take registers as much arithmetic does, and so do many loops
    heavy = _is_heavy(sweep, weighing) or bool(sweep.before) or len(loops) > MOST_LOOPS
    gathered = any(loop.order is not None for loop in loops)
    return tile_rows(sweep.query_tile, sweep.key_tile, heavy=heavy, gathered=gathered, tested=_is_tested(sweep))


def gradient_tiles(
    sweep: Sweep, weighing: Weighing, loops: tuple[Loop[GradientBody], ...], *, of_keys: bool
) -> tuple[TileRow, ...]:
    """Return those of a kernel of gradients."""
    heavy = _is_heavy(sweep, weighing) or len(loops) > (MOST_KEY_LOOPS if of_keys else MOST_LOOPS)
    gathered = any(loop.order is not None for loop in loops)
    own, walked, tested = sweep.query_tile, sweep.key_tile, _is_tested(sweep)
    return gradient_tile_rows(own, walked, of_keys=of_keys, heavy=heavy, gathered=gathered, tested=tested)


def _is_heavy(sweep: Sweep, weighing: Weighing) -> bool:
    """Tell whether pairs take so much arithmetic that tiles must be small to keep it in registers."""
    work = pair_work(weighing.score) + (pair_work(weighing.factor) if weighing.factor is not None else 0)
    masks = (pair_work(interval.residual) for one in sweep.passes for interval in one.tiles.intervals)
    return work + max(masks, default=0) > HEAVY_WORK


def _is_tested(sweep: Sweep) -> bool:
    return any(is_long_test(interval.tile_test) for one in sweep.passes for interval in one.tiles.intervals)
