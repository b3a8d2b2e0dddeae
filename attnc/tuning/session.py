"""One run of `attnc tune`: every attention at every length, printed as it is tuned, remembered at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any, assert_never

import torch

from attnc import terminal
from attnc.bench.cases import Shape, square
from attnc.bench.machine import describe as describe_machine
from attnc.bench.names import Mode
from attnc.bench.run import Settings
from attnc.bench.session import pick
from attnc.codegen.names import class_name
from attnc.compiler import Compiled, import_compiled, render
from attnc.diagnostics import CompileError, Diagnostic
from attnc.files import STANDARD, cannot_write, write_text
from attnc.plan.configs import FormConfig, LibraryConfig, SlabConfig, TileConfig, TunedConfig
from attnc.plan.kernel_plan import Plan
from attnc.plan.layer_plan import LayerPlan
from attnc.runtime.aot import ARCHITECTURES
from attnc.runtime.tiles import Tiles, target_of
from attnc.runtime.tuned import LibraryCall, ProjectionForm, Slabs, Tuned
from attnc.runtime.tuned_store import MalformedTilesError, Measured, parse_tuned, remember_tuned, tuned_text
from attnc.tuning.measured import (
    Candidates,
    TunedKernel,
    WrongResultError,
    entry_of,
    library_candidates,
    new_entry,
    slab_candidates,
    tune,
)
from attnc.tuning.projections import TunedProjection, entry_of_projection, tunable, tune_projections
from attnc.tuning.report import TRUST, projection_table, ranking_table, tuned_table
from attnc.tuning.static import Ranking, Target, rank

SURVIVORS = 12
"""Configurations of a kernel, the best by estimate, that are measured on a device."""

STATIC_SHARE = 0.4
"""Share of the budget that goes into compiling and ranking before anything is measured."""


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What to tune, and where the results go.

    Attributes:
        gpu: target to rank configurations for without a device; None to measure.
        backward: tune the backward pass as well.
        device: a torch device, or `auto`.
        budget: seconds for each attention at each length, and for the projections of each layer.
        seconds: time to spend on each measurement.
        remember: write what was measured to the user's cache.
        json: file for all figures; `export`: for what `--import` takes; `out`: for the module with its tiles.
    """

    lengths: tuple[int, ...]
    gpu: str | None
    backward: bool
    batch: int
    heads: int
    kv_heads: int | None
    head_size: int
    dtype: str
    device: str
    budget: float
    seconds: float
    remember: bool
    standalone: bool
    json: Path | None
    export: Path | None
    out: Path | None

    def shape(self, length: int) -> Shape:
        """Return the sizes at one length."""
        return square(length, batch=self.batch, heads=self.heads, kv_heads=self.kv_heads, head_size=self.head_size)


def run_tuning(request: TuneRequest, patterns: Sequence[Compiled]) -> None:
    """Tune everything that was asked for.

    Raises:
        CompileError: the device or the compiler is not there, a module is wrong, or a result cannot be written.
    """
    found: list[Measured] = []
    rows: list[dict[str, Any]] = []
    make = _static if request.gpu is not None else _measured
    console = terminal.messages() if str(request.json) == STANDARD else terminal.output()
    for compiled in patterns:
        for plan in compiled.plans:
            for length in request.lengths:
                for measured, row in make(request, compiled, plan, length, console):
                    found.extend([] if measured is None else [measured])
                    rows.append(row)
        for layer in compiled.layers if request.gpu is None else ():
            for length in request.lengths:
                for measured, row in _projections(request, compiled, layer, length, console):
                    found.append(measured)
                    rows.append(row)
    if request.gpu is not None:
        console.print(TRUST, soft_wrap=True)
    _write(request, patterns, found, rows, console)


def usual_dtype(gpu: str | None, device: str) -> str:
    """Return the type that is tuned for where none is named."""
    return "float32" if gpu is None and pick(device).type == "cpu" else "bfloat16"


