"""Every rule fires on its examples and keeps their value at every small point."""

import math
from itertools import product

import pytest
from expressions import (
    B,
    H,
    I,
    J,
    M,
    N,
    add,
    call,
    compare,
    integer,
    invert,
    mul,
    negate,
    real,
    sub,
)

from attnc.algebra.engine import rewrite, tabulate
from attnc.algebra.simplify import RULES, simplify_expression
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import (
    FALSE,
    TRUE,
    And,
    Binary,
    BinaryOp,
    Bound,
    Cast,
    IndexName,
    Or,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    SizeName,
    Where,
)
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.ir.verify import verify_expression

S = Score()
X = Read("x", (), Type.FLOAT)
Y = Read("y", (), Type.FLOAT)
P = compare("<", J, I)
CUT = Read("cut", (), Type.INT)
Q = Read("keep", (B, J), Type.BOOL)
T = compare("==", sub(J, Bound("t")), integer(1))
POWER = Cast(call("exp2", Cast(Bound("t"), Type.FLOAT)), Type.INT)
NEGATIVE = compare("<", X, Y)


def op(symbol, left, right):
    return Binary(BinaryOp(symbol), left, right, left.type)


def where(condition, then, otherwise):
    return Where(condition, then, otherwise, then.type)


def some(count, body):
    return Quantifier(QuantifierKind.ANY, "t", count, body, Type.BOOL)


def every(count, body):
    return Quantifier(QuantifierKind.ALL, "t", count, body, Type.BOOL)


def total(count, body):
    return Quantifier(QuantifierKind.SUM, "t", count, body, body.type)


def f(expr):
    return Cast(expr, Type.FLOAT)


