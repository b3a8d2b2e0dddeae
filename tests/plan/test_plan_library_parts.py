"""Which pass of a plan a library may compute: the one with the most pairs among those that are dense by themselves."""

import pytest

from attnc.algebra.windows import Dense
from attnc.plan.choose import plan_attention
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

EVERYTHING = (-1, -1)


def plan_of(text):
    tree = parse_source(SourceFile("test.attn", f"attention a {{ {text} }}"))
    return plan_attention(check_program(tree).attentions[0])


@pytest.mark.parametrize(
    ("text", "number", "pairs", "long_rows"),
    [
        ("mask causal or j < 512\n decompose split(j < 512)", 1, Dense((512, None), (512, None), (-1, 0)), 0),
        ("mask causal or j < 6000\n decompose split(j < 6000)", 0, Dense((0, None), (0, 6000), EVERYTHING), 0),
        ("mask window(80) or globals(2)\n decompose split(i >= 2 and j >= 2)", 0,
         Dense((2, None), (2, None), (79, 79)), 2),
    ],
)  # fmt: skip
def test_the_part_with_the_most_pairs_is_taken(text, number, pairs, long_rows):
    plan = plan_of(text)
    assert (plan.part.number, plan.part.pairs, plan.part.long_rows) == (number, pairs, long_rows)
    others = plan.beside_part
    assert others.passes == plan.passes[:number] + plan.passes[number + 1 :]
    assert (others.resumed, others.part, others.short) == (True, None, ())


def test_short_sequences_have_no_part():
    plan = plan_of("mask causal and (i - j < 128 or (i - j) % 128 == 0)")
    short, long = plan.variants
    assert long.part.pairs == Dense((0, None), (0, None), (127, 0))
    assert (short.part, short.beside_part, short.resumed) == (None, None, False)


@pytest.mark.parametrize(
    "text",
    [
        "mask causal and (i - j < 128 or (i - j) % 64 == 0)\n decompose none",
        "mask causal and (i - j < 20 or j < 5)\n decompose split(j < 5)",
        "mask causal and (i - j < 200 or j < 5)\n score s + alibi\n decompose split(j < 5)",
        "mask causal and (i - j < 200 or j < 5)\n normalize softmax(sink = 1.0)\n decompose split(j < 5)",
        "input doc: int[B, M]\n mask same(doc) and (causal or j < 5)\n decompose split(j < 5)",
    ],
)
def test_what_has_none(text):
    assert plan_of(text).part is None
