"""The host's side of a kernel launch: layouts, tiles, limits; and whole modules on the Triton path."""

import sys
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "codegen"))
from kernel_harness import check_kernel, load_kernel, plan_text, run_kernel, tensors

from attnc.plan.configs import TARGETS, Traits, default_config, tile_rows
from attnc.runtime.launch import LONGEST, start_launch
from attnc.runtime.tiles import Tiles, assume_target, choose_tiles, padded

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

STREAMING = "attention foo { mask causal and (i - j < 20 or sinks(3)) }"
TABLE = {(row.target, row.element_size, row.head_size): row.configs for row in tile_rows(128, 128, Traits())}


def transposed(tensor):
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def column_major(tensor):
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


def sliced(tensor):
    return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]


@pytest.mark.parametrize("layout", [transposed, column_major, sliced])
def test_any_strides(layout):
    plan = plan_text(STREAMING)
    check_kernel(plan, *(layout(tensor) for tensor in tensors(2, 3, 3, 70, 90, 16)))


def test_heads_and_batches_may_share_memory():
    query, key, value = tensors(1, 1, 1, 30, 30, 16)
    expand = (2, 3, -1, -1)
    check_kernel(plan_text(STREAMING), query.expand(expand), key.expand(expand), value.expand(expand))


def test_outputs_of_any_strides():
    plan = plan_text(STREAMING)
    query, key, value = tensors(1, 2, 2, 40, 40, 16)
    module = load_kernel(plan)
    expected, expected_lse = run_kernel(module, plan, query, key, value)
    out = torch.full((1, 2, 16, 40), float("nan")).transpose(2, 3)
    lse = torch.full((1, 40, 2), float("nan")).transpose(1, 2)
    module._foo_launch(query, key, value, out, lse, (), None, None)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_nothing_outside_of_the_outputs_is_written():
    plan = plan_text(STREAMING)
    query, key, value = tensors(1, 1, 1, 33, 33, 20, 24)
    room = torch.full((1, 1, 50, 40), 7.0)
    out = room[:, :, 5:38, 3:27]
    load_kernel(plan)._foo_launch(query, key, value, out, None, (), None, None)
    assert out.isfinite().all()
    assert (out != 7.0).all()
    outside = torch.ones_like(room, dtype=torch.bool)
    outside[:, :, 5:38, 3:27] = False
    assert (room[outside] == 7.0).all()


def test_empty_outputs_launch_nothing():
    plan = plan_text(STREAMING)
    module = load_kernel(plan)
    for shape in ((0, 2, 2, 5, 5, 16), (2, 2, 2, 0, 5, 16)):
        out, _ = run_kernel(module, plan, *tensors(*shape))
        assert out.numel() == 0


@pytest.mark.parametrize("mask", ["-3 < w", "min(w - M, 2) > 2 * j - w", "j < w and causal"])
def test_an_alignment_that_no_position_needs(mask):
    plan = plan_text(f"attention foo {{ input w: int\n align at(w - 2)\n mask {mask} }}")
    for width in (-4, 3, 40):
        check_kernel(plan, *tensors(1, 2, 2, 20, 30, 16), {"w": width})


def test_scalar_inputs_are_numbers_or_tensors():
    plan = plan_text("attention foo { input beta: float; input n: int; scale beta; mask i - j < n and causal }")
    module = load_kernel(plan)
    for beta, n in ((0.25, 7), (torch.tensor(0.25), torch.tensor(7)), (0.25, 1)):
        check_kernel(plan, *tensors(1, 1, 1, 40, 40, 16), {"beta": beta, "n": n}, module=module)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_int_inputs_of_any_width(dtype):
    doc = torch.arange(50).div(9, rounding_mode="floor").to(dtype)[None]
    plan = plan_text("attention foo { input doc: int[B, M]; mask doc[b, i] - 3 == doc[b, j] - 3 and doc[b, j] < 300 }")
    check_kernel(plan, *tensors(1, 1, 1, 50, 50, 16), {"doc": doc})


def test_lengths_beyond_the_positions_of_a_kernel_are_refused():
    query = torch.empty(1, 1, 1, 16, device="meta").expand(1, 1, LONGEST + 1, 16)
    with pytest.raises(ValueError, match="up to 1073740800 queries and keys"):
        start_launch(query, query, query, query, None, scale=None, precision=None, tiles={}, kernel="", base_2=True)


def test_tiles_follow_target_element_and_head_size():
    table = {key: tuple(Tiles(*astuple(config)) for config in configs) for key, configs in TABLE.items()}
    half = torch.empty(1, 1, 1, 16, dtype=torch.float16, device="meta")
    for target in TARGETS:
        with assume_target(target):
            for head_size in (16, 64, 128, 256):
                config = default_config(target, 2, head_size)
                chosen = choose_tiles(table, half, head_size, 4096)
                assert (chosen.query, chosen.key, chosen.warps) == (config.query, config.key, config.warps)
            assert choose_tiles(table, half, 64, 1).query == 16
            assert choose_tiles(table, half.float(), 64, 4096) == table[target, 4, 64][0]
            best = choose_tiles(table, half, 128, 4096, descriptors=True)
            assert best.descriptors == (target in ("sm_90", "sm_100"))
            assert best == table[target, 2, 128][0]
            assert not choose_tiles(table, half, 128, 16, descriptors=True).descriptors


def test_tiles_stay_within_the_plan():
    configs = [config for row in tile_rows(32, 16, Traits()) for config in row.configs]
    assert all(config.query <= 32 and config.key <= 16 for config in configs)


@pytest.mark.parametrize(("size", "width"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (200, 256), (256, 256)])
def test_head_sizes_are_padded(size, width):
    assert padded(size) == width