EXAMPLES = {
    "push-negation": [
        (invert(invert(Q)), "keep[b, j]"),
        (invert(P), "j >= i"),
        (invert(compare("==", X, Y)), "x != y"),
        (invert(compare("==", P, Q)), "(j < i) != keep[b, j]"),
        (invert(And((P, Q))), "j >= i or not keep[b, j]"),
        (invert(Or((P, Q))), "j >= i and not keep[b, j]"),
        (invert(where(Q, P, NEGATIVE)), "where(keep[b, j], j >= i, not x < y)"),
        (invert(some(3, T)), "all(t < 3, j - t != 1)"),
        (invert(every(3, T)), "any(t < 3, j - t != 1)"),
    ],
    "flatten": [(And((P, And((Q, NEGATIVE)))), "j < i and keep[b, j] and x < y"), (Or((Or((P, Q)), P)), None)],
    "constant-operand": [
        (And((P, TRUE)), "j < i"),
        (And((P, FALSE)), "false"),
        (Or((P, TRUE)), "true"),
        (Or((FALSE, P, Q)), "j < i or keep[b, j]"),
    ],
    "duplicate-operand": [
        (And((P, Q, P)), "j < i and keep[b, j]"),
        (Or((P, compare(">", I, J))), "j < i"),
        (And((compare("==", I, J), compare("==", J, I))), "i == j"),
    ],
    "complementary-operands": [
        (And((P, Q, invert(P))), "false"),
        (Or((Q, invert(Q))), "true"),
        (Or((P, compare("<=", I, J))), "true"),
        (And((compare("!=", X, Y), compare("==", Y, X))), "false"),
    ],
    "absorption": [
        (And((P, Or((P, Q)))), "j < i"),
        (Or((P, And((Q, P)))), "j < i"),
        (And((P, Or((invert(P), Q)))), "j < i and keep[b, j]"),
        (Or((invert(Q), And((Q, P)))), "not keep[b, j] or j < i"),
    ],
    "merge-bounds": [
        (And((compare("<", J, integer(3)), compare("<=", J, integer(4)))), "j < 3"),
        (Or((compare("<", J, integer(3)), compare("<=", J, integer(4)))), "j <= 4"),
        (And((compare("<", J, integer(2)), compare("<", integer(3), J))), "false"),
        (Or((compare(">=", J, integer(2)), compare("<", J, integer(4)))), "true"),
        (And((compare("==", J, integer(2)), compare("!=", J, integer(1)), Q)), "j == 2 and keep[b, j]"),
        (Or((compare("!=", J, integer(1)), compare("!=", J, integer(2)))), "true"),
        (And((compare("!=", J, integer(1)), compare("==", J, integer(1)))), "false"),
        (Or((compare("==", J, integer(1)), compare("<", J, integer(3)), P)), "j < 3 or j < i"),
    ],
    "compare-with-itself": [
        (compare("<=", sub(I, J), sub(I, J)), "true"),
        (compare("!=", J, J), "false"),
        (compare("<", X, X), "false"),
        (compare("==", Q, Q), "true"),
    ],
    "compare-bools": [
        (compare("==", Q, TRUE), "keep[b, j]"),
        (compare("!=", TRUE, P), "j >= i"),
        (compare("==", Q, invert(Q)), "false"),
    ],
    "where-of-truths": [
        (where(P, TRUE, Q), "j < i or keep[b, j]"),
        (where(P, FALSE, Q), "j >= i and keep[b, j]"),
        (where(P, Q, TRUE), "j >= i or keep[b, j]"),
        (where(P, Q, FALSE), "j < i and keep[b, j]"),
    ],
    "where-decided": [(where(TRUE, X, Y), "x"), (where(FALSE, X, Y), "y"), (where(P, S, S), "s")],
    "where-of-negation": [(where(invert(Q), X, Y), "where(keep[b, j], y, x)")],
    "where-repeated": [
        (where(P, where(P, X, Y), S), "where(j < i, x, s)"),
        (where(P, X, where(P, Y, S)), "where(j < i, x, s)"),
    ],
    "where-known": [
        (And((P, compare("<", where(P, X, Y), S))), "j < i and x < s"),
        (And((invert(P), compare("<", where(P, X, Y), S))), "j >= i and y < s"),
        (And((compare(">", I, J), Q, compare("<", add(where(P, X, Y), where(P, Y, S)), S))), None),
    ],
    "where-merged": [
        (where(P, where(Q, X, Y), Y), "where(j < i and keep[b, j], x, y)"),
        (where(P, X, where(Q, X, Y)), "where(j < i or keep[b, j], x, y)"),
    ],
    "short-quantifier": [
        (some(0, T), "false"),
        (every(0, T), "true"),
        (total(0, Bound("t")), "0"),
        (total(0, f(Bound("t"))), "0.0"),
        (some(1, T), "j == 1"),
        (total(1, add(Bound("t"), J)), None),
    ],
    "quantifier-of-constant": [(some(3, P), "j < i"), (every(3, Q), "keep[b, j]")],
    "pull-out-of-quantifier": [
        (some(3, And((P, T))), "j < i and any(t < 3, j - t == 1)"),
        (some(3, Or((P, T))), "j < i or any(t < 3, j - t == 1)"),
        (every(3, And((T, P))), "j < i and all(t < 3, j - t == 1)"),
        (every(3, Or((T, P, Q))), "j < i or keep[b, j] or all(t < 3, j - t == 1)"),
    ],
    "write-out-powers": [
        (some(3, compare("==", J, POWER)), "j == 1 or j == 2 or j == 4"),
        (every(3, compare("!=", J, mul(Bound("t"), Bound("t")))), "j != 0 and j != 1 and j != 4"),
        (some(2, And((compare("<", J, add(I, POWER)), T))), "j < i + 1 and j == 1 or j < i + 2 and j == 2"),
        (some(2, compare("==", J, op("%", call("hash", Bound("t")), integer(2)))), None),
    ],
    "fold-constants": [
        (add(integer(2), integer(3)), "5"),
        (compare("<", integer(2), integer(3)), "true"),
        (f(integer(2)), "2.0"),
        (call("exp2", real(3)), "8.0"),
        (total(3, integer(5)), "15"),
        (negate(real(0.5)), "-0.5"),
    ],
    "constant-last": [(mul(integer(2), J), "j * 2"), (add(real(1), S), "s + 1.0")],
    "neutral-operand": [
        (add(J, integer(0)), "j"),
        (sub(S, real(0)), "s"),
        (mul(S, real(1)), "s"),
        (op("//", J, integer(1)), "j"),
        (op("/", S, real(1)), "s"),
        (op("**", S, real(1)), "s"),
        (op("**", J, integer(1)), "j"),
    ],
    "known-result": [
        (sub(J, J), "0"),
        (sub(f(J), f(J)), "0.0"),
        (mul(J, integer(0)), "0"),
        (mul(call("tanh", f(J)), real(0)), "0.0"),
        (op("%", J, integer(1)), "0"),
        (op("//", J, integer(0)), "0"),
        (op("%", sub(I, J), sub(I, J)), "0"),
        (op("//", integer(0), J), "0"),
        (op("**", S, real(0)), "1.0"),
        (op("**", J, integer(0)), "1"),
        (op("**", real(1), S), "1.0"),
    ],
    "signs": [
        (add(I, negate(J)), "i - j"),
        (sub(I, negate(J)), "i + j"),
        (add(negate(I), J), "j - i"),
        (add(J, integer(-3)), "j - 3"),
        (sub(S, real(-3)), "s + 3.0"),
        (mul(S, real(-1)), "-s"),
        (mul(J, integer(-1)), "-j"),
    ],
    "subtract-from-zero": [(sub(integer(0), J), "-j"), (sub(real(0), S), "-s")],
    "negation": [
        (negate(negate(J)), "j"),
        (negate(sub(I, J)), "j - i"),
        (negate(mul(J, integer(3))), "j * -3"),
        (negate(mul(S, real(3))), "s * -3.0"),
    ],
    "sum-of-constants": [
        (sub(add(J, integer(2)), integer(3)), "j - 1"),
        (sub(sub(J, integer(2)), integer(-5)), "j + 3"),
        (add(sub(integer(7), J), integer(2)), "9 - j"),
        (sub(sub(integer(7), J), integer(2)), "5 - j"),
        (sub(integer(7), add(J, integer(2))), "5 - j"),
        (sub(integer(7), sub(J, integer(2))), "9 - j"),
        (sub(integer(7), sub(integer(2), J)), "j + 5"),
        (add(add(S, real(0.5)), real(0.25)), "s + 0.75"),
        (add(add(J, integer(2**62)), integer(2**62)), "j + (-9223372036854775807 - 1)"),
    ],
    "product-of-constants": [(mul(mul(J, integer(2)), integer(3)), "j * 6")],
    "cancelled-operand": [
        (sub(add(I, J), J), "i"),
        (sub(add(J, I), J), "i"),
        (add(sub(I, J), J), "i"),
        (add(J, sub(I, J)), "i"),
    ],
    "repeated-remainder": [
        (op("%", op("%", sub(J, I), integer(3)), integer(3)), "(j - i) % 3"),
        (op("//", op("%", sub(J, I), integer(3)), integer(3)), "0"),
    ],
    "nested-quotient": [(op("//", op("//", sub(J, I), integer(2)), integer(3)), "(j - i) // 6")],
    "multiple-of-divisor": [
        (op("//", mul(sub(J, I), integer(6)), integer(3)), "(j - i) * 2"),
        (op("%", mul(sub(J, I), integer(-6)), integer(3)), "0"),
        (op("//", mul(J, integer(-6)), integer(3)), "j * -2"),
    ],
    "shift-comparison": [
        (compare("<", add(J, integer(3)), integer(5)), "j < 2"),
        (compare(">=", sub(sub(I, J), integer(1)), integer(0)), "i - j >= 1"),
        (compare("<", integer(5), add(J, integer(3))), "2 < j"),
        (compare("<=", sub(integer(7), J), integer(5)), "2 <= j"),
        (compare("<=", integer(5), sub(integer(7), J)), "j <= 2"),
        (compare("==", integer(5), sub(integer(7), J)), "j == 2"),
    ],
    "compare-difference": [
        (compare(">=", sub(I, J), integer(0)), "i >= j"),
        (compare("<=", integer(0), sub(I, J)), "j <= i"),
    ],
    "absolute": [(call("abs", negate(J)), "abs(j)"), (call("abs", call("abs", S)), "abs(s)")],
    "flatten-extremes": [
        (call("min", call("min", I, J), M), "min(i, j, M)"),
        (call("max", S, call("max", X, Y)), "max(s, x, y)"),
    ],
    "merge-extremes": [
        (call("min", integer(5), J, integer(3)), "min(j, 3)"),
        (call("max", J, J), "j"),
        (call("max", J, I, J), "max(j, i)"),
    ],
    "clamp": [
        (call("max", call("min", sub(I, J), integer(2)), integer(-2)), "min(max(i - j, -2), 2)"),
        (call("min", call("max", J, integer(5)), integer(2)), "2"),
        (call("max", call("min", J, integer(2)), integer(5)), "5"),
        (call("max", call("min", call("max", J, integer(1)), integer(6)), integer(3)), "min(max(j, 3), 6)"),
        (call("max", call("min", S, real(2)), real(-2)), "min(max(s, -2.0), 2.0)"),
    ],
    "round-trip": [(Cast(f(J), Type.INT), "j"), (call("floor", f(N)), "N")],
    "constant-factors": [
        (op("/", mul(S, real(2)), real(8)), "s * 0.25"),
        (mul(op("/", S, real(8)), real(2)), "s * 0.25"),
        (op("/", op("/", S, real(2)), real(4)), "s / 8.0"),
        (mul(mul(S, real(2)), real(4)), "s * 8.0"),
    ],
    "negated-factor": [(mul(negate(S), real(2)), "s * -2.0"), (op("/", negate(S), real(2)), "s / -2.0")],
    "sum-of-same": [(total(4, S), "s * 4.0"), (total(4, J), "j * 4")],
}

