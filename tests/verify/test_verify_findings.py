"""A verification finds what is wrong: each property is shown a plan or a module that breaks it."""

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from attnc.algebra.facts import Facts
from attnc.compiler import import_compiled, plan_source
from attnc.ir.nodes import FALSE, TRUE
from attnc.source import SourceFile
from attnc.verify import sets
from attnc.verify.kernels import KernelWorker
from attnc.verify.outcome import Mismatch
from attnc.verify.programs import check_companions, check_gradients, check_outputs, check_scale
from attnc.verify.run import try_all, variants
from attnc.verify.trials import SHAPES, Trial, small_parameters, trials

WINDOW = "attention a(width: int = 1000, near: int = 9) { mask causal and (i - j < width or j < near) }"
LEARNED = "attention a { learned bias: float[H, 5] = 0.1\n mask causal\n score s + bias[h, clamp(i - j, 0, 4)] }"


def compiled_of(text, **params):
    return plan_source(SourceFile("p.attn", text), params)


def plan_of(text, **params):
    return compiled_of(text, **params).plans[0]


def with_intervals(plan, change):
    (one,) = plan.passes
    tiles = replace(one.tiles, intervals=tuple(change(list(one.tiles.intervals))))
    return replace(plan, passes=(replace(one, tiles=tiles),))


def every(check, plan):
    for trial in trials(plan):
        check(plan, trial)


def test_right_tiles_pass_and_wrong_ones_do_not():
    plan = plan_of(WINDOW, width=16)
    every(sets.check_tiles, plan)
    with pytest.raises(Mismatch, match="left out"):
        every(sets.check_tiles, with_intervals(plan, lambda intervals: intervals[1:]))
    with pytest.raises(Mismatch, match="allowed"):
        every(
            sets.check_tiles,
            with_intervals(plan, lambda intervals: [replace(intervals[0], residual=TRUE), *intervals[1:]]),
        )
    with pytest.raises(Mismatch, match="left out"):
        every(
            sets.check_tiles,
            with_intervals(plan, lambda intervals: [replace(one, tile_test=FALSE) for one in intervals]),
        )


def test_false_facts_are_found():
    plan = plan_of(WINDOW, width=16)
    every(sets.check_facts, plan)
    for name in ("symmetric", "everything", "exactly_causal", "contiguous"):
        with pytest.raises(Mismatch, match="was proven"):
            every(sets.check_facts, replace(plan, facts=replace(plan.facts, **{name: True})))
    for name, text in (("causal", "attention a { mask i - j < 3 }"), ("nonempty", "attention a { mask j < i }")):
        with pytest.raises(Mismatch, match=f"`{name}`"):
            every(sets.check_facts, replace(plan_of(text), facts=Facts(**{name: True})))


def test_wrong_counts_are_found(monkeypatch):
    plan = plan_of(WINDOW, width=16)
    every(sets.check_counts, plan)
    monkeypatch.setattr(sets, "count_pairs", lambda *args, **options: Fraction(1, 2))
    with pytest.raises(Mismatch, match="were counted"):
        every(sets.check_counts, plan)


def programs(text, **changes):
    compiled = compiled_of(text)
    plan, module = compiled.plans[0], import_compiled(compiled)
    return plan, SimpleNamespace(**{**{name: getattr(module, name) for name in dir(module)}, **changes})


def test_right_programs_pass():
    plan, module = programs(LEARNED)
    trial = Trial(SHAPES[3], 5)
    assert check_outputs(module, plan, trial) <= 1
    assert check_scale(module, plan, trial) <= 1
    assert check_gradients(module, plan, trial) <= 1
    check_companions(module, plan, trial)


def test_wrong_programs_are_found():
    plan, module = programs(LEARNED)
    trial = Trial(SHAPES[3], 5)

    def slightly_off(*tensors, **inputs):
        out, lse = module.a(*tensors, **{**inputs, "return_lse": True})
        return (out, lse + 1e-3) if inputs.get("return_lse") else out

    with pytest.raises(Mismatch, match="log-sum-exp: error"):
        check_outputs(SimpleNamespace(a=slightly_off), plan, trial)
    nan = SimpleNamespace(a=lambda *tensors, **inputs: tuple(one * torch.nan for one in module.a(*tensors, **inputs)))
    with pytest.raises(Mismatch, match="nan in place of"):
        check_outputs(nan, plan, trial)

    def detached(query, key, value, *, bias, **options):
        return module.a(query, key, value, bias=bias.detach(), **options)

    with pytest.raises(Mismatch, match="gradient of bias"):
        check_gradients(SimpleNamespace(a=detached), plan, trial)
    with pytest.raises(Mismatch, match="scale"):
        check_scale(SimpleNamespace(a=lambda *tensors, scale, **inputs: module.a(*tensors, **inputs)), plan, trial)
    with pytest.raises(Mismatch, match="mask"):
        check_companions(
            SimpleNamespace(**{**vars(module), "a_mask": lambda *a, **o: ~module.a_mask(*a, **o)}), plan, trial
        )


def test_a_crash_is_an_outcome():
    plan = plan_of(LEARNED)
    variant = SimpleNamespace(plan=plan, label="x = 1")

    def crash(trial):
        raise ZeroDivisionError("oh\nno")

    outcome = try_all(variant, "output", crash, trials(plan))
    assert outcome.problem.startswith("ZeroDivisionError: oh (B=1 H=1 N=1 M=1")
    assert outcome.cases == 1


def test_large_parameters_are_made_small_unless_chosen():
    compiled = compiled_of(WINDOW)
    assert small_parameters(compiled.plans[0].attention, frozenset()) == {"width": 16}
    assert [variant.label for variant in variants(compiled, {})] == ["width = 1000, near = 9", "width = 16, near = 9"]
    chosen = compiled_of(WINDOW, width=500)
    assert [variant.label for variant in variants(chosen, {"width": 500})] == ["width = 500, near = 9"]


def test_trials_meet_every_kind_of_size():
    made = trials(plan_of("attention a { input doc: int[B, M] sorted\n mask same(doc) }"))
    lengths = {(trial.shape.queries, trial.shape.keys) for trial in made}
    assert {1, 63, 64, 65, 100} <= {queries for queries, _ in lengths}
    assert any(queries > keys for queries, keys in lengths)
    assert any(queries < keys for queries, keys in lengths)
    assert {trial.shape.group for trial in made} == {1, 2}
    assert len({trial.seed for trial in made}) == len(made) == 2 * len(SHAPES)


@pytest.mark.slow
def test_kernels_are_run_in_the_interpreter():
    pytest.importorskip("triton")
    compiled = compiled_of(WINDOW)
    with KernelWorker() as worker:
        outcome = worker.run(compiled, {"width": 16}, "a", "width = 16", trials(compiled.plans[0]))
        assert (outcome.problem, outcome.cases) == ("", len(SHAPES))
        assert outcome.worst < 1
        broken = replace(compiled, source=SourceFile("p.attn", "attention a { mask }"))
        assert "ended with code" in worker.run(broken, {}, "a", "", trials(compiled.plans[0])).problem
