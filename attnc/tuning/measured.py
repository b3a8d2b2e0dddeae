"""Tuning on a device: candidates of each kernel are checked, outputs and gradients, and then measured side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType

import torch

from attnc.bench.cases import Shape
from attnc.bench.checking import (
    SMALL_LENGTH,
    TrueGradients,
    Truth,
    check_gradients,
    check_output,
    true_gradients,
    true_rows,
)
from attnc.bench.contender import Case, Contender, first_line
from attnc.bench.measure import Timing, Work, measure
from attnc.bench.run import Settings, make_case
from attnc.plan.kernel_plan import Plan
from attnc.runtime.blocks import compute_dtype
from attnc.runtime.gpu_library import is_library_name, library_label
from attnc.runtime.tiles import BY_HEADS, IN_TURNS, Tiles, padded
from attnc.runtime.tuned import (
    LibraryCall,
    ProjectionForm,
    Slabs,
    Tuned,
    TunedTiles,
    device_name,
    round_length,
    try_tiles,
    versions_of,
    versions_of_library,
    watch_kernels,
)

GAIN = 0.02
"""Share of the default's time that a candidate has to save: less is not told from noise."""

AT_ONCE = 8
"""Candidates that are measured against each other, and against the default, in one round."""

SLABS = tuple(
    Slabs(rows, alone) for rows in (0, 32, 64, 128, 256, 512, 1024) for alone in (None, True, False)
)[1:]  # fmt: skip
"""What the CPU program is tried with, besides what its estimate chooses."""

Shown = Tuned | None
"""A configuration; None is what would be taken anyway."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration of one kernel.

    Attributes:
        timing: None where there is none, and then `problem` says why.
    """

    tiles: Shown
    timing: Timing | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class TunedKernel:
    """What became of one kernel.

    Attributes:
        identity: what tuned tiles know it by.
        backward: whether it is one of the backward pass; times are those of both passes then.
        default: of the configuration that would be taken anyway.
        trials: all others that were tried, the fastest first.
        left_out: candidates that the budget left untried.
    """

    identity: str
    backward: bool
    default: Trial
    trials: tuple[Trial, ...]
    left_out: int

    @property
    def best(self) -> Trial:
        """The fastest; the default where none saves more than `GAIN`."""
        first = self.trials[0] if self.trials else self.default
        if first.timing is None or self.default.timing is None:
            return self.default
        return first if first.timing.median < (1 - GAIN) * self.default.timing.median else self.default


Candidates = Callable[[str, bool], Iterable[Tuned]]
"""Returns what a kernel may be tried with, by its identity and whether it is of the backward pass, the best first."""


def slab_candidates(identity: str, backward: bool) -> tuple[Slabs, ...]:
    """Return those of the CPU program."""
    return SLABS


def library_candidates(identity: str) -> tuple[LibraryCall, ...]:
    """Return what may take the place of kernels, where the identity is that of a library's call."""
    return (LibraryCall(),) if is_library_name(identity) else ()


def tune(
    plan: Plan,
    module: ModuleType,
    shape: Shape,
    settings: Settings,
    candidates: Candidates,
    *,
    budget: float,
    progress: Callable[[str], None] = lambda what: None,
) -> tuple[TunedKernel, ...]:
    """Tune all kernels of one attention for one shape, one after the other.

    Args:
        plan: of the attention.
        module: generated from it.
        shape: the sizes.
        settings: device, type, and whether the backward pass is tuned as well.
        candidates: of a kernel.
        budget: seconds for all of them; every kernel has an equal share of what is left.
        progress: called with a word on what comes next.

    Raises:
        WrongResultError: what would be taken anyway is wrong.
    """
    bench = _Bench.of(plan, module, shape, settings)
    forward, backward = bench.kernels()
    end = time.monotonic() + budget
    found: list[TunedKernel] = []
    # a library is measured against the best that kernels do
    ordered = sorted((*forward, *backward), key=is_library_name)
    for number, identity in enumerate(ordered):
        share = (end - time.monotonic()) / (len(ordered) - number)
        is_backward = identity in backward
        best = {one.identity: one.best.tiles for one in found if one.best.tiles is not None}
        with try_tiles(best if is_library_name(identity) else {}):
            tried = candidates(identity, is_backward)
            found.append(_tune_kernel(bench, identity, is_backward, tried, share, progress))
    return tuple(found)


class WrongResultError(RuntimeError):
    """A configuration computes the wrong thing."""