FLOATS = [0.0, 1.0, -2.5, 1e-3, math.inf, -math.inf, math.nan]


def small_points():
    for i, j, keep in product(range(-1, 5), range(5), (False, True)):
        tables = {"keep": [[keep] * 5] * 2, "x": 0.5, "y": -1.5}
        yield environment(i, j, tables, 0.75)
    for s, x, y in product(FLOATS, repeat=3):
        yield environment(2, 1, {"keep": [[True] * 5] * 2, "x": x, "y": y}, s)


def environment(i, j, tables, score):
    indices = {IndexName.BATCH: 1, IndexName.HEAD: 2, IndexName.ROW: i + 1, IndexName.QUERY: i, IndexName.KEY: j}
    sizes = dict(zip(SizeName, (2, 3, 6, 5, 8, 1), strict=True))
    return Environment(indices, sizes, tables, score)


def same(left, right):
    if isinstance(left, float):
        return left == right or (left != left and right != right) or math.isclose(left, right, rel_tol=1e-14)
    return left is right if isinstance(left, bool) else left == right


CASES = [(name, *case) for name, cases in EXAMPLES.items() for case in cases]


@pytest.mark.parametrize(("name", "before", "after"), CASES, ids=[f"{name}: {show(expr)}" for name, expr, _ in CASES])
def test_rule(name, before, after):
    (rule,) = [rule for rule in RULES if rule.name == name]
    alone = rule.rewrite(before)
    assert alone is not None, f"{name} does not apply to {show(before)}"
    verify_expression(alone, score=True)
    result, steps = simplify_expression(before)
    verify_expression(result, score=True)
    assert steps
    if after is not None:
        assert show(result) == after
    for env in small_points():
        expected = evaluate(before, env)
        assert same(evaluate(alone, env), expected), (show(alone), env)
        assert same(evaluate(result, env), expected), (show(result), env)
    assert simplify_expression(result) == (result, ())


