"""Bounds of runs of equal ids: what a tile touches and what is full, for sorted ids and for any others."""

import random
from dataclasses import replace

import pytest
from brief_ir import attention
from hypothesis import given
from hypothesis import strategies as st
from tile_checks import check_tiles, dense, environment

from attnc.algebra.coordinates import PLAIN, residue
from attnc.algebra.key_intervals import Coverage
from attnc.algebra.summaries import FULL_START, FULL_STOP, START, STOP, SUMMARIES, summarize, summary_name
from attnc.algebra.tiles import derive_tiles
from attnc.algebra.walking import is_full, row_tiles, walk_tiles
from attnc.ir.nodes import Size, SizeName
from attnc.ir.program import Tensor, TensorKind
from attnc.ir.types import Type

DOC = Tensor("doc", TensorKind.INPUT, Type.INT, (Size(SizeName.BATCH), Size(SizeName.KEYS)), sorted=True)
LEVELS = replace(DOC, name="level")
CUT = Tensor("cut", TensorKind.INPUT, Type.INT)
SAME = "doc[b, i] == doc[b, j]"
PATTERNS = {
    SAME: PLAIN,
    f"j <= i and {SAME}": PLAIN,
    f"j <= i and i - j < 6 and {SAME}": PLAIN,
    f"j <= i and ({SAME} or j < 3)": PLAIN,
    f"j <= i and not {SAME}": PLAIN,
    f"{SAME} and level[b, i] == level[b, j]": PLAIN,
    f"j <= i and (i - j) % 4 == 0 and {SAME}": residue(4),
    "doc[b, j] == doc[b, i] and h == 1": PLAIN,
    f"j <= i and i - j < cut and {SAME}": PLAIN,
    f"{SAME} and j < cut": PLAIN,
    f"(j <= i and {SAME} and i - j < cut) or j < 2": PLAIN,
}


@given(st.lists(st.integers(-3, 5), min_size=1, max_size=12), st.booleans(), st.data())
def test_summaries_are_right_for_any_ids(ids, ordered, data):
    ids = sorted(ids) if ordered else ids
    low = data.draw(st.integers(0, len(ids) - 1))
    high = data.draw(st.integers(low, len(ids) - 1))
    found = summarize(ids)
    touched = {key for key, one in enumerate(ids) if one in ids[low : high + 1]}
    full = {key for key, one in enumerate(ids) if set(ids[low : high + 1]) == {one}}
    stretch = set(range(found[START][low], found[STOP][high]))
    core = set(range(found[FULL_START][high], found[FULL_STOP][low]))
    assert touched <= stretch
    assert core <= full
    if ordered:
        assert stretch == touched
        assert core == full


def ids_of(kind, length, draw):
    match kind:
        case "sorted":
            return sorted(draw.randint(-1, 4) for _ in range(length))
        case "one":
            return [0] * length
        case _:
            return [draw.choice((-5, 0, 0, 7)) for _ in range(length)]


def tables_of(kind, batch, keys):
    draw = random.Random(keys)
    tables = {name: [ids_of(kind, keys, draw) for _ in range(batch)] for name in ("doc", "level")}
    for name in ("doc", "level"):
        for one in SUMMARIES:
            tables[summary_name(name, one)] = [summarize(ids)[one] for ids in tables[name]]
    return {**tables, "cut": draw.randint(-2, 9)}


@pytest.mark.parametrize(
    ("align", "kind"), [("end", "sorted"), ("end", "one"), ("end", "unsorted"), ("start", "sorted"), ("at", "unsorted")]
)
@pytest.mark.parametrize("mask", PATTERNS)
def test_tiles_by_ids(mask, align, kind):
    layout = PATTERNS[mask]
    example = attention(mask, align=align, shift="3", tensors=(DOC, LEVELS, CUT))
    tiles = derive_tiles(example, query_tile=16, key_tile=16, layout=layout, summaries=True)
    for case, (queries, keys) in enumerate(((1, 1), (19, 19), (9, 20), (20, 9))):
        env = environment(example, queries, keys, head=1, batch=case % 2, tables=tables_of(kind, 2, keys))
        shape = ((16, 16), (8, 4))[case % 2]
        check_tiles(tiles, example, env, *shape, dense(example, env), layout)


def test_documents_are_found_exactly():
    example = attention(f"j <= i and {SAME}", tensors=(DOC,))
    tiles = derive_tiles(example, summaries=True)
    ids = [0] * 128 + [1] * 256 + [2] * 128
    doc = {summary_name("doc", kind): [values] for kind, values in summarize(ids).items()}
    env = environment(example, 512, 512, tables={"doc": [ids], **doc})
    visits = [
        [(visit.begin, visit.end, is_full(visit)) for visit in walk_tiles(tiles, here, 64)]
        for here in row_tiles(env, PLAIN, 64)
    ]
    assert visits[0] == [(0, 1, False)]
    assert visits[1] == [(0, 1, True), (1, 2, False)]
    assert visits[5] == [(2, 5, True), (5, 6, False)]
    assert visits[7] == [(6, 7, True), (7, 8, False)]


def test_unsorted_tables_have_no_summaries():
    example = attention(SAME, tensors=(replace(DOC, sorted=False),))
    assert [one.coverage for one in derive_tiles(example, summaries=True).intervals] == [Coverage.PARTIAL]
