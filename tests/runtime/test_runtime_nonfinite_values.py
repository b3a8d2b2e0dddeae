"""Infinite and NaN values under weights of either sign, on both programs, against the dense reference."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "codegen"))
from kernel_harness import plan_text

import attnc
from attnc.reference.dense import reference

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

KEYS = 70
WEIGHTED = "attention foo {{ input f: float[M]; weight f[j]; {} }}"
PATTERNS = {
    "softmax": WEIGHTED.format("mask causal"),
    "softmax, every pair": WEIGHTED.format(""),
    "none": WEIGHTED.format("mask causal; normalize none"),
    "rows": WEIGHTED.format("mask causal; normalize rows"),
    "sigmoid": WEIGHTED.format("mask causal; normalize sigmoid(bias = 0.5)"),
    "relu": "attention foo { input f: float[M]; score s + 0 * f[j]; mask causal; normalize relu }",
    "no weight": "attention foo { input f: float[M]; score s + 0 * f[j]; mask causal }",
}


def values_and_factors(dtype):
    """Return values with infinities in their first columns, and factors of those keys."""
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(1, 1, KEYS, 16, generator=generator).to(dtype)
    factor = torch.rand(KEYS, generator=generator) + 0.5
    columns = (
        ((5, math.inf, -1.0),),
        ((5, -math.inf, -1.0),),
        ((7, -math.inf, 0.0),),
        ((9, math.nan, 1.0),),
        ((11, math.inf, 2.0),),
        ((12, math.inf, 1.0), (13, -math.inf, -2.0)),  # both count as plus infinity
        ((30, math.inf, 1.0), (65, math.inf, -0.5)),  # of two signs together: NaN
        ((12, -math.inf, 1.0), (65, math.inf, -0.5)),
    )
    for column, entries in enumerate(columns):
        for key, number, weight in entries:
            value[0, 0, key, column] = number
            factor[key] = weight
    return value, factor


@pytest.mark.parametrize("target", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("text", PATTERNS.values(), ids=PATTERNS)
def test_infinite_values_take_the_sign_of_their_weight(text, dtype, target, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", target)
    value, factor = values_and_factors(dtype)
    query, key = (torch.randn(1, 1, KEYS, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    query, key = query.to(dtype), key.to(dtype)
    expected = reference(
        plan_text(text).attention, query.double(), key.double(), value.double(), {"f": factor.double()}
    )
    found = attnc.loads(text).foo(query, key, value, f=factor)
    assert expected.isinf().any()
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("target", ["triton", "torch"])
@pytest.mark.parametrize("rule", ["softmax", "rows"])
def test_rows_whose_denominator_is_zero_give_zero_whatever_their_values(rule, target, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", target)
    text = WEIGHTED.format(f"mask causal; normalize {rule}")
    value, factor = values_and_factors(torch.float32)
    query, key = torch.randn(1, 1, KEYS, 16), torch.randn(1, 1, KEYS, 16)
    factor[:20] = 0.0
    found = attnc.loads(text).foo(query, key, value, f=factor)
    assert (found[:, :, :20] == 0).all()
    expected = reference(
        plan_text(text).attention, query.double(), key.double(), value.double(), {"f": factor.double()}
    )
    assert (expected[:, :, :20] == 0).all()