@dataclass(frozen=True, slots=True)
class _Bench:
    """One attention, ready to be called, checked and measured."""

    case: Case
    small: Case
    truth: Truth
    gradients: TrueGradients | None
    run: Callable[[Case], Contender]
    settings: Settings

    @classmethod
    def of(cls, plan: Plan, module: ModuleType, shape: Shape, settings: Settings) -> _Bench:
        case = make_case(plan.operation, shape, settings)
        few = replace(shape, queries=min(shape.queries, SMALL_LENGTH), keys=min(shape.keys, SMALL_LENGTH))
        function = getattr(module, plan.attention.name)

        def contender(of: Case) -> Contender:
            return Contender("attnc", lambda query, key, value: function(query, key, value, **of.data))

        small = make_case(plan.operation, few, settings)
        gradients = true_gradients(small) if settings.backward else None
        return cls(case, small, true_rows(case), gradients, contender, settings)

    def kernels(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the identities of what a forward pass runs, and of what a backward pass runs besides."""
        with watch_kernels() as asked:
            with torch.no_grad():
                self.run(self.case).run(self.case.query, self.case.key, self.case.value)
            forward = tuple(dict.fromkeys(asked))
            if self.settings.backward:
                self.work(backward=True)()
        return forward, tuple(dict.fromkeys(name for name in asked if name not in forward))

    def work(self, *, backward: bool) -> Work:
        """Return what is measured: a forward pass, or both."""
        case = self.case
        run = self.run(case).run
        if not backward:
            return lambda: run(case.query, case.key, case.value)
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in (case.query, case.key, case.value))
        upstream = torch.ones_like(case.query[..., :1]).expand(*case.query.shape[:3], case.shape.value_size)

        def both() -> object:
            with torch.enable_grad():
                return torch.autograd.grad(run(*leaves), leaves, upstream)

        return both

    def problem(self, *, backward: bool) -> str:
        """Say what is wrong with the output, or with gradients for a kernel of the backward pass; empty if nothing."""
        try:
            verdict = check_output(self.run(self.case), self.case, self.truth)
            if verdict.right and backward:
                with torch.enable_grad():
                    verdict = check_gradients(self.run(self.small), self.small, self.gradients)
        except Exception as error:  # a configuration may fail in any way, which is a result
            return f"it fails: {first_line(error)}"
        if verdict.right:
            return ""
        return f"wrong {verdict.what}: error {verdict.error:.1e}, allowed {verdict.allowed:.1e}"


def _tune_kernel(
    bench: _Bench,
    identity: str,
    backward: bool,
    candidates: Iterable[Tuned],
    budget: float,
    progress: Callable[[str], None],
) -> TunedKernel:
    end = time.monotonic() + budget
    if problem := bench.problem(backward=backward):
        raise WrongResultError(f"{identity} with its default configuration: {problem}")
    waiting = list(dict.fromkeys(candidates))
    failed: list[Trial] = []
    times: dict[Shown, Timing] = {}
    default: Timing | None = None
    while waiting and (default is None or time.monotonic() < end):
        some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        right: list[Tuned] = []
        for tiles in some:
            progress(f"{_label(identity, backward)}: checking {describe(tiles)}")
            with try_tiles({identity: tiles}):
                problem = bench.problem(backward=backward)
            if problem:
                failed.append(Trial(tiles, problem=problem))
            else:
                right.append(tiles)
        # the best so far runs again beside the new ones: a machine drifts from round to round
        leader = min(times, key=lambda one: times[one].median, default=None)
        measured = _measure(bench, identity, backward, dict.fromkeys((None, *([leader] if leader else []), *right)))
        default = measured.pop(None)
        times |= measured
    leader = min(times, key=lambda one: times[one].median, default=None)
    progress(f"{_label(identity, backward)}: measuring the fastest against the default")
    decided = _measure(bench, identity, backward, dict.fromkeys((None, leader)))
    default = decided.pop(None)
    times |= decided
    ordered = sorted((Trial(tiles, timing) for tiles, timing in times.items()), key=lambda one: one.timing.median)  # type: ignore[union-attr]
    return TunedKernel(identity, backward, Trial(None, default), (*ordered, *failed), len(waiting))


def _label(identity: str, backward: bool) -> str:
    which = f", {library_label(identity)}" if is_library_name(identity) else ""
    return identity.split()[0] + (", backward" if backward else "") + which


def _measure(bench: _Bench, identity: str, backward: bool, tried: Mapping[Shown, None]) -> dict[Shown, Timing]:
    work = bench.work(backward=backward)
    named = {describe(tiles): tiles for tiles in tried}

    def with_tiles(tiles: Shown) -> Work:
        def run() -> object:
            with try_tiles({} if tiles is None else {identity: tiles}), torch.no_grad():
                return work()

        return run

    settings = bench.settings
    every = {name: with_tiles(tiles) for name, tiles in named.items()}
    timings = measure(every, settings.device, seconds=settings.seconds, least=settings.least)
    return {named[name]: timing for name, timing in timings.items()}


def describe(tiles: Shown) -> str:
    """Return a configuration in a few words."""
    match tiles:
        case None:
            return "default"
        case Tiles():
            sizes = f"{tiles.query} x {tiles.key}, {tiles.warps} warps, {tiles.stages} stages"
            return ", ".join((sizes, *(word for word, holds in _more(tiles).items() if holds)))
        case LibraryCall():
            return f"the library ({tiles.name})"
        case ProjectionForm():
            return tiles.name
        case Slabs():
            rows = f"{tiles.rows} rows" if tiles.rows else "rows by estimate"
            return rows + {None: "", True: ", full ranges alone", False: ", one call for all keys"}[tiles.alone]


def _more(tiles: Tiles) -> dict[str, bool]:
    return {
        "descriptors": tiles.descriptors,
        "head by head": tiles.order == BY_HEADS,
        "heads in turns": tiles.order == IN_TURNS,
        "fused loops": tiles.fused,
        f"{tiles.persistent} persistent programs": tiles.persistent > 0,
    }


def entry_of(kernel: TunedKernel, case_shape: Shape, settings: Settings) -> TunedTiles | None:
    """Return what is to be remembered of a kernel; None where what would be taken anyway is the best."""
    tiles = kernel.best.tiles
    if tiles is None:
        return None
    program = isinstance(tiles, Slabs)
    dtype = compute_dtype(settings.dtype) if program else settings.dtype
    device = device_name(settings.device, program)
    return new_entry(kernel.identity, device, str(dtype).removeprefix("torch."), case_shape, tiles)


def new_entry(identity: str, device: str, dtype: str, shape: Shape, tiles: Tuned) -> TunedTiles:
    """Return an entry for calls of about a shape, under the versions that are installed."""
    return TunedTiles(
        identity,
        device,
        versions_of_library() if isinstance(tiles, LibraryCall) else versions_of(isinstance(tiles, Slabs)),
        dtype,
        padded(shape.head_size),
        padded(shape.value_size),
        round_length(shape.queries),
        round_length(shape.keys),
        tiles,
    )
