"""Programs that share the keys of the same rows and leave sums for a launch that joins them, against the reference."""

import pytest
import torch
from kernel_harness import (
    check_kernel,
    check_statements,
    load_kernel,
    loaded,
    plan_text,
    render_kernel,
    run_kernel,
    sample_inputs,
    tensors,
)
from test_layout_kernels import PLANS, split_plan

from attnc.runtime.tiles import MOST_SHARES, Tiles, assume_target, count_shares

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = Tiles(16, 16, 4, 1)
SHARES = (2, 3, 9)
SIZES = [(1, 1), (1, 130), (3, 70), (64, 100), (100, 64)]
MASKS = {
    "causal": "mask causal",
    "every pair": "",
    "window and sinks": "mask causal and (i - j < 20 or j < 3)",
    "globals": "mask window(9) or i < 2 or j < 2",
    "chunks": "mask chunk(24)",
    "documents": "input doc: int[B, M] sorted; mask causal and same(doc)",
    "tile tests": "mask random_blocks(16, 2, 7)",
    "blocks": "input keep: bool[B, (M + 15) // 16]; mask keep[b, j // 16] and causal",
    "lengths": "input size: int[B]; mask j < size[b]",
}
NORMALIZERS = {
    "softmax": "",
    "sink": "normalize softmax(sink = 0.1 * i - 1)",
    "weight": "weight 0.5 + sigmoid(sin(i - j))",
    "sigmoid": "normalize sigmoid(bias = -log(M))",
    "relu": "normalize relu(power = 2)",
    "rows": "normalize rows; score s * s",
    "none": "normalize none",
}


def run(statements, sizes, shares, **more):
    return check_statements(statements, sizes, SMALL, shares=shares, **more)


def launched(module):
    """Return the list that the grids of a kernel's launches are added to from now on."""
    kernel, grids = module._foo_kernel, []

    class Counted:
        def __getitem__(self, grid):
            grids.append(grid[0])
            return kernel[grid]

    module._foo_kernel = Counted()
    return grids


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("name", MASKS)
def test_masks(name, shares):
    run(MASKS[name], (40, 100), shares, poisoned=shares == 3)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(sizes):
    run(MASKS["window and sinks"], sizes, 3)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers(name):
    run(f"{MASKS['causal']}; {NORMALIZERS[name]}", (20, 70), 3, poisoned=name not in ("rows", "none"))


