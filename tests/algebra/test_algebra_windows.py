"""Windows: what is proven to be one is one at every size, and what nearly is one is none."""

import pytest

from attnc.algebra.simplify import simplify_attention
from attnc.algebra.windows import Dense, prove_dense, prove_window
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


EVERYTHING = (-1, -1)

DENSE = {
    "mask true": Dense((0, None), (0, None), EVERYTHING),
    "mask causal and i - j < 3": Dense((0, None), (0, None), (2, 0)),
    "mask j < 4": Dense((0, None), (0, 4), EVERYTHING),
    "mask i < 3": Dense((0, 3), (0, None), EVERYTHING),
    "mask i >= 5 and j < 7": Dense((5, None), (0, 7), EVERYTHING),
    "mask i // 4 < 1 and j // 4 >= 2": Dense((0, 4), (8, None), EVERYTHING),
    "mask i == 0": Dense((0, 1), (0, None), EVERYTHING),
    "mask i >= 4 and j >= 4": Dense((4, None), (4, None), EVERYTHING),
    "mask causal and j >= 4": Dense((4, None), (4, None), (-1, 0)),
    "mask causal and j >= 4 and i - j < 3": Dense((4, None), (4, None), (2, 0)),
    "mask window(3) and i >= 1 and j >= 1": Dense((1, None), (1, None), (2, 2)),
    "align start\n mask j <= i + 2 and i >= 3 and j >= 3": Dense((3, None), (3, None), (-1, 2)),
}

NOT_DENSE = (
    "mask causal and j < 5",
    "mask causal and i < 5 and j < 5",
    "mask window(3) and j >= 1",
    "mask i % 2 == 0 and j < 4",
    "mask i < 5 and N > 9",
    "mask h < 2 and j < 3",
    "mask j < 4 + b",
    "mask j < N // 2",
    "mask i < 4 and j < 4 or i >= 4 and j >= 4",
    "mask j < 3 and i != 2",
    "mask j < i and j >= 4",
    "input prompt: int[B]\n mask j < prompt[b]",
    "align at(3)\n mask j < 4",
)


def dense_of(text):
    return prove_dense(simplify_attention(attention_of(text))[0])


@pytest.mark.parametrize("text", DENSE)
def test_windows_and_rectangles_are_proven_and_hold_pair_by_pair(text):
    dense = DENSE[text]
    assert dense_of(text) == dense
    before, behind = dense.window
    for length in (1, 3, 5, 8, 13):
        allowed = dense_mask(attention_of(text), length, length)[0, 0]
        rows, keys = range(length)[slice(*dense.rows)], range(length)[slice(*dense.keys)]
        pairs = [(i, j) for i in rows for j in keys if not 0 <= before < i - j and not 0 <= behind < j - i]
        assert sorted(pairs) == [tuple(pair) for pair in allowed.nonzero().tolist()]
        assert dense.count(length) == len(pairs)
        assert not keys or {i for i, _ in pairs} == set(rows)  # no row of a part is without keys


@pytest.mark.parametrize("text", NOT_DENSE)
def test_what_is_neither_a_window_nor_a_rectangle_is_none(text):
    assert dense_of(text) is None


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
