"""Plans of several passes in layouts, and the oracle, for the tests of the CPU program."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from grid_layouts import in_grid
from patterns import attention_of, module_of_plans, outputs_and_gradients, tensors

from attnc.algebra.coordinates import IDENTITY, PLAIN, Layout, residue, runs
from attnc.algebra.simplify import simplify_attention
from attnc.ir.program import Deferred
from attnc.plan.choose import plan_attention, with_passes
from attnc.reference.dense import reference


@dataclass(frozen=True)
class Split:
    """A pattern and the passes that are to compute it.

    Attributes:
        head: statements before the masks, `input doc: int[B, M]`.
        parts: mask and layout of each pass; together they are the mask.
        tail: statements behind the mask, `normalize rows`.
        align: statement.
    """

    parts: tuple[tuple[str, Layout], ...]
    head: str = ""
    tail: str = ""

    def text(self, mask: str) -> str:
        """Return the attention with a mask."""
        return f"attention split {{ {self.head}\n mask {mask}\n {self.tail} }}"

    @property
    def whole(self) -> str:
        """Return the attention's text."""
        return self.text(" or ".join(f"({mask})" for mask, _ in self.parts))

    @property
    def has_lse(self) -> bool:
        """Whether there is a log-sum-exp."""
        return "normalize" not in self.tail or "softmax" in self.tail


@cache
def plan_of(split: Split):
    """Return the plan with the passes of the split."""
    plain = replace(attention_of(split.whole), deferred=(Deferred("decompose", "none"),))  # which needs no search
    masks = [simplify_attention(attention_of(split.text(mask)))[0].mask for mask, _ in split.parts]
    return with_passes(plan_attention(plain), list(zip(masks, (layout for _, layout in split.parts), strict=True)))


@cache
def function_of_split(split: Split):
    """Return the compiled function."""
    return module_of_plans((plan_of(split),), split.whole).split


def compare(split, tolerance=1e-10, grad=True, **sizes):
    """Compare outputs, log-sum-exp and gradients with the oracle's."""
    query, key, value = tensors(grad=grad, **sizes)
    inputs = inputs_of(split, query, key, grad)
    leaves = [query, key, value, *(tensor for tensor in inputs.values() if tensor.is_floating_point())]
    leaves = leaves if grad else []
    function, lse = function_of_split(split), split.has_lse
    ours = outputs_and_gradients(lambda: function(query, key, value, **inputs, return_lse=lse), leaves, lse)
    theirs = outputs_and_gradients(
        lambda: reference(attention_of(split.whole), query, key, value, inputs, return_lse=lse, dtype=torch.float64),
        leaves,
        lse,
    )
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape
        torch.testing.assert_close(mine, expected.to(mine.dtype), rtol=tolerance, atol=tolerance, equal_nan=False)


def inputs_of(split, query, key, grad=True, seed=1):
    """Return random inputs and learned tensors by the names that the splits of the tests use."""
    draw = torch.Generator().manual_seed(seed)
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    made = {}
    for tensor in attention_of(split.whole).tensors:
        match tensor.name:
            case "doc":
                made["doc"] = torch.randint(0, 3, (batch, keys), generator=draw)
            case "pos":
                made["pos"] = torch.tensor([keys - queries, -3, 6][:batch])
            case "place":
                made["place"] = torch.tensor([3, 5, 11][:batch])
            case other:
                shape = {"slope": (heads,), "sink": (heads,), "bias": (heads, 21), "w": (batch, keys)}[other]
                values = torch.randn(shape, generator=draw, dtype=torch.float64)
                made[other] = values.to(query.dtype).requires_grad_(grad)
    return made


def keys_in(period, first, length):
    """Return the layout of keys in runs."""
    return Layout(IDENTITY, runs(period, first, length))


def queries_in(period, first, length):
    """Return the layout of queries in runs."""
    return Layout(runs(period, first, length), IDENTITY)


