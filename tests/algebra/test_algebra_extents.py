"""Tile tests by minima and maxima of tables: no tile with an allowed pair is skipped, and tiles apart are."""

import math
import random
from itertools import product

import pytest
import torch
from brief_ir import attention
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_checks import check_tiles, dense, environment, holds

from attnc.algebra.affine import is_uniform
from attnc.algebra.coordinates import IDENTITY, PLAIN, Layout, residue, runs
from attnc.algebra.data_tests import whole_test
from attnc.algebra.extents import TileExtents, TileLimits
from attnc.algebra.key_intervals import Coverage
from attnc.algebra.summaries import summary_source
from attnc.algebra.tiles import derive_tiles
from attnc.algebra.walking import is_full, passes_test, positions, row_tiles, walk_tiles
from attnc.ir.arithmetic import INT_MAX, INT_MIN
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Const, Expr, IndexName, Size, SizeName
from attnc.ir.program import Tensor, TensorKind
from attnc.ir.types import Type
from attnc.ir.walk import tables
from attnc.runtime.summaries import summarize

B, H, M, N = (Size(name) for name in (SizeName.BATCH, SizeName.HEADS, SizeName.KEYS, SizeName.QUERIES))


def declared(name: str, kind: Type, *dims: Expr | None, ordered: bool = False) -> Tensor:
    return Tensor(name, TensorKind.INPUT, kind, dims, sorted=ordered)


TENSORS = (
    declared("ids", Type.INT, B, M),
    declared("other", Type.INT, None),
    declared("rows", Type.INT, N, Const(2, Type.INT)),
    declared("of_head", Type.INT, B, H, M),
    declared("x", Type.FLOAT, M),
    declared("y", Type.FLOAT, H, None),
    declared("valid", Type.BOOL, B, M),
    declared("grid", Type.BOOL, Const(48, Type.INT), Const(48, Type.INT)),
    declared("run", Type.INT, B, M, ordered=True),
    declared("cut", Type.INT),
    declared("limit", Type.INT, B),
)
PATTERNS = (
    "ids[b, i] == ids[b, j]",
    "j <= i and ids[b, i] != ids[b, j]",
    "ids[b, i] < ids[b, j] and i - j < 20",
    "ids[b, i] - ids[b, j] <= 2 and ids[b, j] - ids[b, i] <= 2",
    "abs(ids[b, i] - other[j]) <= cut",
    "ids[b, i] * 2 >= other[j] + cut",
    "rows[r, 1] == of_head[b, h, j]",
    "of_head[b, h, i + 1] // 2 == of_head[b, h, j - 2] % 3",
    "min(ids[b, i], 2) > max(ids[b, j], limit[b])",
    "x[i] < x[j]",
    "not x[i] < x[j]",
    "x[i] != y[h, j]",
    "not x[i] != y[h, j]",
    "abs(x[i] - y[h, j]) <= 0.5",
    "not x[j] - 1.0 <= y[h, i]",
    "valid[b, j]",
    "not valid[b, j] and j <= i",
    "valid[b, i] == valid[b, j]",
    "grid[i % 48, j % 48]",
    "valid[b, j] or j < 3 and ids[b, i] == 0",
    "run[b, i] == run[b, j] and ids[b, i] == ids[b, j]",
    "any(t < 2, rows[i // 16, t] == ids[b, j])",
    "all(t < 3, ids[b, j] != t) and j <= i",
    "(1 if valid[b, j] else 0) + ids[b, i] == other[j]",
    "ids[b, j] == cut",
    "(ids[b, i] < 2 if valid[b, j] else ids[b, j] > 3)",
)
SIZES = ((1, 1), (70, 70), (33, 70), (70, 33))


def tensors_of(example, queries, keys, draw, values):
    """Return random tables; a stretch of positions mostly has one value."""

    def numbers(shape):
        count = math.prod(shape)
        found = []
        while len(found) < count:
            value = draw.choice(values)
            found += [value if draw.random() < 0.8 else draw.choice(values) for _ in range(draw.randint(1, 40))]
        return torch.tensor(found[:count]).reshape(shape)

    sizes = {B: 2, H: 2, M: keys, N: queries, None: max(1, keys - 5)}
    made = {}
    for one in example.tensors:
        shape = [sizes[dim] if dim in sizes else int(dim.value) for dim in one.dims]
        match one.type:
            case Type.INT:
                made[one.name] = numbers(shape).sort(-1).values if one.sorted else numbers(shape)
            case Type.FLOAT:
                made[one.name] = numbers(shape).clamp(-9, 9).double() / 2
            case Type.BOOL:
                made[one.name] = numbers(shape) > values[0]
    return made


