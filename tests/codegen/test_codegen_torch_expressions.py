"""Expressions as torch source, against the language's exact evaluation."""

import math

import torch
from expressions import ints, masks, points, scores
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.codegen.expr_torch import length_text, torch_body
from attnc.codegen.period import shift_period
from attnc.codegen.view import split_linear
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Binary, BinaryOp, Const, Index, IndexName, Score, Size, SizeName, Unary, UnaryOp
from attnc.ir.types import Type
from attnc.runtime import pairs

I, J = Index(IndexName.QUERY), Index(IndexName.KEY)  # noqa: E741
S = Score()


def run(expr, point):
    """Compile an expression and evaluate it at one point."""
    namespace = {"math": math, "torch": torch, "Tensor": torch.Tensor, **vars(pairs)}
    exec(f"def formula(at, s=None):\n{torch_body(expr).indented()}\n", namespace)
    sizes = {name.value: point.sizes[name] for name in SizeName}
    tables = {name: torch.tensor(table) for name, table in point.tables.items()}
    at = pairs.Pairs(pairs.Sizes(**sizes, value_size=1), tables, torch.float64, torch.device("cpu"))
    for name, value in point.indices.items():
        setattr(at, name.value, torch.tensor(value))
    score = None if point.score is None else torch.tensor(point.score, dtype=torch.float64)
    return namespace["formula"](at, score)


@settings(max_examples=150)
@given(masks(), points())
def test_masks(expr, point):
    assert run(expr, point).item() == evaluate(expr, point)


@settings(max_examples=150)
@given(ints(), points())
def test_ints(expr, point):
    assert run(expr, point).item() == evaluate(expr, point)


@settings(max_examples=150)
@given(scores(wild=True), points())
def test_scores(expr, point):
    table = {name: value for name, value in point.tables.items() if name != "bias"}
    point = Environment(point.indices, point.sizes, {**table, "bias": point.tables["bias"]}, point.score)
    mine, expected = run(expr, point).item(), evaluate(expr, point)
    if math.isnan(expected):
        assert math.isnan(mine)
    else:
        assert math.isclose(mine, expected, rel_tol=1e-5, abs_tol=1e-6)  # tables are float32


@settings(max_examples=150)
@given(masks(tables=False), points(), st.integers(1, 3))
def test_periods_hold(expr, point, times):
    period = shift_period(expr)
    if period == 0:
        return
    moved = {
        name: value + times * period if name in (IndexName.QUERY, IndexName.KEY, IndexName.ROW) else value
        for name, value in point.indices.items()
    }
    other = Environment(moved, point.sizes, point.tables, point.score)
    assert evaluate(expr, other) == evaluate(expr, point)


def number(value):
    return Const(value, Type.INT)


def test_periods_of_usual_masks():
    apart = Binary(BinaryOp.SUB, I, J, Type.INT)
    assert shift_period(Binary(BinaryOp.LT, apart, number(256), Type.BOOL)) == 1
    assert shift_period(Binary(BinaryOp.LE, J, I, Type.BOOL)) == 1
    assert shift_period(Binary(BinaryOp.LT, J, number(4), Type.BOOL)) == 0
    chunks = [Binary(BinaryOp.FLOORDIV, position, number(64), Type.INT) for position in (I, J)]
    assert shift_period(Binary(BinaryOp.EQ, *chunks, Type.BOOL)) == 64
    strided = Binary(BinaryOp.MOD, apart, number(128), Type.INT)
    assert shift_period(Binary(BinaryOp.EQ, strided, number(0), Type.BOOL)) == 1


@settings(max_examples=150)
@given(scores(tables=False), points())
def test_linear_scores_are_split_rightly(expr, point):
    split = split_linear(expr)
    if split is None:
        return
    factor, bias = split
    value = factor * point.score + (0.0 if bias is None else evaluate(bias, point))
    expected = evaluate(expr, point)
    if math.isfinite(expected):
        assert math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9)


def test_split_of_usual_scores():
    half, bias = Const(0.5, Type.FLOAT), Const(3.0, Type.FLOAT)
    assert split_linear(S) == (1.0, None)
    assert split_linear(Unary(UnaryOp.NEG, S, Type.FLOAT)) == (-1.0, None)
    assert split_linear(Binary(BinaryOp.ADD, Binary(BinaryOp.MUL, half, S, Type.FLOAT), bias, Type.FLOAT)) == (
        0.5,
        bias,
    )
    assert split_linear(Binary(BinaryOp.MUL, S, S, Type.FLOAT)) is None


def test_lengths_are_plain_python():
    length = Binary(
        BinaryOp.FLOORDIV, Binary(BinaryOp.ADD, Size(SizeName.KEYS), number(63), Type.INT), number(64), Type.INT
    )
    assert length_text(length) == "(size.M + 63) // 64"
    size = pairs.Sizes(B=1, H=2, N=5, M=130, D=4, g=1, value_size=4)
    assert eval(length_text(length), {"size": size}) == 3
