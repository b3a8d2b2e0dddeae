"""The scalar evaluator: every corner of the language's arithmetic, against values worked out by hand."""

import math

import pytest

from attnc.diagnostics import InternalError
from attnc.ir.evaluate import EMPTY, Environment, evaluate
from attnc.ir.nodes import (
    FALSE,
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
    Or,
    Parameter,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    Size,
    SizeName,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
INF, NAN = math.inf, math.nan


def const(value):
    if isinstance(value, bool):
        return Const(value, Type.BOOL)
    return Const(value, Type.INT if isinstance(value, int) else Type.FLOAT)


def binary(op, left, right):
    left, right = const(left), const(right)
    result = Type.BOOL if op.is_comparison else Type.FLOAT if op is BinaryOp.DIV else left.type
    return evaluate(Binary(op, left, right, result))


def call(function, *args):
    result = Type.INT if function in (Function.FLOOR, Function.HASH) else const(args[0]).type
    return evaluate(Call(function, tuple(const(arg) for arg in args), result))


def same(value, expected):
    assert type(value) is type(expected), (value, expected)
    if isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(value)
    else:
        assert value == expected
        assert math.copysign(1, value) == math.copysign(1, expected)


@pytest.mark.parametrize(
    ("op", "left", "right", "expected"),
    [
        ("//", -7, 2, -4),
        ("//", 7, -2, -4),
        ("//", 7, 0, 0),
        ("%", -7, 3, 2),
        ("%", 7, -3, -2),
        ("%", 7, 0, 0),
        ("//", INT_MIN, -1, INT_MIN),
        ("%", INT_MIN, -1, 0),
        ("+", INT_MAX, 1, INT_MIN),
        ("-", INT_MIN, 1, INT_MAX),
        ("*", 2**62, 2, INT_MIN),
        ("*", 2**40, 2**40, 0),
        ("**", 2, 63, INT_MIN),
        ("**", 0, 0, 1),
        ("**", -3, 3, -27),
        ("**", 3, 41, 3**41 - 2**64 * ((3**41 + 2**63) // 2**64)),
        ("/", 1.0, 0.0, INF),
        ("/", -1.0, 0.0, -INF),
        ("/", 1.0, -0.0, -INF),
        ("/", 0.0, 0.0, NAN),
        ("/", NAN, 0.0, NAN),
        ("//", 7.5, 2.0, 3.0),
        ("//", -7.5, 2.0, -4.0),
        ("//", 1.0, 0.0, INF),
        ("%", -7.5, 2.0, 0.5),
        ("%", 1.0, 0.0, NAN),
        ("**", 2.0, 0.5, math.sqrt(2)),
        ("**", -8.0, 0.5, NAN),
        ("**", 0.0, -1.0, INF),
        ("**", -0.0, -1.0, -INF),
        ("**", -0.0, -2.0, INF),
        ("**", 10.0, 400.0, INF),
        ("**", -10.0, 401.0, -INF),
        ("-", INF, INF, NAN),
        ("*", 1e308, 10.0, INF),
        ("<", NAN, 1.0, False),
        ("!=", NAN, NAN, True),
        ("==", True, True, True),
        ("!=", True, False, True),
    ],
)
def test_operators(op, left, right, expected):
    same(binary(BinaryOp(op), left, right), expected)


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        ("abs", (-3,), 3),
        ("abs", (INT_MIN,), INT_MIN),
        ("abs", (-0.5,), 0.5),
        ("min", (3, -1, 2), -1),
        ("max", (3, -1, 2), 3),
        ("max", (1.0, NAN, 2.0), NAN),
        ("min", (NAN, 2.0), NAN),
        ("exp", (1000.0,), INF),
        ("exp", (-INF,), 0.0),
        ("exp2", (2000.0,), INF),
        ("log", (0.0,), -INF),
        ("log", (-1.0,), NAN),
        ("log", (NAN,), NAN),
        ("log2", (8.0,), 3.0),
        ("sqrt", (-1.0,), NAN),
        ("sqrt", (INF,), INF),
        ("sigmoid", (-1000.0,), 0.0),
        ("sigmoid", (1000.0,), 1.0),
        ("sigmoid", (0.0,), 0.5),
        ("sigmoid", (NAN,), NAN),
        ("tanh", (INF,), 1.0),
        ("sin", (INF,), NAN),
        ("cos", (-INF,), NAN),
        ("erf", (0.0,), 0.0),
        ("floor", (-1.5,), -2),
        ("floor", (1e300,), INT_MAX),
        ("floor", (-INF,), INT_MIN),
        ("floor", (NAN,), 0),
        # splitmix64 seeded with 0 and 1234567 first yields these two; the language halves them
        ("hash", (0,), 0xE220A8397B1DCDAF // 2),
        ("hash", (1234567,), 6457827717110365317 // 2),
    ],
)
def test_functions(function, args, expected):
    same(call(Function(function), *args), expected)


def test_hash_chains_its_arguments():
    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    golden = 0x9E3779B97F4A7C15
    first = mix((-5 + golden) % 2**64)
    assert call(Function.HASH, -5, 9) == mix((first + 9 + golden) % 2**64) // 2


@pytest.mark.parametrize(
    ("value", "to", "expected"),
    [
        (True, Type.INT, 1),
        (3, Type.FLOAT, 3.0),
        (2**53 + 1, Type.FLOAT, float(2**53)),
        (-1.9, Type.INT, -1),
        (1e19, Type.INT, INT_MAX),
        (-1e19, Type.INT, INT_MIN),
        (NAN, Type.INT, 0),
    ],
)
def test_casts(value, to, expected):
    same(evaluate(Cast(const(value), to)), expected)


BAD = Bound("nobody")
"""Evaluating it raises: a probe for operands that must not be looked at."""
BAD_TEST = Binary(BinaryOp.EQ, BAD, const(0), Type.BOOL)


def test_undecided_operands_only_are_evaluated():
    assert evaluate(And((FALSE, BAD_TEST))) is False
    assert evaluate(Or((TRUE, BAD_TEST))) is True
    assert evaluate(Where(TRUE, const(1), BAD, Type.INT)) == 1
    assert evaluate(Where(FALSE, BAD, const(2), Type.INT)) == 2
    with pytest.raises(InternalError, match="nobody"):
        evaluate(And((TRUE, BAD_TEST)))


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [("any", 3, False), ("any", 4, True), ("all", 0, True), ("all", 1, False), ("any", 0, False)],
)
def test_bool_quantifiers(kind, count, expected):
    body = Binary(BinaryOp.EQ, Bound("t"), const(3), Type.BOOL)
    assert evaluate(Quantifier(QuantifierKind(kind), "t", count, body, Type.BOOL)) is expected


def test_sums():
    square = Binary(BinaryOp.MUL, Bound("t"), Bound("t"), Type.INT)
    same(evaluate(Quantifier(QuantifierKind.SUM, "t", 4, square, Type.INT)), 14)
    same(evaluate(Quantifier(QuantifierKind.SUM, "t", 0, square, Type.INT)), 0)
    same(evaluate(Quantifier(QuantifierKind.SUM, "t", 0, Cast(square, Type.FLOAT), Type.FLOAT)), 0.0)
    same(evaluate(Quantifier(QuantifierKind.SUM, "t", 2, const(INT_MAX), Type.INT)), -2)
    inner = Quantifier(QuantifierKind.SUM, "u", 3, Binary(BinaryOp.MUL, Bound("t"), Bound("u"), Type.INT), Type.INT)
    same(evaluate(Quantifier(QuantifierKind.SUM, "t", 3, inner, Type.INT)), 9)


def test_reads():
    env = Environment(tables={"bias": [[1, 2], [3, 4]], "keep": lambda b: True if b == 0 else None, "length": 7})
    read = Read("bias", (const(1), const(0)), Type.FLOAT)
    same(evaluate(read, env), 3.0)
    same(evaluate(Read("bias", (const(2), const(0)), Type.FLOAT), env), 0.0)
    same(evaluate(Read("bias", (const(0), const(-1)), Type.FLOAT), env), 0.0)
    same(evaluate(Read("keep", (const(0),), Type.BOOL), env), True)
    same(evaluate(Read("keep", (const(1),), Type.BOOL), env), False)
    same(evaluate(Read("length", (), Type.INT), env), 7)
    same(evaluate(Read("length", (), Type.FLOAT), env), 7.0)


def test_leaves():
    env = Environment({IndexName.QUERY: 3}, {SizeName.KEYS: 9}, score=0.5, dims=(4, 5), bound={"t": 6})
    assert evaluate(Index(IndexName.QUERY), env) == 3
    assert evaluate(Index(IndexName.DIM, 1), env) == 5
    assert evaluate(Size(SizeName.KEYS), env) == 9
    assert evaluate(Bound("t"), env) == 6
    assert evaluate(Score(), env) == 0.5
    same(evaluate(Unary(UnaryOp.NEG, const(INT_MIN), Type.INT)), INT_MIN)
    same(evaluate(Unary(UnaryOp.NEG, const(0.0), Type.FLOAT)), -0.0)
    assert evaluate(Unary(UnaryOp.NOT, TRUE, Type.BOOL)) is False


@pytest.mark.parametrize(
    "expr", [Parameter("w", Type.INT), Index(IndexName.KEY), Size(SizeName.HEADS), Score(), Read("x", (), Type.INT)]
)
def test_missing_values_are_a_bug_of_the_caller(expr):
    with pytest.raises(InternalError):
        evaluate(expr, EMPTY)
