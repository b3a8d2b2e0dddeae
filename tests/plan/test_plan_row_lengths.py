"""How many keys rows have by a plan's account: which first rows are long, and whether the others' number is bounded."""

import pytest

from attnc.checking import check_source
from attnc.explanation import explain_plan
from attnc.plan.choose import plan_attention
from attnc.plan.kernel_plan import Trend
from attnc.plan.row_lengths import trend_together
from attnc.plan.transposed import transposed_plan
from attnc.source import SourceFile


def plan_of(statements):
    text = f"attention a {{ {statements} }}"
    return plan_attention(check_source(SourceFile("p.attn", text), complete=True).program.attentions[0])


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ("mask window(257) or i < 1 or j < 1", 1),
        ("mask window(257) or i <= 3 or j < 4", 4),
        ("mask window(257) or globals(100)", 100),
        ("mask window(65) or i // 64 < 1 or j // 64 < 1", 64),
        ("mask window(9) or i < 2 or i < 5 and j < 3000", 5),
        ("mask window(257) or i < 300 or j < 300", 0),  # enough rows to keep programs busy
        ("mask window(4000) or i < 1", 0),  # the others are long as well
        ("mask causal and (i - j < 128 or i < 1)", 0),  # a row of one key
        ("mask window(257) or i < 1 and j < 600", 0),
        ("input n: int; mask window(257) or i < n", 0),  # known when the module is called
        ("mask window(257) or j < 1", 0),
        ("mask causal", 0),
        ("", 0),
    ],
)
def test_long_rows(statements, expected):
    assert plan_of(statements).long_rows == expected


def test_rows_in_other_orders_are_not_called_long():
    plan = plan_of("mask (i - j) % 64 == 0")
    entries = explain_plan(plan, length=512, heads=2, head_size=16).as_json()["passes"]
    assert [one["long_rows"] for one in entries] == [0]


def test_explanations_name_them():
    plan = plan_of("mask window(33) or globals(2)")
    entries = explain_plan(plan, length=700, heads=2, head_size=16).as_json()["passes"]
    assert [one["long_rows"] for one in entries] == [2]


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ("mask causal and (i - j < 1024 or j < 4)", range(1028, 1300)),
        ("mask window(257) or globals(1)", range(514, 800)),
        ("mask chunk_causal(64) and i // 64 - j // 64 < 2", range(128, 200)),
        ("mask chunk(100)", range(100, 400)),
        ("mask causal and i - j < 128 and (i - j) % 8 == 0", range(16, 200)),
        ("mask j < 100", range(100, 200)),
    ],
)
def test_rows_of_bounded_length(statements, expected):
    assert sum(one.most_keys for one in plan_of(statements).passes) in expected


@pytest.mark.parametrize(
    "statements",
    ["mask causal", "", "mask causal and (i - j) % 64 == 0", "mask j % 128 < 8", "input n: int; mask i - j < n"],
)
def test_rows_that_grow_with_the_sequence(statements):
    assert all(one.most_keys is None for one in plan_of(statements).passes)


@pytest.mark.parametrize(
    ("statements", "rows", "keys"),
    [
        ("mask causal", "rising", "falling"),
        ("mask j >= i", "falling", "rising"),
        ("mask causal and (i - j) % 64 == 0", "rising", "falling"),  # classes are causal sequences
        ("mask causal and i - j < 4096", "rising", "falling"),  # half of the rows have fewer keys than the others
        ("mask causal and i - j < 512", "level", "level"),
        ("mask window(257) or globals(1)", "level", "level"),
        ("mask abs(i - j) < 500", "level", "level"),
        ("mask abs(i - j) < 5000", "mixed", "mixed"),  # longest in the middle
        ("", "level", "level"),
        ("mask j < 3000", "level", "falling"),
        ("mask j <= i and i + j < M", "mixed", "falling"),  # longest in the middle
        ("input doc: int[B, N] sorted; mask causal and same(doc)", "mixed", "mixed"),  # data decides
    ],
)
def test_trends_of_rows_and_of_keys(statements, rows, keys):
    plan = plan_of(statements)
    assert {one.trend.value for one in plan.passes} == {rows}
    assert {one.trend.value for one in transposed_plan(plan).passes} == {keys}


@pytest.mark.parametrize(
    ("trends", "together"),
    [
        ((), Trend.LEVEL),
        ((Trend.LEVEL, Trend.RISING), Trend.RISING),
        ((Trend.FALLING, Trend.FALLING), Trend.FALLING),
        ((Trend.FALLING, Trend.RISING), Trend.MIXED),
        ((Trend.RISING, Trend.MIXED), Trend.MIXED),
    ],
)
def test_passes_that_share_rows(trends, together):
    assert trend_together(trends) is together