def import_tuned(path: Path) -> tuple[int, tuple[Path, ...]]:
    """Add the entries of a file to the user's cache; return their number, and the files of the cache.

    Raises:
        CompileError: the file cannot be read or holds something else, or the cache cannot be written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries = parse_tuned(text)
    except (OSError, UnicodeDecodeError) as error:
        raise CompileError(Diagnostic("unreadable-file", f"cannot read {path}: {error}")) from None
    except MalformedTilesError as error:
        help_text = "`attnc tune --export` and the GPU bundle write such files"
        raise CompileError(
            Diagnostic("not-tuned-tiles", f"{path} holds no tuned tiles: {error}", help=help_text)
        ) from None
    return len(entries), _remember(entries)


# -- without a device


_Row = tuple[Measured | None, dict[str, Any]]


def _static(request: TuneRequest, compiled: Compiled, plan: Plan, length: int, console: Any) -> Iterator[_Row]:
    assert request.gpu is not None
    shape = request.shape(length)
    label = f"{plan.attention.name} at {length}"
    for ranking in _rank(request, request.gpu, compiled, plan, shape, request.budget, label):
        console.print(ranking_table(ranking, request.gpu, request.dtype, shape))
        console.print()
        best = ranking.best
        row = {"attention": plan.attention.name, "length": length, "gpu": request.gpu} | _ranking_json(ranking)
        if best is None or best.is_default:
            yield None, row
            continue
        entry = new_entry(ranking.identity, request.gpu, request.dtype, shape, best.tiles)
        yield Measured(entry, when=date.today().isoformat()), row


def _rank(
    request: TuneRequest, gpu: str, compiled: Compiled, plan: Plan, shape: Shape, budget: float, label: str
) -> tuple[Ranking, ...]:
    if gpu not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CompileError(Diagnostic("unknown-gpu", f"no GPU is called `{gpu}`", help=f"known are {known}"))
    target = Target(gpu, request.dtype, shape)
    with terminal.spinner(label) as say:
        try:
            return rank(
                compiled,
                plan,
                target,
                gradients=request.backward,
                budget=budget,
                advance=lambda what, done, total: say(f"{done} of {total} compiled: {what}"),
            )
        except (RuntimeError, OSError) as error:
            raise CompileError(
                Diagnostic(
                    "triton-missing", f"kernels cannot be compiled: {error}", help="on Linux: pip install triton"
                )
            ) from None


def _ranking_json(ranking: Ranking) -> dict[str, Any]:
    candidates = [
        {"tiles": asdict(one.tiles), "registers": one.registers, "spills": one.spills, "shared": one.shared}
        | {"is_default": one.is_default, "seconds": one.estimate.seconds if one.works else None}
        | {"problem": one.estimate.problem, "programs": one.estimate.programs, "instructions": one.estimate.others}
        for one in ranking.candidates
    ]
    return {"kernel": ranking.kernel, "identity": ranking.identity, "candidates": candidates, "left": ranking.left_out}


# -- on a device


def _measured(request: TuneRequest, compiled: Compiled, plan: Plan, length: int, console: Any) -> Iterator[_Row]:
    device = pick(request.device)
    if device.type == "cpu" and os.environ.get("ATTNC_TARGET") == "triton":
        raise CompileError(
            Diagnostic("tuning-interpreter", "ATTNC_TARGET=triton runs kernels in Triton's interpreter, "
                       "whose times mean nothing", help="unset it to tune the CPU program")
        )  # fmt: skip
    shape, label = request.shape(length), f"{plan.attention.name} at {length}"
    mode = Mode.BOTH if request.backward else Mode.FORWARD
    settings = Settings(device, getattr(torch, request.dtype), (), mode, request.seconds, least=3)
    budget = request.budget
    candidates: Candidates = slab_candidates
    if device.type != "cpu":
        rankings = _rank(request, target_of(device), compiled, plan, shape, STATIC_SHARE * budget, label)
        candidates, budget = _survivors(rankings), (1 - STATIC_SHARE) * budget
    module: ModuleType = import_compiled(compiled)
    with terminal.spinner(label) as say:
        try:
            kernels = tune(plan, module, shape, settings, candidates, budget=budget, progress=say)
        except WrongResultError as error:
            raise CompileError(Diagnostic("wrong-result", f"{label}: {error}")) from None
    if not kernels:
        console.print(f"{label}: one call of PyTorch's own attention computes it here, and has no tiles to tune")
        return
    console.print(tuned_table(plan.attention.name, kernels, describe_machine(device), request.dtype, shape))
    console.print()
    for kernel in kernels:
        entry = entry_of(kernel, shape, settings)
        row = {"attention": plan.attention.name, "length": length} | _kernel_json(kernel)
        if entry is None or kernel.best.timing is None or kernel.default.timing is None:
            yield None, row
            continue
        seconds = kernel.best.timing.median, kernel.default.timing.median
        yield Measured(entry, *seconds, when=date.today().isoformat()), row


def _projections(
    request: TuneRequest, compiled: Compiled, layer: LayerPlan, length: int, console: Any
) -> Iterator[tuple[Measured, dict[str, Any]]]:
    """Measure the forms of a layer's projections; what is best is remembered even where it is the default."""
    device, dtype = pick(request.device), getattr(torch, request.dtype)
    mode = Mode.BOTH if request.backward else Mode.FORWARD
    settings = Settings(device, dtype, (), mode, request.seconds, least=3)
    made = getattr(import_compiled(compiled), class_name(layer.name))(device=device, dtype=dtype)
    with terminal.spinner(f"{layer.name} at {length}") as say:
        shape = request.batch, length
        waiting = tunable(made, settings)
        tuned = list(tune_projections(waiting, shape, settings, budget=request.budget, progress=say))
    if tuned:
        console.print(projection_table(layer.name, tuned, describe_machine(device), request.dtype, shape))
        left = [name for names, _ in waiting[len(tuned) :] for name in names]
        if left:
            console.print(f"left out by the budget: {', '.join(left)}", highlight=False)
        console.print()
    for one in tuned:
        times = {trial.name: None if trial.timing is None else trial.timing.median for trial in one.trials}
        entry = entry_of_projection(one, request.batch * length, settings)
        measured = Measured(entry, times[one.best.name], times[one.default], when=date.today().isoformat())
        yield measured, {"layer": layer.name, "length": length} | _projection_json(one)


