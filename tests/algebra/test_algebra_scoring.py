"""What a kernel computes in place of the score gives the same weights and the same log-sum-exp."""

import math
from dataclasses import replace

import pytest
import torch
from expressions import (
    CAUSAL,
    TENSORS,
    B,
    H,
    I,
    J,
    add,
    attention,
    call,
    compare,
    integer,
    mul,
    negate,
    points,
    real,
    scores,
    sub,
    tables_for,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.algebra.scoring import derive_scoring, to_base_2
from attnc.algebra.simplify import DEFAULT_SCALE, simplify_attention
from attnc.ir.evaluate import evaluate
from attnc.ir.nodes import Binary, BinaryOp, Cast, Const, Read, Score, Where
from attnc.ir.program import Align, AlignKind, Normalize, NormalizeKind
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.ir.verify import verify_expression
from attnc.reference import reference

S = Score()
BIAS = Read("bias", (H, integer(1)), Type.FLOAT)
LOG2_E = math.log2(math.e)


def f(expr):
    return Cast(expr, Type.FLOAT)


def divide(left, right):
    return Binary(BinaryOp.DIV, left, right, Type.FLOAT)


def softcap(x, cap):
    return mul(real(cap), call("tanh", divide(x, real(cap))))


def derived(score, **others):
    simple, _ = simplify_attention(attention(score=score, **others))
    return derive_scoring(simple)


@pytest.mark.parametrize(
    ("score", "kept", "dropped"),
    [
        (S, "s", None),
        (add(S, real(3)), "s", "3.0"),
        (add(S, f(I)), "s", "float(i)"),
        (sub(add(S, f(J)), f(I)), "s + j", "-float(i)"),
        (sub(real(3), negate(S)), "s", "3.0"),
        (sub(f(I), S), "-s", "float(i)"),
        (add(S, call("tanh", f(mul(I, H)))), "s", "tanh(float(i * h))"),
        (add(S, f(Read("length", (B,), Type.INT))), "s", "float(length[b])"),
        # a product with a difference is one term, and it depends on the key
        (add(S, mul(BIAS, f(sub(J, I)))), "s + bias[h, 1] * (j - i)", None),
        # an input may be minus infinity for a row: that empties the row, so it does not cancel
        (add(S, BIAS), "s + bias[h, 1]", None),
        (add(S, call("exp", f(I))), "s + exp(float(i))", None),
        (add(S, f(Read("doc", (B, J), Type.INT))), "s + doc[b, j]", None),
        (mul(add(S, f(I)), real(2)), "(s + i) * 2.0", None),
    ],
)
def test_terms_of_the_row_alone_are_left_out(score, kept, dropped):
    result, _, gone, steps = derived(score)
    assert show(result) == kept
    assert (None if gone is None else show(gone)) == dropped
    assert ("drop-row-terms" in [step.rule for step in steps]) == (dropped is not None)
    assert ("identity-score" in [step.rule for step in steps]) == (kept == "s")


def test_nothing_is_left_out_beside_a_sink_or_without_softmax():
    score = add(S, f(I))
    kept, base_2, dropped, _ = derived(score, normalize=Normalize(NormalizeKind.SOFTMAX, sink=real(0)))
    assert (kept, dropped) == (score, None)
    assert base_2 is not None
    for kind in (NormalizeKind.SIGMOID, NormalizeKind.RELU, NormalizeKind.ROWS, NormalizeKind.NONE):
        assert derived(score, normalize=Normalize(kind)) == (score, None, None, ())


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (S, "s"),
        (mul(S, real(2)), "s * 2.0"),
        (add(S, mul(BIAS, f(sub(J, I)))), "s + bias[h, 1] * 1.4426950408889634 * (j - i)"),
        (add(S, mul(f(J), BIAS)), "s + j * (bias[h, 1] * 1.4426950408889634)"),
        (add(S, negate(mul(f(J), f(J)))), "s - float(j) * float(j) * 1.4426950408889634"),
        (softcap(S, 50), f"tanh(s * {math.log(2) / 50}) * {50 * LOG2_E}"),
        (Where(CAUSAL, S, real(-2), Type.FLOAT), f"where(j <= i, s, {-2 * LOG2_E})"),
        (mul(S, BIAS), "s * bias[h, 1]"),
        (mul(BIAS, S), "bias[h, 1] * s"),
        (divide(S, BIAS), "s / bias[h, 1]"),
    ],
)
def test_base_2(score, expected):
    base_2 = derived(score)[1]
    assert show(base_2) == expected


@given(scores(), st.lists(points(), min_size=1, max_size=6))
@settings(max_examples=200)
def test_base_2_keeps_the_value(score, places):
    base_2 = derived(score, normalize=Normalize(NormalizeKind.SOFTMAX, sink=real(0)))[1]
    for expr in (to_base_2(score), base_2):
        verify_expression(expr, score=True)
        for env in places:
            natural = evaluate(score, env)
            scaled = evaluate(expr, replace(env, score=env.score * LOG2_E))
            assert math.isclose(scaled, natural * LOG2_E, rel_tol=1e-7, abs_tol=1e-5) or abs(natural) > 1e12


@given(scores(), st.integers(0, 5))
@settings(max_examples=60)
def test_weights_and_log_sum_exp_are_kept(score, seed):
    batch, heads, queries, keys = 2, 2, 4, 5
    pattern = attention(mask=CAUSAL, score=score, tensors=TENSORS)
    kept, _, dropped, _ = derived(score, mask=CAUSAL, tensors=TENSORS)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda length: torch.randn(batch, heads, length, 3, dtype=torch.float64, generator=generator)  # noqa: E731
    query, key, value = draw(queries), draw(keys), draw(keys)
    inputs = {name: torch.tensor(table) for name, table in tables_for(batch, heads, keys, seed).items()}
    expected, expected_lse = reference(pattern, query, key, value, inputs, return_lse=True)
    if not torch.isfinite(expected).all() or expected_lse.abs().max() > 1e7:
        return None
    out, lse = reference(replace(pattern, score=kept), query, key, value, inputs, return_lse=True)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    if dropped is None:
        return torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=1e-6)
    # the dropped terms of a row, read off as the score of a pattern with nothing else
    alone = replace(pattern, score=dropped, mask=compare("==", J, I))
    added = reference(alone, query, key, value, inputs, return_lse=True)[1]
    torch.testing.assert_close(lse + added, expected_lse, rtol=1e-6, atol=1e-6)
    return None


def test_statements_that_say_nothing_are_removed():
    pattern = attention(
        scale=DEFAULT_SCALE,
        weight=real(1),
        normalize=Normalize(NormalizeKind.SOFTMAX, sink=real(-math.inf)),
        align=Align(AlignKind.AT, sub(B, B)),
    )
    result, steps = simplify_attention(pattern)
    assert (result.scale, result.weight, result.normalize.sink) == (None, None, None)
    assert result.align.kind is AlignKind.START
    expected = ["align-start", "default-scale", "empty-sink", "known-result", "unit-weight"]
    assert sorted(step.rule for step in steps) == expected
    sigmoid = attention(normalize=Normalize(NormalizeKind.SIGMOID, bias=sub(real(2), real(2))))
    assert simplify_attention(sigmoid)[0].normalize == Normalize(NormalizeKind.SIGMOID)
    relu = attention(normalize=Normalize(NormalizeKind.RELU, power=Const(1, Type.INT)))
    assert simplify_attention(relu)[0].normalize == Normalize(NormalizeKind.RELU)
