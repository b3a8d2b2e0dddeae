"""Gradients with programs in every order: when a tile of rows is computed changes no bit of them."""

import pytest
import torch
from patterns import differentiable, function_of, inputs_for, oracle, outputs_and_gradients, tensors
from test_runtime_kernel_gradients import compare

from attnc.runtime.tiles import ORDERS, Tiles, assume_target

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Run kernels, on memory that holds NaN before anything is written to it."""
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(name, order):
    """Return an output and gradients, those by the float64 reference where no order is given."""
    query, key, value = tensors(dtype=torch.float32, B=2, H=4, G=2, N=70, M=90)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    function = function_of(name)
    if order is None:
        return outputs_and_gradients(lambda: oracle(name, query, key, value, inputs, False), leaves, False)
    with assume_target("cpu", Tiles(16, 32, 4, 1, order=order)):
        return outputs_and_gradients(lambda: function(query, key, value, **inputs), leaves, False)


@pytest.mark.parametrize(
    "name", ["causal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("strided", "packed", "relative"))]
)
def test_gradients_in_every_order(name):
    found = [run(name, order) for order in ORDERS]
    compare(found[0], run(name, None))
    for mine, other in zip(*found, strict=True):
        if name == "relative":  # strips hold other rows, and the table's gradient is rounded otherwise
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(mine, other)
