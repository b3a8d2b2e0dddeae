"""Programs that get several tiles of rows: which program computes a tile changes no bit."""

from dataclasses import replace

import pytest
import torch
from kernel_harness import check_kernel, load_kernel, loaded, plan_text, run_kernel, sample_inputs, tensors
from test_layout_kernels import PLANS, split_plan

from attnc.runtime import launch
from attnc.runtime.dropout import Dropout
from attnc.runtime.kernel_math import count_deals, dealt_tile, tl, triton
from attnc.runtime.tiles import MULTIPROCESSORS, Tiles, assume_target, count_programs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter computes with numpy, which warns where the language is silent: 1 / 0, log 0."""

SMALL = Tiles(16, 16, 4, 1)
PERSISTENT = replace(SMALL, persistent=1)
MIDDLE, OTHERS = 3, (1, 7)
"""Multiprocessors, which have fewer programs than there are tiles."""

STATEMENTS = {
    "causal": "mask causal",
    "suffix": "mask j >= i",
    "sinks": "mask causal and (i - j < 20 or j < 4)",
    "documents": "input doc: int[B, M] sorted; mask causal and same(doc)",
    "bias": "input bias: float[H, N, M]; score s + bias[h, i, j]; mask abs(i - j) < 30",
    "learned sink": "learned sink: float[H] = 0.0; mask causal; normalize softmax(sink = sink[h])",
    "factors": "input w: float[M]; mask causal; weight w[j] - 0.5",
    "rows": "mask causal; normalize rows; score s * s",
    "none": "normalize none",
    "own scale": "scale 0.7 / sqrt(D + i); mask causal",
    "long rows": "mask i < 2 or abs(i - j) < 9",
    "every pair": "",
    "nothing": "mask i < j and j < i",
}
QUICK = {"sinks", "nothing"}


@triton.jit
def _deal(found_ptr, tiles):
    for deal in range(count_deals(tiles)):
        place = found_ptr + dealt_tile(deal)
        tl.store(place, tl.load(place) + 100 + tl.program_id(0))


@pytest.mark.parametrize(("programs", "tiles"), [(1, 5), (3, 9), (3, 10), (3, 11), (4, 14), (5, 3), (7, 1)])
def test_every_tile_is_dealt_once_there_and_back(programs, tiles):
    found = torch.zeros(tiles + 8, dtype=torch.int32)
    _deal[programs,](found, tiles)
    owners = [*range(programs), *reversed(range(programs))] * tiles
    assert found.tolist() == [100 + owner for owner in owners[:tiles]] + 8 * [0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in STATEMENTS]
)
def test_every_number_of_programs_computes_the_same_bits(name, monkeypatch):
    plan, module = loaded(STATEMENTS[name])
    check_numbers(plan, module, tensors(1, 2, 1, 50, 60, 16), monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "rows and window" else pytest.mark.slow)
        for name in (
            "residue",
            "strided",
            "rows and window",
            "all three",
            "long period",
            "grid and columns",
            "two grids",
        )
    ],
)
def test_layouts_and_sums_that_are_handed_on(name, monkeypatch):
    plan = split_plan(PLANS[name], "")
    check_numbers(plan, load_kernel(plan), tensors(1, 2, 1, 50, 60, 16), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1), (63, 64), (65, 63), (64, 257), (257, 3)])
@pytest.mark.parametrize("name", ["causal", "sinks", "bias"])
def test_sizes(name, sizes, monkeypatch):
    plan, module = loaded(STATEMENTS[name])
    check_numbers(plan, module, tensors(1, 3, 1, *sizes, 24, 40), monkeypatch)


def test_values_that_are_not_finite(monkeypatch):
    plan, module = loaded(STATEMENTS["sinks"])
    query, key, value = tensors(1, 2, 1, 50, 60, 16)
    value[:, :, 40, 3] = float("nan")
    value[:, :, 2, 5] = float("inf")
    check_numbers(plan, module, (query, key, value), monkeypatch)


def check_numbers(plan, module, given, monkeypatch):
    """Compare persistent kernels with the reference, and bit by bit with a program for each tile."""
    inputs = sample_inputs(plan.attention, *given[:2])

    def computed(tiles):
        with assume_target("cpu", tiles):
            return run_kernel(module, plan, *given, inputs)

    plain = computed(SMALL)
    monkeypatch.setitem(MULTIPROCESSORS, "cpu", MIDDLE)
    with assume_target("cpu", PERSISTENT):
        assert torch.equal(check_kernel(plan, *given, inputs, module=module).nan_to_num(9.0), plain[0].nan_to_num(9.0))
    for number in OTHERS:
        monkeypatch.setitem(MULTIPROCESSORS, "cpu", number)
        for mine, other in zip(computed(PERSISTENT), plain, strict=True):
            assert mine is other is None or torch.equal(mine.nan_to_num(9.0), other.nan_to_num(9.0))


def test_dropped_pairs_are_the_same(monkeypatch):
    module = loaded(STATEMENTS["causal"])[1]
    given = tensors(1, 2, 1, 50, 60, 16)
    monkeypatch.setitem(MULTIPROCESSORS, "cpu", 3)

    def dropped(tiles):
        out = torch.full_like(given[0], float("nan"))
        with assume_target("cpu", tiles):
            module._foo_launch(*given, out, None, (), None, None, Dropout.of(0.3, torch.tensor(5)))
        return out

    assert torch.equal(dropped(PERSISTENT), dropped(SMALL))


def launches(statements, tiles, monkeypatch, *sizes, shares=0):
    """Return the number of programs, and whether they are persistent, of each launch."""
    plan, module = loaded(statements)
    found = []

    def recorded(call, **options):
        steps = launch.launch_steps(call, **options)
        found.extend((*step.grid, step.persistent) for step in steps)
        return steps

    monkeypatch.setattr(module, "launch_steps", recorded)
    with assume_target("cpu", tiles, shares=shares):
        check_kernel(plan, *tensors(*sizes, 16), module=module)
    return found


def test_programs_are_no_more_than_run_at_once(monkeypatch):
    monkeypatch.setitem(MULTIPROCESSORS, "cpu", 3)
    two = replace(SMALL, persistent=2)
    assert launches("mask causal", SMALL, monkeypatch, 1, 2, 1, 50, 50) == [(8, 0)]
    assert launches("mask causal", PERSISTENT, monkeypatch, 1, 2, 1, 50, 50) == [(3, 1)]
    assert launches("mask causal", two, monkeypatch, 1, 2, 1, 50, 50) == [(6, 2)]
    assert launches("mask causal", two, monkeypatch, 1, 1, 1, 40, 40) == [(3, 2)]


def test_programs_that_share_keys_have_one_tile_each(monkeypatch):
    monkeypatch.setitem(MULTIPROCESSORS, "cpu", 3)
    found = launches("mask causal", PERSISTENT, monkeypatch, 1, 2, 1, 50, 50, shares=2)
    assert found == [(16, 0), (8, 0)]


def test_first_rows_are_shared_and_the_others_dealt(monkeypatch):
    statements = "mask i < 2 or abs(i - j) < 9"
    monkeypatch.setitem(MULTIPROCESSORS, "cpu", 8)
    plan = plan_text(f"attention foo {{ {statements} }}")
    assert plan.long_rows == 2
    found = launches(statements, PERSISTENT, monkeypatch, 1, 1, 1, 200, 200)
    assert found[-1] == (8, 1)
    assert [persistent for _, persistent in found[:-1]] == [0, 0]


def test_programs_of_a_device():
    device = torch.device("meta")
    with assume_target("sm_90"):
        assert count_programs(replace(SMALL, persistent=2), 1000, device) == 264
        assert count_programs(replace(SMALL, persistent=2), 100, device) == 100
        assert count_programs(SMALL, 1000, device) == 1000
