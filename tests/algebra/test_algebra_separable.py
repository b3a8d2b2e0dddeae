"""Weights that fall into a function of the query and one of the key: found, evaluated pair by pair, and refused."""

import math

import pytest

from attnc.algebra.separable import float_range, grows, joined, separate, split_score
from attnc.algebra.simplify import simplify_attention
from attnc.checking import check_source
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import IndexName, SizeName
from attnc.ir.show import show
from attnc.source import SourceFile

SIZES = {SizeName.HEADS: 4, SizeName.BATCH: 1, SizeName.QUERIES: 9, SizeName.KEYS: 9, SizeName.HEAD_SIZE: 16}
GAMMA = [0.9, -0.7, 0.5, 1.0]


def attention(statement):
    text = f"attention x {{ learned gamma: float[H] = 0.9\n mask causal\n {statement}\n normalize none }}"
    return simplify_attention(check_source(SourceFile("x", text)).program.attentions[0])[0]


def value(expr, query, key, head):
    indices = {IndexName.BATCH: 0, IndexName.HEAD: head, IndexName.QUERY: query, IndexName.ROW: query}
    if key is not None:
        indices[IndexName.KEY] = key
    return float(evaluate(expr, Environment(indices=indices, sizes=SIZES, tables={"gamma": GAMMA})))


def of_one_side(expr, index, of_key):
    if of_key:
        env = Environment(indices={IndexName.BATCH: 0, IndexName.HEAD: index[1], IndexName.KEY: index[0]}, sizes=SIZES,
                          tables={"gamma": GAMMA})  # fmt: skip
        return float(evaluate(expr, env))
    return value(expr, index[0], None, index[1])


SEPARABLE = [
    "(1 - exp2(-5 - h)) ** (i - j)",
    "exp(-0.1 * i) * exp(0.1 * j)",
    "0.9 ** (i - j)",
    "gamma[h] ** (i - j)",
    "exp(-gamma[h] * abs(i - j))",
    "exp2(-(i - j) / 64)",
    "sqrt(i + 1) / (j + 1)",
    "cos(i * 0.1) * (1 + j % 3)",
    "1 / (0.5 ** (j - i))",
    "-2 * exp(gamma[h] * (i - j)) * (i + 1)",
    "0.9 ** i / 0.9 ** j",
    "where(i > 5, 2, 1) * where(j > 3, 1, 0)",
    "3",
]


@pytest.mark.parametrize("weight", SEPARABLE)
def test_parts_multiply_to_the_weight_at_every_pair(weight):
    factor = attention(f"weight {weight}").weight
    parts = separate(factor, causal=True)
    assert parts is not None
    for head in range(4):
        for query in range(9):
            for key in range(query + 1):
                product, exponent = 1.0, 0.0
                for part, of_key in ((parts.query_factor, False), (parts.key_factor, True)):
                    place = (key if of_key else query, head)
                    product *= 1.0 if part is None else of_one_side(part, place, of_key)
                for part, of_key in ((parts.query_exponent, False), (parts.key_exponent, True)):
                    place = (key if of_key else query, head)
                    exponent += 0.0 if part is None else of_one_side(part, place, of_key)
                right = value(factor, query, key, head) if factor is not None else 1.0
                assert product * math.exp(exponent) == pytest.approx(right, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "weight", ["exp(-(i - j) * (i - j) / 100)", "1 + i * j", "gamma[h] ** (0.5 * (i - j))", "cos(0.1 * (i - j))"]
)
def test_what_mixes_both_sides_is_not_separable(weight):
    assert separate(attention(f"weight {weight}").weight, causal=True) is None


def test_a_distance_is_a_difference_only_where_keys_come_first():
    weight = attention("weight exp(-0.1 * abs(i - j))").weight
    assert separate(weight, causal=False) is None
    assert separate(weight, causal=True) is not None


def test_a_score_is_taken_apart_where_it_is_a_multiple():
    assert split_score(attention("score s * (i + 1) / (j + 1)").score) is not None
    assert split_score(attention("score s + 1").score) is None
    assert split_score(attention("score s * s").score) is None


def test_decays_that_grow_are_known():
    for weight, expected in (("1.01 ** (i - j)", True), ("0.99 ** (i - j)", False), ("exp(0.1 * (i - j))", True)):
        parts = separate(attention(f"weight {weight}").weight, causal=True)
        assert parts.decay is not None
        assert grows(parts.decay) is expected
    learned = separate(attention("weight gamma[h] ** (i - j)").weight, causal=True)
    assert not grows(learned.decay)  # whatever it is, it is not known


def test_joined_exponentials_stay_small_at_distant_positions():
    weight = attention("weight exp(-0.03 * i) * exp(0.03 * j)").weight
    single = joined(weight, separate(weight, causal=True))
    assert value(single, 100_000, 99_990, 0) == pytest.approx(math.exp(-0.3))
    alone = attention("weight exp(-0.1 * (i - j))").weight
    assert joined(alone, separate(alone, causal=True)) == alone
    power = attention("weight (1 - exp2(-5 - h)) ** (i - j)").weight
    cheaper = joined(power, separate(power, causal=True))
    assert "**" not in show(cheaper)
    assert value(cheaper, 90, 50, 2) == pytest.approx(value(power, 90, 50, 2))


def test_ranges_contain_the_values_of_heads():
    for text in ("1 - exp2(-5 - h)", "exp(-h) * 2 - 1", "sigmoid(h * 1.0)", "-(h + 1) / 3"):
        expr = attention(f"weight ({text}) ** (i - j)").weight.left
        low, high = float_range(expr)
        assert all(low <= value(expr, 0, None, head) <= high for head in range(4)), text
