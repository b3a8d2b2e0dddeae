"""Walking an interval list at concrete sizes: what a kernel does, in plain Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from attnc.algebra.coordinates import KEY_REACH, LOCAL_KEY, CoordinateMap, Layout
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
    first, past = layout.query.first_from(constant(shift)), layout.query.end_before(constant(shift + queries))
    for residue in sorted({(shift + row) % layout.classes for row in range(min(queries, layout.classes))}):
        here = _with_indices(env, {IndexName.CLASS: residue})
        start, stop = _bound(first, here), _bound(past, here)
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
    return _bound(_end_of_keys(layout.key), env)


@lru_cache(maxsize=1024)
def _end_of_keys(order: CoordinateMap) -> Expr:
    return order.end_before(KEY_REACH.past)


def positions(env: Environment, layout: Layout) -> tuple[list[int | None], list[int | None]]:
    """Return the rows of a query tile, as positions, and all keys of its class or box, in the layout's order.

    What is no row or no key is None.
    """
    numbers = range(env.indices[IndexName.QUERY_LOW], env.indices[IndexName.QUERY_HIGH] + 1)
    shift, sizes = env.indices[IndexName.SHIFT], env.sizes
    rows, keys = range(shift, shift + sizes[SizeName.QUERIES]), range(sizes[SizeName.KEYS])
    return (
        _positions(layout.query, numbers, env, rows),
        _positions(layout.key, range(count_keys(env, layout)), env, keys),
    )


def _positions(order: CoordinateMap, numbers: range, env: Environment, real: range) -> list[int | None]:
    position, is_real = _place(order)
    indices = dict(env.indices)
    here, found = replace(env, indices=indices), list[int | None]()
    for number in numbers:
        indices[IndexName.LOCAL_KEY] = number
        at = _bound(position, here)
        found.append(at if at in real and evaluate(is_real, here) else None)
    return found


@lru_cache(maxsize=1024)
def _place(order: CoordinateMap) -> tuple[Expr, Expr]:
    """Return the position that a number has in an order, and whether there is one, as expressions over the number."""
    return order.position(LOCAL_KEY), order.is_real(LOCAL_KEY)


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
    return count_passing(interval, env, layout, range(tile, tile + 1), key_tile) > 0


def count_passing(interval: KeyInterval, env: Environment, layout: Layout, tiles: range, key_tile: int) -> int:
    """Return how many of the visited tiles `tiles` pass their interval's `tile_test`; `env` comes from `row_tiles`."""
    if interval.tile_test is None:
        return len(tiles)
    keys, indices, found = count_keys(env, layout), dict(env.indices), 0
    here = replace(env, indices=indices)
    for tile in tiles:
        indices[IndexName.KEY_LOW] = tile * key_tile
        indices[IndexName.KEY_HIGH] = min((tile + 1) * key_tile, keys) - 1
        found += bool(evaluate(interval.tile_test, here))
    return found


def is_full(visit: Visit) -> bool:
    """Tell whether the tiles of a visit need no test."""
    return visit.interval.coverage is Coverage.FULL


def _bound(expr: Expr, env: Environment) -> int:
    return int(evaluate(expr, env))


def _rounded(position: int, key_tile: int, *, up: bool) -> int:
    return -(-position // key_tile) if up else position // key_tile


def _with_indices(env: Environment, more: Mapping[IndexName, int]) -> Environment:
    return replace(env, indices={**env.indices, **more})
