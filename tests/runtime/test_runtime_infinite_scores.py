"""Scores of plus infinity: the row's output is NaN, as that of torch's softmax, and its log-sum-exp plus infinity."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "codegen"))
from kernel_harness import plan_text

import attnc
from attnc.reference.dense import reference
from attnc.runtime.tiles import Tiles, assume_target

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

KEYS, INFINITE, NOT_A_NUMBER = 70, 20, 50
SCORED = "attention foo {{ input f: float[M]; score s + f[j]; {} }}"
PATTERNS = {
    "causal": "mask causal",
    "every pair": "",
    "window": "mask abs(i - j) < 6",
    "sink": "mask causal; normalize softmax(sink = 0.5)",
    "weight": "mask causal; weight 1 + 0.5 * sin(i - j)",
    "steps": "mask causal and (i - j < 8 or (i - j) % 8 == 0); decompose split(i - j < 8)",
}


def bias_and_tensors():
    generator = torch.Generator().manual_seed(5)
    bias = torch.randn(KEYS, generator=generator)
    bias[INFINITE], bias[NOT_A_NUMBER], bias[60] = math.inf, math.nan, -math.inf
    return bias, *(torch.randn(1, 2, KEYS, 16, generator=generator) for _ in range(3))


@pytest.mark.parametrize("target", ["triton", "torch", "reference"])
@pytest.mark.parametrize("name", PATTERNS)
def test_rows_that_see_an_infinite_score(name, target, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", target)
    module = attnc.loads(SCORED.format(PATTERNS[name]))
    bias, query, key, value = bias_and_tensors()
    run = module.foo_reference if target == "reference" else module.foo
    out, lse = run(query, key, value, f=bias, return_lse=True)
    sees = module.foo_mask(KEYS, KEYS)[0, 0] if not PATTERNS[name] else module.foo_mask(KEYS, KEYS, f=bias)[0, 0]
    infinite, spoiled = sees[:, INFINITE], sees[:, NOT_A_NUMBER]
    assert lse[:, :, spoiled].isnan().all()
    assert (lse[:, :, infinite & ~spoiled] == math.inf).all()
    assert lse[:, :, ~infinite & ~spoiled].isfinite().all()
    assert out[:, :, infinite | spoiled].isnan().all()
    assert out[:, :, ~infinite & ~spoiled].isfinite().all()
    attention = plan_text(SCORED.format(PATTERNS[name])).attention
    doubles = (tensor.double() for tensor in (query, key, value))
    expected = reference(attention, *doubles, {"f": bias.double()}, return_lse=True)
    for found, wanted in zip((out, lse), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_reference_agrees_with_torch():
    bias, query, key, value = bias_and_tensors()
    attention = plan_text(SCORED.format("")).attention
    bias[NOT_A_NUMBER] = 0.0
    doubles = [tensor.double() for tensor in (query, key, value)]
    scores = doubles[0] @ doubles[1].mT / 4 + bias.double()
    out, lse = reference(attention, *doubles, {"f": bias.double()}, return_lse=True)
    assert (lse == scores.logsumexp(-1)).all()
    assert out.isnan().all()
    assert scores.softmax(-1).isnan().all()


@pytest.mark.parametrize("shares", [2, 3])
def test_shares_of_keys_are_joined(shares, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    module = attnc.loads(SCORED.format("mask causal"))
    bias, query, key, value = bias_and_tensors()
    whole = module.foo(query, key, value, f=bias, return_lse=True)
    with assume_target("cpu", Tiles(32, 16, 4, 1), shares=shares):
        joined = module.foo(query, key, value, f=bias, return_lse=True)
    for found, expected in zip(joined, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
