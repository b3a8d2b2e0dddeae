"""Calls that do what an earlier one did: the same numbers as without, whatever changed in between; and not too many."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from patterns import differentiable, function_of, inputs_for, outputs_and_gradients, tensors
from torch._subclasses.fake_tensor import FakeTensorMode

from attnc.runtime import call_plans, tuned
from attnc.runtime.call_plans import run_planned
from attnc.runtime.call_recorder import MOST_STEPS, record_call
from attnc.runtime.call_steps import CallPlan, KernelStep
from attnc.runtime.calls import Store
from attnc.runtime.tiles import Tiles, assume_target
from attnc.runtime.tuned import try_tiles, watch_kernels

CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"B": 1, "H": 2, "G": 1, "N": 20, "M": 24, "dtype": torch.float32}


@pytest.fixture(autouse=True)
def own_plans(monkeypatch):
    """Start without plans, and launch kernels."""
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    monkeypatch.setattr(call_plans, "_PLANS", Store(call_plans.MOST_SEEN))


def plans():
    """Return what is kept of signatures that came twice."""
    return [one for one, _ in call_plans._PLANS._kept.values() if one != "seen"]


def call(name, seed=0, options=None, reshape=None, **sizes):
    """Return output, log-sum-exp where there is one, and gradients of a call on new numbers."""
    made = tensors(**(SIZES | sizes), seed=seed)
    if reshape is not None:
        made = [reshape(one.detach()).requires_grad_() for one in made]
    inputs = inputs_for(name, made[0], made[1], seed=seed + 1)
    leaves = differentiable(*made, inputs)
    return outputs_and_gradients(lambda: function_of(name)(*made, **inputs, **(options or {})), leaves, False)


def unplanned(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr(call_plans, "record_call", lambda compute, given: (compute(*given), None))
        patch.setattr(call_plans, "_PLANS", Store(0))
        return call(*arguments, **options)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize(
    ("name", "how_many"),
    [("streaming", 2), ("strided", 2), ("packed", 2), ("scaled", 2), ("sink", 2), ("weighted", 2), ("rows", 2)],
)
def test_repeated_calls_equal_the_first_on_other_numbers(name, how_many, monkeypatch):
    for seed in range(4):
        found = call(name, seed)
        if seed > 1:
            assert_same(found, unplanned(monkeypatch, name, seed))
    assert len(plans()) == how_many
    assert all(isinstance(one, CallPlan) for one in plans())


def test_what_python_makes_tensors_of_is_computed_anew(monkeypatch):
    for seed in range(4):
        found = call("relative", seed, N=9, M=9)
    assert_same(found, unplanned(monkeypatch, "relative", 3, N=9, M=9))
    assert [isinstance(one, CallPlan) for one in plans()] == [True, False]
    assert plans()[1] == "untold"


CHANGES = {
    "lengths": {"N": 7},
    "heads": {"H": 2},
    "head sizes": {"D": 8, "E": 24},
    "dtype": {"dtype": torch.float16},
    "strides": {"reshape": lambda one: one.transpose(1, 2).contiguous().transpose(1, 2)},
    "columns apart": {"reshape": lambda one: one.transpose(2, 3).contiguous().transpose(2, 3)},
    "addresses": {"reshape": lambda one: torch.cat([one.new_zeros(1), one.flatten()])[1:].view(one.shape)},
    "scale": {"options": {"scale": 0.3}},
    "negative scale": {"options": {"scale": -0.3}},
    "dropout": {"options": {"dropout_p": 0.5, "seed": 3}},
    "another seed": {"options": {"dropout_p": 0.5, "seed": 4}},
}


def test_nothing_of_one_call_is_left_in_another(monkeypatch):
    few = {"H": 1, "N": 9, "M": 12}
    cases = [few, *(few | case for case in CHANGES.values())]
    for seed in (1, 2):
        for case in cases:
            call("causal", seed, **case)
    for case in reversed(cases):
        assert_same(call("causal", 3, **case), unplanned(monkeypatch, "causal", 3, **case))


def test_one_tensor_in_several_places_counts_as_several(monkeypatch):
    causal = function_of("causal")
    for _ in range(3):
        one = torch.randn(1, 2, 20, 16)
        causal(one, one, one)
    assert len(plans()) == 1
    query, key, value = (torch.randn(1, 2, 20, 16) for _ in range(3))
    found = causal(query, key, value)
    monkeypatch.setattr(call_plans, "_PLANS", Store(0))
    assert torch.equal(found, causal(query, key, value))


def test_numbers_that_are_given_are_part_of_the_signature(monkeypatch):
    query, key, value = tensors(**SIZES, grad=False)
    for beta in (0.5, 0.5, 0.5, 2.0, torch.tensor(2.0), -0.0):
        found = function_of("tempered")(query, key, value, beta=beta)
        with monkeypatch.context() as patch:
            patch.setattr(call_plans, "_PLANS", Store(0))
            assert torch.equal(found, function_of("tempered")(query, key, value, beta=beta))


def test_results_belong_to_the_caller():
    query, key, value = tensors(**SIZES, grad=False)
    found = [function_of("causal")(query, key, value) for _ in range(4)]
    assert len({one.data_ptr() for one in found}) == 4
    found[3].add_(1.0)
    assert torch.equal(found[2], found[0])


def test_tuned_tiles_are_taken_when_they_change():
    query, key, value = tensors(**(SIZES | {"N": 64}), grad=False)
    with watch_kernels() as asked:
        expected = function_of("causal")(query, key, value)
    assert not plans()
    launched = []
    for tiles in (None, Tiles(16, 16, 4, 1), Tiles(32, 16, 4, 1), None, Tiles(32, 16, 4, 1)):
        with try_tiles({} if tiles is None else {asked[0]: tiles}):
            for _ in range(3):
                torch.testing.assert_close(function_of("causal")(query, key, value), expected)
        step, _ = plans()[-1].steps[-1]  # the one that was used last
        assert isinstance(step, KernelStep)
        launched.append(step.arguments[step.names.index("BLOCK_M")])
    assert launched == [64, 16, 32, 64, 32]
    assert len(plans()) == 3


@pytest.mark.parametrize("change", ["pinned", "assumed", "written", "source"])
def test_whatever_decides_tiles_is_part_of_the_signature(change, monkeypatch):
    monkeypatch.setattr(tuned, "_KNOWN", tuned._Known())
    computed = []

    def compute(tensor):
        computed.append(change)
        return [tensor + 1]

    def repeat():
        computed.clear()
        for _ in range(4):
            run_planned("own", CPU, compute, [torch.zeros(3)])
        return len(computed)

    assert repeat() == 2  # seen, recorded
    assert repeat() == 0
    match change:
        case "pinned":
            monkeypatch.setenv("ATTNC_PINNED", "0")
        case "written":
            tuned.use_tuned([])
        case "source":
            tuned.use_source(lambda device: [])
        case "assumed":
            with assume_target("sm_80"):
                assert repeat() == 2
            assert repeat() == 0
            return
    assert repeat() == 2


def test_what_is_kept_is_bounded():
    def call_with(size):
        run_planned("own", CPU, lambda tensor: [tensor + 1], [torch.zeros(size)])

    for size in range(call_plans.MOST_SEEN + 50):
        call_with(size)
    assert len(call_plans._PLANS._kept) == call_plans.MOST_SEEN
    assert not plans()
    most = call_plans.MOST_SEEN // call_plans.PLAN_SIZE
    for size in range(5000, 5050 + most):
        call_with(size)
        call_with(size)
    assert len(plans()) == most
    for size in range(2 * call_plans.MOST_SEEN):
        call_with(6000 + size)
        call_with(5010 + most)  # what is used stays
    assert len(plans()) == 1


def test_tensors_are_let_go_where_nothing_needs_them():
    alive = []

    def compute(tensor):
        made = [tensor]
        for _ in range(5):
            made.append(made[-1] * 2)
        unused = torch.arange(3).view(3, 1).float()
        return [made[-1].to(torch.float32), unused.new_zeros(2)]

    _, plan = record_call(compute, [torch.ones(2)])
    assert len(plan.steps) == 6  # products, zeros
    for _, unneeded in plan.steps[:5]:
        alive.append(len(unneeded))
    assert alive == [0, 1, 1, 1, 1]
    assert [one.tolist() for one in plan.run([torch.full((2,), 3.0)])] == [[96.0, 96.0], [0.0, 0.0]]


def test_operations_on_memory_and_lists_are_repeated():
    def compute(first, second, none):
        places = torch.ones(1, dtype=torch.int64)
        total = torch.zeros(2, 3)
        total[0].add_(first)
        total.index_put_((places,), second[None], accumulate=True)
        left, right = torch.cat([total, total * 2], 1).split(3, 1)
        return [left, right, torch.where(first > 0, first, -first)]

    def given(seed):
        draw = torch.Generator().manual_seed(seed)
        return [torch.randn(3, generator=draw), torch.randn(3, generator=draw), None]

    _, plan = record_call(compute, given(0))
    for seed in (1, 2):
        assert_same(plan.run(given(seed)), compute(*given(seed)))


OUTSIDE = torch.ones(3)


@pytest.mark.parametrize(
    "compute",
    [
        lambda tensor: [tensor * OUTSIDE],
        lambda tensor: [OUTSIDE],
        lambda tensor: [tensor * float(tensor.sum())],
        lambda tensor: [tensor * torch.tensor([1.0, 2.0, 3.0])],
        lambda tensor: [tensor.as_strided((2,), (1,), 1)],
        lambda tensor: [tensor.new_empty(0).set_((tensor * 1).untyped_storage(), 0, (3,), (1,))],
        lambda tensor: [sum(tensor * number for number in range(MOST_STEPS))],
    ],
    ids=[
        "another tensor",
        "its result",
        "a value",
        "Python's numbers",
        "a place in memory",
        "a storage",
        "too many steps",
    ],
)
def test_what_depends_on_more_than_its_tensors_is_not_kept(compute):
    results, plan = record_call(compute, [torch.ones(3)])
    assert plan is None
    assert torch.equal(results[0], compute(torch.ones(3))[0])


def test_a_failing_call_leaves_nothing_behind():
    def compute(tensor):
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            run_planned("own", CPU, compute, [torch.ones(3)])
    assert not plans()
    for _ in range(3):
        run_planned("other", CPU, lambda tensor: [tensor + 1], [torch.ones(3)])
    assert len(plans()) == 1


def test_threads_share_plans():
    def compute(tensor):
        total = torch.zeros(3)
        for number in range(20):
            total.add_(tensor * number)
        return [total]

    def one(number):
        return run_planned("own", CPU, compute, [torch.full((3,), float(number))])[0].tolist()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(200)))
    assert found == [[190.0 * number] * 3 for number in range(200)]
    assert len(plans()) == 1


def test_traces_and_fake_tensors_go_by_the_operator():
    causal = function_of("causal")
    for _ in range(3):
        causal(*tensors(**SIZES, grad=False))
    before = plans()
    with FakeTensorMode():
        out = causal(*(torch.empty(1, heads, 20, 16) for heads in (2, 1, 1)))
    assert out.shape == (1, 2, 20, 16)
    assert plans() == before


def test_kernels_start_on_the_device_of_the_tensors(monkeypatch):
    current = [0]

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device.index)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", Device)
    seen = []

    def compute(tensor):
        seen.append(current[-1])
        return [tensor]

    for index in (0, 1, 0):
        run_planned(index, torch.device("cuda", index), compute, [torch.ones(3)])
    assert seen == [0, 1, 0]
    assert current == [0]


def launch_without_device(path):
    """Return how many launches agree with Triton's own, and how many go by no look at the arguments."""
    script = Path(__file__).parent / "launch_without_device.py"
    found = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    agree, _, _, direct, _ = found.stdout.split()
    return int(agree), int(direct)


def test_kernels_are_launched_with_the_arguments_that_triton_passes():
    """A driver without a device takes the place of CUDA's, so that Triton's own launcher runs as it does there."""
    assert launch_without_device(EXAMPLES / "gpt.attn") == (6, 6)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.attn")), ids=lambda path: path.stem)
def test_kernels_of_examples_are_launched_so(path):
    agree, direct = launch_without_device(path)
    assert agree >= 6
    assert direct == agree
