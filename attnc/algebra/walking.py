"""Walking an interval list at concrete sizes: what a kernel does, in plain Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from attnc.algebra.coordinates import KEYS, CoordinateMap, Layout
from attnc.algebra.int_exprs import constant
from attnc.algebra.key_intervals import Coverage, KeyInterval, TileSets
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Expr, IndexName, SizeName


@dataclass(frozen=True, slots=True)
class Visit:
    """Tiles `begin .. end - 1` that a query tile visits in one interval."""

    interval: KeyInterval
    begin: int
    end: int


def row_tiles(env: Environment, layout: Layout, rows: int) -> Iterator[Environment]:
    """Yield the environment of each query tile of at most `rows` rows; `env` has sizes and the shift."""
    shift = env.indices[IndexName.SHIFT]
    queries = env.sizes[SizeName.QUERIES]
    rows = rows_within(layout, rows)
    first, past = (constant(shift + more) for more in (0, queries))
    for residue in sorted({(shift + row) % layout.classes for row in range(min(queries, layout.classes))}):
        here = _with_indices(env, {IndexName.CLASS: residue})
        start, stop = _bound(layout.query.first_from(first), here), _bound(layout.query.end_before(past), here)
        for low in range(start, stop, rows):
            high = min(low + rows, stop) - 1
            yield _with_indices(here, {IndexName.QUERY_LOW: low, IndexName.QUERY_HIGH: high})


def rows_within(layout: Layout, rows: int) -> int:
    """Return how many rows a query tile of at most `rows` rows may have in a layout.

    Those of a tile of a grid are divided evenly.
    """
    tile = layout.query.tile
    return max(size for size in range(1, min(rows, tile) + 1) if tile % size == 0) if tile else rows


def count_keys(env: Environment, layout: Layout) -> int:
    """Return how many keys a layout has at the sizes, and in the class or tile, of an environment."""
    return _bound(layout.key.end_before(KEYS), env)


def positions(env: Environment, layout: Layout) -> tuple[list[int | None], list[int | None]]:
    """Return the rows of a query tile, as positions, and all keys of its class or box, in the layout's order.

    What is no row or no key is None.
    """
    numbers = range(env.indices[IndexName.QUERY_LOW], env.indices[IndexName.QUERY_HIGH] + 1)
    shift, sizes = env.indices[IndexName.SHIFT], env.sizes
    rows, keys = range(shift, shift + sizes[SizeName.QUERIES]), range(sizes[SizeName.KEYS])
    return (
        [_position(layout.query, number, env, rows) for number in numbers],
        [_position(layout.key, number, env, keys) for number in range(count_keys(env, layout))],
    )


def _position(order: CoordinateMap, number: int, env: Environment, real: range) -> int | None:
    position = _bound(order.position(constant(number)), env)
    return position if position in real and evaluate(order.is_real(constant(number)), env) else None


def walk_tiles(tiles: TileSets, env: Environment, key_tile: int) -> Iterator[Visit]:
    """Yield what one query tile visits, in order; `env` comes from `row_tiles`."""
    done = 0
    for interval in tiles.intervals:
        start, stop = _bound(interval.start, env), _bound(interval.stop, env)
        begin = max(done, _rounded(start, key_tile, up=interval.start_up))
        done = max(begin, _rounded(stop, key_tile, up=interval.stop_up))
        if begin < done:
            yield Visit(interval, begin, done)


def passes_test(interval: KeyInterval, env: Environment, layout: Layout, tile: int, key_tile: int) -> bool:
    """Tell whether a visited tile passes its interval's `tile_test`; `env` comes from `row_tiles`."""
    if interval.tile_test is None:
        return True
    last = min((tile + 1) * key_tile, count_keys(env, layout)) - 1
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
