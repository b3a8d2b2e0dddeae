"""Orders of rows as launchers see them: how many programs, and tiles that classes fill."""

import pytest
import torch

from attnc.runtime.launch import keep_sums, next_launch, start_launch
from attnc.runtime.row_orders import PLAIN_ROWS, RowOrder
from attnc.runtime.tiles import Tiles, assume_target

TABLE = {
    ("sm_90", 2, 64): (Tiles(128, 64, warps=8, stages=3),),
    ("sm_90", 2, 128): (Tiles(128, 64, warps=8, stages=3),),
    ("sm_90", 2, 256): (Tiles(64, 16, warps=8, stages=2),),
}


def start(order, queries=4096, head_size=64, heads=4, table=TABLE):
    half = torch.empty(2, heads, queries, head_size, dtype=torch.float16, device="meta")
    options = {"scale": None, "precision": None, "base_2": True, "order": order}
    with assume_target("sm_90"):
        return start_launch(half, half, half, half, None, tiles=table, kernel="", **options)


@pytest.mark.parametrize("period", [2, 5, 8, 100])
@pytest.mark.parametrize("queries", [1, 2, 7, 8, 30])
def test_parts_and_rows_are_those_of_positions(period, queries):
    order = RowOrder(period)
    for shift in range(-7, 8):
        classes: dict[int, int] = {}
        for row in range(queries):
            classes[(row + shift) % period] = classes.get((row + shift) % period, 0) + 1
        assert order.classes(queries) == len(classes)
        assert order.most(queries) == max(classes.values())
    for length in range(1, period):
        counts = [sum((row + shift) % period < length for row in range(queries)) for shift in range(period)]
        assert RowOrder(period, length).most(queries) == max(counts)
        assert RowOrder(period, length).classes(queries) == 1


def test_classes_have_tiles_that_they_fill():
    assert start(PLAIN_ROWS).tiles == TABLE["sm_90", 2, 64][0]
    assert start(RowOrder(16)).tiles == TABLE["sm_90", 2, 64][0]
    assert start(RowOrder(64)).tiles.query == 64
    assert start(RowOrder(128)).tiles == Tiles(32, 64, warps=4, stages=3, chunk=16)
    assert start(RowOrder(256), head_size=128).tiles.query == 16
    assert start(RowOrder(128, 1)).tiles.query == 32
    assert start(RowOrder(128), head_size=256).tiles.query == 64
    for order, programs in [(PLAIN_ROWS, 32), (RowOrder(64), 64), (RowOrder(128, 1), 1), (RowOrder(10**6), 4096)]:
        assert start(order).grid == (programs * 8,)


def test_kernels_of_one_call_share_what_they_keep():
    call = start(RowOrder(128))
    keep_sums(call, rows=2)
    following = next_launch(call, tiles=TABLE, kernel="")
    assert following.kept_out is call.kept_out
    assert call.kept_out.dtype == call.kept_m.dtype == call.kept_l.dtype == torch.float32
    assert call.kept_out.shape == (2, 4, 4096, 64)
    keep_sums(call, rows=0)
    assert call.kept_m is None
    assert call.kept_l is None


def test_too_many_programs_are_refused():
    with pytest.raises(ValueError, match="programs"):
        start(RowOrder(2**20), queries=2**28, heads=1024)
