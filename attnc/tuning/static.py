"""Ranking a kernel's configurations without a device: each is compiled, and an estimate made of its code."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from attnc.bench.cases import Shape
from attnc.compiler import Compiled, render
from attnc.plan.configs import TileConfig
from attnc.plan.kernel_plan import Plan
from attnc.plan.tile_space import Kernel, tile_space
from attnc.runtime.aot import KernelReport, compile_kernels
from attnc.runtime.load import load_module
from attnc.runtime.tiles import Tiles, padded
from attnc.tuning.counting import FORWARD, KEYS, QUERIES, TileCounter, part_fuses, trend_of_part
from attnc.tuning.disassembly import Loop, main_loop
from attnc.tuning.measured import describe
from attnc.tuning.model import Estimate, estimate, programs_at_once

DOUBT = 0.15
"""Share of the time by which estimates have to differ for the order of two candidates to mean something."""

INTERPRETER = "TRITON_INTERPRET"

BESIDE = "_beside_pass_"
"""In names of kernels behind that of the attention: see `codegen.launch_view.part_name`."""


@dataclass(frozen=True, slots=True)
class Target:
    """What kernels are compiled for.

    Attributes:
        gpu: one of `runtime.aot.ARCHITECTURES`.
        dtype: name of a torch type.
        shape: the sizes of the call whose time is estimated.
    """

    gpu: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration of one kernel, compiled.

    Attributes:
        kernel: name of its function, without underscores around.
        identity: what tuned tiles know the kernel by.
        is_default: whether it is what the kernel would have anyway.
    """

    kernel: str
    identity: str
    tiles: Tiles
    registers: int
    spills: int
    shared: int
    estimate: Estimate
    is_default: bool = False

    @property
    def works(self) -> bool:
        """Whether it is not out of the question."""
        return not self.estimate.problem


@dataclass(frozen=True, slots=True)
class Ranking:
    """All candidates of one kernel that were compiled, the best first; and how many the budget left out."""

    kernel: str
    identity: str
    candidates: tuple[Candidate, ...]
    left_out: int

    @property
    def best(self) -> Candidate | None:
        """The first that works; the default where none is expected to save more than `DOUBT` of its time."""
        working = [one for one in self.candidates if one.works]
        first = min(working, key=lambda one: one.estimate.seconds, default=None)
        default = next((one for one in working if one.is_default), first)
        if first is None or default is None or first.estimate.seconds < (1 - DOUBT) * default.estimate.seconds:
            return first
        return default


