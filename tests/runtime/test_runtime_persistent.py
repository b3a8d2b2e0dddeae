"""Calls whose forward kernels have fewer programs than tiles of rows: once, and as they are remembered."""

from dataclasses import replace

import pytest
import torch
from patterns import differentiable, function_of, inputs_for, outputs_and_gradients, tensors

from attnc.runtime import call_plans
from attnc.runtime.call_steps import CallPlan
from attnc.runtime.calls import Store
from attnc.runtime.tiles import MULTIPROCESSORS, Tiles, assume_target

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = Tiles(16, 16, 4, 1)


@pytest.fixture(autouse=True)
def three_programs(monkeypatch):
    """Launch kernels for a device that runs three programs, and start without remembered calls."""
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    monkeypatch.setitem(MULTIPROCESSORS, "cpu", 3)
    monkeypatch.setattr(call_plans, "_PLANS", Store(call_plans.MOST_SEEN))


def call(name, tiles, seed, *, gradients):
    """Return an output, and gradients where they are asked for."""
    query, key, value = tensors(dtype=torch.float32, B=1, H=2, G=1, N=40, M=50, seed=seed)
    inputs = inputs_for(name, query, key, seed=seed + 1)
    leaves = differentiable(query, key, value, inputs)

    def run():
        return function_of(name)(query, key, value, **inputs)

    with assume_target("cpu", tiles):
        if gradients:
            return outputs_and_gradients(run, leaves, False)
        with torch.no_grad():
            return (run(),)


def test_a_remembered_call_has_the_same_bits():
    compare("causal", gradients=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal", "strided", "sink", "weighted"])
def test_gradients_have_the_same_bits(name):
    compare(name, gradients=True)


def compare(name, *, gradients):
    for seed in range(3):
        found = call(name, replace(SMALL, persistent=1), seed, gradients=gradients)
    kept = [one for one, _ in call_plans._PLANS._kept.values()]
    assert kept
    assert all(isinstance(one, CallPlan) for one in kept)
    for mine, other in zip(found, call(name, SMALL, 2, gradients=gradients), strict=True):
        assert torch.equal(mine, other)
