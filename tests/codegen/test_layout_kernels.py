"""Kernels of plans with several passes and orders of positions, against the dense reference in float64."""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import expressions
import pytest
import torch
from grid_layouts import in_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import (
    check_kernel,
    load_kernel,
    render_kernel,
    run_kernel,
    sample_inputs,
    tensors,
)

from attnc.algebra.coordinates import IDENTITY, PLAIN, Layout, residue, runs
from attnc.algebra.proofs import prove_facts
from attnc.algebra.scoring import derive_scoring
from attnc.algebra.simplify import simplify_attention
from attnc.algebra.table_proofs import mark_reads
from attnc.codegen.launch_view import launch_views
from attnc.codegen.sweeps import sweeps_of
from attnc.diagnostics import InternalError
from attnc.ir.nodes import TRUE, And, Binary, BinaryOp, Const, Index, IndexName, Unary, UnaryOp
from attnc.ir.types import Type
from attnc.plan.choose import with_passes
from attnc.plan.kernel_plan import Plan, Scoring
from attnc.runtime.tiles import Tiles, assume_target
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter computes with numpy, which warns where the language is silent: 1 / 0, log 0."""

KEY_RUNS = Layout(IDENTITY, runs(16, 12, 4))
QUERY_RUNS = Layout(runs(16, 3, 1), IDENTITY)
WIDE_RUNS = Layout(runs(16, 5, 3), IDENTITY)


INSIDE = "abs(j // 8 - min(max(i // 8, 2), M // 8 - 3)) <= 2 and abs(j % 8 - min(max(i % 8, 2), 5)) <= 2"
CELLS = "(i // 8 + 2) // 4 == (j // 8 + 2) // 4 and (i % 8 + 2) // 4 == (j % 8 + 2) // 4"

PLANS = {
    "residue": [("causal and (i - j) % 4 == 0", residue(4))],
    "symmetric": [("(i - j) % 8 == 0", residue(8))],
    "ahead": [("causal and (i - j) % 8 == 5", residue(8, -5))],
    "two classes": [("(i - j) % 8 == 0 and causal", residue(8)), ("(j - i) % 8 == 3", residue(8, 3))],
    "dilated": [("dilated(6, 4)", residue(4))],
    "causal dilated": [("causal and dilated(6, 4)", residue(4))],
    "long period": [("(i - j) % 1000 == 0", residue(1000))],
    "strided": [("causal and i - j < 8", PLAIN), ("causal and i - j >= 8 and (i - j) % 8 == 0", residue(8))],
    "fixed": [
        ("causal and i // 16 == j // 16", PLAIN),
        ("j <= i and i // 16 != j // 16 and j % 16 >= 12", KEY_RUNS),
    ],
    "columns": [("j % 16 >= 12", KEY_RUNS)],
    "single columns": [("j % 7 == 2", Layout(IDENTITY, runs(7, 2, 1)))],
    "rows": [("i % 16 == 3", QUERY_RUNS)],
    "rows and window": [("i % 16 == 3", QUERY_RUNS), ("i % 16 != 3 and abs(i - j) < 10", PLAIN)],
    "rows twice": [
        ("i % 16 == 3 and j % 2 == 0", QUERY_RUNS),
        ("i % 16 >= 5 and i % 16 < 8 and j % 2 == 1", WIDE_RUNS),
        ("i % 16 == 3 and j % 2 == 1 or i % 16 == 6 and j % 16 == 4", PLAIN),
    ],
    "rows by columns": [("i % 16 == 3 and j % 16 >= 12", Layout(runs(16, 3, 1), runs(16, 12, 4)))],
    "all three": [
        ("i % 16 == 3", QUERY_RUNS),
        ("i % 16 != 3 and (i - j) % 4 == 0", residue(4)),
        ("i % 16 != 3 and (i - j) % 4 != 0 and abs(i - j) < 6", PLAIN),
    ],
    "two periods": [("(i - j) % 6 == 0", residue(6)), ("(i - j) % 6 != 0 and (i - j) % 4 == 0", residue(4))],
    "apart in plain order": [("i - j >= 20", PLAIN), ("j - i >= 20", PLAIN)],
    "nothing": [("(i - j) % 4 == 0 and i < j and j < i", residue(4))],
    "grid": [in_grid("grid_near(8, 2)", (8, 0, 4), (1, 8, 4))],
    "causal grid": [in_grid("causal and grid_near(12, 3)", (12, 0, 8), (1, 12, 8))],
    "grid with ends": [in_grid("grid_near(10, 2)", (10, 0, 3, 1), (1, 10, 7, 2))],
    "grid moved inside": [in_grid(INSIDE, (8, 0, 4), (1, 8, 4))],
    "cells": [in_grid(CELLS, (8, 0, 4, 2), (1, 8, 4, 2))],
    "cubes": [
        in_grid("abs(i // 16 - j // 16) < 2 and abs(i // 4 % 4 - j // 4 % 4) < 2", (16, 0, 2), (4, 4, 2), (1, 4, 4))
    ],
    "dilated grid": [
        in_grid("dilated(20, 1) and grid_near(8, 2) and (i - j) % 2 == 0", (8, 0, 8), (2, 4, 2), (1, 2, 1))
    ],
    "grid and columns": [
        in_grid("grid_near(8, 1) and j % 16 < 12", (8, 0, 4), (1, 8, 4)),
        ("j % 16 >= 12", KEY_RUNS),
        ("i % 16 == 3 and j % 16 < 12 and not grid_near(8, 1)", QUERY_RUNS),
    ],
    "two grids": [
        in_grid("grid_near(8, 1)", (8, 0, 4), (1, 8, 4)),
        in_grid("grid_near(8, 2) and not grid_near(8, 1)", (8, 0, 2), (1, 8, 8)),
    ],
    "one grid twice": [
        in_grid("grid_near(8, 1)", (8, 0, 4), (1, 8, 4)),
        in_grid("grid_near(8, 2) and not grid_near(8, 1)", (8, 0, 4), (1, 8, 4)),
    ],
}
"""Masks by pass, each with its layout."""

SOME = ("residue", "ahead", "causal dilated", "strided", "fixed", "rows and window", "all three", "grid and columns")

SIZES = [(1, 1), (1, 64), (63, 63), (64, 65), (65, 130), (100, 257), (130, 65), (257, 3)]


def split_plan(parts, statements=""):
    """Return the plan of the passes' masks together, whose passes are these."""
    masks = [simplified(f"{statements}; mask {mask}").mask for mask, _ in parts]
    whole = " or ".join(f"({mask})" for mask, _ in parts)
    attention = simplified(f"{statements}; mask {whole}")
    score, score_log2, dropped, _ = derive_scoring(attention)
    plan = Plan(attention, Scoring(score, score_log2, dropped), (), prove_facts(attention))
    return with_passes(plan, [(mask, layout) for mask, (_, layout) in zip(masks, parts, strict=True)])


