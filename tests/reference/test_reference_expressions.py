"""The vectorised evaluator agrees with the scalar one, point by point."""

import math
from dataclasses import replace

import pytest
import torch
from expressions import TENSORS, attention, call, masks, scores, tables_for
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import (
    Binary,
    BinaryOp,
    Bound,
    Cast,
    Const,
    Function,
    IndexName,
    Quantifier,
    QuantifierKind,
    SizeName,
)
from attnc.ir.types import Type
from attnc.reference import TensorEnvironment, evaluate_tensor, pair_environment

BATCH, HEADS, QUERIES, KEYS = 2, 3, 4, 5
SIZES = dict(zip(SizeName, (BATCH, HEADS, QUERIES, KEYS, 8, 1), strict=True))
SCORE = 0.75


def everywhere(expr, seed):
    """Yield the vectorised value and the scalar one at every pair of a small problem."""
    tables = tables_for(BATCH, HEADS, KEYS, seed)
    inputs = {name: torch.tensor(table) for name, table in tables.items()}
    inputs["bias"] = torch.tensor(tables["bias"], dtype=torch.float64)
    env = pair_environment(attention(tensors=TENSORS), SIZES, inputs)
    env = replace(env, score=torch.tensor(SCORE, dtype=torch.float64))
    result = evaluate_tensor(expr, env).expand(BATCH, HEADS, QUERIES, KEYS).tolist()
    for b in range(BATCH):
        for h in range(HEADS):
            for r in range(QUERIES):
                for j in range(KEYS):
                    indices = {
                        IndexName.BATCH: b,
                        IndexName.HEAD: h,
                        IndexName.ROW: r,
                        IndexName.QUERY: r + KEYS - QUERIES,
                        IndexName.KEY: j,
                    }
                    yield result[b][h][r][j], evaluate(expr, Environment(indices, SIZES, tables, SCORE))


@given(masks(), st.integers(0, 9))
def test_masks(expr, seed):
    for tensor, scalar in everywhere(expr, seed):
        assert tensor is scalar


def close(tensor, scalar):
    if math.isnan(scalar) or math.isinf(scalar) or scalar == 0:
        return math.isnan(tensor) if math.isnan(scalar) else tensor == scalar or abs(tensor) < 1e-12
    return math.isclose(tensor, scalar, rel_tol=1e-9, abs_tol=1e-12)


@given(scores(depth=2), st.integers(0, 9))
def test_scores(expr, seed):
    for tensor, scalar in everywhere(expr, seed):
        assert close(tensor, scalar), (tensor, scalar)


FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 7.25, 1e19, -1e19, 1e300, math.inf, -math.inf, math.nan]
INTS = [0, 1, -1, 2, -7, 9, 2**31, 2**53 + 1, 2**62, -(2**63), 2**63 - 1]


@pytest.mark.parametrize("op", [op for op in BinaryOp if op is not BinaryOp.DIV], ids=lambda op: op.value)
@pytest.mark.parametrize("left", INTS)
def test_integer_operators_at_the_edges(op, left):
    for right in INTS:
        if op is BinaryOp.POW and not 0 <= right <= 2**53:
            continue
        result = Type.BOOL if op.is_comparison else Type.INT
        expr = Binary(op, Const(left, Type.INT), Const(right, Type.INT), result)
        assert evaluate_tensor(expr, TensorEnvironment()).item() == evaluate(expr), (left, op, right)


@pytest.mark.parametrize("op", list(BinaryOp), ids=lambda op: op.value)
@pytest.mark.parametrize("left", FLOATS)
def test_float_operators_at_the_edges(op, left):
    for right in FLOATS:
        result = Type.BOOL if op.is_comparison else Type.FLOAT
        expr = Binary(op, Const(left, Type.FLOAT), Const(right, Type.FLOAT), result)
        tensor, scalar = evaluate_tensor(expr, TensorEnvironment()).item(), evaluate(expr)
        assert close(tensor, scalar), (left, op, right, tensor, scalar)


@pytest.mark.parametrize("function", [f for f in Function if f is not Function.HASH], ids=lambda f: f.value)
def test_functions_at_the_edges(function):
    for value in FLOATS:
        args = (Const(value, Type.FLOAT),) * (2 if function in (Function.MIN, Function.MAX) else 1)
        expr = call(function.value, *args)
        tensor, scalar = evaluate_tensor(expr, TensorEnvironment()).item(), evaluate(expr)
        assert close(tensor, scalar), (value, tensor, scalar)
        truncated = Cast(args[0], Type.INT)
        assert evaluate_tensor(truncated, TensorEnvironment()).item() == evaluate(truncated)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
@settings(max_examples=200)
def test_hash_of_any_integers(values):
    expr = call("hash", *(Const(value, Type.INT) for value in values))
    assert evaluate_tensor(expr, TensorEnvironment()).item() == evaluate(expr)


@pytest.mark.parametrize("kind", list(QuantifierKind))
def test_empty_quantifiers(kind):
    for result in (Type.INT, Type.FLOAT) if kind is QuantifierKind.SUM else (Type.BOOL,):
        body = Const(True, Type.BOOL) if result is Type.BOOL else Cast(Bound("t"), result)
        body = Bound("t") if result is Type.INT else body
        expr = Quantifier(kind, "t", 0, body, result)
        value = evaluate_tensor(expr, TensorEnvironment()).item()
        assert value == evaluate(expr)
        assert type(value) is type(evaluate(expr))


@given(masks(depth=2))
def test_a_slab_of_rows_and_keys_is_a_part_of_the_whole(expr):
    inputs = {name: torch.tensor(table) for name, table in tables_for(BATCH, HEADS, KEYS).items()}
    shape = (BATCH, HEADS, QUERIES, KEYS)
    whole = evaluate_tensor(expr, pair_environment(attention(), SIZES, inputs)).expand(shape)
    rows, keys = torch.tensor([3, 1]), torch.tensor([4, 0, 2])
    slab = evaluate_tensor(expr, pair_environment(attention(), SIZES, inputs, rows=rows, keys=keys))
    assert torch.equal(slab.expand(BATCH, HEADS, 2, 3), whole[:, :, rows][..., keys])
