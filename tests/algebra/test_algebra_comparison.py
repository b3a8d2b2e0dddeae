"""Equality and inclusion of masks: against brute force, and on masks that are written in different ways."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from brief_ir import attention
from expressions import TENSORS, masks, tables_for
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_checks import environment, holds

from attnc.algebra.comparison import compare_masks
from attnc.checking import check_source
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import (
    And,
    Binary,
    BinaryOp,
    Call,
    Const,
    Function,
    IndexName,
    Or,
    SizeName,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import AlignKind
from attnc.ir.types import Type
from attnc.ir.walk import transform, walk
from attnc.source import SourceFile

ALIGNMENTS = st.sampled_from(["end", "end", "start", "at"])
AFFINE, ANY = masks(tables=False, hashes=False, depth=2), masks(depth=2)
CLAIMS = {"only_left": (True, False), "only_right": (False, True), "both": (True, True)}


def pattern(text):
    source = SourceFile("p.attn", f"attention p {{\n{text}\n}}\n", Path("p.attn"))
    return check_source(source).program.attentions[0]


def sides(conditions):
    def build(align, mask):
        return replace(attention(align=align, shift="2", tensors=TENSORS), mask=mask)

    return st.builds(build, ALIGNMENTS, conditions)


def pairs_of(left, right, largest, tables=False):
    """Yield every pair of every small size in the order of counterexamples, and whether each side allows it."""
    ends = AlignKind.END in (left.align.kind, right.align.kind)
    for keys in range(1, largest + 1):
        for queries in range(1, (keys if ends else largest) + 1):
            for head in range(2):
                for heads in (2, 3):
                    data = tables_for(2, 3, keys, seed=keys + queries) if tables else None
                    environments = [
                        environment(one, queries, keys, heads=heads, head=head, tables=data) for one in (left, right)
                    ]
                    for row, key in product(range(queries), range(keys)):
                        allowed = tuple(
                            holds(one.mask, env, row, key) for one, env in zip((left, right), environments, strict=True)
                        )
                        yield (keys, queries, head, row, key), allowed


def check_witness(left, right, witness, claim):
    where, cells = witness.situation, {}
    for name, index, value in witness.cells:
        cells.setdefault(name, {})[index] = value

    def table(name):
        return lambda *index: cells.get(name, {}).get(index)

    tables = {tensor.name: table(tensor.name) for tensor in TENSORS}
    for one, position, expected in zip((left, right), witness.positions, claim, strict=True):
        indices = {IndexName.BATCH: where.batch, IndexName.HEAD: where.head}
        shift = evaluate(one.align.shift, Environment(indices, where.sizes, tables))
        assert position == where.row + shift
        env = Environment({**indices, IndexName.SHIFT: shift}, where.sizes, tables)
        assert holds(one.mask, env, where.row, where.key) == expected
    assert 0 <= where.row < where.sizes[SizeName.QUERIES]
    assert 0 <= where.key < where.sizes[SizeName.KEYS]
    assert where.head < where.sizes[SizeName.HEADS]


def check(left, right, *, tables=False, largest=4):
    found = compare_masks(left, right)
    for name, claim in CLAIMS.items():
        finding = getattr(found, name)
        assert (finding.witness is not None) == (finding.none is False)
        if finding.witness is not None:
            check_witness(left, right, finding.witness, claim)
    first = {}
    for place, allowed in pairs_of(left, right, largest, tables):
        first.setdefault(allowed, place)
    for name, claim in CLAIMS.items():
        finding = getattr(found, name)
        if claim not in first:
            continue
        assert finding.none is not True, f"{name} at {first[claim]}"
        if not tables and finding.witness is not None and finding.witness.least:
            where = finding.witness.situation
            sizes = where.sizes
            least = (sizes[SizeName.KEYS], sizes[SizeName.QUERIES], where.head, where.row, where.key)
            assert least <= first[claim], name
    return found


@given(sides(AFFINE), sides(AFFINE))
@settings(max_examples=30)
def test_affine_masks_against_brute_force(left, right):
    check(left, right)


@given(sides(ANY), sides(ANY))
@settings(max_examples=30)
def test_any_masks_against_brute_force(left, right):
    check(left, right, tables=True)


@given(sides(AFFINE))
@settings(max_examples=20)
def test_a_mask_and_its_parts(one):
    """A conjunction lies inside its operand, a mask inside a disjunction with it, and apart from its negation."""
    other = pattern("mask (i - j) % 3 != 1 or h == 0")
    both = replace(one, mask=_combined("and", one.mask, other.mask))
    either = replace(one, mask=_combined("or", one.mask, other.mask))
    opposite = replace(one, mask=_negated(one.mask))
    assert check(both, one).only_left.none is True
    assert check(one, either).only_left.none is True
    assert check(one, opposite).both.none is True
    assert compare_masks(one, replace(one, mask=_negated(_negated(one.mask)))).relation == "equal"


def _combined(op, left, right):
    return (And if op == "and" else Or)((left, right))


def _negated(mask):
    return Unary(UnaryOp.NOT, mask, Type.BOOL)


def detour(node):
    """Write a node in another way: `a < b` as `a + 1 <= b`, `x % n` with a division, `and` as not-or."""
    match node:
        case Binary(op=BinaryOp.LT, left=left, right=right) if left.type is Type.INT:
            return Binary(BinaryOp.LE, Binary(BinaryOp.ADD, left, Const(1, Type.INT), Type.INT), right, Type.BOOL)
        case Binary(op=BinaryOp.MOD, left=left, right=Const(value=value) as right) if value > 0 and _plain(left):
            floor = Binary(BinaryOp.FLOORDIV, left, right, Type.INT)
            return Binary(BinaryOp.SUB, left, Binary(BinaryOp.MUL, right, floor, Type.INT), Type.INT)
        case And(operands=operands):
            return _negated(Or(tuple(_negated(one) for one in reversed(operands))))
        case Where(condition=condition, then=then, otherwise=otherwise) if node.type is Type.BOOL:
            return Or((And((condition, then)), And((_negated(condition), otherwise))))
        case _:
            return node


def _plain(expr):
    return not any(isinstance(node, Call) and node.function is Function.HASH for node in walk(expr))


@given(sides(ANY))
@settings(max_examples=60)
def test_masks_and_their_detours_are_equal(one):
    assert compare_masks(one, replace(one, mask=transform(one.mask, detour))).relation == "equal"


EQUAL = [
    ("mask causal and i - j < 8", "mask 0 <= i - j and not i - j >= 8"),
    ("mask causal and i - j < 8", "mask not (j > i or i - j >= 8)"),
    ("mask i // 128 == j // 128", "mask i - i % 128 <= j and j < i - i % 128 + 128"),
    ("mask i // 128 == j // 128", "mask abs(i // 128 - j // 128) < 1"),
    ("mask i // 6 == j // 6", "mask i // 2 // 3 == j // 3 // 2"),
    ("mask window(5)", "mask max(i, j) - min(i, j) < 5"),
    ("mask (i - j) % 4 == 0", "mask i % 4 == j % 4"),
    ("mask (i - j) % 6 == 0", "mask (i - j) % 2 == 0 and (j - i) % 3 == 0"),
    (
        "mask (i - j) % 2 == 0 or (i - j) % 3 == 0 or (i - j) % 5 == 0 or (i - j) % 7 == 0",
        "mask not (i % 2 != j % 2 and i % 3 != j % 3 and (i - j) % 5 != 0 and (j - i) % 7 != 0)",
    ),
    (
        "mask " + " or ".join(f"i - j == {gap}" for gap in range(0, 180, 3)),
        "mask causal and i - j < 180 and (i - j) % 3 == 0",
    ),
    ("mask any(t < 5, i - j == t)", "mask causal and i - j < 5"),
    ("mask grid_near(16, 2)", "mask all(t < 2, abs(where(t == 0, i // 16 - j // 16, i % 16 - j % 16)) < 3)"),
    ("mask false", "mask i > i + 1"),
    ("mask true", "mask causal or j > i"),
    ("mask causal if h % 2 == 0 else window(3)",
     "mask causal and h % 2 == 0 or window(3) and h % 2 == 1"),
    ("mask j < 3; align start", "mask j < 3"),
    ("mask i - j < 5; align start", "mask r - j < 5"),
    ("mask i == j; align at(3)", "mask r + 3 == j; align start"),
    ("input doc: int[B, M]; mask causal and same(doc)", "input doc: int[B, M]; mask doc[b, j] == doc[b, i] and j <= i"),
    ("input doc: int[B, M]; mask same(doc)", "input doc: int[B, M]; mask same(doc) or i == j"),
    ("input doc: int[B, M] sorted; mask causal", "input doc: int[B, M]; mask causal and doc[b, j] <= doc[b, i]"),
    ("input keep: bool[B, M]; mask keep[b, j]", "input keep: bool[B, M]; mask not (not keep[b, j + 1 - 1])"),
    ("input n: int[B]; mask j < n[b] and j >= n[b] - 4", "input n: int[B]; mask 0 < n[b] - j and n[b] - j <= 4"),
    (
        "input top: int[B, H, (N + 63) // 64, 16]; mask causal and any(t < 16, j // 64 == top[b, h, r // 64, t])",
        "input top: int[B, H, (N + 63) // 64, 16]; mask any(s < 16, top[b, h, r // 64, s] == j // 64 and causal)",
    ),
    ("mask random_blocks(16, 3, 7) and causal", "mask causal and random_blocks(16, 3, 7)"),
    ("mask i * j > 5", "mask 5 < j * i"),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_equal_masks_written_differently(left, right):
    assert compare_masks(pattern(left), pattern(right)).relation == "equal"


INSIDE = [
    ("mask causal and i - j < 8", "mask causal"),
    ("mask grid_near(128, 3)", "mask grid_near(128, 4)"),
    ("mask dilated(64, 16)", "mask (i - j) % 16 == 0"),
    ("mask causal; align start", "mask causal"),
    ("input doc: int[B, M]; mask causal and same(doc)", "mask causal"),
    ("input doc: int[B, M]; mask same(doc)", "input doc: int[B, M]; mask doc[b, j] <= doc[b, i]"),
    ("input doc: int[B, M]; mask same(doc)", "input doc: int[B, M]; mask abs(doc[b, j] - doc[b, i]) <= 2"),
    ("input keep: bool[B, M]; mask keep[b, j + 1]", "mask j < M - 1"),
    (
        "input a: int[M]; input c: int[M]; mask a[c[i]] == 1 and c[i] == c[j]",
        "input a: int[M]; input c: int[M]; mask a[c[j]] == 1",
    ),
    ("input n: int; mask j < n", "input n: int; mask j <= n"),
    ("input x: float[B, M]; mask x[b, j] > 0.5", "input x: float[B, M]; mask not x[b, j] <= 0.5"),
    ("mask random_blocks(16, 3, 7) and causal", "mask random_blocks(16, 3, 7)"),
    ("mask random_blocks(16, 3, 7) or window(9)", "mask random_blocks(16, 4, 7) or window(9)"),
    ("mask hash(i, j) % 4 == 1", "mask hash(i, j) % 2 == 1"),
    ("mask i * j > 6", "mask i * j > 5"),
]


@pytest.mark.parametrize(("left", "right"), INSIDE)
def test_inclusions(left, right):
    assert compare_masks(pattern(left), pattern(right)).relation == "inside"
    assert compare_masks(pattern(right), pattern(left)).relation == "contains"


@pytest.mark.parametrize(
    ("left", "right", "relation"),
    [
        ("mask causal", "mask j > i", "disjoint"),
        ("mask (i - j) % 128 == 0 and i != j", "mask window(128)", "disjoint"),
        ("input keep: bool[M]; mask keep[j]", "input keep: bool[M]; mask not keep[j]", "disjoint"),
        ("input doc: int[M]; mask doc[i] < doc[j]", "input doc: int[M]; mask doc[j] < doc[i]", "disjoint"),
        ("mask causal", "mask window(4)", "overlapping"),
        ("input pos: int[B]; align at(pos[b]); mask causal", "mask causal", "overlapping"),
        ("mask random_blocks(16, 3, 7)", "mask random_blocks(16, 3, 8)", "overlapping"),
        ("input doc: int[B, M]; mask same(doc)", "mask causal", "overlapping"),
        ("input doc: int[B, M]; mask same(doc)", "input doc: int[B, ?]; mask same(doc)", "overlapping"),
    ],
)
def test_other_relations(left, right, relation):
    assert compare_masks(pattern(left), pattern(right)).relation == relation


def test_what_cannot_be_decided_says_why():
    found = compare_masks(pattern("mask hash(i, 3) % 2 == 0"), pattern("mask hash(i, 3) % 2 == 0 or (i * i) % 4 == 2"))
    assert found.relation == "undecided"
    assert found.only_left.none is True
    assert found.only_right.none is None
    assert found.reasons == ("it depends on a hash", "`i * i` is not affine")


def test_the_least_pair_is_found_far_away():
    found = compare_masks(pattern("mask dilated(64, 16)"), pattern("mask (i - j) % 16 == 0"))
    where = found.only_right.witness.situation
    assert (where.sizes[SizeName.KEYS], where.sizes[SizeName.QUERIES]) == (1025, 1)
    assert (found.only_right.witness.positions, where.key) == ((1024, 1024), 0)


def test_data_of_a_witness_makes_it_so():
    found = compare_masks(pattern("mask causal"), pattern("input doc: int[B, M]; mask causal and same(doc)"))
    cells = {index: value for _, index, value in found.only_left.witness.cells}
    assert len(cells) == 2
    assert len(set(cells.values())) == 2
