"""Orders of programs: they decide when a tile of rows is computed, and nothing else."""

from dataclasses import replace

import pytest
import torch
from kernel_harness import check_kernel, load_kernel, plan_text, render_kernel, sample_inputs, tensors
from test_layout_kernels import PLANS, split_plan

from attnc.runtime import launch
from attnc.runtime.kernel_math import take_turn, tl, triton
from attnc.runtime.tiles import CACHE_SIZES, ORDERS, Tiles, assume_target, count_turn

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = Tiles(16, 16, 4, 1)
MASKS = {
    "causal": "mask causal",
    "suffix": "mask j >= i",
    "window": "mask causal and i - j < 20",
    "documents": "input doc: int[B, M] sorted; mask causal and same(doc)",
    "every pair": "",
}


@triton.jit
def _turns(tile_ptr, sequence_ptr, tiles, sequences, turn):
    tile, sequence = take_turn(tl.program_id(0), tiles, sequences, turn)
    tl.store(tile_ptr + tl.program_id(0), tile)
    tl.store(sequence_ptr + tl.program_id(0), sequence)


@pytest.mark.parametrize(("tiles", "sequences", "turn"), [(1, 1, 1), (5, 6, 1), (5, 6, 6), (5, 7, 3), (3, 4, 2)])
def test_turns(tiles, sequences, turn):
    found = torch.full((2, tiles * sequences), -1, dtype=torch.int32)
    _turns[tiles * sequences,](found[0], found[1], tiles, sequences, turn)
    starts = range(0, sequences, turn)
    groups = [range(first, min(sequences, first + turn)) for first in starts]
    expected = [(tile, one) for group in groups for tile in range(tiles) for one in group]
    assert list(zip(*found.tolist(), strict=True)) == expected


QUICK = {"causal", "suffix"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in MASKS]
)
def test_every_order_computes_the_same_bits(name):
    plan = plan_text(f"attention foo {{ {MASKS[name]} }}")
    check_orders(plan, tensors(2, 4, 2, 100, 130, 16))


@pytest.mark.parametrize(
    "name",
    ["residue", *(pytest.param(name, marks=pytest.mark.slow) for name in ("strided", "rows and window", "all three"))],
)
def test_layouts_in_every_order(name):
    check_orders(split_plan(PLANS[name], ""), tensors(1, 4, 2, 70, 90, 16))


def check_orders(plan, given):
    module = load_kernel(plan)
    inputs = sample_inputs(plan.attention, *given[:2])
    found = []
    for order in ("", *ORDERS):
        with assume_target("cpu", replace(SMALL, order=order)):
            found.append(check_kernel(plan, *given, inputs, module=module))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("name", "reversed_rows", "uneven"),
    [("causal", True, True), ("suffix", False, True), ("window", False, False), ("documents", False, False)],
)
def test_the_plan_says_which_rows_are_the_longest(name, reversed_rows, uneven):
    text = render_kernel(plan_text(f"attention foo {{ {MASKS[name]} }}"))
    assert ("(tiles - 1 - row_tile)" in text) is reversed_rows
    assert ("uneven=True" in text) is uneven


def launched(statements, order, monkeypatch, *sizes):
    """Return the number of sequences that take turns in a launch."""
    plan = plan_text(f"attention foo {{ {statements} }}")
    module, turns = load_kernel(plan), []

    def recorded(call, **options):
        turns.append(call.turn)
        return launch.launch_steps(call, **options)

    monkeypatch.setattr(module, "launch_steps", recorded)
    with assume_target("cpu", replace(SMALL, order=order)):
        check_kernel(plan, *tensors(*sizes, 16), module=module)
    return turns[0]


def test_uneven_rows_take_turns_as_far_as_keys_fit_into_the_cache(monkeypatch):
    fits = CACHE_SIZES["cpu"] // 2 // (2 * 16 * 4)  # keys of one head
    assert launched("mask causal", "", monkeypatch, 2, 4, 2, 16, 8) == 8
    assert launched("mask causal", "heads", monkeypatch, 2, 4, 2, 16, 8) == 1
    assert launched("mask causal", "", monkeypatch, 2, 4, 2, 16, fits // 2) == 4  # both query heads of two key heads
    assert launched("mask causal", "", monkeypatch, 2, 4, 2, 16, fits + 1) == 2  # they share keys in any case
    assert launched("", "", monkeypatch, 2, 4, 2, 16, 8) == 1
    assert launched("", "turns", monkeypatch, 2, 4, 2, 16, 8) == 8


def test_what_takes_turns_on_a_device():
    device = torch.device("meta")
    with assume_target("sm_90"):
        assert count_turn("heads", 64, 4, 1 << 20, device) == 1
        assert count_turn("turns", 64, 4, 1 << 20, device) == 64
        assert count_turn("turns", 64, 4, 8 << 20, device) == 8  # twice the four that share keys
        assert count_turn("turns", 64, 4, 1 << 30, device) == 4
        assert count_turn("turns", 2, 4, 0, device) == 2
