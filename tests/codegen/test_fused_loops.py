"""One loop over several intervals, against the reference and beside several loops."""

import re

import pytest
import torch
from kernel_harness import (
    check_kernel,
    check_statements,
    load_kernel,
    loaded,
    plan_text,
    render_kernel,
    sample_inputs,
    tensors,
)
from test_layout_kernels import PLANS, split_plan

from attnc.plan.fusing import fused_runs, may_fuse
from attnc.runtime.tiles import Tiles, assume_target

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FUSED = Tiles(16, 16, 4, 1, fused=True)
SIZES = [(1, 1), (63, 64), (65, 63), (64, 257), (100, 40)]
MASKS = {
    "causal": "mask causal",
    "window and sinks": "mask causal and (i - j < 40 or j < 3)",
    "globals": "mask window(19) or i < 2 or j < 2",
    "chunks": "mask chunk_causal(24) and i // 24 - j // 24 < 2",
    "documents": "input doc: int[B, M] sorted; mask causal and same(doc)",
    "lengths": "input size: int[B]; mask j < size[b]",
    "every pair": "",
}
WEIGHTS = {
    "score": "score 20 * tanh(s / 20) - 0.1 * abs(i - j)",
    "sink": "normalize softmax(sink = 0.1 * i - 1)",
    "sigmoid": "normalize sigmoid(bias = -log(M))",
    "rows": "normalize rows; score s * s",
    "none": "normalize none",
}


def run(statements, sizes, *, tiles=FUSED, **more):
    return check_statements(statements, sizes, tiles, **more)


QUICK = {"causal", "window and sinks", "documents", "globals"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in MASKS]
)
def test_masks(name):
    plan = loaded(MASKS[name])[0]
    assert may_fuse(plan.attention, plan.passes)
    run(MASKS[name], (70, 100))
    run(MASKS[name], (40, 100), shares=3, poisoned=True)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(sizes):
    run(MASKS["window and sinks"], sizes)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name):
    run(f"{MASKS['window and sinks']}; {WEIGHTS[name]}", (40, 70), poisoned=name not in ("rows", "none"))


@pytest.mark.parametrize(
    "name",
    [
        "strided",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("residue", "fixed", "rows and window", "all three")),
    ],
)
def test_layouts(name):
    plan = split_plan(PLANS[name], "")
    module, given = load_kernel(plan), tensors(1, 2, 1, 70, 90, 16)
    for shares in (1, 3):
        with assume_target("cpu", FUSED, shares=shares):
            check_kernel(plan, *given, sample_inputs(plan.attention, *given[:2]), module=module)


@pytest.mark.parametrize("scale", [0.0, -0.7, 2.0])
def test_scales(scale):
    """Times 0 a masked dot product would be NaN, and a negative scale turns maxima into minima."""
    run(MASKS["causal"], (40, 50), scale=scale)


@pytest.mark.parametrize("name", ["causal", "window and sinks", "documents"])
def test_loops_fused_and_apart_compute_alike(name):
    apart = run(MASKS[name], (70, 100), tiles=Tiles(16, 16, 4, 1))
    torch.testing.assert_close(run(MASKS[name], (70, 100)), apart, rtol=1e-6, atol=1e-6)
    assert torch.equal(run(MASKS[name], (70, 100)), run(MASKS[name], (70, 100)))


def test_half_precision():
    run(MASKS["window and sinks"], (64, 100), dtype=torch.float16)


def test_a_loop_follows_intervals_and_tests_what_each_of_them_needs():
    text = render_kernel(loaded(MASKS["window and sinks"])[0])
    fused, apart = text.split("elif JOINED == 0:")[0].split("if JOINED == 0 and FUSED:")[1], text
    assert fused.count("for step in range(wait,") == 1
    assert "for tile in range" not in fused
    assert fused.count("skip_1 = begin - past") == 1  # keys between the sinks and the window
    tests = [line.strip() for line in fused.splitlines() if re.match(r"\s*(el)?if .*step", line)]
    assert tests == ["if step < past_1:", "elif step >= past_2:"]
    assert apart.count("for tile in range(begin + wait, end, SHARES)") == 4


@pytest.mark.parametrize(
    "statements",
    [
        "mask j < 100 and random_blocks(16, 2, 7)",
        "mask causal; weight 0.5 + sigmoid(i - j)",
        "mask i < 0",
        "mask causal and (i - j) % 64 == 0",
    ],
)
def test_kernels_that_cannot_fuse_have_no_such_option(statements):
    plan = plan_text(f"attention foo {{ {statements} }}")
    assert not may_fuse(plan.attention, plan.passes)
    assert "FUSED" not in render_kernel(plan)


def test_runs_stop_at_tests_of_whole_tiles():
    intervals = plan_text("attention foo { mask window(9) or random_blocks(16, 2, 7) }").passes
    for one in intervals:
        for run_of in fused_runs(one.tiles.intervals):
            assert len(run_of) > 1
            assert all(one.tiles.intervals[number].tile_test is None for number in run_of)
