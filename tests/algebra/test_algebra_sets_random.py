"""Random masks: every claim about tiles, facts and counts against brute force."""

from dataclasses import replace

from brief_ir import attention
from expressions import TENSORS, masks, tables_for
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_checks import check_facts, check_tiles, dense, environment

from attnc.algebra.counting import count_pairs
from attnc.algebra.proofs import prove_facts
from attnc.algebra.tiles import derive_tiles
from attnc.ir.nodes import SizeName

ALIGNMENTS = st.sampled_from(["end", "start", "at"])
LENGTHS = st.integers(1, 22)
SHAPES = st.tuples(st.sampled_from([1, 3, 4, 8, 16]), st.sampled_from([1, 2, 5, 8, 16]))


AFFINE, ANY = masks(tables=False, hashes=False), masks()


@st.composite
def situations(draw, conditions):
    example = replace(attention(align=draw(ALIGNMENTS), shift="3", tensors=TENSORS), mask=draw(conditions))
    keys = draw(LENGTHS)
    env = environment(
        example,
        draw(LENGTHS),
        keys,
        heads=3,
        head=draw(st.integers(0, 2)),
        batch=draw(st.integers(0, 1)),
        tables=tables_for(2, 3, keys, draw(st.integers(0, 9))),
    )
    return example, env


@given(situations(AFFINE), SHAPES)
@settings(max_examples=30)
def test_tiles_of_affine_masks(situation, shape):
    example, env = situation
    check_tiles(derive_tiles(example, query_tile=16, key_tile=16), example, env, *shape)


@given(situations(ANY), SHAPES)
@settings(max_examples=30)
def test_tiles_of_any_mask(situation, shape):
    example, env = situation
    check_tiles(derive_tiles(example, query_tile=16, key_tile=16), example, env, *shape)


@given(situations(ANY))
@settings(max_examples=30)
def test_facts_have_no_counterexample(situation):
    example, env = situation
    if example.align.kind.value != "end" or env.sizes[SizeName.QUERIES] <= env.sizes[SizeName.KEYS]:
        check_facts(prove_facts(example), example, env)


@given(AFFINE, ALIGNMENTS, LENGTHS, LENGTHS)
@settings(max_examples=30)
def test_counts_of_affine_masks(mask, align, queries, keys):
    example = replace(attention(align=align, shift="2"), mask=mask)
    counted = count_pairs(example, queries, keys, heads=2)
    if counted is not None:
        allowed = [sum(dense(example, environment(example, queries, keys, head=head)).values()) for head in (0, 1)]
        assert counted * 2 == sum(allowed)