def _projection_json(one: TunedProjection) -> dict[str, Any]:
    trials = [
        {"form": trial.name, "seconds": trial.timing.median if trial.timing else None, "problem": trial.problem}
        for trial in one.trials
    ]
    named = {"projections": list(one.names), "identity": one.module.measured_as, "default": one.default}
    sizes = {"inputs": one.module.in_features, "outputs": one.module.out_features}
    return {**named, **sizes, "chosen": one.best.name, "trials": trials}


def _survivors(rankings: Iterable[Ranking]) -> Candidates:
    by_identity = {
        ranking.identity: [one.tiles for one in ranking.candidates if one.works and not one.is_default][:SURVIVORS]
        for ranking in rankings
    }
    return lambda identity, backward: by_identity.get(identity, []) or library_candidates(identity)


def _kernel_json(kernel: TunedKernel) -> dict[str, Any]:
    def trial(tiles: Tuned | None, seconds: float | None, problem: str) -> dict[str, Any]:
        return {"tiles": None if tiles is None else asdict(tiles), "seconds": seconds, "problem": problem}

    every = (kernel.default, *kernel.trials)
    trials = [trial(one.tiles, one.timing.median if one.timing else None, one.problem) for one in every]
    chosen = None if kernel.best.tiles is None else asdict(kernel.best.tiles)
    return {"identity": kernel.identity, "backward": kernel.backward, "chosen": chosen, "trials": trials}


# -- results


def _write(
    request: TuneRequest,
    patterns: Sequence[Compiled],
    found: Sequence[Measured],
    rows: Sequence[dict[str, Any]],
    console: Any,
) -> None:
    if request.remember and request.gpu is None:
        paths = _remember(found)
        what = f"{len(found)} remembered in {', '.join(map(str, paths))}" if found else "nothing faster to remember"
        console.print(what, soft_wrap=True, highlight=False)
    if request.export is not None:
        write_text(request.export, tuned_text(found))
    if request.out is not None:
        write_text(request.out, render(patterns[0], standalone=request.standalone, tuned=_configs(found)))
        console.print(f"{request.out}: the module, with {len(found)} tuned configurations", soft_wrap=True)
    if request.json is not None:
        text = json.dumps({"machine": _machine(request), "kernels": list(rows)}, indent=2, allow_nan=False) + "\n"
        if str(request.json) == STANDARD:
            print(text, end="")
        else:
            write_text(request.json, text)


def _machine(request: TuneRequest) -> dict[str, object]:
    device = torch.device("cpu") if request.gpu is not None else pick(request.device)
    return describe_machine(device) | ({"gpu": request.gpu, "measured": False} if request.gpu is not None else {})


def _remember(found: Sequence[Measured]) -> tuple[Path, ...]:
    try:
        return remember_tuned(found)
    except OSError as error:
        raise cannot_write(str(error.filename or "the cache folder"), error) from None


def _configs(found: Sequence[Measured]) -> list[TunedConfig]:
    configs = []
    for one in found:
        entry, tiles = one.entry, one.entry.tiles
        fields = {name: getattr(entry, name) for name in TunedConfig.__dataclass_fields__ if hasattr(entry, name)}
        configs.append(TunedConfig(**fields, config=_config(tiles), note=_note(one)))
    return configs


def _config(tiles: Tuned) -> TileConfig | SlabConfig | LibraryConfig | FormConfig:
    """Return what was found best as the compiler has it."""
    match tiles:
        case Slabs():
            return SlabConfig(tiles.rows, tiles.alone)
        case LibraryCall():
            return LibraryConfig(tiles.name)
        case ProjectionForm():
            return FormConfig(tiles.name)
        case Tiles():
            return TileConfig(**asdict(tiles))
        case _:
            assert_never(tiles)


def _note(one: Measured) -> str:
    if one.seconds is None or one.default_seconds is None:
        return "ranked by what compilers made of it; nothing was measured"
    return f"{one.when}: {one.seconds * 1e3:.3g} ms, and {one.default_seconds * 1e3:.3g} ms by default"
