"""Whole path on random patterns, printed as source text: the CPU program, the kernel and the dense oracle agree."""

import os
import warnings

import pytest
import torch
from dense_formula import ON_TRITON
from expressions import ALIGN_END, ALIGN_START, B, attention, masks, scores, tables_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attnc
from attnc.ir.nodes import Call, Function, Index, IndexName, Read, Score
from attnc.ir.program import Align, AlignKind, Normalize, NormalizeKind
from attnc.ir.show import show_attention
from attnc.ir.types import Type
from attnc.ir.walk import walk
from attnc.reference.dense import reference

ALIGNMENTS = [ALIGN_END, ALIGN_START, Align(AlignKind.AT, Read("length", (B,), Type.INT))]


def without_score(expr):
    return not any(isinstance(node, Score) for node in walk(expr))


def of_row(expr):
    return not any(isinstance(node, Score) or node == Index(IndexName.KEY) for node in walk(expr))


@st.composite
def patterns(draw):
    """An attention with some of all statements."""
    kind = draw(st.sampled_from([NormalizeKind.SOFTMAX, *NormalizeKind]))
    weight = draw(st.none() | scores(depth=1).filter(without_score))
    if weight is not None and kind is NormalizeKind.SOFTMAX:
        weight = Call(Function.ABS, (weight,), Type.FLOAT)
    softmax, sigmoid = kind is NormalizeKind.SOFTMAX, kind is NormalizeKind.SIGMOID
    sink = draw(st.none() | scores(depth=1).filter(of_row)) if softmax else None
    bias = draw(st.none() | scores(depth=1).filter(without_score)) if sigmoid else None
    return attention(
        mask=draw(masks(depth=2)),
        score=draw(scores(depth=2)),
        scale=draw(st.none() | scores(depth=1).filter(of_row)),
        weight=weight,
        normalize=Normalize(kind, sink=sink, bias=bias),
        align=draw(st.sampled_from(ALIGNMENTS)),
    )


SIZES = st.sampled_from([1, 2, 5, 17, 40, 70])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["torch", ON_TRITON])
@settings(suppress_health_check=list(HealthCheck))
@given(pattern=patterns(), seed=st.integers(0, 9999), group=st.integers(1, 2), queries=SIZES, keys=SIZES)
def test_random_patterns(target, pattern, seed, group, queries, keys):
    dtype = torch.float32 if target == ON_TRITON else torch.float64
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 2 * group, queries, 3), (2, 2, keys, 3), (2, 2, keys, 4)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    x = {name: torch.tensor(value) for name, value in tables_for(2, 2 * group, keys, seed).items()}
    x["bias"] = x["bias"].to(dtype)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setitem(os.environ, "ATTNC_TARGET", target)
        got = attnc.loads(show_attention(pattern)).pattern(*tensors, **x).double()
    want = reference(pattern, *tensors, x)
    if target != ON_TRITON:
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7, equal_nan=True)
        return
    plain = reference(pattern, *tensors, x, dtype=torch.float32).double()  # what float32 costs without a kernel
    near = torch.isclose(got, want, rtol=3e-3, atol=3e-3, equal_nan=True) | ~plain.isfinite() | (want.abs() > 1e4)
    assert (near | ((got - want).abs() < 20 * (plain - want).abs())).all()
