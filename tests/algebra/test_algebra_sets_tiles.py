"""Tiles against brute force: for lengths that no tile divides, N != M both ways, every alignment, heads and scalars."""

from dataclasses import replace
from time import process_time

import pytest
from brief_ir import attention, expression, scalar, table
from tile_checks import check_tiles, dense, environment

from attnc.algebra.tiles import derive_tiles, everywhere
from attnc.ir.nodes import And
from attnc.ir.types import Type
from attnc.source import SourceFile, Span

PATTERNS = {
    "everything": "True",
    "nothing": "j > i and j < i",
    "causal": "j <= i",
    "anticausal": "j > i",
    "window": "j <= i and i - j < 20",
    "narrow": "j <= i and i - j < 3",
    "both_sides": "abs(i - j) <= 18",
    "streaming": "j <= i and (i - j < 19 or j < 2)",
    "longformer": "(-12 < i - j and i - j < 12) or (i < 2 or j < 2)",
    "last_keys": "j <= i and (i - j < 9 or j >= M - 5)",
    "prefix": "j <= i or j < 11",
    "chunk": "i // 20 == j // 20",
    "chunk_causal": "j // 18 <= i // 18",
    "dilated": "abs(i - j) < 24 and (i - j) % 3 == 0",
    "strided": "j <= i and (i - j < 8 or (i - j) % 8 == 0)",
    "fixed": "j <= i and (i // 12 == j // 12 or j % 12 >= 10)",
    "columns": "j % 32 < 18",
    "rows": "i % 3 == 1",
    "grid": "abs(i // 6 - j // 6) <= 1 and abs(i % 6 - j % 6) <= 1",
    "primes": "(i - j) % 2 == 0 or (i - j) % 3 == 0 or (i - j) % 5 == 0 or (i - j) % 7 == 0",
    "odd_and_even": "(i - j) % 2 == 0 or (i - j) % 2 == 1",
    "per_head": "j <= i and (h < 1 or i - j < 20)",
    "head_windows": "j <= i and i - j < (4 if h < H // 2 else 22)",
    "group_heads": "j <= i or h // g == 0",
    "scalar": "j <= i and i - j < w",
    "two_scalars": "w <= j and j < v",
    "scalar_product": "j < w * v",
    "lengths": "j < length[b]",
    "lengths_and_causal": "j <= i and j < length[b]",
    "switch": "j <= i or flag",
    "float_switch": "j <= i or level < 0.5",
    "documents": "j <= i and doc[b, i] == doc[b, j]",
    "documents_or_sinks": "j <= i and (doc[b, i] == doc[b, j] or j < 20)",
    "kept": "j <= i and keep[b, j]",
    "far": "i - j >= 20 or j - i >= 20",
    "quantified": "any(t < 3, i - j == 7 * t)",
    "all_quantified": "all(t < 4, i - j != 5 * t)",
    "powers": "j <= i and (i - j < 2 or i - j == 4 or i - j == 8 or i - j == 16 or i - j == 32)",
    "counted": "sum(t < 3, 1 if i > 9 * t else 0) >= j // 9",
    "hashed": "j <= i and hash(i // 4, 1) % 3 == j // 8",
    "clamped": "j <= min(max(i, 7), 33)",
    "row_numbers": "j <= r + 2",
    "implication": "(j <= i) == (i - j < 17)",
    "chosen": "j <= i if i < 14 else j >= i",
    "half": "float(j) <= 20.5",
    "product_of_indices": "i * j < 50",
    "scaled": "2 * j <= 3 * i + 1",
    "full_across_runs": "j <= i and (j > i - abs(i) or (h == 0 if j == 0 else j <= i % 16))",
    "sinks_beside_window": "j <= i and (i - j < 19 or j < 20)",
}

TENSORS = (
    scalar("w"),
    scalar("v"),
    scalar("flag", Type.BOOL),
    scalar("level", Type.FLOAT),
    table("length", ["B"]),
    table("doc", ["B", "M"]),
    table("keep", ["B", "M"], Type.BOOL),
)


def tables(keys, w, v):
    return {
        "w": w,
        "v": v,
        "flag": w % 2 == 0,
        "level": w / 20,
        "length": [w, v],
        "doc": [[at // 9 for at in range(keys)], [at % 4 for at in range(keys)]],
        "keep": [[at % 5 != 0 for at in range(keys)]] * 2,
    }


SIZES = [(45, 45), (1, 45), (23, 41), (50, 19), (3, 3), (37, 64), (64, 37)]
SHAPES = [(16, 16), (20, 32), (1, 16), (48, 16), (7, 5), (16, 1), (64, 64)]


@pytest.mark.parametrize("align", ["end", "start", "at"])
@pytest.mark.parametrize("name", PATTERNS)
def test_tiles_are_what_the_mask_says(name, align):
    example = attention(PATTERNS[name], align=align, shift="v - 5", tensors=TENSORS)
    tiles = derive_tiles(example, query_tile=64, key_tile=64)
    for case, (queries, keys) in enumerate(SIZES if align == "end" else SIZES[1:4]):
        env = environment(
            example,
            queries,
            keys,
            heads=4,
            head=case % 4,
            batch=case % 2,
            group=2,
            tables=tables(keys, 3 * case, 7 + case),
        )
        allowed = dense(example, env)
        for query_tile, key_tile in (SHAPES[case], SHAPES[(case + 3) % 7]):
            check_tiles(tiles, example, env, query_tile, key_tile, allowed)


def test_exhausted_budgets_leave_the_mask_tested_everywhere():
    example = attention(PATTERNS["streaming"])
    tiles = everywhere(example, 64, 64)
    assert not tiles.exact
    env = environment(example, 23, 41)
    check_tiles(tiles, example, env, 16, 16)


def test_a_full_tile_that_several_runs_of_keys_make_up_is_known_to_be_missed():
    mask = "j <= i and (j > i - abs(i) or (h == 0 if j == 0 else j <= i % 16))"
    assert not derive_tiles(attention(mask)).exact
    assert derive_tiles(attention("j <= i and (i - j < 1024 or j < 4)")).exact


@pytest.mark.parametrize(
    ("mask", "edge", "residual"),
    [
        ("j <= i and i - j < 256", "left edge", "i - j < 256"),
        ("j <= i and i - j < 256", "diagonal", "j <= i"),
        ("(-257 < i - j and i - j < 257) or i < 1 or j < 1", "left edge", "i - j < 257"),
        ("(-257 < i - j and i - j < 257) or i < 1 or j < 1", "right edge", "-257 < i - j"),
        ("j <= i or j < 100", "right edge", "j <= i or j < 100"),
    ],
)
def test_partial_tiles_test_what_is_left_alone(mask, edge, residual):
    tiles = derive_tiles(attention(mask))
    assert [interval.residual for interval in tiles.intervals if interval.label == edge] == [expression(residual)]


def test_residuals_keep_the_places_of_what_the_user_wrote():
    mask = attention("j <= i and i - j < 256").mask
    source = SourceFile("window.attn", "mask causal and near")
    parts = tuple(replace(part, span=Span(source, at, at + 4, 1, at + 1)) for at, part in enumerate(mask.operands))
    tiles = derive_tiles(replace(attention(), mask=And(parts)))
    assert [interval.residual.span for interval in tiles.intervals] == [parts[1].span, None, parts[0].span]


@pytest.mark.parametrize("name", ["primes", "grid", "counted", "longformer"])
def test_hard_masks_derive_quickly(name):
    start = process_time()
    derive_tiles(attention(PATTERNS[name]))
    assert process_time() - start < 5