def environment_of(example, queries, keys, made, summaries, **place):
    known = {name: tensor.tolist() for name, tensor in made.items()}
    for name in summaries:
        table, kind = summary_source(name)
        known[name] = summarize(made[table], kind).tolist()
    return environment(example, queries, keys, tables=known, **place)


def read_by(tiles):
    found = [expr for one in tiles.intervals for expr in (one.start, one.stop, one.tile_test) if expr is not None]
    return {name for expr in found for name in tables(expr) if summary_source(name)}


def check_mask(mask, draw, values, *, align="end", sizes=SIZES, shapes=((16, 16), (32, 32), (16, 24)), layout=PLAIN):
    example = attention(mask, align=align, shift="3", tensors=TENSORS)
    tiles = derive_tiles(example, query_tile=32, key_tile=32, summaries=True, layout=layout)
    extents = TileExtents.of(example, TileLimits(32, 32), layout, summaries=True)
    for case, (queries, keys) in enumerate(sizes):
        made = tensors_of(example, queries, keys, draw, values)
        wholes = [whole_test(one.residual, extents) for one in tiles.intervals]
        names = read_by(tiles) | {name for one in wholes if one for name in tables(one) if summary_source(name)}
        env = environment_of(example, queries, keys, made, names, head=case % 2, batch=case % 2)
        allowed, shape = dense(example, env), shapes[case % len(shapes)]
        check_tiles(tiles, example, env, *shape, allowed, layout)
        check_wholes(tiles, wholes, env, shape, allowed, layout)


def check_wholes(tiles, wholes, env, shape, allowed, layout):
    shift = env.indices[IndexName.SHIFT]
    for here in row_tiles(env, layout, shape[0]):
        rows, keys = positions(here, layout)
        for visit in walk_tiles(tiles, here, shape[1]):
            whole = wholes[tiles.intervals.index(visit.interval)]
            for tile in range(visit.begin, visit.end) if whole is not None else ():
                first, last = tile * shape[1], min((tile + 1) * shape[1], len(keys)) - 1
                bounds = {**here.indices, IndexName.KEY_LOW: first, IndexName.KEY_HIGH: last}
                if evaluate(whole, Environment(bounds, here.sizes, here.tables)):
                    assert all(allowed[row - shift, key] for row in rows for key in keys[first : last + 1])


@pytest.mark.parametrize("align", ["end", "start", "at"])
@pytest.mark.parametrize("mask", PATTERNS)
def test_no_tile_with_an_allowed_pair_is_skipped(mask, align):

    draw = random.Random(mask + align)
    check_mask(mask, draw, (0, 1, 1, 5), align=align)
    check_mask(mask, draw, (INT_MIN, -1, 0, INT_MAX), align=align, sizes=SIZES[1:3])


LAYOUTS = {
    "residue": (residue(3), "(i - j) % 3 == 0"),
    "ahead": (residue(4, 3), "(j - i) % 4 == 3"),
    "keys in runs": (Layout(IDENTITY, runs(8, 5, 3)), "j % 8 >= 5"),
    "both in runs": (Layout(runs(4, 1, 1), runs(6, 2, 2)), "i % 4 == 1 and j % 6 // 2 == 1"),
}


@pytest.mark.parametrize("align", ["end", "at"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("mask", PATTERNS[::2])
def test_no_tile_is_skipped_in_other_orders(mask, name, align):
    layout, condition = LAYOUTS[name]
    draw = random.Random(mask + name)
    sizes = ((90, 90), (33, 70)) if align == "end" else ((70, 33),)
    check_mask(f"({mask}) and {condition}", draw, (0, 1, 1, 5), align=align, sizes=sizes, layout=layout)


@pytest.mark.parametrize("name", LAYOUTS)
def test_data_is_tested_in_other_orders(name):
    layout, condition = LAYOUTS[name]
    for mask in ("valid[b, j]", "ids[b, i] == ids[b, j]", "rows[r, 0] < 3"):
        tiles = derive_tiles(
            attention(f"{mask} and {condition}", tensors=TENSORS),
            query_tile=32,
            key_tile=32,
            summaries=True,
            layout=layout,
        )
        assert read_by(tiles)


OPERANDS = st.sampled_from(
    ["ids[b, i]", "ids[b, j]", "other[j]", "rows[r, 0]", "of_head[b, h, j]", "i", "j", "cut", "3"]
)
SUMS = st.one_of(
    OPERANDS, st.builds("({} {} {})".format, OPERANDS, st.sampled_from("+-"), OPERANDS),
    st.builds("(2 * {} // 3)".format, OPERANDS), st.builds("({} % 4)".format, OPERANDS),
)  # fmt: skip
COMPARISONS = st.one_of(
    st.builds("{} {} {}".format, SUMS, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), SUMS),
    st.sampled_from(["valid[b, j]", "valid[b, i]", "x[i] <= x[j]", "x[j] - y[h, i] > 0.5"]),
)
MASKS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds("(not {})".format, inner),
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
    ),
    max_leaves=4,
)


