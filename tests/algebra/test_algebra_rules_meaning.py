"""Simplification and scoring keep what the dense reference computes, gradients included."""

import pytest
import torch
from expressions import CAUSAL, TENSORS, H, I, J, add, attention, attentions, masks, mul, real, scores, sub, tables_for
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnc.algebra.simplify import simplify_attention
from attnc.ir.nodes import Cast, Const, Read
from attnc.ir.program import Normalize, NormalizeKind
from attnc.ir.types import Type
from attnc.reference import dense_mask, reference

BATCH, HEADS, QUERIES, KEYS = 2, 2, 4, 5


def arguments(seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda length: torch.randn(BATCH, HEADS, length, 3, dtype=torch.float64, generator=generator)  # noqa: E731
    inputs = {name: torch.tensor(table) for name, table in tables_for(BATCH, HEADS, KEYS, seed).items()}
    inputs["bias"] = inputs["bias"].double()
    return [draw(QUERIES), draw(KEYS), draw(KEYS), inputs]


def compute(pattern, seed):
    query, key, value, inputs = arguments(seed)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value, inputs["bias"])]
    out = reference(pattern, query, key, value, inputs)
    gradients = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves]
    return [out, *(zero if grad is None else grad for grad, zero in zip(gradients, zeros, strict=True))]


def check_same(pattern, seed):
    simple, _ = simplify_attention(pattern)
    before = compute(pattern, seed)
    assume(all(bool(torch.isfinite(tensor).all()) and float(tensor.detach().abs().max()) < 1e6 for tensor in before))
    for expected, found in zip(before, compute(simple, seed), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@given(attentions(), st.integers(0, 5))
@settings(max_examples=60)
def test_random_attentions(pattern, seed):
    check_same(pattern, seed)


ROW = Cast(sub(I, H), Type.FLOAT)
SINK = Read("bias", (H, Const(0, Type.INT)), Type.FLOAT)


@pytest.mark.parametrize(
    "normalize",
    [
        Normalize(NormalizeKind.SOFTMAX, sink=add(SINK, real(0))),
        Normalize(NormalizeKind.SIGMOID, bias=mul(real(2), mul(SINK, real(3)))),
        Normalize(NormalizeKind.RELU, power=Const(2.0, Type.FLOAT)),
        Normalize(NormalizeKind.RELU, power=Const(1.0, Type.FLOAT)),
        Normalize(NormalizeKind.ROWS),
    ],
    ids=lambda normalize: normalize.kind.value,
)
@given(scores(depth=2), st.integers(0, 5))
@settings(max_examples=15)
def test_every_normaliser(normalize, score, seed):
    pattern = attention(
        mask=CAUSAL,
        score=score,
        scale=mul(real(0.5), mul(real(2), SINK)),
        weight=Cast(add(mul(J, Const(1, Type.INT)), Const(1, Type.INT)), Type.FLOAT),
        normalize=normalize,
        tensors=TENSORS,
    )
    check_same(pattern, seed)


@given(masks(), st.integers(0, 5), st.sampled_from([(4, 5), (5, 4), (1, 6), (3, 3)]))
@settings(max_examples=100)
def test_masks_allow_the_same_pairs(mask, seed, lengths):
    pattern = attention(mask=mask)
    simple, _ = simplify_attention(pattern)
    queries, keys = lengths
    tables = {name: torch.tensor(table) for name, table in tables_for(BATCH, HEADS, keys, seed).items()}
    sizes = {"batch": BATCH, "heads": HEADS, "inputs": tables}
    expected = dense_mask(pattern, queries, keys, **sizes)
    assert torch.equal(dense_mask(simple, queries, keys, **sizes), expected)
