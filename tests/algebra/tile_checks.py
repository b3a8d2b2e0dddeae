"""Brute force over every pair of small attentions: what the derived tiles claim, against the mask itself."""

from itertools import product

from attnc.algebra.coordinates import PLAIN
from attnc.algebra.key_intervals import Coverage
from attnc.algebra.walking import passes_test, positions, row_tiles, walk_tiles
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Const, IndexName, SizeName
from attnc.ir.types import Type


def environment(attention, queries, keys, *, heads=2, head=0, batch=0, group=1, tables=None):
    sizes = {
        SizeName.QUERIES: queries,
        SizeName.KEYS: keys,
        SizeName.HEADS: heads,
        SizeName.BATCH: 2,
        SizeName.GROUP: group,
        SizeName.HEAD_SIZE: 16,
    }
    indices = {IndexName.HEAD: head, IndexName.BATCH: batch}
    bare = Environment(indices=indices, sizes=sizes, tables=tables or {})
    shift = evaluate(attention.align.shift, bare)
    return Environment(indices={**indices, IndexName.SHIFT: shift}, sizes=sizes, tables=tables or {})


def holds(expr, env, row, key):
    shift = env.indices[IndexName.SHIFT]
    here = {**env.indices, IndexName.ROW: row, IndexName.QUERY: row + shift, IndexName.KEY: key}
    return bool(evaluate(expr, Environment(indices=here, sizes=env.sizes, tables=env.tables)))


def dense(attention, env):
    rows, keys = range(env.sizes[SizeName.QUERIES]), range(env.sizes[SizeName.KEYS])
    return {(row, key): holds(attention.mask, env, row, key) for row, key in product(rows, keys)}


def check_tiles(tiles, attention, env, query_tile, key_tile, allowed=None, layout=PLAIN):
    """Check every claim of `KeyInterval` and `TileSets` at one size and tile shape."""
    allowed = dense(attention, env) if allowed is None else allowed
    shift, seen = env.indices[IndexName.SHIFT], []
    for tile_env in row_tiles(env, layout, query_tile):
        queries, keys = positions(tile_env, layout)
        rows = [query - shift for query in queries if query is not None]
        seen += rows
        covered = set()
        for visit in walk_tiles(tiles, tile_env, key_tile):
            for tile in range(visit.begin, visit.end):
                where = f"{layout}: rows {rows}, tile {tile} of {key_tile}, {visit.interval.label}, sizes {env.sizes}"
                assert tile not in covered, where
                covered.add(tile)
                _check_tile(tiles, visit.interval, allowed, (env, tile_env), rows, keys, tile, key_tile, layout, where)
        real = [(number, key) for number, key in enumerate(keys) if key is not None]
        needed = {number // key_tile for row in rows for number, key in real if allowed[row, key]}
        assert needed <= covered, f"{layout}, rows {rows}: tiles {needed - covered} of {key_tile} missed, {env.sizes}"
        unreached = set(range(env.sizes[SizeName.KEYS])) - set(keys)
        assert not any(allowed[row, key] for row in rows for key in unreached), f"{layout} leaves out allowed pairs"
    unreached = set(range(env.sizes[SizeName.QUERIES])) - set(seen)
    assert len(seen) == len(set(seen))
    assert not any(allowed[row, key] for row in unreached for key in range(env.sizes[SizeName.KEYS]))


def _check_tile(tiles, interval, allowed, envs, rows, keys, tile, key_tile, layout, where):
    env, tile_env = envs
    first, last = tile * key_tile, (tile + 1) * key_tile
    assert first >= 0, where
    assert last <= -(-len(keys) // key_tile) * key_tile, where
    real = [(row, key) for row in rows for key in keys[first:last] if key is not None]
    touched = any(allowed[pair] for pair in real)
    if interval.coverage is Coverage.FULL:
        assert last <= len(keys), where
        assert all(allowed[pair] for pair in real), where
        return
    tested = passes_test(interval, tile_env, layout, tile, key_tile)
    assert tested or not touched, where
    assert touched or not tested or not tiles.exact, where
    if len(rows) >= 16 and key_tile >= 16 and tiles.exact and last <= len(keys):
        assert not all(allowed[pair] for pair in real), where
    for row, key in real:
        assert holds(interval.residual, env, row, key) == allowed[row, key], f"{where}: row {row}, key {key}"
    if not interval.ragged:
        numbers = range(max(first, len(keys)), last)
        past = [evaluate(layout.key.position(Const(number, Type.INT)), tile_env) for number in numbers]
        for row, key in product(rows, past):
            assert not holds(interval.residual, env, row, key), f"{where}: row {row}, key {key} past the end"


def check_facts(facts, attention, env):
    """Check that no pair of one size contradicts a fact that was proven."""
    allowed = dense(attention, env)
    shift = env.indices[IndexName.SHIFT]
    queries, keys = env.sizes[SizeName.QUERIES], env.sizes[SizeName.KEYS]
    lower = {(row, key): key <= row + shift for row, key in allowed}
    if facts.causal:
        assert all(lower[pair] for pair, allows in allowed.items() if allows)
    if facts.nonempty:
        assert all(any(allowed[row, key] for key in range(keys)) for row in range(queries))
    if facts.everything:
        assert all(allowed.values())
    if facts.exactly_causal:
        assert allowed == lower
    if facts.contiguous:
        for row in range(queries):
            seen = [key for key in range(keys) if allowed[row, key]]
            assert not seen or seen == list(range(seen[0], seen[-1] + 1))
    if facts.symmetric and queries == keys:
        positions = {(row + shift, key): allows for (row, key), allows in allowed.items()}
        assert all(positions.get((key, query), allows) == allows for (query, key), allows in positions.items())
