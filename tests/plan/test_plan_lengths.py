"""Which plan serves which length."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "algebra"))
from brief_ir import attention

from attnc.algebra.coordinates import PLAIN, Layout
from attnc.ir.program import Deferred
from attnc.plan.choose import choose_passes, plan_attention
from attnc.plan.cost import estimate_passes
from attnc.plan.kernel_plan import Choice
from attnc.plan.lengths import MOST_SHORT, STEP, WORTH, cheapest_by_length

STRIDED = "j <= i and (i - j < 128 or (i - j) % 128 == 0)"
FIXED = "j <= i and (i // 128 == j // 128 or j % 128 >= 120)"


def layouts(plan):
    return [str(one.layout) for one in plan.passes]


@pytest.mark.parametrize(
    ("mask", "longest_plain"),
    [(STRIDED, (512, 1024)), (FIXED, (128, 512)), ("j <= i and (i - j) % 64 == 0", (64, 256))],
)
def test_short_sequences_are_computed_in_one_plain_pass(mask, longest_plain):
    plan = plan_attention(attention(mask))
    (limit, _) = plan.limits
    assert longest_plain[0] <= limit <= longest_plain[1]
    assert limit % STEP == 0
    assert layouts(plan.at(1)) == layouts(plan.at(limit)) == ["identity"]
    assert layouts(plan.at(limit + 1)) == layouts(plan.at(1 << 20)) == layouts(plan) != ["identity"]


@pytest.mark.parametrize(
    "mask",
    [
        "j <= i",
        "j <= i and i - j < 256",
        "j <= i and abs(i - j) < 256 and (i - j) % 4 == 0",
        "j <= i and abs(i - j) < 1024 and (i - j) % 16 == 0",
        "i // 16 == j // 16",
    ],
)
def test_most_patterns_have_one_plan(mask):
    plan = plan_attention(attention(mask))
    assert plan.short == ()
    assert plan.variants == (plan,)
    assert plan.at(64) == plan
    assert plan.ranges == ("",)


def test_what_the_costs_say_is_what_is_taken():
    example = attention(STRIDED)
    plan = plan_attention(example)
    choices = choose_passes(plan.attention)
    for length in (128, 256, 512, 768, 1024, 2048):
        costs = {
            tuple(str(one.layout) for one in choice.passes): estimate_passes(plan.attention, choice.passes, length).cost
            for choice in choices
        }
        taken = costs[tuple(layouts(plan.at(length)))]
        assert taken * WORTH <= min(costs.values())


def test_choices_of_a_short_variant_are_those_at_its_limit():
    plan = plan_attention(attention(STRIDED))
    short, long = plan.variants
    assert short.weighed_at == plan.limits[0]
    assert long.weighed_at == 8192
    assert [(one.layout, one.mask) for one in short.choices[0].passes] == [
        (one.layout, one.mask) for one in short.passes
    ]
    for choice in short.choices:
        assert choice.cost == estimate_passes(plan.attention, choice.passes, short.weighed_at).cost
    assert {choice.passes for choice in short.choices} == {choice.passes for choice in long.choices}


def test_what_is_asked_for_holds_for_every_length():
    example = replace(attention(STRIDED), deferred=(Deferred("decompose", "none"),))
    assert plan_attention(example).short == ()


def test_there_are_few_variants_and_the_crossovers_are_found(monkeypatch):
    """Costs that are lines: `a + b * length`, each the least over some lengths."""
    lines = {0: (3000.0, 1.0), 1: (1000.0, 3.0), 2: (100.0, 7.0), 3: (1.0, 40.0)}
    choices = [Choice((Numbered(number),), 0.0) for number in lines]

    class Found:
        def __init__(self, cost):
            self.cost = cost

    def estimate(_, passes, length):
        start, slope = lines[passes[0].number]
        return Found(start + slope * length)

    monkeypatch.setattr("attnc.plan.lengths.estimate_passes", estimate)
    found = cheapest_by_length(attention("True"), choices, 8192)
    assert len(found) == MOST_SHORT
    assert [limit for limit, _ in found] == [192, 960]
    assert [kept[0].passes[0].number for _, kept in found] == [2, 1]
    assert [choice.cost for choice in found[1][1]] == [1000 + 3 * 960, 3000 + 960, 100 + 7 * 960, 1 + 40 * 960]
    assert cheapest_by_length(attention("True"), choices[:1], 8192) == ()


@dataclass(frozen=True)
class Numbered:
    """Stands for a pass."""

    number: int
    layout: Layout = PLAIN


@pytest.mark.parametrize("length", [64, 100, 1000])
def test_plans_for_a_short_length_have_no_longer_variant(length):
    plan = plan_attention(attention(STRIDED), length=length)
    assert all(limit is None or limit < length for limit in plan.limits)
