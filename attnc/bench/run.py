"""Measuring one attention against its peers: check first, then time, then put each time beside the floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import torch

from attnc.algebra.counting import count_pairs as count_pairs_by_sets
from attnc.bench.cases import Data, Shape, make_data, make_tensors, on_shortened
from attnc.bench.checking import (
    SMALL_BATCH,
    SMALL_LENGTH,
    TrueGradients,
    Truth,
    Verdict,
    check_gradients,
    check_output,
    true_gradients,
    true_rows,
)
from attnc.bench.contender import Case, Contender, Make, Unavailable, first_line
from attnc.bench.measure import Timing, measure, peak_memory
from attnc.bench.names import USUAL_PEERS, Mode
from attnc.bench.peers import contenders
from attnc.bench.sdpa import dense_contender
from attnc.bench.work import least_bytes, useful_flops
from attnc.blockwise import count_pairs
from attnc.ir.program import Attention
from attnc.plan.kernel_plan import Plan


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    Attributes:
        seconds: time to spend on each contender's samples.
        peers: of `names.PEERS`.
        mode: what is timed.
        least: samples of each contender, at least.
        memory: whether memory is measured as well.
    """

    device: torch.device
    dtype: torch.dtype
    peers: tuple[str, ...] = USUAL_PEERS
    mode: Mode = Mode.FORWARD
    seconds: float = 2.0
    least: int = 5
    memory: bool = True

    @property
    def backward(self) -> bool:
        """Whether gradients are computed."""
        return self.mode is not Mode.FORWARD


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
        flops: operations on those, in all heads and batch entries.
        bytes: what is read and written if every tensor is once.
        dense_seconds: time of SDPA on all pairs without a mask.
        floor_seconds: `density * dense_seconds`: what the arithmetic of the allowed pairs alone would take.
    """

    attention: str
    shape: Shape
    pairs: float
    density: float
    flops: float
    bytes: int
    dense_seconds: float
    floor_seconds: float
    mode: Mode
    results: tuple[Result, ...]

    @classmethod
    def from_json(cls, made: Mapping[str, Any]) -> Comparison:
        """Read what `dataclasses.asdict` made.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        values = {one.name: made[one.name] for one in fields(cls)}
        results = [
            Result(**{**result, "timing": Timing(**result["timing"]) if result.get("timing") else None})
            for result in made["results"]
        ]
        return cls(**{**values, "shape": Shape(**made["shape"]), "mode": Mode(made["mode"]), "results": tuple(results)})


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
    attention = plan.operation
    case = make_case(attention, shape, settings)
    progress("counting pairs")
    pairs = _count(case)
    progress("computing the reference")
    gate = _gate(case, settings)
    accepted: dict[str, tuple[Contender, Verdict]] = {}
    refused: list[Result] = []
    for name, make in contenders(plan, module, settings.peers):
        progress(f"checking {name}")
        try:
            contender = make(case)
            verdict = _check(make, contender, case, gate)
        except Unavailable as reason:
            refused.append(Result(name, problem=str(reason)))
            continue
        if verdict.right:
            accepted[contender.name] = (contender, verdict)
        else:
            refused.append(_wrong(contender, verdict))
    dense = dense_contender(case)
    with torch.set_grad_enabled(settings.backward):
        work = {name: _work(contender, case, settings.mode) for name, (contender, _) in accepted.items()}
        for name, problem in _impostors({name: accepted[name][0] for name in work}, work).items():
            contender, verdict = accepted.pop(name)
            refused.append(replace(_wrong(contender, verdict), problem=problem))
            del work[name]
        progress("measuring")
        every = {**work, dense.name: _work(dense, case, settings.mode)}
        around = {name: contender.around for name, (contender, _) in accepted.items()}
        timings = measure(every, settings.device, seconds=settings.seconds, least=settings.least, around=around)
        memory = {name: peak_memory(one, settings.device) if settings.memory else None for name, one in work.items()}
    density = pairs / (shape.queries * shape.keys)
    flops = useful_flops(shape, pairs, settings.mode)
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
        least_bytes(case, settings.mode),
        timings[dense.name].median,
        floor,
        settings.mode,
        (*results, *refused),
    )


def _count(case: Case) -> float:
    """Count the allowed pairs of one head: by sets where they can, which long sequences need."""
    attention, shape = on_shortened(case.attention, case.shape)
    counted = count_pairs_by_sets(
        attention, shape.queries, shape.keys, shape.heads, group=shape.group, head_size=shape.head_size
    )
    return float(count_pairs(attention, shape.sizes(), case.data, device=case.device) if counted is None else counted)


def make_case(attention: Attention, shape: Shape, settings: Settings) -> Case:
    """Make the tensors and typical data of one case; the same every time."""
    query, key, value = make_tensors(shape, seed=0, dtype=settings.dtype, device=settings.device)
    data: Data = make_data(attention, shape, seed=0, dtype=settings.dtype, device=settings.device)
    return Case(attention, shape, query, key, value, data, settings.backward)


@dataclass(frozen=True, slots=True)
class _Gate:
    """What contenders must pass.

    Attributes:
        truth: rows of the output.
        small: a shorter case, where the reference's gradients fit into memory; None where none are needed.
        gradients: of that.
    """

    truth: Truth
    small: Case | None = None
    gradients: TrueGradients | None = None


def _gate(case: Case, settings: Settings) -> _Gate:
    truth = true_rows(case)
    if not settings.backward:
        return _Gate(truth)
    shape = case.shape
    small = replace(
        shape,
        batch=min(shape.batch, SMALL_BATCH),
        queries=min(shape.queries, SMALL_LENGTH),
        keys=min(shape.keys, SMALL_LENGTH),
    )
    small_case = make_case(case.attention, small, settings)
    return _Gate(truth, small_case, true_gradients(small_case))


def _check(make: Make, contender: Contender, case: Case, gate: _Gate) -> Verdict:
    """Compare the output, and gradients where they are needed."""
    try:
        verdict = check_output(contender, case, gate.truth)
        if not verdict.right or gate.small is None or gate.gradients is None:
            return verdict
        gradient = check_gradients(make(gate.small), gate.small, gate.gradients)
        return verdict if gradient.right else gradient
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"it fails: {first_line(error)}") from error


def _work(contender: Contender, case: Case, mode: Mode) -> Callable[[], object]:
    given = tuple(contender.arranged(tensor) for tensor in (case.query, case.key, case.value))
    if mode is Mode.FORWARD:
        return lambda: contender.run(*given)
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in given)
    with contender.around():
        out = contender.run(*leaves)
    upstream = torch.randn_like(out)
    if mode is Mode.BACKWARD:
        return lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    return lambda: torch.autograd.grad(contender.run(*leaves), leaves, upstream)


def _impostors(entered: Mapping[str, Contender], work: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    """Return who would not be measured as what it is called, and why."""
    said = {}
    for name, contender in entered.items():
        with contender.around():
            said[name] = contender.audit(work[name])
    return {name: problem for name, problem in said.items() if problem}


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