@settings(max_examples=60)
@given(MASKS, st.integers(0, 2**16), st.sampled_from([(0, 1, 1, 5), (INT_MIN, -(2**40), 2, INT_MAX)]))
def test_random_masks(mask, seed, values):
    check_mask(mask, random.Random(seed), values, sizes=((40, 40), (9, 40)), shapes=((16, 16),))


@settings(max_examples=40)
@given(st.lists(st.sampled_from([math.nan, -1.0, 0.0, 2.0, math.inf]), min_size=20, max_size=20), st.data())
def test_nan_never_skips(values, data):
    mask = data.draw(st.sampled_from(["x[i] < x[j]", "not x[i] < x[j]", "x[i] != x[j]", "not (x[j] - x[i] >= 1.0)"]))
    example = attention(mask, tensors=TENSORS)
    tiles = derive_tiles(example, query_tile=4, key_tile=4, summaries=True)
    env = environment_of(example, 20, 20, {"x": torch.tensor(values, dtype=torch.float64)}, read_by(tiles))
    check_tiles(tiles, example, env, 4, 4)


def skipped(mask, made, length, tile):
    """Return how many tiles are computed, and how many hold an allowed pair."""
    example = attention(mask, tensors=TENSORS)
    tiles = derive_tiles(example, summaries=True)
    env = environment_of(example, length, length, made, read_by(tiles))
    computed = {
        (number, column)
        for number, here in enumerate(row_tiles(env, PLAIN, tile))
        for visit in walk_tiles(tiles, here, tile)
        for column in range(visit.begin, visit.end)
        if is_full(visit) or passes_test(visit.interval, here, PLAIN, column, tile)
    }
    pairs = product(range(length), range(length))
    return computed, {(row // tile, key // tile) for row, key in pairs if holds(example.mask, env, row, key)}


def test_documents_in_any_order_are_told_apart():
    ids = torch.tensor([[7] * 64 + [-3] * 128 + [2] * 64] * 2)
    computed, touched = skipped("j <= i and ids[b, i] == ids[b, j]", {"ids": ids}, 256, 64)
    assert computed == touched
    assert len(computed) == 5


def test_keys_that_are_left_out_are_skipped():
    valid = torch.arange(256).expand(2, 256) < 100
    computed, touched = skipped("valid[b, j]", {"valid": valid}, 256, 64)
    assert computed == touched
    assert len(computed) == 8


def test_a_block_of_a_square_table_is_read_once():
    grid = torch.zeros(48, 48, dtype=torch.bool)
    grid[:16, 32:] = True
    example = attention("grid[i % 48, j % 48]", tensors=TENSORS)
    tiles = derive_tiles(example, query_tile=32, key_tile=32, summaries=True)
    assert read_by(tiles) == {"grid.greatest_0x16_1x16"}


@pytest.mark.parametrize("mask", ["run[b, i] == run[b, j]", "j <= i and run[b, i] == run[b, j]", "j < limit[b]"])
def test_what_bounds_say_is_not_tested_again(mask):
    tiles = derive_tiles(attention(mask, tensors=TENSORS), summaries=True)
    assert all(one.tile_test is None for one in tiles.intervals)


def test_sorted_ids_in_other_comparisons_have_extremes():
    tiles = derive_tiles(attention("run[b, i] <= run[b, j]", tensors=TENSORS), summaries=True)
    assert read_by(tiles) == {"run.least_1x64", "run.greatest_1x64"}
    assert [one.coverage for one in tiles.intervals] == [Coverage.PARTIAL]


def test_summaries_are_read_where_they_are_made_alone():
    tiles = derive_tiles(attention("ids[b, i] == ids[b, j]", tensors=TENSORS))
    assert all(one.tile_test is None for one in tiles.intervals)
    assert not any(is_uniform(one.residual) for one in tiles.intervals)
