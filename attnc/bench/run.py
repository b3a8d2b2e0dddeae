"""Measuring one attention against its peers: check first, then time, then put each time beside the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import torch

from attnc.algebra.counting import count_pairs as count_pairs_by_sets
from attnc.bench.cases import Data, Shape, make_data, make_tensors
from attnc.bench.checking import SMALL_LENGTH, Truth, Verdict, check_gradients, check_output, true_rows
from attnc.bench.contender import Case, Contender, Unavailable, first_line
from attnc.bench.measure import Timing, measure, peak_memory
from attnc.bench.sdpa import dense_contender, sdpa_contender
from attnc.blockwise import count_pairs
from attnc.ir.program import Attention
from attnc.plan.kernel_plan import Plan

BACKWARD_WORK = 3.5
"""Work of forward and backward together, in forwards: the backward pass has five products where the forward has two."""

PEERS = ("sdpa", "flex")
"""What attnc is compared with."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    Attributes:
        seconds: time to spend on each contender's samples.
        peers: of `PEERS`.
        backward: time forward and backward together.
        least: samples of each contender, at least.
        memory: whether memory is measured as well.
    """

    device: torch.device
    dtype: torch.dtype
    peers: tuple[str, ...] = PEERS
    backward: bool = False
    seconds: float = 2.0
    least: int = 5
    memory: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one contender.

    Attributes:
        timing: None where there is no time, and then `problem` says why.
        build_seconds: preparation of masks for this length, not part of the time.
        memory: bytes that the call needs beyond its arguments, masks built beforehand included; None where the system
            does not tell.
        error, allowed_error: greatest absolute error against float64, and what it might have been.
        flops_per_second: useful ones: those of the allowed pairs alone.
        times_floor: the time divided by the floor.
    """

    name: str
    timing: Timing | None = None
    build_seconds: float | None = None
    memory: int | None = None
    error: float | None = None
    allowed_error: float | None = None
    checked_rows: int = 0
    flops_per_second: float | None = None
    times_floor: float | None = None
    problem: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All contenders on one attention at one length.

    Attributes:
        pairs: allowed pairs of one head, the mean over batch and heads.
        dense_seconds: time of SDPA on all pairs without a mask.
        floor_seconds: `density * dense_seconds`: what the arithmetic of the allowed pairs alone would take.
    """

    attention: str
    shape: Shape
    pairs: float
    density: float
    flops: float
    dense_seconds: float
    floor_seconds: float
    backward: bool
    results: tuple[Result, ...]


def compare(
    plan: Plan,
    module: ModuleType,
    shape: Shape,
    settings: Settings,
    progress: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Check and measure one attention at one shape.

    Args:
        plan: of the attention.
        module: generated from it.
        shape: the sizes.
        settings: how to measure.
        progress: called with a word on what comes next.
    """
    attention = plan.attention
    case = make_case(attention, shape, settings)
    progress("counting pairs")
    pairs = _count(case)
    progress("computing the reference")
    truth = true_rows(case)
    accepted: dict[str, tuple[Contender, Verdict]] = {}
    refused: list[Result] = []
    for name, make in _makers(plan, module, settings):
        progress(f"checking {name}")
        try:
            contender = make(case)
            verdict = _check(make, contender, case, truth, settings)
        except Unavailable as reason:
            refused.append(Result(name, problem=str(reason)))
            continue
        if verdict.right:
            accepted[contender.name] = (contender, verdict)
        else:
            refused.append(_wrong(contender, verdict))
    dense = dense_contender(case)
    work = {name: _work(contender, case) for name, (contender, _) in accepted.items()}
    progress("measuring")
    with torch.set_grad_enabled(settings.backward):
        every = {**work, dense.name: _work(dense, case)}
        timings = measure(every, settings.device, seconds=settings.seconds, least=settings.least)
        memory = {name: peak_memory(one, settings.device) if settings.memory else None for name, one in work.items()}
    density = pairs / (shape.queries * shape.keys)
    flops = useful_flops(shape, pairs) * (BACKWARD_WORK if settings.backward else 1.0)
    floor = density * timings[dense.name].median
    results = tuple(
        _result(contender, verdict, timings[name], memory[name], flops, floor)
        for name, (contender, verdict) in accepted.items()
    )
    return Comparison(
        attention.name,
        shape,
        pairs,
        density,
        flops,
        timings[dense.name].median,
        floor,
        settings.backward,
        (*results, *refused),
    )


