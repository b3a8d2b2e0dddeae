"""Walking an interval list at concrete sizes: what a kernel does, in plain Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from attnc.algebra.key_intervals import Coverage, KeyInterval, TileSets
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Expr, IndexName, SizeName


@dataclass(frozen=True, slots=True)
class Visit:
    """Tiles `begin .. end - 1` that a query tile visits in one interval."""

    interval: KeyInterval
    begin: int
    end: int


def row_tile(env: Environment, first_row: int, rows: int) -> Environment:
    """Return the environment of the query tile of `rows` rows from `first_row`; `env` has sizes and the shift."""
    shift = env.indices[IndexName.SHIFT]
    last = min(first_row + rows, env.sizes[SizeName.QUERIES]) - 1
    return _with_indices(env, {IndexName.QUERY_LOW: first_row + shift, IndexName.QUERY_HIGH: last + shift})


def walk_tiles(tiles: TileSets, env: Environment, key_tile: int) -> Iterator[Visit]:
    """Yield what one query tile visits, in order; `env` comes from `row_tile`."""
    done = 0
    for interval in tiles.intervals:
        start, stop = _bound(interval.start, env), _bound(interval.stop, env)
        begin = max(done, _rounded(start, key_tile, up=interval.start_up))
        done = max(begin, _rounded(stop, key_tile, up=interval.stop_up))
        if begin < done:
            yield Visit(interval, begin, done)


def passes_test(interval: KeyInterval, env: Environment, tile: int, key_tile: int) -> bool:
    """Tell whether a visited tile passes its interval's `tile_test`; `env` comes from `row_tile`."""
    if interval.tile_test is None:
        return True
    last = min((tile + 1) * key_tile, env.sizes[SizeName.KEYS]) - 1
    here = _with_indices(env, {IndexName.KEY_LOW: tile * key_tile, IndexName.KEY_HIGH: last})
    return bool(evaluate(interval.tile_test, here))


def is_full(visit: Visit) -> bool:
    """Tell whether the tiles of a visit need no test."""
    return visit.interval.coverage is Coverage.FULL


def _bound(expr: Expr, env: Environment) -> int:
    return int(evaluate(expr, env))


def _rounded(position: int, key_tile: int, *, up: bool) -> int:
    return -(-position // key_tile) if up else position // key_tile


def _with_indices(env: Environment, more: Mapping[IndexName, int]) -> Environment:
    return replace(env, indices={**env.indices, **more})
