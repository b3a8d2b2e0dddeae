"""Which orders of positions and which splits are chosen, and that they cover every mask exactly once."""

import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

sys.path.insert(0, str(Path(__file__).parents[1] / "algebra"))
from brief_ir import attention
from expressions import TENSORS, masks, tables_for
from tile_checks import dense, environment

from attnc.algebra.counting import bounds_read
from attnc.algebra.summaries import summary_source
from attnc.algebra.walking import passes_test, positions, row_tiles, walk_tiles
from attnc.diagnostics import CompileError
from attnc.ir.nodes import Const, IndexName
from attnc.ir.program import Deferred
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.plan.choose import choose_passes, make_passes, plan_attention
from attnc.plan.cost import estimate_pass
from attnc.plan.split import decompositions
from attnc.runtime.summaries import summarize

CHOSEN = {
    "j <= i and i - j < 256": ["identity"],
    "j <= i and abs(i - j) < 256 and (i - j) % 4 == 0": ["residue(4)"],
    "j <= i and abs(i - j) < 1024 and (i - j) % 16 == 0": ["residue(16)"],
    "j <= i and (i - j) % 128 == 3": ["residue(128), keys 125 ahead"],
    "j <= i and (i - j < 128 or (i - j) % 128 == 0)": ["identity", "residue(128)"],
    "j <= i and (i // 128 == j // 128 or j % 128 >= 120)": ["identity", "keys in runs(128: 120 .. 127)"],
    "i // 64 == j // 64 or i % 64 == j % 64": ["identity", "residue(64)"],
    "(-65 < i - j and i - j < 65) or i % 64 == 0 or j % 64 == 0": [
        "identity",
        "keys in runs(64: 0)",
        "queries in runs(64: 0)",
    ],
    "j <= i and (i - j) % 4 == 0 and (i - j) % 6 == 0": ["residue(12)"],
    "j <= i and not (i // 128 != j // 128 and j % 128 < 120)": ["identity", "keys in runs(128: 120 .. 127)"],
    "j <= i and (i // 256 == j // 256 or i // 1024 == j // 1024 and i % 4 == 0 and j % 4 == 0)": [
        "identity",
        "queries in runs(4: 0), keys in runs(4: 0)",
    ],
    "j < 64 or i < 64 and j >= 64 and (j - 64) // 128 == i or i >= 64 and j >= 64 and abs(i - j) <= 84": [
        "identity",
        "identity",
        "identity",
    ],
    "i < M // 2 and j >= M // 2 and (j - M // 2) // 64 < i // 64 or"
    " i >= M // 2 and j >= M // 2 and (j - M // 2) // 64 <= (i - M // 2) // 64": ["identity", "identity"],
    "j <= i and (i - j) % 100000 == 0": ["identity"],
    "j < i and i < j": ["identity"],
    "j <= i and doc[b, i] == doc[b, j]": ["identity"],
    "j <= i and (i - j) % 16 == 0 and doc[b, i] == doc[b, j]": ["residue(16)"],
    "j <= i and ((i - j) % 7 == 0 or (i - j) % 11 == 0 or (i - j) % 13 == 0 or (i - j) % 17 == 0)": [
        "residue(11)",
        "residue(13)",
        "residue(17)",
        "residue(7)",
    ],
    "j <= i and ((i - j) % 101 == 0 or (i - j) % 103 == 0 or (i - j) % 107 == 0 or (i - j) % 109 == 0)": [
        "residue(101)",
        "residue(103)",
        "residue(107)",
        "residue(109)",
    ],
    "j <= i and ((i - j) % 2 == 0 or (i - j) % 3 == 0 or (i - j) % 5 == 0 or (i - j) % 7 == 0)": ["identity"],
}
"""Layouts of the passes that are chosen for 8192 queries and keys, sorted."""


@pytest.mark.parametrize("mask", CHOSEN)
def test_layouts_are_chosen_by_cost(mask):
    begin = time.process_time()
    plan = plan_attention(attention(mask, tensors=TENSORS))
    assert sorted(str(one.layout) for one in plan.passes) == CHOSEN[mask]
    assert [choice.cost for choice in plan.choices] == sorted(choice.cost for choice in plan.choices)
    assert plan.proven_disjoint or len(plan.passes) == 1
    assert time.process_time() - begin < 10, "planning takes well under a second on an idle machine"


@pytest.mark.parametrize(
    ("mask", "pairs_a_row"),
    [
        ("j <= i and (i - j < 128 or (i - j) % 128 == 0)", 159),
        ("j <= i and (i - j) % 64 == 0", 64.5),
        ("j <= i and abs(i - j) < 256 and (i - j) % 4 == 0", 63.5),
    ],
)
def test_waste_at_64_by_64(mask, pairs_a_row):
    example = attention(mask)
    computed = sum(estimate_pass(example, one, 8192).computed for one in choose_passes(example)[0].passes)
    assert computed / (8192 * pairs_a_row) < 2.1


def test_short_sequences_stay_in_plain_order():
    example = attention("j <= i and (i - j < 128 or (i - j) % 128 == 0)")
    assert [str(one.layout) for one in choose_passes(example, 512)[0].passes] == ["identity"]


def walked(passes, env, query_tile, key_tile):
    """Return how many passes allow each pair, by walking their tiles."""
    shift = env.indices[IndexName.SHIFT]
    counts = {}
    for one in passes:
        allowed = dense(attention_of(one), env)
        for here in row_tiles(env, one.layout, query_tile):
            queries, keys = positions(here, one.layout)
            for visit in walk_tiles(one.tiles, here, key_tile):
                for tile in range(visit.begin, visit.end):
                    if not passes_test(visit.interval, here, one.layout, tile, key_tile):
                        continue
                    for query, key in product(queries, keys[tile * key_tile : (tile + 1) * key_tile]):
                        if query is not None and key is not None:
                            pair = (query - shift, key)
                            counts[pair] = counts.get(pair, 0) + allowed[pair]
    return counts


