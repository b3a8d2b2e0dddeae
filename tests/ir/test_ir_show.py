"""Printed expressions mean what they did: by text for readability, by parsing them again for truth."""

import math

import pytest
from expressions import (
    CAUSAL,
    TENSORS,
    B,
    H,
    I,
    J,
    M,
    N,
    add,
    attention,
    attentions,
    call,
    compare,
    integer,
    invert,
    masks,
    mul,
    negate,
    points,
    real,
    scores,
    sub,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.ir.evaluate import evaluate
from attnc.ir.nodes import (
    FALSE,
    TRUE,
    And,
    Binary,
    BinaryOp,
    Bound,
    Cast,
    Const,
    Index,
    IndexName,
    Or,
    Parameter,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    Where,
)
from attnc.ir.program import (
    Align,
    AlignKind,
    Assertion,
    Deferred,
    Normalize,
    NormalizeKind,
    Tensor,
    TensorKind,
)
from attnc.ir.show import show, show_attention
from attnc.ir.types import Type
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

S = Score()
X = Read("x", (), Type.FLOAT)


def op(symbol, left, right):
    return Binary(BinaryOp(symbol), left, right, left.type)


def f(expr):
    return Cast(expr, Type.FLOAT)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (sub(I, sub(J, integer(1))), "i - (j - 1)"),
        (sub(sub(I, J), integer(1)), "i - j - 1"),
        (mul(add(I, J), integer(2)), "(i + j) * 2"),
        (op("//", mul(I, J), integer(2)), "i * j // 2"),
        (mul(I, op("//", J, integer(2))), "i * (j // 2)"),
        (op("**", negate(I), integer(2)), "(-i) ** 2"),
        (negate(op("**", I, integer(2))), "-i ** 2"),
        (op("**", integer(-2), integer(2)), "(-2) ** 2"),
        (op("**", op("**", I, integer(2)), integer(3)), "(i ** 2) ** 3"),
        (op("**", X, real(-0.5)), "x ** -0.5"),
        (sub(I, integer(-3)), "i - -3"),
        (mul(negate(I), J), "-i * j"),
        (And((CAUSAL, Or((CAUSAL, FALSE)))), "j <= i and (j <= i or false)"),
        (Or((And((CAUSAL, TRUE)), CAUSAL)), "j <= i and true or j <= i"),
        (invert(CAUSAL), "not j <= i"),
        (And((invert(CAUSAL), CAUSAL)), "not j <= i and j <= i"),
        (invert(And((CAUSAL, CAUSAL))), "not (j <= i and j <= i)"),
        (compare("==", CAUSAL, compare("<", I, N)), "(j <= i) == (i < N)"),
        (compare("==", invert(CAUSAL), TRUE), "(not j <= i) == true"),
        (Where(CAUSAL, S, real(-math.inf), Type.FLOAT), "where(j <= i, s, -inf)"),
        (Quantifier(QuantifierKind.ANY, "t", 3, compare("==", Bound("t"), J), Type.BOOL), "any(t < 3, t == j)"),
        (Read("doc", (B, add(J, integer(1))), Type.INT), "doc[b, j + 1]"),
        (mul(X, f(sub(I, J))), "x * (i - j)"),
        (mul(f(I), f(J)), "float(i) * float(j)"),
        (Binary(BinaryOp.DIV, f(I), f(J), Type.FLOAT), "i / j"),
        (Binary(BinaryOp.POW, X, f(sub(I, J)), Type.FLOAT), "x ** float(i - j)"),
        (call("min", I, J, M), "min(i, j, M)"),
        (Cast(X, Type.INT), "int(x)"),
        (real(1e-5), "1e-05"),
        (real(1e22), "1e+22"),
        (real(math.pi), "pi"),
        (integer(-(2**63)), "-9223372036854775807 - 1"),
        (sub(J, integer(-(2**63))), "j - (-9223372036854775807 - 1)"),
        (Const(5, Type.INT, name="window"), "5"),
        (Parameter("window", Type.INT), "window"),
        (Index(IndexName.DIM, 1), "d1"),
        (Index(IndexName.QUERY_HIGH), "i_hi"),
    ],
)
def test_text(expr, text):
    assert show(expr) == text


def parsed(text):
    return check_program(parse_source(SourceFile("<shown>", text)), params=None).attentions[0]


@given(masks(), scores(wild=True), st.lists(points(), min_size=1, max_size=6))
@settings(max_examples=150)
def test_shown_attentions_parse_to_the_same_meaning(mask, score, places):
    again = parsed(show_attention(attention(mask=mask, score=score)))
    assert again.tensors == TENSORS
    for env in places:
        assert evaluate(again.mask, env) is evaluate(mask, env)
        before, after = evaluate(score, env), evaluate(again.score, env)
        assert before == after or (math.isnan(before) and math.isnan(after))


@given(attentions())
@settings(max_examples=40)
def test_showing_is_stable(pattern):
    once = show_attention(parsed(show_attention(pattern)))
    assert show_attention(parsed(once)) == once


def test_a_whole_attention():
    bias = Tensor("bias", TensorKind.LEARNED, Type.FLOAT, (Const(3, Type.INT), None), initial=real(0.5))
    doc = Tensor("doc", TensorKind.INPUT, Type.INT, (add(M, integer(1)),), sorted=True)
    pattern = attention(
        mask=CAUSAL,
        score=add(S, f(I)),
        scale=real(0.25),
        weight=f(J),
        normalize=Normalize(NormalizeKind.SIGMOID, bias=f(H)),
        align=Align(AlignKind.AT, integer(4)),
        tensors=[doc, bias],
        assertions=[Assertion(CAUSAL), Assertion(None)],
    )
    assert show_attention(pattern) == "\n".join(
        [
            "attention pattern {",
            "    input doc: int[M + 1] sorted",
            "    learned bias: float[3, ?] = 0.5",
            "    align at(4)",
            "    scale 0.25",
            "    mask j <= i",
            "    score s + i",
            "    weight float(j)",
            "    normalize sigmoid(bias = float(h))",
            "    assert j <= i",
            "    assert nonempty",
            "}",
        ]
    )


@pytest.mark.parametrize(
    ("normalize", "text"),
    [
        (Normalize(NormalizeKind.SOFTMAX), "softmax"),
        (Normalize(NormalizeKind.SOFTMAX, sink=real(1)), "softmax(sink = 1.0)"),
        (Normalize(NormalizeKind.SIGMOID, bias=real(0)), "sigmoid(bias = 0.0)"),
        (Normalize(NormalizeKind.RELU, power=real(2)), "relu(power = 2.0)"),
        (Normalize(NormalizeKind.ROWS), "rows"),
        (Normalize(NormalizeKind.NONE), "none"),
    ],
)
def test_normalizers(normalize, text):
    assert f"    normalize {text}\n" in show_attention(attention(normalize=normalize))
    assert parsed(show_attention(attention(normalize=normalize))).normalize == normalize


def test_deferred_statements():
    from dataclasses import replace

    arguments = (("", Const(256, Type.INT)), ("seed", Const(0, Type.INT)), ("file", "scheme.json"))
    pattern = replace(attention(), deferred=(Deferred("feature", "favor", arguments), Deferred("prepare", "unit")))
    text = show_attention(pattern)
    assert '    feature favor(256, seed = 0, file = "scheme.json")\n    prepare unit\n' in text
