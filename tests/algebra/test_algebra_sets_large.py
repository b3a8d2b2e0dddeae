"""Masks of hundreds of operands, and huge constants: generated patterns must not take minutes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from brief_ir import attention
from tile_checks import check_tiles, environment

from attnc.algebra import index_sets
from attnc.algebra.tiles import derive_tiles
from attnc.compiler import plan_source
from attnc.explanation import explain_plan
from attnc.source import SourceFile


@pytest.mark.parametrize(
    "mask",
    [
        " and ".join(["causal"] * 3000),
        " or ".join(f"j == {key}" for key in range(500)),
        " and ".join(f"j // {size} == kind[j]" for size in range(1, 100)),
        " or ".join(f"i - j == {gap}" for gap in range(1, 400, 3)),
    ],
    ids=["repeated", "columns", "reads", "diagonals"],
)
def test_many_operands_take_seconds(mask: str) -> None:
    started = time.process_time()
    text = f"attention large {{ input kind: int[M]; mask {mask} }}"
    plan_source(SourceFile("<text>", text, Path("text.attn")))
    assert time.process_time() - started < 10


@pytest.mark.parametrize("operations", [2000, 3000, 6000, 12_000, 25_000, 50_000, 100_000])
def test_a_budget_may_end_anywhere(operations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """isl gives no text of a number when its operations end there; that is no bug of the compiler's."""
    monkeypatch.setattr(index_sets.budget.__wrapped__, "__defaults__", (operations,))  # type: ignore[attr-defined]
    text = (
        "attention hard { input w: int; align at(3)\n"
        "mask h == i - j\n mask -2 * (min(b, i - j)) == ((-3 + i) + min(w, j)) }"
    )
    plan_source(SourceFile("<text>", text, Path("text.attn")))


HUGE = (
    "i - j == 9223372036854775807 or i == j",
    "j <= i and (i - j == 9223372036854775807 or i - j == 8 or i - j == 64)",
    "i + 9223372036854775807 < j",
    "j * 9223372036854775807 < i",
    "(i - j) % 9223372036854775807 == 3",
    "i // 9223372036854775807 == j",
    "j <= i and (i - j) * 4611686018427387904 * 4 == 0",
)
"""Masks whose ints wrap around, or hardly do not."""


@pytest.mark.parametrize("mask", HUGE)
def test_huge_constants_wrap_around(mask: str) -> None:
    example = attention(mask)
    check_tiles(derive_tiles(example), example, environment(example, 9, 17), 16, 16)
    (plan,) = plan_source(SourceFile("<text>", f"attention a {{ mask {mask} }}", Path("text.attn"))).plans
    assert explain_plan(plan, length=100, heads=2, head_size=16)
