"""Windows: what is proven to be one is one at every size, and what nearly is one is none."""

import pytest

from attnc.algebra.simplify import simplify_attention
from attnc.algebra.windows import prove_window
from attnc.reference.dense import dense_mask
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

WINDOWS = {
    "mask true": (-1, -1),
    "mask j < M": (-1, -1),
    "mask causal": (-1, 0),
    "mask causal and i - j < M": (-1, 0),
    "mask causal and i - j < 9": (8, 0),
    "mask window(5)": (4, 4),
    "mask i - j < 5": (4, -1),
    "mask i - j < 5 and j - i <= 7": (4, 7),
    "mask j == i": (0, 0),
    "mask j == i or i == j + 1": (1, 0),
    "mask 2 * i - 2 * j < 11 and i >= j": (5, 0),
    "mask i - j >= 0 and (i - j) // 4 < 2": (7, 0),
    "mask causal and i - j < 4 or causal and i - j >= 4 and i - j < 6": (5, 0),
    "align start\n mask causal and i - j < 7": (6, 0),
    "mask causal and i - j < 9 and i + j >= 0": (8, 0),
    "mask not (i - j > 3 or j > i)": (3, 0),
}

OTHERS = (
    "mask j < i",
    "mask j > i and j - i < 4",
    "mask i < 0",
    "mask causal and (i - j < 9 or sinks(1))",
    "mask causal and i - j < 9 and j != 0",
    "mask causal and i - j < 9 and i != 3",
    "mask causal and i - j < 9 and i - j != 4",
    "mask causal and i - j < 9 or N < 5",
    "mask causal and i - j < 9 and N > 5",
    "mask causal and (i - j < 9 or i > 1000 and i - j < 10)",
    "mask causal and i - j < N - 3",
    "mask causal and i - j < 8 * (h + 1)",
    "mask causal and i - j < b + 2",
    "mask causal and i - j <= i // 2",
    "mask causal and dilated(8, 3)",
    "mask causal and (i // 16 == j // 16)",
    "mask grid_near(10, 2)",
    "mask (i - j) * (i - j) < 10",
    "input w: int\n mask causal and i - j < w",
    "input doc: int[B, M]\n mask causal and i - j < 9 and same(doc)",
    "align at(3)\n mask causal and i - j < 9",
)


def attention_of(text):
    return check_program(parse_source(SourceFile("test.attn", f"attention a {{ {text} }}"))).attentions[0]


def window_of(text):
    return prove_window(simplify_attention(attention_of(text))[0])


@pytest.mark.parametrize("text", WINDOWS)
def test_windows_are_proven_and_hold_pair_by_pair(text):
    before, behind = WINDOWS[text]
    assert window_of(text) == (before, behind)
    for length in (1, 2, 7, 13):
        allowed = dense_mask(attention_of(text), length, length, batch=2, heads=2)
        for i in range(length):
            for j in range(length):
                inside = (before < 0 or i - j <= before) and (behind < 0 or j - i <= behind)
                assert bool(allowed[..., i, j].all()) == bool(allowed[..., i, j].any()) == inside


@pytest.mark.parametrize("text", OTHERS)
def test_what_is_nearly_a_window_is_none(text):
    assert window_of(text) is None


@pytest.mark.parametrize(
    "more",
    [
        "score s + 1.0 * h * j",
        "weight 0.5 + j",
        "scale 0.5 + h",
        "normalize softmax(sink = 1.0)",
        "normalize relu(power = 2)",
        "decompose split(i < 4)",
    ],
)
def test_plans_have_windows_of_plain_softmax_alone(more):
    from attnc.plan.choose import plan_attention

    assert plan_attention(attention_of("mask causal and i - j < 9")).window == (8, 0)
    assert plan_attention(attention_of(f"mask causal and i - j < 9\n {more}")).window is None
