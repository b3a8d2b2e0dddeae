"""Assertions, facts, reads inside tables, and exact counts."""

from fractions import Fraction

import pytest
from brief_ir import attention, scalar, table
from tile_checks import dense, environment

from attnc.algebra.assertions import check_assertions
from attnc.algebra.counting import count_pairs, count_tiles
from attnc.algebra.facts import Facts
from attnc.algebra.proofs import prove_facts
from attnc.algebra.table_proofs import mark_reads
from attnc.algebra.tiles import derive_tiles
from attnc.diagnostics import CompileError
from attnc.ir.nodes import Read
from attnc.ir.types import Type
from attnc.ir.walk import walk

DOC = table("doc", ["B", "M"])
SHIFTED = {"align": "at", "shift": "w", "tensors": (scalar("w"),)}
STREAMING = "j <= i and (i - j < 1024 or j < 4)"


@pytest.mark.parametrize(
    ("mask", "claim", "options"),
    [
        ("j <= i", "j <= i", {}),
        (STREAMING, "j <= i", {}),
        (STREAMING, "nonempty", {}),
        ("j <= i", "nonempty", {}),
        ("j <= i", "nonempty", {"align": "start"}),
        ("j <= i and doc[b, i] == doc[b, j]", "j <= i", {"tensors": (DOC,)}),
        ("j <= i and doc[b, i] == doc[b, j]", "nonempty", {"tensors": (DOC,)}),
        ("abs(i - j) <= 3", "i // 4 - j // 4 <= 1 and j // 4 - i // 4 <= 1", {}),
        ("j <= i and i - j < w", "i - j < w or w < 0", {"tensors": (scalar("w"),)}),
        ("any(t < 3, i - j == 5 * t)", "(i - j) % 5 == 0", {}),
    ],
)
def test_true_assertions_are_proven(mask, claim, options):
    check_assertions(attention(mask, asserts=(claim,), **options))


@pytest.mark.parametrize(
    ("mask", "claim", "words", "options"),
    [
        ("True", "j <= i", "N = 2, M = 2: i = 0 may see j = 1", {}),
        ("j < i", "nonempty", "N = 1, M = 1: i = 0 has no key", {}),
        ("j <= i + 10", "j - i < 10", "N = 11, M = 11: i = 0 may see j = 10", {}),
        ("j <= i + w", "j <= i", "N = 2, M = 2, w = 1: i = 0 may see j = 1", {"tensors": (scalar("w"),)}),
        ("j <= i", "w // 2 == w // 3", "N = 1, M = 1, w = 2: i = 0 may see j = 0", {"tensors": (scalar("w"),)}),
        ("j <= i or h == 3", "j <= i", "N = 2, M = 2, h = 3: i = 0 may see j = 1", {}),
        (
            "j <= i",
            "nonempty",
            "N = 1, M = 1, w = -1: i = -1 has no key",
            {"align": "at", "shift": "w", "tensors": (scalar("w"),)},
        ),
        ("i % 5 != 3", "nonempty", "N = 1, M = 4: i = 3 has no key", {}),
    ],
)
def test_a_false_assertion_names_the_least_counterexample(mask, claim, words, options):
    with pytest.raises(CompileError) as caught:
        check_assertions(attention(mask, asserts=(claim,), **options))
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "assertion-false"
    assert diagnostic.message == f"this assertion is false: {words}"


@pytest.mark.parametrize(
    ("mask", "claim", "reason"),
    [
        ("j <= i and doc[b, i] == doc[b, j]", "doc[b, i] == doc[b, j]", "it reads the tensor `doc`"),
        ("doc[b, j] == 0", "nonempty", "it depends on the values of `doc`"),
        ("j <= i", "i * j <= i * i", "part of it is not affine"),
        ("j <= i", "hash(i, j) % 2 == 0", "not affine: hash"),
    ],
)
def test_what_cannot_be_decided_says_why(mask, claim, reason):
    with pytest.raises(CompileError) as caught:
        check_assertions(attention(mask, asserts=(claim,), tensors=(DOC,), align="start"))
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "assertion-undecidable"
    assert reason in diagnostic.message