def _count(case: Case) -> float:
    """Count the allowed pairs of one head: by sets where they can, which long sequences need."""
    shape = case.shape
    counted = count_pairs_by_sets(
        case.attention, shape.queries, shape.keys, shape.heads, group=shape.group, head_size=shape.head_size
    )
    return float(
        count_pairs(case.attention, shape.sizes(), case.data, device=case.device) if counted is None else counted
    )


def make_case(attention: Attention, shape: Shape, settings: Settings) -> Case:
    """Make the tensors and typical data of one case; the same every time."""
    query, key, value = make_tensors(shape, seed=0, dtype=settings.dtype, device=settings.device)
    data: Data = make_data(attention, shape, seed=0, dtype=settings.dtype, device=settings.device)
    return Case(attention, shape, query, key, value, data, settings.backward)


def useful_flops(shape: Shape, pairs: float) -> float:
    """Return the floating-point operations of a forward pass over the allowed pairs: two products."""
    return 2.0 * pairs * (shape.head_size + shape.value_size) * shape.heads * shape.batch


Make = Callable[[Case], Contender]


def _makers(plan: Plan, module: ModuleType, settings: Settings) -> Iterator[tuple[str, Make]]:
    def ours(case: Case) -> Contender:
        function = getattr(module, case.attention.name)
        return Contender("attnc", lambda query, key, value: function(query, key, value, **case.data))

    yield "attnc", ours
    if "sdpa" in settings.peers:
        facts = plan.facts
        yield "sdpa", lambda case: sdpa_contender(case, causal=facts.exactly_causal, full=facts.everything)
    if "flex" in settings.peers:
        from attnc.bench.flex_contender import flex_contender

        for size in (128, 64):
            yield f"flex {size}", lambda case, size=size: flex_contender(case, size)  # type: ignore[misc]


def _check(make: Make, contender: Contender, case: Case, truth: Truth, settings: Settings) -> Verdict:
    """Check the output at the full length, and gradients at a small one, where the reference fits into memory."""
    try:
        verdict = check_output(contender, case, truth)
        if not verdict.right or not settings.backward:
            return verdict
        shape = case.shape
        small = replace(shape, queries=min(shape.queries, SMALL_LENGTH), keys=min(shape.keys, SMALL_LENGTH))
        small_case = make_case(case.attention, small, settings)
        gradient = check_gradients(make(small_case), small_case)
        return verdict if gradient.right else gradient
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"it fails: {first_line(error)}") from error


def _work(contender: Contender, case: Case) -> Callable[[], object]:
    if not case.backward:
        return lambda: contender.run(case.query, case.key, case.value)
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in (case.query, case.key, case.value))
    upstream = torch.randn_like(contender.run(*leaves))

    def run() -> object:
        return torch.autograd.grad(contender.run(*leaves), leaves, upstream)

    return run


def _wrong(contender: Contender, verdict: Verdict) -> Result:
    return Result(
        contender.name,
        build_seconds=contender.build_seconds,
        error=verdict.error,
        allowed_error=verdict.allowed,
        checked_rows=verdict.rows,
        problem=f"wrong {verdict.what}: error {verdict.error:.1e}, allowed {verdict.allowed:.1e}",
    )


def _result(
    contender: Contender, verdict: Verdict, timing: Timing, memory: int | None, flops: float, floor: float
) -> Result:
    return Result(
        contender.name,
        timing,
        contender.build_seconds,
        None if memory is None else memory + contender.held,
        verdict.error,
        verdict.allowed,
        verdict.rows,
        flops / timing.median,
        timing.median / floor if floor else None,
        note=contender.note,
    )