def summarized(env, passes):
    """Add what is made of tables before passes to an environment."""
    sources = {name: summary_source(name) for one in passes for name in bounds_read(one.tiles)}
    made = {
        name: summarize(torch.tensor(env.tables[source[0]]), source[1]).tolist()
        for name, source in sources.items()
        if source is not None
    }
    return replace(env, tables={**env.tables, **made})


def attention_of(one):
    """Return an attention whose mask is that of a pass."""
    return replace(attention(tensors=TENSORS), mask=one.mask)


SMALL = (
    "j <= i and (i - j < 8 or (i - j) % 8 == 0)",
    "j <= i and (i // 8 == j // 8 or j % 8 >= 6)",
    "(-5 < i - j and i - j < 5) or i % 8 == 0 or j % 8 == 0",
    "i // 4 == j // 4 or i % 4 == j % 4",
    "j <= i and ((i - j) % 4 == 0 or (i - j) % 6 == 0)",
    "j <= i and (keep[b, j] or (i - j) % 4 == 0 or j < length[b])",
    "(i // 8 == j // 8 and (i - j) % 2 == h % 2) or i // 2 == j // 2",
    "j <= i and (i // 4 == j // 4 or i // 8 == j // 8 and i % 2 == 0 and j % 2 == 0)",
    "j < 3 or i < 3 and (j - 3) // 4 == i or i >= 3 and abs(i - j) <= 2",
    "i < M // 2 and j < M // 2 and i // 4 == j // 4 or i < M // 2 and j >= M // 2 and (j - M // 2) // 4 < i // 4",
)


FOUR_MODULI = "j <= i and ((i - j) % 5 == 0 or (i - j) % 7 == 0 or (i - j) % 11 == 0 or (i - j) % 12 == 0)"


@pytest.mark.parametrize(
    ("mask", "align"),
    [
        *((mask, "end") for mask in SMALL),
        (SMALL[0], "at"),
        (SMALL[1], "start"),
        pytest.param(FOUR_MODULI, "end", marks=pytest.mark.slow),
    ],
)
def test_every_decomposition_covers_the_mask_once(mask, align):
    example = attention(mask, align=align, shift="cut - 2", tensors=TENSORS)
    for parts in decompositions(example):
        passes = make_passes(example, parts)
        for queries, keys in ((1, 1), (13, 17), (17, 9)):
            env = environment(example, queries, keys, heads=3, head=queries % 3, tables=tables_for(2, 3, keys, 1))
            allowed, counts = dense(example, env), walked(passes, summarized(env, passes), 8, 4)
            names = [f"[{one.layout}] {show(one.mask)}" for one in passes]
            assert {pair for pair, count in counts.items() if count} == {pair for pair in allowed if allowed[pair]}, (
                names
            )
            assert max(counts.values(), default=0) <= 1, names


@given(masks())
@settings(max_examples=25)
def test_decompositions_of_random_masks(mask):
    example = replace(attention(tensors=TENSORS), mask=mask)
    plan = plan_attention(example)
    env = environment(example, 17, 19, heads=3, tables=tables_for(2, 3, 19, 1))
    allowed = dense(example, env)
    for variant in plan.variants:
        counts = walked(variant.passes, summarized(env, variant.passes), 8, 8)
        assert {pair for pair, count in counts.items() if count} == {pair for pair in allowed if allowed[pair]}
        assert max(counts.values(), default=0) <= 1


def overridden(mask, form, **arguments):
    asked = Deferred("decompose", form, tuple(arguments.items()))
    return plan_attention(replace(attention(mask, tensors=TENSORS), deferred=(asked,)))


def test_decompose_none_is_one_plain_pass():
    plan = overridden("j <= i and (i - j < 128 or (i - j) % 128 == 0)", "none")
    assert [str(one.layout) for one in plan.passes] == ["identity"]


def test_decompose_permute_takes_the_classes_that_are_asked_for():
    plan = overridden("j <= i and (i - j) % 12 == 0", "permute", order="residue", d=Const(4, Type.INT))
    assert [str(one.layout) for one in plan.passes] == ["residue(4)"]


def test_decompose_permute_that_does_not_fit():
    with pytest.raises(CompileError, match=r"needs `\(i - j\) % 8` to be one number"):
        overridden("j <= i and (i - j) % 12 == 0", "permute", order="residue", d=Const(8, Type.INT))


def test_decompose_split_makes_two_disjoint_passes():
    plan = overridden("j <= i", "split", condition=attention("i - j < 64").mask)
    assert [show(one.mask) for one in plan.passes] == ["j <= i and i - j < 64", "j <= i and i - j >= 64"]
    assert plan.proven_disjoint
    assert plan.passes[0].library is None


def test_decompose_split_by_data():
    plan = overridden("j <= i", "split", condition=attention("keep[b, j]", tensors=TENSORS).mask)
    assert [show(one.mask) for one in plan.passes] == ["j <= i and keep[b, j]", "j <= i and not keep[b, j]"]
    assert not plan.proven_disjoint


@pytest.mark.parametrize(("condition", "side"), [("j <= i", "every"), ("i < j", "no")])
def test_decompose_split_that_divides_nothing(condition, side):
    with pytest.raises(CompileError, match=f"holds for {side} pair"):
        overridden("j <= i and i - j < 64", "split", condition=attention(condition).mask)
