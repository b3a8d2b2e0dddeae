"""Tile tests by block tables: never false for a tile with an allowed pair, and false for blocks that are left out."""

import random

import pytest
from brief_ir import attention
from tile_checks import check_tiles, dense, environment

from attnc.algebra.coordinates import PLAIN
from attnc.algebra.tiles import derive_tiles
from attnc.algebra.walking import passes_test, row_tiles, walk_tiles
from attnc.ir.nodes import Const, Size, SizeName
from attnc.ir.program import Tensor, TensorKind
from attnc.ir.types import Type

B, H = Size(SizeName.BATCH), Size(SizeName.HEADS)
TENSORS = (
    Tensor("keep", TensorKind.INPUT, Type.BOOL, (B, H, None)),
    Tensor("grid", TensorKind.INPUT, Type.BOOL, (None, None)),
    Tensor("top", TensorKind.INPUT, Type.INT, (B, H, None, Const(2, Type.INT))),
    Tensor("level", TensorKind.INPUT, Type.INT, (None,)),
)
PATTERNS = (
    "j <= i and keep[b, h, j // 16]",
    "grid[i // 16, j // 32]",
    "grid[r // 16, j // 16] or keep[b, h, j // 16]",
    "j <= i and not keep[b, h, j // 16]",
    "any(t < 2, j // 16 == top[b, h, r // 16, t])",
    "all(t < 2, j // 16 != top[b, h, i // 32, t]) and i - j < 20",
    "level[i // 16] <= level[j // 16]",
    "keep[b, h, j // 16] or j <= i",
    "keep[b, h, j // 4]",
)


def tables_of(seed):
    draw = random.Random(seed)

    def bits(count, share):
        return [draw.random() < share for _ in range(count)]

    return {
        "keep": [[bits(4, 0.4) for _ in range(2)] for _ in range(2)],
        "grid": [bits(4, 0.3) for _ in range(4)],
        "top": [[[[draw.randint(-1, 3) for _ in range(2)] for _ in range(4)] for _ in range(2)] for _ in range(2)],
        "level": [draw.randint(0, 3) for _ in range(4)],
    }


@pytest.mark.parametrize("align", ["end", "at"])
@pytest.mark.parametrize("mask", PATTERNS)
def test_no_tile_with_an_allowed_pair_is_skipped(mask, align):
    example = attention(mask, align=align, shift="3", tensors=TENSORS)
    tiles = derive_tiles(example, query_tile=32, key_tile=32)
    for case, (queries, keys) in enumerate(((1, 1), (50, 50), (17, 40))):
        env = environment(example, queries, keys, head=case % 2, batch=case % 2, tables=tables_of(case))
        for shape in ((16, 16), (32, 8), (16, 24)):
            check_tiles(tiles, example, env, *shape, dense(example, env))


@pytest.mark.parametrize("mask", ["j <= i and keep[b, h, j // 16]", "grid[i // 16, j // 16]"])
def test_blocks_that_are_left_out_are_skipped(mask):
    example = attention(mask, tensors=TENSORS)
    env = environment(example, 64, 64, tables=tables_of(7))
    tiles, allowed = derive_tiles(example, query_tile=16, key_tile=16), dense(example, env)
    for rows, here in enumerate(row_tiles(env, PLAIN, 16)):
        computed = {
            tile
            for visit in walk_tiles(tiles, here, 16)
            for tile in range(visit.begin, visit.end)
            if passes_test(visit.interval, here, PLAIN, tile, 16)
        }
        pairs = [(row, key) for (row, key), allows in allowed.items() if allows and row // 16 == rows]
        assert computed == {key // 16 for _, key in pairs}


def test_small_blocks_and_long_lists_are_not_tested():
    for mask in ("keep[b, h, j // 4]", "any(t < 40, j // 16 == top[b, h, r // 16, t])"):
        assert all(one.tile_test is None for one in derive_tiles(attention(mask, tensors=TENSORS)).intervals)
