"""Modules whose plan depends on the length: results around the limit, on the CPU and by the kernels."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from patterns import attention_of, module_of_plans, outputs_and_gradients, plans_of, tensors
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from attnc.codegen.render import render_module
from attnc.reference.dense import reference
from attnc.runtime.aot import find_program
from attnc.source import SourceFile

STRIDED = "attention strided { mask causal and (i - j < 16 or (i - j) % 16 == 0) }"
LIMIT = 40
AROUND = [(39, 39), (40, 40), (41, 41), (40, 41), (41, 40), (1, 41), (41, 1), (1, 1), (100, 100)]


@cache
def plan_with_limit(limit=LIMIT):
    """Return the plan of a pattern that has two variants, with another limit than it would have."""
    (plan,) = plans_of(STRIDED)
    return replace(plan, short=(replace(plan.short[0], limit=limit),))


@cache
def module(limit=LIMIT):
    return module_of_plans((plan_with_limit(limit),), STRIDED)


def layouts(program):
    return [one.query.is_residue for one in program.passes]


def test_both_variants_are_there():
    plan = plan_with_limit()
    assert [[str(one.layout) for one in variant.passes] for variant in plan.variants] == [
        ["identity"],
        ["identity", "residue(16)"],
    ]


@pytest.mark.parametrize(("queries", "keys"), AROUND)
def test_the_longer_of_queries_and_keys_decides(queries, keys):
    program = find_program(module())
    chosen = program.at(queries, keys)
    assert layouts(chosen) == ([False] if max(queries, keys) <= LIMIT else [False, True])
    short = max(queries, keys) <= LIMIT
    assert chosen.launch is getattr(module(), "_strided_up_to_40_launch" if short else "_strided_launch")
    assert chosen.short == ()


@pytest.mark.parametrize(("queries", "keys"), AROUND)
def test_results_around_the_limit(queries, keys):
    query, key, value = leaves = tensors(N=queries, M=keys)
    ours = outputs_and_gradients(lambda: module().strided(query, key, value, return_lse=True), leaves, True)
    attention = attention_of(STRIDED)
    theirs = outputs_and_gradients(
        lambda: reference(attention, query, key, value, {}, return_lse=True, dtype=torch.float64), leaves, True
    )
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("limit", [1, LIMIT, 1000])
def test_variants_agree_with_each_other(limit):
    query, key, value = tensors(N=LIMIT, M=LIMIT, grad=False)
    mine = module(limit).strided(query, key, value)
    torch.testing.assert_close(mine, module().strided(query, key, value), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("queries", "keys"), AROUND[:5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernels_around_the_limit(queries, keys, dtype, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    query, key, value = tensors(N=queries, M=keys, dtype=dtype, grad=False)
    out, lse = module().strided(query, key, value, return_lse=True)
    attention = attention_of(STRIDED)
    exact, exact_lse = reference(attention, query, key, value, {}, return_lse=True, dtype=torch.float64)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=tolerance, atol=tolerance)


def test_one_graph_serves_every_length():
    torch._dynamo.reset()
    compiled = torch.compile(module().strided, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (30, 39, 40, 41, 70):
        query, key, value = tensors(N=length, M=length, grad=False)
        torch.testing.assert_close(compiled(query, key, value), module().strided(query, key, value))


@pytest.mark.parametrize(("length", "residue"), [(30, [False]), (70, [False, True])])
def test_a_traced_length_becomes_a_guard_on_a_side_of_the_limit(length, residue):
    shapes = ShapeEnv()
    source = ConstantSource(f"length_{length}")
    symbol = shapes.create_symbol(length, source, dynamic_dim=DimDynamic.DYNAMIC)
    traced = shapes.create_symintnode(symbol, hint=length, source=source)
    assert layouts(find_program(module()).at(traced, traced)) == residue
    guards = [str(guard.expr) for guard in shapes.guards]
    assert any(str(LIMIT) in guard for guard in guards), guards


def test_the_text_of_a_module_is_always_the_same():
    source = SourceFile("test.attn", STRIDED)
    texts = {render_module(plans_of.__wrapped__(STRIDED), source=source) for _ in range(2)}
    assert len(texts) == 1
    (text,) = texts
    limit = plans_of(STRIDED)[0].limits[0]
    assert text.count(f"limit={limit}") == 1
    for kernel in ("_strided_kernel", "_strided_residue_16_kernel", f"_strided_up_to_{limit}_kernel"):
        assert text.count(f"def {kernel}(") == 1


def test_kernels_that_variants_share_are_written_once():
    plan = plan_with_limit()
    both = replace(plan, passes=(*plan.short[0].passes,), short=(replace(plan.short[0], limit=10),))
    text = render_module((both,), source=SourceFile("test.attn", STRIDED))
    assert text.count("@triton.jit") == 3  # and two for gradients
    assert text.count("def _strided_kernel(") == 1
    assert text.count("launchable(_strided_kernel, step)") == 2
    made = module_of_plans((both,), STRIDED)
    query, key, value = tensors(N=12, M=12, grad=False)
    torch.testing.assert_close(made.strided(query, key, value), module().strided(query, key, value))


def test_standalone_modules_have_both_variants():
    made = module_of_plans((plan_with_limit(),), STRIDED, standalone=True)
    for length in (LIMIT, LIMIT + 1):
        query, key, value = tensors(N=length, M=length, grad=False)
        torch.testing.assert_close(made.strided(query, key, value), module().strided(query, key, value))
