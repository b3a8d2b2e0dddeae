"""Tiles of queries that a tile of keys meets, derived from the transposed mask, against the mask itself."""

from dataclasses import replace
from itertools import product

import pytest
from brief_ir import attention
from expressions import TENSORS, masks, tables_for
from grid_layouts import grid_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_checks import dense, environment

from attnc.algebra.coordinates import IDENTITY, PLAIN, Layout, residue, runs
from attnc.algebra.int_exprs import constant
from attnc.algebra.key_intervals import Coverage
from attnc.algebra.simplify import simplify_expression
from attnc.algebra.tiles import derive_tiles
from attnc.algebra.transposition import transpose, transpose_layout
from attnc.ir.evaluate import evaluate
from attnc.ir.nodes import And, IndexName, SizeName

SIZES = [(1, 1), (19, 19), (12, 25), (25, 12), (7, 40)]


def with_indices(env, **more):
    return replace(env, indices={**env.indices, **{IndexName[name]: value for name, value in more.items()}})


def numbers(order, env, first, past):
    """Return the numbers of an order that stand for positions between two, and the positions."""
    start, stop = evaluate(order.first_from(constant(first)), env), evaluate(order.end_before(constant(past)), env)
    found = {}
    for number in range(start, stop):
        at = evaluate(order.position(constant(number)), env)
        real = first <= at < past and evaluate(order.is_real(constant(number)), env)
        found[number] = at if real else None
    return found


def tiles_of_keys(layout, env, key_tile):
    """Yield the environment of each tile of keys, and the keys."""
    keys = env.sizes[SizeName.KEYS]
    size = key_tile if not layout.query.tile else max(
        one for one in range(1, min(key_tile, layout.query.tile) + 1) if layout.query.tile % one == 0
    )  # fmt: skip
    for residue_class in range(min(layout.classes, keys)):
        here = with_indices(env, CLASS=residue_class)
        found = numbers(layout.query, here, 0, keys)
        start, stop = min(found, default=0), max(found, default=-1) + 1
        for low in range(start, stop, size):
            high = min(low + size, stop) - 1
            yield with_indices(here, QUERY_LOW=low, QUERY_HIGH=high), [found[one] for one in range(low, high + 1)]