def test_every_assertion_is_reported():
    with pytest.raises(CompileError) as caught:
        check_assertions(attention("True", asserts=("j <= i", "nonempty", "i <= j")))
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == ["assertion-false"] * 2


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("j <= i", Facts(True, True, False, True, False, True)),
        ("not (i < j)", Facts(True, True, False, True, False, True)),
        ("True", Facts(False, True, True, True, True, False)),
        ("j < M", Facts(False, True, True, True, True, False)),
        (STREAMING, Facts(True, True, False, False, False, False)),
        ("abs(i - j) < 4", Facts(False, True, True, True, False, False)),
        ("(i - j) % 4 == 0", Facts(False, True, True, False, False, False)),
        ("j <= i and doc[b, i] == doc[b, j]", Facts(True, True, None, None, False, None)),
        ("j > i", Facts(False, False, False, True, False, False)),
    ],
)
def test_facts(mask, expected):
    assert prove_facts(attention(mask, tensors=(DOC,))) == expected


@pytest.mark.parametrize(
    ("mask", "score", "tables", "inside"),
    [
        ("j <= i and doc[b, i] == doc[b, j]", None, (DOC,), True),
        ("j <= i", "bias[h, min(max(i - j, -4), 4) + 4]", (table("bias", ["H", "2 * 4 + 1"], Type.FLOAT),), True),
        ("j <= i and i - j < 9", "bias[h, i - j]", (table("bias", ["H", "9"], Type.FLOAT),), True),
        ("j <= i and i - j < 10", "bias[h, i - j]", (table("bias", ["H", "9"], Type.FLOAT),), False),
        ("j <= i", "bias[h, i - j] if i - j < 9 else 0.0", (table("bias", ["H", "9"], Type.FLOAT),), True),
        ("any(t < 16, j // 64 == top[b, r // 64, t])", None, (table("top", ["B", "(N + 63) // 64", "16"]),), True),
        ("True", "bias[h // g, j]", (table("bias", ["H // g", "M"], Type.FLOAT),), True),
        ("True", "bias[h, hash(i) % 5]", (table("bias", ["H", "5"], Type.FLOAT),), True),
        ("True", "bias[h, j]", (table("bias", ["H", None], Type.FLOAT),), False),
        ("keep[b, i + j]", None, (table("keep", ["B", "M"], Type.BOOL),), False),
    ],
)
def test_reads_are_proven_inside_their_tables(mask, score, tables, inside):
    marked, warnings = mark_reads(attention(mask, score=score, tensors=tables))
    reads = [node for expr in (marked.mask, marked.score) for node in walk(expr) if isinstance(node, Read)]
    assert reads
    assert all(read.inside for read in reads) is inside
    assert ("index-may-leave-table" in {warning.code for warning in warnings}) is not inside


def test_streaming_at_8192_has_the_pairs_that_a_sum_finds():
    expected = sum(min(i + 1, 1024) + min(4, max(0, i - 1023)) for i in range(8192))
    assert count_pairs(attention(STREAMING), 8192, 8192) == expected == 7893498


def test_heads_that_differ_are_averaged():
    example = attention("j <= i and i - j < h + 1")
    counts = [sum(dense(example, environment(example, 9, 12, head=head, heads=3)).values()) for head in range(3)]
    assert count_pairs(example, 9, 12, heads=3) == Fraction(sum(counts), 3)


def test_data_decides_the_count_of_documents():
    assert count_pairs(attention("doc[b, i] == doc[b, j]", tensors=(DOC,)), 8, 8) is None


def test_a_hash_is_counted_by_evaluation():
    assert count_pairs(attention("hash(i, j) % 2 == 0"), 8, 8) is None
    assert count_pairs(attention("hash(i, j) % 2 == 0"), 8, 8, evaluate_head=lambda head: 31) == 31


def test_tile_counts_add_up():
    tiles = derive_tiles(attention(STREAMING))
    counts = count_tiles(tiles, 8192, 8192, 0, 128, 128)
    assert counts.full + counts.partial + counts.empty == 64 * 64
    # rows of tile 8 and later: 7 full tiles of the window, its two edges, and the sinks' tile
    assert counts.full == sum(min(tile, 7) for tile in range(64))
    assert counts.partial == 64 + 56 + 55