@pytest.mark.slow
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("sizes", [*SIZES, (1, 1000), (64, 1000)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_masks_and_sizes(name, sizes, shares):
    run(MASKS[name], sizes, shares)
    run(MASKS[name], sizes, shares, poisoned=True)


@pytest.mark.slow
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("mask", ["causal", "every pair", "globals"])
@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers_and_masks(name, mask, shares):
    for sizes in SIZES:
        run(f"{MASKS[mask]}; {NORMALIZERS[name]}", sizes, shares, poisoned=name not in ("rows", "none"))


@pytest.mark.parametrize("name", ["residue", "strided", "fixed", "rows and window", "all three"])
def test_layouts_and_sums_of_earlier_kernels(name):
    check_layout(name, "", 3)


@pytest.mark.slow
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("statements", NORMALIZERS.values(), ids=NORMALIZERS)
@pytest.mark.parametrize("name", PLANS)
def test_layouts_and_normalizers(name, statements, shares):
    check_layout(name, statements, shares)


def check_layout(name, statements, shares):
    plan = split_plan(PLANS[name], statements)
    module = load_kernel(plan)
    query, key, value = tensors(1, 2, 1, 70, 90, 16)
    for poisoned in (False, True):
        if poisoned and "rows;" not in statements and "none" not in statements:
            value[:, :, 45, 3] = float("nan")
        with assume_target("cpu", SMALL, shares=shares):
            check_kernel(plan, query, key, value, sample_inputs(plan.attention, query, key), module=module)


def test_half_precision_and_two_runs_alike():
    first = run(MASKS["causal"], (64, 100), 3, dtype=torch.float16)
    assert torch.equal(first, run(MASKS["causal"], (64, 100), 3, dtype=torch.float16))


def test_a_launch_of_few_programs_shares_keys_by_itself():
    """One row of 1000 keys: the sums of the shares are rounded otherwise than one program's."""
    plan = plan_text("attention foo { }")
    module = load_kernel(plan)
    query, key, value = tensors(1, 1, 1, 1, 1000, 16)
    grids = launched(module)
    check_kernel(plan, query, key, value, module=module)
    assert grids == [2, 1]


@pytest.mark.parametrize(
    ("tiles", "programs", "keys", "expected"),
    [
        (SMALL, 1, 100_000, 32),
        (SMALL, 32, 100_000, 8),
        (SMALL, 100, 100_000, 2),
        (SMALL, 133, 100_000, 1),
        (SMALL, 32, 64, 1),
        (SMALL, 32, 200, 2),
        (Tiles(128, 128, 8, 2), 32, 100_000, 4),
        (Tiles(128, 128, 8, 2), 100, 100_000, 1),
    ],
)
def test_how_many_programs_share(tiles, programs, keys, expected):
    with assume_target("sm_90"):
        assert count_shares(tiles, programs, keys, torch.device("meta")) == expected
    assert expected <= MOST_SHARES


def test_text():
    text = render_kernel(loaded(MASKS["window and sinks"])[0])
    assert text.count("range(begin + wait, end, SHARES)") == text.count("floor_mod(wait") + 1 > 1
    assert text.count("for step in launch_steps(call, rows=2):") == 1
    assert "launch_steps(call, rows=0)" in render_kernel(loaded(NORMALIZERS["none"])[0])


def test_sums_of_masked_keys_do_not_matter():
    """A NaN among masked values reaches the sums of one program, and no result."""
    plan, module = loaded(MASKS["causal"])
    query, key, value = tensors(1, 1, 1, 40, 40, 16)
    with assume_target("cpu", SMALL, shares=2):
        expected, _ = run_kernel(module, plan, query, key, value)
        value[:, :, 39] = float("nan")
        found, _ = run_kernel(module, plan, query, key, value)
    torch.testing.assert_close(found[:, :, :39], expected[:, :, :39], rtol=1e-4, atol=1e-5)
    assert found[:, :, 39].isnan().all()


@pytest.mark.parametrize(
    ("statements", "sizes", "expected"),
    [
        ("", (400, 400), [4, 1, 6]),
        ("", (300, 400), [5]),  # the long rows are not among the last 300
        ("align start", (300, 400), [4, 1, 5]),
        ("align at(-20)", (400, 300), [8, 2, 6]),
        ("normalize sigmoid(bias = -log(M))", (400, 400), [4, 1, 6]),
        ("input start: int; align at(start)", (400, 400), [7]),
    ],
)
def test_long_rows_are_computed_apart(statements, sizes, expected):
    plan = plan_text(f"attention foo {{ mask window(9) or globals(2); {statements} }}")
    module = load_kernel(plan)
    grids = launched(module)
    query, key, value = tensors(1, 1, 1, *sizes, 16)
    value[:, :, 200] = float("nan")
    with assume_target("cpu", Tiles(64, 16, 8, 1)):
        check_kernel(plan, query, key, value, {"start": 3} if "start:" in statements else {}, module=module)
    assert grids == expected


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 16, 20])
@pytest.mark.parametrize("name", NORMALIZERS)
def test_long_rows_and_normalizers(name, count):
    plan = plan_text(f"attention foo {{ mask window(9) or globals({count}); {NORMALIZERS[name]} }}")
    module = load_kernel(plan)
    assert plan.long_rows == count
    for sizes in [(300, 300), (330, 400), (400, 330), (17, 400), (401, 401)]:
        query, key, value = tensors(2, 2, 1, *sizes, 16)
        with assume_target("cpu", Tiles(64, 16, 8, 1)):
            check_kernel(plan, query, key, value, module=module)
