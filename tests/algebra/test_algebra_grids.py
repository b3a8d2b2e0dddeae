"""Queries in tiles of a grid with boxes of keys around them, against brute force."""

from dataclasses import replace

import pytest
from brief_ir import attention
from expressions import TENSORS, masks, tables_for
from grid_layouts import grid_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_checks import check_tiles, dense, environment

from attnc.algebra.boxes import Reaches
from attnc.algebra.congruences import PairSet
from attnc.algebra.coordinates import KEYS, boxed
from attnc.algebra.grids import Axis, Grid, Side
from attnc.algebra.int_exprs import constant
from attnc.algebra.tiles import derive_tiles
from attnc.algebra.walking import positions, row_tiles
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import TRUE, IndexName, Size, SizeName
from attnc.ir.show import show

NEAR = "abs(i // 8 - j // 8) <= 1 and abs(i % 8 - j % 8) <= 2"
CELLS = "(i // 8 + 2) // 4 == (j // 8 + 2) // 4 and (i % 8 + 2) // 4 == (j % 8 + 2) // 4"
CUBES = "abs(i // 16 - j // 16) <= 1 and abs(i // 4 % 4 - j // 4 % 4) <= 1 and abs(i % 4 - j % 4) <= 1"
HOLES = "abs(i // 8 - j // 8) <= 2 and (i // 8 - j // 8) % 2 == 0 and abs(i % 8 - j % 8) <= 2 and (i - j) % 2 == 0"


PATTERNS = {
    "neighbourhood": (NEAR, ((8, 0, 4), (1, 8, 4))),
    "wide tiles": (NEAR, ((8, 0, 2), (1, 8, 8))),
    "tiles that do not fill rows": (NEAR, ((8, 0, 4), (1, 8, 5))),
    "tiles that are no power of two": (NEAR, ((8, 0, 3), (1, 8, 3))),
    "tiles that begin before rows": (NEAR, ((8, 0, 4, 3), (1, 8, 4, 2))),
    "causal": (f"j <= i and {NEAR}", ((8, 0, 4), (1, 8, 4))),
    "rows of seven": (NEAR.replace("8", "7"), ((7, 0, 4), (1, 7, 4))),
    "one column": (NEAR, ((8, 0, 16), (1, 8, 1))),
    "one row": (NEAR, ((8, 0, 1), (1, 8, 16))),
    "shifted cells": (CELLS, ((8, 0, 4, 2), (1, 8, 4, 2))),
    "cells in tiles beside them": (CELLS, ((8, 0, 4), (1, 8, 4))),
    "three dimensions": (CUBES, ((16, 0, 2), (4, 4, 2), (1, 4, 4))),
    "dilated": (HOLES, ((16, 0, 4), (8, 2, 1), (2, 4, 4), (1, 2, 1))),
    "unbounded rows": ("j <= i and abs(i % 8 - j % 8) <= 1", ((8, 0, 4), (1, 8, 4))),
    "unbounded columns": ("abs(i // 8 - j // 8) <= 1", ((8, 0, 4), (1, 8, 4))),
    "by head": ("abs(i // 8 - j // 8) <= h and abs(i % 8 - j % 8) <= 1", ((8, 0, 4), (1, 8, 4))),
    "by an input": ("abs(i // 8 - j // 8) <= cut and abs(i % 8 - j % 8) <= cut", ((8, 0, 4), (1, 8, 4))),
    "data": (f"{NEAR} and (keep[b, j] or doc[b, i] == doc[b, j])", ((8, 0, 4), (1, 8, 4))),
    "a part of the rows": (f"{NEAR} and i // 8 % 2 == 1", ((8, 0, 4), (1, 8, 4))),
    "nothing": ("i < j and j < i", ((8, 0, 4), (1, 8, 4))),
}
SIZES = ((1, 1), (7, 3), (3, 7), (23, 41), (41, 23), (64, 64), (65, 70))
SHAPES = ((16, 16), (8, 4), (16, 5), (4, 16))


@pytest.mark.parametrize("align", ["end", "start", "at"])
@pytest.mark.parametrize("name", PATTERNS)
def test_tiles_of_a_grid_are_what_the_mask_says(name, align):
    mask, cuts = PATTERNS[name]
    example = attention(mask, align=align, shift="cut - 5", tensors=TENSORS)
    layout = grid_of(example, *cuts)
    tiles = derive_tiles(example, key_tile=16, layout=layout)
    for case, (queries, keys) in enumerate(SIZES if align == "end" else SIZES[1:5]):
        tables = tables_for(2, 3, keys, case)
        env = environment(example, queries, keys, heads=3, head=case % 3, batch=case % 2, tables=tables)
        check_tiles(tiles, example, env, *SHAPES[case % 4], dense(example, env), layout)


