"""Whatever is not legal in the IR is found, and what is legal passes."""

from dataclasses import replace

import pytest
from expressions import (
    CAUSAL,
    B,
    I,
    J,
    M,
    add,
    attention,
    attentions,
    call,
    compare,
    integer,
    invert,
    masks,
    negate,
    real,
)
from hypothesis import given

from attnc.diagnostics import InternalError
from attnc.ir.nodes import (
    TRUE,
    And,
    Binary,
    BinaryOp,
    Bound,
    Call,
    Cast,
    Const,
    Function,
    Index,
    IndexName,
    Parameter,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import Align, AlignKind, Normalize, NormalizeKind, Tensor, TensorKind
from attnc.ir.types import Type
from attnc.ir.verify import verify, verify_expression

T = Bound("t")


def loop(body, count=3, kind=QuantifierKind.ANY, variable="t"):
    return Quantifier(kind, variable, count, body, body.type)


@pytest.mark.parametrize(
    "expr",
    [
        add(I, real(1)),
        Binary(BinaryOp.ADD, I, J, Type.FLOAT),
        Binary(BinaryOp.DIV, I, J, Type.INT),
        Binary(BinaryOp.DIV, I, J, Type.FLOAT),
        Binary(BinaryOp.LT, I, J, Type.INT),
        Binary(BinaryOp.LT, TRUE, TRUE, Type.BOOL),
        Binary(BinaryOp.ADD, TRUE, TRUE, Type.BOOL),
        Binary(BinaryOp.POW, I, J, Type.INT),
        Binary(BinaryOp.POW, I, integer(-1), Type.INT),
        compare("==", I, real(1)),
        invert(I),
        Unary(UnaryOp.NEG, TRUE, Type.BOOL),
        negate(CAUSAL),
        And((CAUSAL,)),
        And((CAUSAL, I)),
        Where(I, I, J, Type.INT),
        Where(CAUSAL, I, real(1), Type.INT),
        Call(Function.EXP, (I,), Type.FLOAT),
        Call(Function.MIN, (I,), Type.INT),
        Call(Function.MAX, (I, real(1)), Type.FLOAT),
        Call(Function.FLOOR, (real(1),), Type.FLOAT),
        Call(Function.HASH, (), Type.INT),
        call("abs", CAUSAL),
        Cast(I, Type.INT),
        Cast(I, Type.BOOL),
        Cast(CAUSAL, Type.FLOAT),
        loop(T),
        loop(CAUSAL, kind=QuantifierKind.SUM),
        loop(CAUSAL, count=1025),
        Read("x", (CAUSAL,), Type.INT),
        Const(1.0, Type.INT),
        Const(True, Type.INT),
        Const(1, Type.FLOAT),
        Const(2**63, Type.INT),
        T,
        loop(loop(CAUSAL)),
        And((loop(CAUSAL), compare("==", T, I))),
    ],
    ids=repr,
)
def test_ill_formed_expressions(expr):
    with pytest.raises(InternalError):
        verify_expression(expr)


@given(masks())
def test_well_formed_masks_pass(expr):
    verify_expression(expr)


@given(attentions())
def test_well_formed_attentions_pass(pattern):
    verify(pattern)


TABLE = Tensor("x", TensorKind.INPUT, Type.FLOAT, (M,))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (attention(mask=I), "bool expected"),
        (attention(mask=compare("<", Score(), real(0))), "the score has no meaning here"),
        (attention(score=integer(0)), "float expected"),
        (attention(scale=Cast(J, Type.FLOAT)), "j has no meaning here"),
        (attention(score=Read("y", (J,), Type.FLOAT)), "there is no such tensor"),
        (attention(score=Read("x", (), Type.FLOAT), tensors=[TABLE]), "the tensor has 1 dimensions"),
        (attention(mask=Read("x", (J,), Type.BOOL), tensors=[TABLE]), "the tensor has floats"),
        (attention(tensors=[TABLE, TABLE]), "twice"),
        (attention(tensors=[replace(TABLE, dims=(I,))]), "i has no meaning here"),
        (attention(tensors=[replace(TABLE, dims=(real(1),))]), "a length must be an int"),
        (attention(tensors=[replace(TABLE, initial=real(0))]), "initial value"),
        (attention(tensors=[replace(TABLE, kind=TensorKind.LEARNED)]), "initial value"),
        (attention(tensors=[replace(TABLE, kind=TensorKind.LEARNED, initial=integer(0))]), "x is a float"),
        (attention(align=Align(AlignKind.AT, I)), "i has no meaning here"),
        (attention(mask=compare("<", Index(IndexName.QUERY_LOW), J)), "i_lo has no meaning here"),
        (attention(normalize=Normalize(NormalizeKind.ROWS, sink=real(0))), "rows has no sink"),
        (attention(normalize=Normalize(NormalizeKind.RELU, power=real(0))), "not positive"),
        (attention(mask=compare("<", Parameter("w", Type.INT), J)), "a parameter has no value"),
    ],
)
def test_ill_formed_attentions(pattern, message):
    with pytest.raises(InternalError, match=message):
        verify(pattern)


def test_open_parameters_are_legal_for_a_check():
    verify(attention(mask=compare("<", Parameter("w", Type.INT), J)), parameters=True)
    verify_expression(loop(compare("==", T, B)))