def test_every_rule_has_examples_and_its_meaning():
    assert [rule.name for rule in RULES] == list(dict.fromkeys(rule.name for rule in RULES))
    assert {rule.name for rule in RULES} == set(EXAMPLES)
    assert all(" -> " in rule.meaning for rule in RULES)


KEPT = [
    invert(NEGATIVE),  # both x < y and x >= y fail for NaN
    Or((NEGATIVE, compare(">=", X, Y))),
    compare("==", X, X),
    compare("<=", X, X),
    mul(S, real(0)),
    sub(X, X),
    sub(add(X, Y), Y),
    op("/", X, X),
    Or((invert(NEGATIVE), compare("<", Y, X))),
    call("min", call("max", S, real(3)), real(1)),  # NaN stays NaN
    op("//", S, real(1)),
    compare("<", integer(-3), sub(I, J)),  # stays as the user wrote it
    mul(X, sub(f(J), f(I))),  # a product is not spread over a difference
    call("log", call("exp", S)),
    compare("<", add(CUT, integer(3)), integer(5)),  # an input may be so large that the sum wraps around
    compare("<", sub(CUT, J), integer(0)),
    op("//", mul(CUT, integer(6)), integer(3)),
    op("//", op("//", J, integer(2)), integer(-3)),
    op("//", mul(J, integer(3)), integer(6)),
    Cast(X, Type.INT),
    mul(mul(S, real(1e30)), real(1e30)),
    sub(add(S, real(1e300)), real(1e300)),
    op("//", J, H),
    some(3, T),
    some(3, compare("==", J, mul(Bound("t"), integer(2)))),
    some(3, compare("==", J, mul(I, Bound("t")))),
    some(33, compare("==", J, POWER)),
    some(3, compare("==", J, op("%", call("hash", Bound("t")), M))),
    some(3, compare("==", J, call("hash", Bound("t")))),
    some(3, compare("==", CUT, POWER)),
    some(3, Quantifier(QuantifierKind.ANY, "u", 3, compare("==", J, mul(POWER, Bound("u"))), Type.BOOL)),
    total(3, POWER),
]


@pytest.mark.parametrize("expr", KEPT, ids=show)
def test_what_would_be_unsound_or_no_simpler_is_left_alone(expr):
    assert simplify_expression(expr) == (expr, ())


def test_a_spent_budget_leaves_a_sound_rest():
    expr = And(tuple(compare("<", add(J, integer(0)), add(I, integer(k))) for k in range(20)))
    result, steps = simplify_expression(expr, budget=7)
    assert len(steps) == 7
    for env in small_points():
        assert evaluate(result, env) is evaluate(expr, env)


def test_steps_chain():
    """Each step rewrites what it says, and spans stay with what the user wrote."""
    expr = And((TRUE, invert(Or((P, FALSE)))))
    result, steps = rewrite(expr, tabulate(RULES))
    assert [step.rule for step in steps] == ["constant-operand", "push-negation", "constant-operand"]
    assert show(result) == "j >= i"
