"""The order of a verification: which property on which cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from attnc.compiler import Compiled, import_compiled, plan_source
from attnc.diagnostics import CompileError
from attnc.ir.show import show
from attnc.plan.kernel_plan import Plan
from attnc.plan.lengths import MOST_SHORT
from attnc.verify.kernels import KernelsUnavailable, KernelWorker
from attnc.verify.layers import LAYER_TOPICS, verify_layer
from attnc.verify.outcome import Mismatch, Outcome
from attnc.verify.programs import check_companions, check_gradients, check_outputs, check_scale
from attnc.verify.sets import check_counts, check_facts, check_tiles
from attnc.verify.trials import Trial, small_parameters, trials

Check = Callable[[Trial], float | None]
Advance = Callable[[], None]

TOPICS = 9
"""Outcomes of one attention at one set of parameters."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One attention at one set of parameters, compiled.

    Attributes:
        number: which of the plan's variants for some lengths it is.
        lengths: which calls that one is for; empty where the plan has no other.
    """

    compiled: Compiled
    plan: Plan
    module: ModuleType
    params: Mapping[str, Any]
    number: int = 0
    lengths: str = ""

    @property
    def label(self) -> str:
        """The values of its parameters, and which variant it is."""
        values = [f"{name} = {show(value)}" for name, value in self.plan.attention.params]
        return ", ".join([*values, *([f"plan {self.lengths}"] if self.lengths else [])])


def variants(compiled: Compiled, params: Mapping[str, Any]) -> Iterator[Variant]:
    """Yield each attention as it was compiled, and then with small parameters, where that makes a difference.

    Where a plan has variants for short and for long calls, each is verified at every size: the first one in the whole
    module, which chooses it for small sizes, the others in modules without a choice.
    """
    module = import_compiled(compiled)
    for plan in compiled.plans:
        yield from _by_length(compiled, plan, module, params)
        small = small_parameters(plan.attention, frozenset(params))
        if not small:
            continue
        try:
            again = plan_source(compiled.source, {**params, **small})
        except CompileError:
            continue  # other values than the author's may contradict each other, or what is asserted
        name = plan.attention.name
        chosen = next((other for other in again.plans if other.attention.name == name), None)
        if chosen is None:
            continue  # a layer's attention has become one of the file's own
        yield from _by_length(again, chosen, import_compiled(again), {**params, **small})


def _by_length(compiled: Compiled, plan: Plan, module: ModuleType, params: Mapping[str, Any]) -> Iterator[Variant]:
    for number, (words, one) in enumerate(zip(plan.ranges, plan.variants, strict=True)):
        own = import_compiled(replace(compiled, plans=(one,))) if number else module
        yield Variant(compiled, one, own, params, number, words)


def steps(compiled: Compiled) -> int:
    """Return an upper bound of how often `verify_compiled` calls `advance`."""
    return 2 * TOPICS * (1 + MOST_SHORT) * len(compiled.plans) + LAYER_TOPICS * len(compiled.layers)


def verify_compiled(
    compiled: Compiled,
    params: Mapping[str, Any],
    worker: KernelWorker,
    advance: Advance = lambda: None,
) -> list[Outcome]:
    """Verify every attention and every layer of a pattern.

    Args:
        compiled: the pattern.
        params: values of parameters that the user chose; these stay as they are.
        worker: runs kernels in the interpreter.
        advance: called after every property.
    """
    outcomes = []
    for variant in variants(compiled, params):
        for outcome in _verify_variant(variant, worker):
            outcomes.append(outcome)
            advance()
    module = import_compiled(compiled) if compiled.layers else None
    for layer in compiled.layers:
        assert module is not None
        for outcome in verify_layer(layer, module):
            outcomes.append(outcome)
            advance()
    return outcomes


def _verify_variant(variant: Variant, worker: KernelWorker) -> Iterator[Outcome]:
    plan, module = variant.plan, variant.module
    every = trials(plan)
    half = [replace(trial, dtype=torch.bfloat16, seed=trial.seed + 50) for trial in every[2:6]]
    half += [replace(trial, dtype=torch.float16, seed=trial.seed + 60) for trial in every[2:5]]
    double = [replace(trial, dtype=torch.float64, seed=trial.seed + 70) for trial in every[2:5]]
    checks: tuple[tuple[str, Check, list[Trial]], ...] = (
        ("facts", lambda trial: check_facts(plan, trial), every),
        ("pairs", lambda trial: check_counts(plan, trial), every),
        ("tiles", lambda trial: check_tiles(plan, trial), every),
        ("output", lambda trial: check_outputs(module, plan, trial), every),
        ("half and double precision", lambda trial: check_outputs(module, plan, trial), half + double),
        ("scale", lambda trial: check_scale(module, plan, trial), every[2:5]),
        ("mask and weights", lambda trial: check_companions(module, plan, trial), every[1:6]),
        ("gradients", lambda trial: check_gradients(module, plan, trial), every),
    )
    for topic, check, cases in checks:
        yield try_all(variant, topic, check, cases)
    yield _try_kernels(variant, every, worker)


def try_all(variant: Variant, topic: str, check: Check, cases: list[Trial]) -> Outcome:
    """Try one property on cases until one fails."""
    outcome = Outcome(variant.plan.attention.name, variant.label, topic)
    worst: float | None = None
    for number, trial in enumerate(cases, start=1):
        try:
            ratio = check(trial)
        except Mismatch as mismatch:
            return replace(outcome, cases=number, worst=worst, problem=f"{mismatch} ({trial})")
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            return replace(outcome, cases=number, problem=f"{type(error).__name__}: {first} ({trial})")
        if ratio is not None:
            worst = ratio if worst is None else max(worst, ratio)
    return replace(outcome, cases=len(cases), worst=worst)


def _try_kernels(variant: Variant, every: list[Trial], worker: KernelWorker) -> Outcome:
    half = [replace(trial, dtype=torch.float16, seed=trial.seed + 80) for trial in every[3:5]]
    try:
        name = variant.plan.attention.name
        return worker.run(variant.compiled, variant.params, name, variant.label, every + half, number=variant.number)
    except KernelsUnavailable as reason:
        return Outcome(variant.plan.attention.name, variant.label, "kernels", note=str(reason))
