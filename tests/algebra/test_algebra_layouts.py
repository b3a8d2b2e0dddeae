"""Interval lists in other orders than the plain one, against brute force."""

from dataclasses import replace

import pytest
from brief_ir import attention
from expressions import TENSORS, masks, tables_for
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_checks import check_tiles, dense, environment

from attnc.algebra.coordinates import IDENTITY, PLAIN, Layout, residue, runs
from attnc.algebra.key_intervals import Coverage
from attnc.algebra.simplify import simplify_expression
from attnc.algebra.tiles import derive_tiles
from attnc.ir.nodes import And
from attnc.ir.show import show

PATTERNS = {
    "causal residue": ("j <= i and (i - j) % 8 == 0", residue(8)),
    "symmetric residue": ("abs(i - j) < 80 and (i - j) % 4 == 0", residue(4)),
    "residue apart": ("j <= i and (i - j) % 8 == 5", residue(8, -5)),
    "residue beyond a window": ("i - j >= 16 and (i - j) % 16 == 0", residue(16)),
    "two moduli": ("j <= i and (i - j) % 4 == 0 and (i - j) % 6 == 0", residue(12)),
    "summaries": ("j <= i and j % 16 >= 13 and i // 16 != j // 16", Layout(IDENTITY, runs(16, 13, 3))),
    "columns": ("j % 8 == 3", Layout(IDENTITY, runs(8, 3, 1))),
    "global rows": ("i % 8 == 0", Layout(runs(8, 0, 1), IDENTITY)),
    "rows and columns": ("i % 8 < 2 and j % 4 == 1 and j <= i", Layout(runs(8, 0, 2), runs(4, 1, 1))),
    "heads": ("j <= i and (i - j) % 4 == 0 and i - j < 16 * (h + 1)", residue(4)),
    "nothing": ("i < j and j < i", residue(4)),
    "data": ("(i - j) % 4 == 0 and (j < cut or doc[b, j] > 0)", residue(4)),
}
SIZES = ((1, 1), (7, 3), (3, 7), (23, 41), (41, 23), (64, 64), (65, 70))
SHAPES = ((16, 16), (8, 4), (16, 5))


@pytest.mark.parametrize("align", ["end", "start", "at"])
@pytest.mark.parametrize("name", PATTERNS)
def test_tiles_in_a_layout_are_what_the_mask_says(name, align):
    mask, layout = PATTERNS[name]
    example = attention(mask, align=align, shift="cut - 5", tensors=TENSORS)
    tiles = derive_tiles(example, query_tile=16, key_tile=16, layout=layout)
    for case, (queries, keys) in enumerate(SIZES if align == "end" else SIZES[1:5]):
        tables = tables_for(2, 3, keys, case)
        env = environment(example, queries, keys, heads=3, head=case % 3, batch=case % 2, tables=tables)
        allowed = dense(example, env)
        check_tiles(tiles, example, env, *SHAPES[case % 3], allowed, layout)


@pytest.mark.parametrize(
    ("name", "coverage", "start", "stop", "residual"),
    [
        ("causal residue", Coverage.FULL, "0", "i_lo + 1", "true"),
        ("causal residue", Coverage.PARTIAL, "i_lo + 1", "i_hi + 1", "j <= i"),
        ("symmetric residue", Coverage.PARTIAL, "max(0, i_lo - 19)", "max(0, i_hi - 19)", "abs(i - j) < 80"),
        ("residue beyond a window", Coverage.FULL, "0", "i_lo", "true"),
        ("summaries", Coverage.FULL, "0", "i_lo // 16 * 3", "true"),
    ],
)
def test_layouts_make_pairs_dense(name, coverage, start, stop, residual):
    mask, layout = PATTERNS[name]
    tiles = derive_tiles(attention(mask), layout=layout)
    found = {(i.coverage, show(i.start), show(i.stop), show(i.residual)) for i in tiles.intervals}
    assert tiles.exact
    assert (coverage, start, stop, residual) in found


HARD = {
    "i % 16 != 0 and -9 < i - j and i - j < 9": PLAIN,
    "i % 8 != 0 and j <= i and i - j < 8 and (j < cut or i // 4 != j // 4)": PLAIN,
    "j % 8 == 0 and (-9 >= i - j or i - j >= 9) and i % 8 != 0": Layout(IDENTITY, runs(8, 0, 1)),
}


@pytest.mark.parametrize("operations", [300, 1000, 3000, 10_000, 30_000])
@pytest.mark.parametrize("mask", HARD)
def test_small_budgets_leave_bounds_wide_and_right(mask, operations):
    example = attention(mask, tensors=TENSORS)
    tiles = derive_tiles(example, query_tile=16, key_tile=16, layout=HARD[mask], operations=operations)
    for case, (queries, keys) in enumerate(((1, 1), (23, 41), (41, 23))):
        env = environment(example, queries, keys, heads=3, tables=tables_for(2, 3, keys, case))
        check_tiles(tiles, example, env, *SHAPES[case], dense(example, env), HARD[mask])


def test_hard_conditions_are_left_out_of_the_bounds_alone():
    tiles = derive_tiles(attention("i % 512 != 0 and -129 < i - j and i - j < 129"), operations=30_000)
    assert [show(one.start) for one in tiles.intervals] == ["max(0, i_lo - 128)"]
    assert not tiles.exact


def test_names():
    assert str(PLAIN) == "identity"
    assert str(residue(8)) == "residue(8)"
    assert str(residue(8, -5)) == "residue(8), keys 3 ahead"
    assert str(Layout(runs(8, 0, 1), runs(16, 13, 3))) == "queries in runs(8: 0), keys in runs(16: 13 .. 15)"


@st.composite
def layouts(draw):
    """Draw a layout and the congruences that it stands for."""
    period = draw(st.integers(1, 9))
    if draw(st.booleans()):
        ahead = draw(st.integers(0, period - 1))
        return residue(period, ahead), [f"(j - i) % {period} == {ahead}"]
    maps, conditions = [], []
    for name in "ij":
        first = draw(st.integers(0, period - 1))
        length = draw(st.integers(1, period - first))
        chosen = draw(st.booleans())
        maps.append(runs(period, first, length) if chosen else IDENTITY)
        conditions += [f"{first} <= {name} % {period} and {name} % {period} < {first + length}"] if chosen else []
    return Layout(*maps), conditions


@given(layouts(), masks(), st.sampled_from(["end", "start", "at"]), st.data())
@settings(max_examples=60)
def test_random_masks_in_random_layouts(drawn, mask, align, data):
    layout, conditions = drawn
    congruences = [attention(condition).mask for condition in conditions]
    whole, _ = simplify_expression(And((mask, *congruences)) if congruences else mask)
    example = replace(attention(align=align, shift="3", tensors=TENSORS), mask=whole)
    queries, keys = data.draw(st.integers(1, 22)), data.draw(st.integers(1, 22))
    env = environment(
        example, queries, keys, heads=3, head=data.draw(st.integers(0, 2)), tables=tables_for(2, 3, keys, 1)
    )
    shape = data.draw(st.sampled_from([(1, 1), (3, 5), (4, 2), (8, 16), (16, 8)]))
    check_tiles(derive_tiles(example, query_tile=16, key_tile=16, layout=layout), example, env, *shape, layout=layout)