STRIDED = (
    ("causal and i - j < 16", PLAIN),
    ("causal and (i - j) % 16 == 0 and i - j >= 16", residue(16)),
)
FIXED = (
    ("causal and i // 16 == j // 16", PLAIN),
    ("causal and j % 16 >= 14 and i // 16 != j // 16", keys_in(16, 14, 2)),
)

NEAR = in_grid("grid_near(8, 2)", (8, 0, 4), (1, 8, 4))
INSIDE = "abs(j // 8 - min(max(i // 8, 2), M // 8 - 3)) <= 2 and abs(j % 8 - min(max(i % 8, 2), 5)) <= 2"
CELLS = "(i // 8 + 2) // 4 == (j // 8 + 2) // 4 and (i % 8 + 2) // 4 == (j % 8 + 2) // 4"

SPLITS = {
    "residue": Split((("causal and (i - j) % 8 == 0", residue(8)),)),
    "symmetric": Split((("(i - j) % 5 == 0", residue(5)),)),
    "ahead": Split((("causal and (i - j) % 7 == 5", residue(7, -5)),)),
    "behind": Split((("j >= i and (j - i) % 6 == 2", residue(6, 2)),)),
    "dilated": Split((("causal and dilated(9, 4)", residue(4)),)),
    "both_ways": Split((("dilated(6, 3)", residue(3)),)),
    "halves": Split((("(i - j) % 2 == 0", residue(2)), ("(i - j) % 2 == 1", residue(2, 1)))),
    "longer_than_all": Split((("(i - j) % 300 == 0", residue(300)),)),
    "strided": Split(STRIDED),
    "fixed": Split(FIXED),
    "columns": Split((("j % 9 >= 7", keys_in(9, 7, 2)),)),
    "column": Split((("j % 9 == 4 and j <= i", keys_in(9, 4, 1)),)),
    "global_rows": Split((("i % 16 == 0", queries_in(16, 0, 1)), ("i % 16 != 0 and window(5)", PLAIN))),
    "row_runs": Split((("i % 11 >= 8 and causal", queries_in(11, 8, 3)), ("i % 11 < 8 and window(4)", PLAIN))),
    "rows_alone": Split((("i % 10 >= 7 and i % 10 < 9 and j <= i + 3", queries_in(10, 7, 2)),)),
    "rows_and_columns": Split(
        (
            ("i % 6 == 2 and j % 10 >= 8 and causal", Layout(runs(6, 2, 1), runs(10, 8, 2))),
            ("i == j and not (i % 6 == 2 and j % 10 >= 8)", PLAIN),
        )
    ),
    "class_mask": Split((("causal and (i - j) % 4 == 0 and i // 40 == j // 40", residue(4)),)),
    "class_gaps": Split((("(i - j) % 4 == 0 and i % 12 != 5 and j % 3 != 1 and causal", residue(4)),)),
    "documents": Split(
        (("causal and (i - j) % 4 == 0 and doc[b, i] == doc[b, j]", residue(4)),), "input doc: int[B, M]"
    ),
    "document_columns": Split(
        (("causal and j % 8 == 7 and doc[b, i] == doc[b, j]", keys_in(8, 7, 1)),), "input doc: int[B, M]"
    ),
    "heads": Split((("causal and (i - j) % 4 == 0 and i - j < 16 * (h + 1)", residue(4)),)),
    "at": Split((("causal and (i - j) % 4 == 0", residue(4)),), "input pos: int[B]", "align at(pos[b])"),
    "at_heads": Split((("causal and (i - j) % 4 == 0", residue(4)),), "", "align at(3 * h - 4)"),
    "at_rows": Split((("causal and i % 5 >= 3", queries_in(5, 3, 2)),), "input pos: int[B]", "align at(pos[b])"),
    "start": Split(STRIDED, "", "align start"),
    "place": Split((("causal and (i - j < 8 or i == place[b])", PLAIN),), "input place: int[B]"),
    "alibi": Split(STRIDED, "", "score s + alibi"),
    "learned": Split(STRIDED, "learned slope: float[H] = 1.0", "score s + slope[h] * (j - i)"),
    "table": Split(FIXED, "learned bias: float[H, 21] = 0.0", "score s + bias[h, clamp(i - j, -10, 10) + 10]"),
    "softcap": Split(STRIDED, "", "score softcap(s, 3.0)"),
    "sink": Split(STRIDED, "learned sink: float[H] = 0.0", "normalize softmax(sink = sink[h] + 0.1 * i)"),
    "scaled": Split(FIXED, "learned slope: float[H] = 1.0", "scale slope[h] * (1 + 0.1 * (i % 3))"),
    "weighted": Split(STRIDED, "input w: float[B, M]", "weight abs(w[b, j]) + 0.1"),
    "row_term": Split(STRIDED, "learned slope: float[H] = 1.0", "score s + slope[h] * i"),
    "sigmoid": Split(STRIDED, "learned slope: float[H] = 0.0", "normalize sigmoid(bias = slope[h] - log(M))"),
    "relu": Split(FIXED, "", "normalize relu(power = 2)"),
    "rows": Split(STRIDED, "", "score exp(s)\n normalize rows"),
    "none": Split(FIXED, "input w: float[B, M]", "weight w[b, j]\n normalize none"),
    "row_runs_none": Split((("i % 11 >= 8 and causal", queries_in(11, 8, 3)),), "", "normalize none"),
    "grid": Split((NEAR,)),
    "grid_start": Split((NEAR,), tail="align start"),
    "grid_causal": Split((in_grid("causal and grid_near(12, 3)", (12, 0, 8), (1, 12, 8)),)),
    "grid_ends": Split((in_grid("grid_near(10, 2)", (10, 0, 3, 1), (1, 10, 7, 2)),)),
    "grid_inside": Split((in_grid(INSIDE, (8, 0, 4), (1, 8, 4)),)),
    "grid_cells": Split((in_grid(CELLS, (8, 0, 4, 2), (1, 8, 4, 2)),)),
    "grid_cubes": Split(
        (in_grid("abs(i // 16 - j // 16) < 2 and abs(i // 4 % 4 - j // 4 % 4) < 2", (16, 0, 2), (4, 4, 2), (1, 4, 4)),)
    ),
    "grid_dilated": Split((in_grid("grid_near(8, 2) and (i - j) % 2 == 0", (8, 0, 8), (2, 4, 2), (1, 2, 1)),)),
    "grid_columns": Split(
        (
            in_grid("grid_near(8, 1) and j % 9 < 7", (8, 0, 4), (1, 8, 4)),
            ("j % 9 >= 7", keys_in(9, 7, 2)),
        )
    ),
    "grid_after_rows": Split(
        (
            ("i % 16 == 3", queries_in(16, 3, 1)),
            in_grid("grid_near(8, 1) and i % 16 != 3", (8, 0, 4), (1, 8, 4)),
        )
    ),
    "grid_heads": Split((in_grid("abs(i // 8 - j // 8) <= h and abs(i % 8 - j % 8) < 2", (8, 0, 4), (1, 8, 4)),)),
    "grid_documents": Split(((f"{NEAR[0]} and doc[b, i] == doc[b, j]", NEAR[1]),), "input doc: int[B, M]"),
    "grid_at": Split((NEAR,), "input pos: int[B]", "align at(pos[b])"),
    "grid_at_heads": Split((NEAR,), "", "align at(3 * h - 4)"),
    "grid_alibi": Split((NEAR,), "", "score s + alibi"),
    "grid_learned": Split((NEAR,), "learned slope: float[H] = 1.0", "score s + slope[h] * (j - i)"),
    "grid_softcap": Split((NEAR,), "", "score softcap(s, 3.0)"),
    "grid_sigmoid": Split((NEAR,), "learned slope: float[H] = 0.0", "normalize sigmoid(bias = slope[h] - log(M))"),
    "grid_none": Split((NEAR,), "input w: float[B, M]", "weight w[b, j]\n normalize none"),
    "nothing": Split((("(i - j) % 3 == 0 and i < 0", residue(3)),)),
}
