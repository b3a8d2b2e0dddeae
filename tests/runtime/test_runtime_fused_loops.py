"""Gradients by kernels with fewer loops, against the dense float64 reference."""

import inspect

import pytest
import torch
from patterns import (
    PATTERNS,
    differentiable,
    function_of,
    inputs_for,
    module_of,
    oracle,
    outputs_and_gradients,
    tensors,
)
from test_runtime_kernel_gradients import compare

from attnc.runtime.tiles import Tiles, assume_target

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FUSED = Tiles(16, 32, 4, 1, fused=True)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Run kernels, on memory that holds NaN before anything is written to it."""
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def check(name, *, poisoned=False, **sizes):
    query, key, value = tensors(dtype=torch.float32, **sizes)
    if poisoned:  # of keys that some queries do not see
        with torch.no_grad():
            value[:, :, -1, 3], key[:, :, -1, 2] = float("nan"), float("inf")
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    function = function_of(name)
    with assume_target("cpu", FUSED):
        found = outputs_and_gradients(lambda: function(query, key, value, **inputs), leaves, False)
    expected = outputs_and_gradients(lambda: oracle(name, query, key, value, inputs, False), leaves, False)
    if not poisoned:
        compare(found, expected)
        return
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["causal", "streaming", "strided", "packed", "at", "scaled", "relative"])
def test_gradients(name):
    check(name, B=2, H=4, G=2, N=70, M=90)


@pytest.mark.parametrize("sizes", [(1, 1), (63, 64), (65, 63), (100, 257)], ids=str)
def test_sizes(sizes):
    check("streaming", B=1, H=2, G=1, N=sizes[0], M=sizes[1])


def test_keys_that_are_not_finite():
    check("causal", poisoned=True, B=1, H=2, G=1, N=40, M=40)


def test_gradients_of_all_three_have_the_option():
    text = inspect.getsource(module_of(PATTERNS["streaming"]))
    assert text.count("    if FUSED:\n") == 2
    assert text.count("if JOINED == 0 and FUSED:") == 1
