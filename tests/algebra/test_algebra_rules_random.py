"""Simplification of random expressions keeps their value, is idempotent, and is quick on large ones."""

import math
import random
import time

from expressions import I, J, add, attention, attentions, compare, integer, masks, mul, points, scores
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.algebra.simplify import simplify_attention, simplify_expression
from attnc.ir.evaluate import evaluate
from attnc.ir.nodes import And, Or, Where
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.ir.verify import verify, verify_expression
from attnc.ir.walk import walk


@given(masks(), st.lists(points(), min_size=1, max_size=8))
@settings(max_examples=200)
def test_masks_keep_their_value(expr, places):
    result, steps = simplify_expression(expr)
    verify_expression(result)
    assert bool(steps) == (result != expr)
    for env in places:
        assert evaluate(result, env) is evaluate(expr, env), (show(expr), show(result))


def close(left, right):
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return left == right or math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)


@given(scores(), st.lists(points(), min_size=1, max_size=8))
@settings(max_examples=200)
def test_scores_keep_their_value(expr, places):
    result, _ = simplify_expression(expr)
    verify_expression(result, score=True)
    for env in places:
        assert close(evaluate(result, env), evaluate(expr, env)), (show(expr), show(result))


@given(masks())
@settings(max_examples=150)
def test_a_second_run_changes_nothing(expr):
    once, _ = simplify_expression(expr)
    assert simplify_expression(once) == (once, ())


@given(scores(wild=True))
@settings(max_examples=150)
def test_a_second_run_changes_no_score(expr):
    once, _ = simplify_expression(expr)
    twice, steps = simplify_expression(once)
    assert steps == ()
    assert twice is once


@given(attentions())
def test_whole_attentions(pattern):
    verify(pattern)
    once, _ = simplify_attention(pattern)
    verify(once)
    assert simplify_attention(once) == (once, ())


@given(masks(), st.integers(0, 30), points())
def test_any_budget_is_sound(expr, budget, env):
    result, steps = simplify_expression(expr, budget=budget)
    assert len(steps) <= budget
    assert evaluate(result, env) is evaluate(expr, env)


def large(size, seed):
    """A mask of about `size` nodes, balanced."""
    draw = random.Random(seed)

    def grow(nodes):
        if nodes < 12:
            number = add(mul(I, integer(draw.randint(0, 3))), integer(draw.randint(-3, 3)))
            return compare(draw.choice(["<", "<=", "=="]), number, add(J, integer(draw.randint(0, 9))))
        if draw.random() < 0.2:
            return Where(grow(nodes // 3), grow(nodes // 3), grow(nodes // 3), Type.BOOL)
        width = draw.choice([2, 3, 8])
        return draw.choice([And, Or])(tuple(grow(nodes // width) for _ in range(width)))

    return grow(size)


def test_large_expressions_are_quick():
    for seed in range(3):
        expr = large(20_000, seed)
        count = sum(1 for _ in walk(expr))
        assert count > 5_000
        start = time.process_time()
        result, _ = simplify_expression(expr)
        assert time.process_time() - start < 4
        assert simplify_expression(result) == (result, ())


def test_a_conjunction_of_thousands():
    wide = And(tuple(compare("<", add(J, integer(k)), I) for k in range(5_000)))
    start = time.process_time()
    simplify_expression(wide)
    assert time.process_time() - start < 2


def test_expressions_deeper_than_the_stack_stay_as_they_are():
    expr = J
    for _ in range(3_000):
        expr = add(expr, I)
    result, steps = simplify_expression(expr)
    assert result is expr
    assert steps == ()


def test_declarations_and_assertions_stay():
    pattern = attention(mask=And((compare("<=", J, I), compare("<=", J, I))))
    result, steps = simplify_attention(pattern)
    assert result.tensors == pattern.tensors
    assert result.mask == compare("<=", J, I)
    assert [step.rule for step in steps] == ["duplicate-operand"]