@pytest.mark.parametrize(
    ("name", "stride", "extent", "low", "high"),
    [
        ("neighbourhood", 8, 0, "max(0, i_lo - 1)", "i_hi + 1"),
        ("neighbourhood", 1, 8, "max(0, i_lo - 2)", "min(7, i_hi + 2)"),
        ("causal", 8, 0, "max(0, i_lo - 1)", "i_hi"),
        ("dilated", 16, 0, "max(0, i_lo - 1)", "i_hi + 1"),
        ("dilated", 2, 4, "max(0, i_lo - 1)", "min(3, i_hi + 1)"),
        ("unbounded rows", 8, 0, "0", "i_hi"),
        ("by an input", 8, 0, "max(0, i_lo - cut)", "i_hi + cut"),
    ],
)
def test_reaches_are_exact(name, stride, extent, low, high):
    example = attention(PATTERNS[name][0], tensors=TENSORS)
    side = Reaches(PairSet.of(example), example.mask).side(stride, extent)
    assert (show(side.low), show(side.high)) == (low, high)


def test_boxes_that_are_cells_need_no_test():
    mask, cuts = PATTERNS["shifted cells"]
    example = attention(mask)
    (interval,) = derive_tiles(example, layout=grid_of(example, *cuts)).intervals
    assert interval.residual == TRUE


def test_conditions_that_tiles_imply_are_left_out():
    mask, cuts = PATTERNS["dilated"]
    example = attention(mask)
    (interval,) = derive_tiles(example, layout=grid_of(example, *cuts)).intervals
    assert show(interval.residual) == "abs(i // 8 - j // 8) <= 2 and abs(i % 8 - j % 8) <= 2"


CUTS = st.lists(st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=2)


@given(CUTS, st.integers(1, 4), st.integers(0, 3), st.integers(-9, 9), st.integers(1, 20))
@settings(max_examples=20)
def test_every_query_has_one_number(inner, tile, lead, shift, queries):
    stride, cuts = 1, []
    for extent, size, first in inner:
        cuts.insert(0, Axis(stride, extent, size, first % size))
        stride *= extent
    grid = Grid((Axis(stride, 0, tile, lead % tile), *cuts))
    layout = boxed(grid.axes, (Side(None, None),) * len(grid.axes))
    env = Environment(
        {IndexName.SHIFT: shift, IndexName.BATCH: 0, IndexName.HEAD: 0},
        {SizeName.QUERIES: queries, SizeName.KEYS: 17},
    )
    for rows in (grid.rows, 3):
        seen = [positions(here, layout) for here in row_tiles(env, layout, rows)]
        found = [query for here, _ in seen for query in here if query is not None]
        assert sorted(found) == list(range(shift, shift + queries))
        for _, keys in seen:
            assert sorted(key for key in keys if key is not None) == list(range(17))


@given(masks(), st.sampled_from([cuts for _, cuts in PATTERNS.values()]))
@settings(max_examples=30)
def test_random_masks_in_grids(mask, cuts):
    example = replace(attention(tensors=TENSORS), mask=mask)
    layout = grid_of(example, *cuts)
    tiles = derive_tiles(example, key_tile=16, layout=layout)
    for queries, keys in ((17, 19), (20, 9)):
        env = environment(example, queries, keys, heads=3, head=1, tables=tables_for(2, 3, keys, 1))
        check_tiles(tiles, example, env, 8, 8, dense(example, env), layout)


def test_the_number_of_keys_in_a_box():
    example = attention(NEAR)
    layout = grid_of(example, *PATTERNS["neighbourhood"][1])
    sizes = {SizeName.QUERIES: 128, SizeName.KEYS: 128}
    indices = {IndexName.SHIFT: 0, IndexName.QUERY_LOW: 32, IndexName.QUERY_HIGH: 47}
    assert evaluate(layout.key.end_before(KEYS), Environment(indices, sizes)) == 6 * 6
    assert evaluate(layout.query.end_before(Size(SizeName.QUERIES)), Environment(indices, sizes)) == 128
    assert evaluate(layout.query.first_from(constant(40)), Environment(indices, sizes)) == 32