def simplified(statements):
    text = f"attention foo {{ {statements} }}"
    program = check_program(parse_source(SourceFile("test.attn", text)), params={})
    return mark_reads(simplify_attention(program.attentions[0])[0])[0]


@cache
def named_plan(name, statements=""):
    plan = split_plan(PLANS[name], statements)
    return plan, load_kernel(plan)


def run(
    name, statements="", *, batch=1, heads=2, kv_heads=1, queries=70, keys=90, head_size=16, value_size=None, **more
):
    plan, module = named_plan(name, statements)
    query, key, value = tensors(batch, heads, kv_heads, queries, keys, head_size, value_size)
    inputs = sample_inputs(plan.attention, query, key)
    return check_kernel(plan, query, key, value, inputs, module=module, **more)


@pytest.mark.parametrize("name", PLANS)
def test_plans(name):
    run(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(name, sizes):
    run(name, heads=1, queries=sizes[0], keys=sizes[1])


@pytest.mark.parametrize("name", ["residue", "fixed", "all three", "causal grid"])
@pytest.mark.parametrize("sizes", [(1, 1), (65, 64), (5, 64)], ids=str)
def test_short_sizes(name, sizes):
    run(name, heads=1, queries=sizes[0], keys=sizes[1])


STATEMENTS = [
    "score s + alibi",
    "score s + 0.01 * i * (i - j)",
    "score softcap(s, 5.0); scale 0.3 / (1 + i % 3)",
    "input bias: float[H, 80]; score s + bias[h, j - i + 40]",
    "input gain: float[N]; score s * gain[r]",
    "normalize sigmoid(bias = -log(M))",
    "normalize relu(power = 2)",
    "normalize rows; score s * s",
    "normalize none",
    "normalize none; score 0.1 * j",
    "learned sink: float[H] = 0.0; normalize softmax(sink = sink[h])",
    "normalize softmax(sink = 0.1 * i)",
    "weight 0.5 + sigmoid(sin(i - j))",
    "weight cos(i - j); normalize none",
    "align start",
    "align at(7)",
    "input pos: int[B]; align at(pos[b] - 40)",
]


@pytest.mark.parametrize("statements", STATEMENTS[::2])
def test_scores_and_normalizers(statements):
    run("all three", statements, batch=2 if "pos" in statements else 1, queries=40, keys=50)


@pytest.mark.slow
@pytest.mark.parametrize("statements", STATEMENTS)
@pytest.mark.parametrize("name", SOME)
def test_scores_and_normalizers_of_other_plans(name, statements):
    run(name, statements, batch=2)


@pytest.mark.parametrize(
    "parts",
    [
        [("causal and (i - j) % 4 == 0 and doc[b, i] == doc[b, j]", residue(4))],
        [
            ("causal and i - j < 8 and j < size[b]", PLAIN),
            ("causal and i - j >= 8 and (i - j) % 8 == 0 and j < size[b] and keep[b, j // 16]", residue(8)),
        ],
        [("i % 16 == 3 and doc[b, i] == doc[b, j]", QUERY_RUNS), ("i % 16 != 3 and abs(i - j) < 10 + h", PLAIN)],
        [("(i - j) % 4 == 0 and abs(i - j) < 8 + 12 * h", residue(4))],
        [("causal and (i - j) % 4 == 0 and level[b, i] == level[b, j]", residue(4))],
        [("j % 16 >= 12 and doc[b, i] == doc[b, j] and j // 16 <= i // 16 + h", KEY_RUNS)],
        [("j % 16 >= 12 and level[b, i] <= level[b, j] and keep[b, j // 16]", KEY_RUNS)],
        [("grid_near(8, 2) and doc[b, i] == doc[b, j]", in_grid("grid_near(8, 2)", (8, 0, 4), (1, 8, 4))[1])],
    ],
)
def test_inputs_and_heads_in_masks(parts):
    statements = "input doc: int[B, M] sorted; input size: int[B]; input keep: bool[B, (M + 15) // 16]"
    statements += "; input level: int[B, M]"
    used = [line for line in statements.split("; ") if re.search(rf"\b{line.split()[1][:-1]}\[", str(parts))]
    plan = split_plan(parts, "; ".join(used))
    query, key, value = tensors(2, 4, 2, 90, 100, 16)
    check_kernel(plan, query, key, value, sample_inputs(plan.attention, query, key))


@pytest.mark.parametrize("name", SOME)
def test_half_precision_grouped_heads_strides(name):
    plan = named_plan(name)[0]
    query, key, value = tensors(2, 4, 2, 70, 80, 24, 40, dtype=torch.float16)
    query = query.transpose(1, 2).contiguous().transpose(1, 2)
    key = torch.cat([key, key], 3)[..., ::2] if name == "fixed" else torch.cat([key, key], 3)[..., :24]
    value = value.flip(2).flip(2).transpose(2, 3).contiguous().transpose(2, 3)
    check_kernel(plan, query, key, value)


def test_several_kernels_round_once():
    """A result in half precision is as exact as that of one kernel."""
    parts = PLANS["all three"]
    plan = split_plan(parts)
    query, key, value = tensors(1, 1, 1, 130, 130, 16, dtype=torch.float16)
    plain = with_passes(plan, [(plan.attention.mask, PLAIN)])
    exact, _ = run_kernel(load_kernel(plain), plain, *(one.float() for one in (query, key, value)))
    errors = []
    for one in (plan, plain):
        out, _ = run_kernel(load_kernel(one), one, query, key, value)
        errors.append((out.float() - exact).abs().mean().item())
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.parametrize(
    ("name", "statements"),
    [(name, "") for name in SOME] + [("all three", "normalize none"), ("rows", "normalize rows")],
)
def test_masked_values_that_are_not_finite(name, statements):
    plan = named_plan(name, statements)[0]
    query, key, value = tensors(1, 1, 1, 70, 70, 16)
    value[:, :, 5, 3] = float("nan")
    value[:, :, 17, 4] = float("inf")
    value[:, :, 40:50, 5] = float("-inf")
    check_kernel(plan, query, key, value)


def test_infinite_value_of_an_earlier_kernel_is_kept():
    plan = split_plan(PLANS["rows and window"])
    query, key, value = tensors(1, 1, 1, 70, 70, 16)
    value[:, :, 60, 3] = float("inf")
    key[:, :, 60] = -40.0 * query[:, :, 3]
    value[:, :, 50, 3] = float("nan")
    whole = split_plan([("j % 2 == 0 and i % 16 == 3", QUERY_RUNS), ("j % 2 == 1 and j < 50", PLAIN)])
    for one in (plan, whole):
        check_kernel(one, query, key, value)


def test_without_log_sum_exp():
    for name in ("strided", "rows", "fixed"):
        plan, module = named_plan(name)
        query, key, value = tensors(1, 1, 1, 70, 70, 16)
        out, lse = run_kernel(module, plan, query, key, value, lse=False)
        assert lse is None
        torch.testing.assert_close(out, run_kernel(module, plan, query, key, value)[0], equal_nan=True)


@pytest.mark.parametrize("tiles", [Tiles(16, 16, 4, 1), Tiles(32, 128, 4, 1), Tiles(128, 32, 4, 1)], ids=str)
@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_tile_shapes(name, tiles):
    with assume_target("sm_90", tiles):
        run(name, queries=110, keys=120, heads=1)


def test_large_positions_do_not_leave_32_bits():
    """Numbers past the last key of a class stand for key M, however long the period is."""
    parts = [("(i - j) % 1048576 == 0 and table[j // 4194304] < 9", residue(1048576))]
    plan = split_plan(parts, "input table: int[256]")
    query, key, value = tensors(1, 1, 1, 20, 30, 16)
    check_kernel(plan, query, key, value, sample_inputs(plan.attention, query, key))


def test_passes_with_one_order_of_queries_share_a_kernel():
    assert len(launch_views(named_plan("fixed")[0])[0].kernels) == 1
    assert len(launch_views(split_plan(PLANS["two classes"]))[0].kernels) == 1
    assert [kernel.function for kernel in launch_views(split_plan(PLANS["all three"]))[0].kernels] == [
        "_foo_rows_kernel",
        "_foo_residue_4_kernel",
        "_foo_kernel",
    ]
    text = render_kernel(named_plan("fixed")[0])
    assert "kept_" not in text
    assert text.count("q = load_tile(") == 1


def test_last_kernel_sees_every_row():
    for name in PLANS:
        sweeps = sweeps_of(named_plan(name)[0])
        assert [sweep.is_last for sweep in sweeps] == [False] * (len(sweeps) - 1) + [True]
    assert [sweep.query for sweep in sweeps_of(named_plan("rows")[0])] == [QUERY_RUNS.query, IDENTITY]


def test_full_loops_of_classes_test_nothing():
    text = render_kernel(named_plan("residue")[0])
    loop = text[text.index("# full: all pairs") : text.index("# diagonal: some pairs")]
    unless_dropped = re.sub(r"        if DROPOUT:\n(?: {12,}.*\n)+", "", loop)
    assert "kv_idx" not in unless_dropped
    assert "load_tile(class_keys, kv_lo, key_step, key_count, BLOCK_N, BLOCK_D, HEAD_SIZE, False)" in loop


def test_layouts_that_no_kernel_can_count_are_refused():
    plan = named_plan("residue")[0]
    for layout in (residue(2**30), Layout(IDENTITY, residue(4).key), Layout(residue(4, 1).key, IDENTITY)):
        passes = (replace(plan.passes[0], layout=layout),)
        with pytest.raises(InternalError):
            launch_views(replace(plan, passes=passes))


def names_in(function, context):
    return {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


@pytest.mark.parametrize("name", [name for name in PLANS if name != "nothing"])
def test_no_dead_parameters_and_no_dead_values(name):
    tree = ast.parse(render_kernel(named_plan(name)[0]))
    kernels = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")]
    for function in kernels:
        loaded = names_in(function, ast.Load)
        assert not {argument.arg for argument in function.args.args} - loaded, function.name
        assert not names_in(function, ast.Store) - loaded, function.name


@pytest.mark.skipif(
    shutil.which("ruff") is None and not Path(sys.executable).with_name("ruff").exists(), reason="no ruff"
)
def test_text_is_formatted(tmp_path):
    ruff = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
    for number, name in enumerate(PLANS):
        (tmp_path / f"kernel_{number}.py").write_text(render_kernel(named_plan(name)[0]))
    command = [ruff, "format", "--isolated", "--line-length", "120", "--diff", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def congruent(period, ahead):
    apart = Binary(BinaryOp.SUB, Index(IndexName.KEY), Index(IndexName.QUERY), Type.INT)
    return within(apart, period, ahead, 1)


def within(index, period, first, length):
    over = Binary(BinaryOp.MOD, index, Const(period, Type.INT), Type.INT)
    bounds = (BinaryOp.GE, first), (BinaryOp.LT, first + length)
    return And(tuple(Binary(op, over, Const(bound, Type.INT), Type.BOOL) for op, bound in bounds))


@st.composite
def layouts(draw):
    """Return a layout and the condition that all of its pairs meet."""
    period = draw(st.integers(2, 9))
    if draw(st.booleans()):
        ahead = draw(st.integers(0, period - 1))
        return residue(period, ahead), congruent(period, ahead)
    maps, conditions = [], []
    for index in (Index(IndexName.QUERY), Index(IndexName.KEY)):
        length = draw(st.integers(1, period - 1))
        first = draw(st.integers(0, period - length))
        chosen = draw(st.booleans())
        maps.append(runs(period, first, length) if chosen else IDENTITY)
        conditions.extend([within(index, period, first, length)] if chosen else [])
    return Layout(*maps), And(tuple(conditions)) if conditions else TRUE


@settings(max_examples=25)
@given(expressions.attentions(), st.lists(layouts(), min_size=1, max_size=3), st.integers(0, 1000))
def test_random_attentions_in_random_layouts(attention, chosen, seed):
    """Parts that lie in a layout are computed there, each pair by the first that holds it, the rest in plain order."""
    attention = mark_reads(simplify_attention(attention)[0])[0]
    score, score_log2, dropped, _ = derive_scoring(attention)
    plan = Plan(attention, Scoring(score, score_log2, dropped), (), prove_facts(attention))
    parts, rest = [], attention.mask
    for layout, condition in chosen:
        parts.append((And((rest, condition)), layout))
        rest = And((rest, Unary(UnaryOp.NOT, condition, Type.BOOL)))
    plan = with_passes(plan, [*parts, (rest, PLAIN)])
    query, key, value = tensors(2, 2, 1, 13, 21, 8, seed=seed)
    tables = {name: torch.tensor(table) for name, table in expressions.tables_for(2, 2, 21, seed).items()}
    check_kernel(plan, query, key, value, tables)
