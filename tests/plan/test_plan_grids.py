"""Which grids are chosen, and what a `decompose permute(tile(..))` statement asks for."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "algebra"))
from brief_ir import attention
from expressions import TENSORS

from attnc.algebra.congruences import PairSet
from attnc.algebra.counting import count_pairs
from attnc.checking import check_source
from attnc.diagnostics import CompileError
from attnc.plan.choose import choose_passes, plan_attention
from attnc.plan.cost import estimate_pass
from attnc.plan.grids import grid_layout
from attnc.source import SourceFile

NEAR = "abs(i // 128 - j // 128) <= 3 and abs(i % 128 - j % 128) <= 3"
CELLS = "(i // 128 + 4) // 8 == (j // 128 + 4) // 8 and (i % 128 + 4) // 8 == (j % 128 + 4) // 8"
CUBES = "abs(i // 256 - j // 256) <= 2 and abs(i // 16 % 16 - j // 16 % 16) <= 2 and abs(i % 16 - j % 16) <= 2"
INSIDE = "abs(j // 128 - min(max(i // 128, 3), M // 128 - 4)) <= 3 and abs(j % 128 - min(max(i % 128, 3), 124)) <= 3"
HOLES = (
    "abs(i // 128 - j // 128) <= 6 and abs(i % 128 - j % 128) <= 6 and (i // 128 - j // 128) % 2 == 0"
    " and (i % 128 - j % 128) % 2 == 0"
)

CHOSEN = {
    NEAR: ["tile(128, 8, 8)"],
    INSIDE: ["tile(128, 8, 8)"],
    f"j <= i and {NEAR}": ["tile(128, 4, 16)"],
    NEAR.replace("128", "100"): ["tile(100, 8, 8)"],
    CELLS: ["tile(128, 8, 8, from -4, -4)"],
    CUBES: ["tile(256, 16, 4, 4, 4)"],
    f"{NEAR} and doc[b, i] == doc[b, j]": ["tile(128, 8, 8)"],
    f"j < 4 or {NEAR}": ["identity", "tile(128, 8, 8)"],
    "i // 128 == j // 128": ["identity"],
    "j <= i and i % 128 == j % 128": ["residue(128)"],
    "i // 64 == j // 64 or i % 64 == j % 64": ["identity", "residue(64)"],
    "abs(i // 128 - j // 128) <= cut and abs(i % 128 - j % 128) <= cut": ["identity"],
}
"""Layouts of the passes that are chosen for 8192 queries and keys, sorted."""


@pytest.mark.parametrize("mask", CHOSEN)
def test_grids_are_chosen_by_cost(mask):
    passes = choose_passes(attention(mask, tensors=TENSORS))[0].passes
    assert sorted(str(one.layout) for one in passes) == CHOSEN[mask]


@pytest.mark.parametrize(("mask", "most"), [(NEAR, 5), (CELLS, 1.5), (CUBES, 4.5), (HOLES, 5), (INSIDE, 5.1)])
def test_waste_at_64_by_64(mask, most):
    example = attention(mask)
    computed = sum(estimate_pass(example, one, 8192).computed for one in choose_passes(example)[0].passes)
    assert computed / count_pairs(example, 8192, 8192) < most


@pytest.mark.parametrize(
    ("mask", "axes"),
    [
        (HOLES, [(256, 0, 8, 0), (2, 128, 8, 0), (1, 2, 1, 0)]),
        (CUBES, [(256, 0, 4, 0), (16, 16, 4, 0), (1, 16, 4, 0)]),
        (CELLS, [(128, 0, 8, 4), (1, 128, 8, 4)]),
    ],
)
def test_axes_of_grids(mask, axes):
    example = attention(mask)
    layout = grid_layout(PairSet.of(example), example.mask)
    assert [(axis.stride, axis.extent, axis.tile, axis.lead) for axis in layout.query.axes] == axes


@pytest.mark.parametrize(
    "mask", ["j <= i and i - j < 64", "(i - j) % 64 == 0", "j % 128 >= 120", NEAR.replace("3", "99")]
)
def test_masks_that_have_no_grid(mask):
    example = attention(mask)
    assert grid_layout(PairSet.of(example), example.mask) is None


def planned(decompose, mask="grid_near(12, 2)"):
    text = f"attention foo {{ mask {mask}; decompose {decompose} }}"
    return plan_attention(check_source(SourceFile("foo.attn", text), {}, complete=True).program.attentions[0])


def test_tiles_that_are_asked_for():
    (one,) = planned("permute(tile(12, 4, 6))").passes
    assert str(one.layout) == "tile(12, 4, 6)"
    assert one.tiles.query_tile == 32


def test_tiles_that_suit_nothing_are_still_right():
    (one,) = planned("permute(tile(5, 3, 2))", "causal").passes
    assert str(one.layout) == "tile(5, 3, 2)"


@pytest.mark.parametrize("tile", ["4, 13", "1000, 8"])
def test_tiles_that_do_not_fit(tile):
    with pytest.raises(CompileError, match="decompose-does-not-fit"):
        planned(f"permute(tile(12, {tile}))")