def rank(
    compiled: Compiled,
    plan: Plan,
    target: Target,
    *,
    gradients: bool,
    budget: float,
    advance: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> tuple[Ranking, ...]:
    """Compile and rank the configurations of all kernels of one attention.

    Args:
        compiled: the pattern.
        plan: of the attention, one of `compiled.plans`.
        target: what to compile for.
        gradients: rank kernels of gradients as well.
        budget: seconds after which nothing more is begun; the default configurations are always compiled.
        advance: called with what is compiled, how many are done, and how many there are.

    Raises:
        RuntimeError: triton is missing.
        OSError: the tools that come with it cannot be run.
    """
    jobs = list(_jobs(plan, target, gradients))
    count = TileCounter(plan, target.gpu, target.shape, getattr(torch, target.dtype).itemsize)
    found: dict[str, list[Candidate]] = defaultdict(list)
    left: Counter[str] = Counter()
    end = time.monotonic() + budget
    with _workers(compiled) as pool:
        waiting = {pool.submit(_compile, job): job for job in jobs}
        for number, future in enumerate(as_completed(waiting), start=1):
            job = waiting[future]
            advance(job.label, number, len(jobs))
            if future.cancelled():
                left[job.part] += 1
                continue
            for report, loop in future.result():
                found[report.identity].extend(_candidates(job, report, loop, count))
            if time.monotonic() > end:
                _cancel(waiting)
    return tuple(
        _ranking(candidates, left[part_of(candidates[0].kernel, plan.attention.name)]) for candidates in found.values()
    )


def _cancel(waiting: dict[Future[list[_Found]], _Job]) -> None:
    for future, job in waiting.items():
        if job.tiles is not None:
            future.cancel()


def _candidates(job: _Job, report: KernelReport, loop: Loop | None, count: TileCounter) -> Iterator[Candidate]:
    """Yield a candidate for each order of programs: they share the code.

    Of persistent programs as many are started as a multiprocessor has room for.
    """
    if job.tiles is not None and job.tiles.persistent:
        report = replace(report, tiles=replace(report.tiles, persistent=max(1, programs_at_once(report))))
    for order in job.orders:
        tiles = replace(report.tiles, order=order)
        yield Candidate(
            report.kernel.strip("_").removesuffix("_kernel"),
            report.identity,
            tiles,
            report.registers,
            report.spills,
            report.shared,
            estimate(report, loop, count.work(job.part, tiles)),
            job.tiles is None and not order,
        )


def _ranking(candidates: list[Candidate], left: int) -> Ranking:
    default = next(one for one in candidates if one.is_default)
    # kernels that cannot fuse loops, beside others that can, are compiled twice
    others = {replace(one.tiles, chunk=0): one for one in candidates if not _alike(one.tiles, default.tiles)}
    ordered = sorted((default, *others.values()), key=lambda one: (one.estimate.seconds, not one.is_default))
    return Ranking(default.kernel, default.identity, tuple(ordered), left)


def _alike(one: Tiles, other: Tiles) -> bool:
    return replace(one, chunk=0) == replace(other, chunk=0)


# -- what is compiled


@dataclass(frozen=True, slots=True)
class _Job:
    """One compilation of the kernels of a part of an attention.

    Attributes:
        tiles: None for the default ones.
        orders: of programs that are tried with them.
    """

    attention: str
    part: str
    target: Target
    tiles: Tiles | None
    orders: tuple[str, ...]

    @property
    def label(self) -> str:
        """What is compiled, in a few words."""
        return f"{self.part}, {describe(self.tiles)}"


def _jobs(plan: Plan, target: Target, gradients: bool) -> Iterator[_Job]:
    """Yield the default configurations first, and then all others, those with the largest tiles first."""
    parts = (FORWARD, QUERIES, KEYS) if gradients else (FORWARD,)
    every: dict[tuple[str, TileConfig], list[str]] = defaultdict(list)
    for part in parts:
        for config in configs_of(plan, target, part):
            every[part, replace(config, order="")].append(config.order)
    for part in parts:
        orders = next((orders for (known, _), orders in every.items() if known == part), [""])
        yield _Job(plan.attention.name, part, target, None, tuple(orders))
    for (part, config), orders in sorted(every.items(), key=_place):
        yield _Job(plan.attention.name, part, target, Tiles(**asdict(config)), tuple(orders))


def _place(job: tuple[tuple[str, TileConfig], list[str]]) -> tuple[int, bool]:
    """Return by what jobs are ordered: large tiles come first, and persistent programs after others."""
    (_, config), _ = job
    return -config.query * config.key, config.persistent > 0


def configs_of(plan: Plan, target: Target, part: str) -> tuple[TileConfig, ...]:
    """Return the space of a part's kernels, as `plan.tile_space` has it."""
    kernel = Kernel(
        element_size=getattr(torch, target.dtype).itemsize,
        head_size=padded(target.shape.head_size),
        value_size=padded(target.shape.value_size),
        query_limit=min(one.tiles.query_tile for one in plan.passes),
        key_limit=min(one.tiles.key_tile for one in plan.passes),
        gradients=(FORWARD, QUERIES, KEYS).index(part),
        trend=trend_of_part(plan, target.shape, part),
        fuses=part_fuses(plan, target.shape, part),
    )
    return tile_space(target.gpu, kernel)


def part_of(kernel: str, attention: str) -> str:
    """Return what a kernel of an attention computes, by the name of its function."""
    rest = kernel.strip("_").removeprefix(attention)
    return FORWARD if "gradient" not in rest else KEYS if "_key_" in rest else QUERIES


# -- the processes that compile


_Found = tuple[KernelReport, Loop | None]

_MODULE: list[ModuleType] = []
"""The generated module, in a process that compiles its kernels."""


@contextmanager
def _workers(compiled: Compiled) -> Iterator[ProcessPoolExecutor]:
    """Yield processes that have the pattern's module, one for each processor; Triton does not interpret there."""
    if find_spec("triton") is None:
        raise RuntimeError("triton is not installed")
    with tempfile.TemporaryDirectory(prefix="attnc-") as folder:
        path = Path(folder) / "pattern.py"
        path.write_text(render(compiled), encoding="utf-8")
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(os.cpu_count(), context, initializer=_begin, initargs=(str(path),))
        try:
            with _without_interpreter():
                yield pool
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _without_interpreter() -> Iterator[None]:
    """Let processes that are started here find no `TRITON_INTERPRET` in their environment."""
    before = os.environ.pop(INTERPRETER, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[INTERPRETER] = before


def _begin(path: str) -> None:
    torch.set_num_threads(1)
    _MODULE[:] = [load_module(path)]


def _compile(job: _Job) -> list[_Found]:
    target = job.target
    shape = target.shape
    reports = compile_kernels(
        _MODULE[0],
        target.gpu,
        getattr(torch, target.dtype),
        shape.head_size,
        name=job.attention,
        value_size=shape.value_size,
        tiles=job.tiles,
        shares=1,
        gradients=job.part != FORWARD,
        wanted=lambda kernel: _is_of(kernel, job),
    )
    return [(replace(report, assembly="", binary=b""), main_loop(report)) for report in reports]


def _is_of(kernel: str, job: _Job) -> bool:
    """Tell whether a job compiles a kernel. Those that run beside a library keep their defaults."""
    if kernel.strip("_").removeprefix(job.attention).startswith(BESIDE):
        return False
    return (part_of(kernel, job.attention) == KEYS) == (job.part == KEYS)
