"""The configurations that a kernel may be tried with: those of a target that its registers and memory may hold.

What is left out here cannot be fast, or cannot run: rows too few for the matrix units of all warps, sums and scores
that take more registers than a thread has, tiles that do not fit into shared memory. What is left is compiled, and a
cost model or a device decides (`attnc.tuning`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from attnc.plan.configs import ORDERS, SHARED_MEMORY, TileConfig
from attnc.plan.kernel_plan import Trend

QUERIES = (16, 32, 64, 128)
KEYS = (16, 32, 64, 128)
WARPS = (4, 8)

SMALL_TILES = 16
"""Rows or keys that are tried for large heads, which have no registers for more; and queries beside two large sums."""

WARP_SIZE = {"gfx942": 64}
"""Threads of a warp where they are not 32."""

MOST_REGISTERS = {"gfx942": 400}
"""Of a thread, for what a kernel keeps in any case, where it is not `REGISTERS`: AMD's have 512."""

REGISTERS = 208
"""Of the 255 of a thread: the others hold addresses and numbers."""

LEAST_PAIRS = 4
"""Pairs of a tile for each thread: with fewer, most of the time goes into everything else."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What decides on the space of a kernel.

    Attributes:
        element_size: bytes of query, key and value.
        head_size, value_size: padded.
        query_limit, key_limit: the largest tiles that a plan's residuals hold for.
        gradients: how many sums of rows it has more than the forward kernel's one: 0 for that, else 1 for gradients of
            queries and 2 for those of keys and values.
        trend: of the number of keys along its rows.
        fuses: whether it can have fewer loops, which pays where keys are read by descriptors (`plan.fusing`).
    """

    element_size: int
    head_size: int
    value_size: int
    query_limit: int
    key_limit: int
    gradients: int = 0
    trend: Trend = Trend.LEVEL
    fuses: bool = False


def tile_space(target: str, kernel: Kernel) -> tuple[TileConfig, ...]:
    """Return the configurations of a target that a kernel may be tried with, in no order of merit."""
    return tuple(config for config in _all(target, kernel) if _is_possible(target, kernel, config))


def _all(target: str, kernel: Kernel) -> Iterator[TileConfig]:
    describes = target in ("sm_90", "sm_100") and kernel.element_size == 2
    queries = [size for size in QUERIES if size <= kernel.query_limit]
    keys = [size for size in KEYS if size <= kernel.key_limit]
    large = _is_large(kernel)
    sums = kernel.gradients == 2 and kernel.head_size + kernel.value_size > 128  # two of them, of many keys
    queries = [size for size in queries if size > SMALL_TILES or large or sums] or queries
    keys = [size for size in keys if size > SMALL_TILES or large] or keys
    stages = (1, 2) if target == "gfx942" else (2, 3, 4) if not kernel.gradients else (1, 2, 3)
    for query, key, warps, depth in product(queries, keys, WARPS, stages):
        for descriptors, order in product((True, False) if describes else (False,), _orders(kernel.trend)):
            config = TileConfig(query, key, warps, depth, descriptors, order=order)
            yield config
            if descriptors and kernel.fuses:
                yield replace(config, fused=True)
            if descriptors == describes and _may_persist(kernel):
                yield replace(config, persistent=1)


def _orders(trend: Trend) -> tuple[str, ...]:
    """Return the orders of programs that may differ in time: the default, empty, and the other one.

    Where all rows visit as many keys, nothing is gained by starting some of them first, and neighbours that are
    computed one after the other read the same keys.
    """
    match trend:
        case Trend.RISING | Trend.FALLING:
            return ("", ORDERS[0])
        case Trend.MIXED:
            return ("", ORDERS[1])
        case Trend.LEVEL:
            return ("",)


def _may_persist(kernel: Kernel) -> bool:
    """Tell whether programs may get several tiles of rows each. How many there are of them follows from their code.

    A deal of tiles is made before any of them is computed. Where it is not known how long they take, a device that
    starts the next program where one has ended balances them better. Kernels of gradients have no registers to spare.
    """
    return not kernel.gradients and kernel.trend is not Trend.MIXED


def _is_large(kernel: Kernel) -> bool:
    return kernel.head_size + kernel.value_size > 256 or kernel.element_size > 2


def _is_possible(target: str, kernel: Kernel, config: TileConfig) -> bool:
    threads = config.warps * WARP_SIZE.get(target, 32)
    own, walked = (config.key, config.query) if kernel.gradients == 2 else (config.query, config.key)
    least, rows = (threads, 4) if _is_large(kernel) else (LEAST_PAIRS * threads, 8)  # rows for each warp
    if config.query * config.key < least or own < rows * config.warps:
        return False
    sums = own * (kernel.value_size if not kernel.gradients else kernel.head_size)
    if kernel.gradients == 2:
        sums += own * kernel.value_size
    scores = own * walked * (1 if not kernel.gradients else 2)
    if (sums + scores) / threads > MOST_REGISTERS.get(target, REGISTERS):
        return False
    width = kernel.head_size + kernel.value_size
    tiles = walked * width * max(1, config.stages - 1) + own * width * (1 if kernel.gradients else 0)
    return tiles * kernel.element_size <= SHARED_MEMORY[target] * 1024