def walked(tiles, env, layout, query_tile):
    """Yield interval, first number and positions of each visited tile of queries, counted from the first one."""
    shift, rows = env.indices[IndexName.SHIFT], env.sizes[SizeName.QUERIES]
    if layout.is_grid:
        count = evaluate(layout.key.end_before(constant(0)), env)
        first, found = 0, {n: evaluate(layout.key.position(constant(n)), env) for n in range(count)}
        found = {n: at if shift <= at < shift + rows else None for n, at in found.items()}
    else:
        found = numbers(layout.key, env, shift, shift + rows)
        first = evaluate(layout.key.first_from(constant(shift)), env)
    last = max(found, default=first - 1)
    done = 0
    for interval in tiles.intervals:
        start, stop = (evaluate(one, env) - first for one in (interval.start, interval.stop))
        begin = max(done, -(-start // query_tile) if interval.start_up else start // query_tile)
        done = max(begin, -(-stop // query_tile) if interval.stop_up else stop // query_tile)
        for tile in range(begin, done):
            low = first + tile * query_tile
            yield interval, low, last, [found.get(low + step) for step in range(query_tile)]


def check(example, env, layout, query_tile, key_tile, *, turned=None, limits=(16, 16)):
    allowed = dense(example, env)
    shift = env.indices[IndexName.SHIFT]
    turned = transpose(example) if turned is None else turned
    tiles = derive_tiles(turned, query_tile=limits[0], key_tile=limits[1], layout=layout, summaries=False)
    met = set()
    for here, keys in tiles_of_keys(layout, env, key_tile):
        for interval, low, last, queries in walked(tiles, here, layout, query_tile):
            pairs = [(at - shift, key) for at in queries for key in keys if at is not None and key is not None]
            assert not met & set(pairs), (interval.label, low)
            met |= set(pairs)
            if interval.coverage is Coverage.FULL:
                assert None not in queries, (interval.label, low, env.sizes)
                assert all(allowed[pair] for pair in pairs)
                continue
            if interval.tile_test is not None:
                ends = with_indices(here, KEY_LOW=low, KEY_HIGH=min(low + query_tile - 1, last))
                assert evaluate(interval.tile_test, ends) or not any(allowed[pair] for pair in pairs)
            for row, key in pairs:
                at = with_indices(here, QUERY=key, KEY=row + shift)
                assert bool(evaluate(interval.residual, at)) == allowed[row, key], (interval.label, row, key)
            if not interval.ragged:
                assert None not in queries or not pairs or _excluded(interval, here, layout, low, queries, keys)
    missed = [pair for pair, allows in allowed.items() if allows and pair not in met]
    assert not missed, (missed[:5], env.sizes)
    return tiles


def _excluded(interval, env, layout, low, queries, keys):
    """Tell whether a residual is false for numbers past the last query."""
    past = [evaluate(layout.key.position(constant(low + n)), env) for n, at in enumerate(queries) if at is None]
    real = [key for key in keys if key is not None]
    return not any(evaluate(interval.residual, with_indices(env, QUERY=k, KEY=p)) for p, k in product(past, real))


PATTERNS = {
    "causal": "j <= i",
    "window": "-9 < i - j and i - j < 9",
    "causal window": "j <= i and i - j < 9",
    "sinks": "j <= i and (i - j < 9 or j < 3)",
    "longformer": "-7 < i - j and i - j < 7 or i < 2 or j < 2",
    "strided": "j <= i and (i - j < 5 or (i - j) % 5 == 0)",
    "blocks": "i // 8 == j // 8",
    "everything": "j <= i or j > i",
    "rows": "r < 4 or j > 9",
    "lower half": "i < M // 2",
    "far": "i - j >= 12 or j - i >= 12",
    "nothing": "i < j and j < i",
}


@pytest.mark.parametrize("align", ["end", "start", "at"])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_pair_is_met_once(name, align):
    example = attention(PATTERNS[name], align=align, shift="3")
    for sizes, shape in zip(SIZES, ((1, 1), (4, 8), (16, 16), (8, 3), (16, 4)), strict=True):
        check(example, environment(example, *sizes), PLAIN, *shape)


IN_LAYOUTS = {
    "residue": ("j <= i and (i - j) % 4 == 0", residue(4)),
    "ahead": ("(j - i) % 5 == 2 and j <= i", residue(5, 2)),
    "columns": ("j % 8 >= 5 and j <= i", Layout(IDENTITY, runs(8, 5, 3))),
    "rows": ("i % 8 == 3", Layout(runs(8, 3, 1), IDENTITY)),
    "rows by columns": ("i % 8 == 3 and j % 8 >= 5", Layout(runs(8, 3, 1), runs(8, 5, 3))),
}


@pytest.mark.parametrize("align", ["end", "start", "at"])
@pytest.mark.parametrize("name", IN_LAYOUTS)
def test_layouts_are_transposed(name, align):
    mask, layout = IN_LAYOUTS[name]
    example = attention(mask, align=align, shift="3")
    turned = transpose(example)
    for sizes, shape in zip(SIZES, ((1, 1), (4, 8), (16, 16), (8, 3), (16, 4)), strict=True):
        check(example, environment(example, *sizes), transpose_layout(layout, turned), *shape)


GRIDS = {
    "near": ("grid_near(8, 1)", ((8, 0, 4), (1, 8, 4))),
    "causal": ("j <= i and grid_near(6, 2)", ((6, 0, 4), (1, 6, 4))),
    "lead": ("grid_near(10, 2)", ((10, 0, 3, 1), (1, 10, 7, 2))),
}


@pytest.mark.parametrize("align", ["end", "start", "at"])
@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_transposed(name, align):
    text, axes = GRIDS[name]
    width, radius = (int(one) for one in text.partition("near(")[2][:-1].split(","))
    near = f"abs(i // {width} - j // {width}) <= {radius} and abs(i % {width} - j % {width}) <= {radius}" + (
        " and j <= i" if "j <= i" in text else ""
    )
    example = attention(near, align=align, shift="3")
    layout = grid_of(example, *axes)
    turned = transpose(example)
    for sizes, shape in (((12, 25), (16, 16)), ((25, 12), (8, 4))):
        check(example, environment(example, *sizes), transpose_layout(layout, turned), *shape)


def test_diagonals_are_transposed():
    tiles = derive_tiles(transpose(attention("j <= i")))
    assert [interval.coverage for interval in tiles.intervals] == [Coverage.PARTIAL, Coverage.FULL, Coverage.PARTIAL]
    assert tiles.exact


ALIGNMENTS = st.sampled_from(["end", "start", "at"])


@given(masks(), ALIGNMENTS, st.integers(1, 22), st.integers(1, 22), st.integers(0, 9), st.data())
@settings(max_examples=25)
def test_random_masks(mask, align, queries, keys, seed, data):
    example = replace(attention(align=align, shift="3", tensors=TENSORS), mask=mask)
    env = environment(example, queries, keys, heads=3, head=seed % 3, tables=tables_for(2, 3, keys, seed))
    shape = data.draw(st.tuples(st.sampled_from([1, 3, 8, 16]), st.sampled_from([1, 2, 5, 16])))
    check(example, env, PLAIN, *shape)


@given(masks(), ALIGNMENTS, st.integers(1, 22), st.integers(1, 22), st.integers(1, 6), st.data())
@settings(max_examples=15)
def test_random_masks_in_residue_classes(mask, align, queries, keys, period, data):
    ahead = data.draw(st.integers(0, period - 1))
    whole, _ = simplify_expression(And((mask, attention(f"(j - i) % {period} == {ahead}").mask)))
    example = replace(attention(align=align, shift="3", tensors=TENSORS), mask=whole)
    env = environment(example, queries, keys, heads=3, tables=tables_for(2, 3, keys, 1))
    shape = data.draw(st.tuples(st.sampled_from([1, 3, 8, 16]), st.sampled_from([1, 2, 5, 16])))
    check(example, env, transpose_layout(residue(period, ahead), transpose(example)), *shape)
