"""One run of `attnc study`: trial after trial, files written whole after each, tasks printed when they are done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attnc import terminal
from attnc.bench.machine import describe
from attnc.bench.session import pick
from attnc.compiler import Compiled
from attnc.diagnostics import CompileError, Diagnostic
from attnc.files import STANDARD, write_bytes, write_text
from attnc.study.contenders import Contender, contender, distinct, planned_patterns, shipped
from attnc.study.hugging_face import transformers_version
from attnc.study.models import Size
from attnc.study.presets import PRESETS, Changes, configure
from attnc.study.report import Study, TaskReport, as_json, as_markdown, lay_out
from attnc.study.store import Trials, read_trials, require_same
from attnc.study.tasks import Task
from attnc.study.training import Recipe
from attnc.study.trial import Progress, Trial, Wanted, run_trial

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class StudyRequest:
    """What to study, and where the results go.

    Attributes:
        preset: of `PRESETS`.
        tasks: of `presets.TASKS`.
        contenders: of `contenders.SHIPPED`; patterns of files come behind them.
        changes: to the preset.
        settings: of tasks.
        wanted: budgets; those of the first contender unless given.
        seeds: of parameters and examples, one trial each.
        device: a torch device, or `auto`.
        threads: cores to compute with; None for the preset's choice.
        json, markdown, plot: files to write; None for none.
        redo: run again what the JSON file has already.
    """

    preset: str
    tasks: tuple[str, ...]
    contenders: tuple[str, ...]
    changes: Changes
    settings: Mapping[str, object]
    wanted: Wanted
    seeds: tuple[int, ...]
    device: str
    threads: int | None
    json: Path | None
    markdown: Path | None
    plot: Path | None
    redo: bool = False


def run_study(request: StudyRequest, files: Sequence[tuple[str, Compiled]]) -> None:
    """Train everything that was asked for; print and write what came out.

    Files are written after each trial, with the trials that are done: an interrupted study leaves those, and the same
    request goes on with the others.

    Args:
        request: what to study.
        files: the user's patterns; what stands before one is added to the names of its attentions.

    Raises:
        CompileError: the device is not there, something does not fit, the JSON file is of another study, or a result
            cannot be written.
    """
    device = pick(request.device)
    threads = request.threads or PRESETS[request.preset].threads
    if threads is not None:
        torch.set_num_threads(threads)
    with terminal.spinner("compiling"):
        planned, names = _prepare(request, files)
    _require_somebody(planned, names)
    quiet = request.json is not None and str(request.json) == STANDARD
    console = terminal.messages() if quiet else terminal.output()
    machine = describe(device)
    size = planned[0][1].size
    console.print(_heading(request, machine, size))
    machine["transformers"] = transformers_version()
    study = Study(machine, _settings(request, planned[0][1]), ())
    trials = _known(request, study, planned)
    if trials:
        _write(request, _with_trials(study, planned, trials, request.seeds))  # a report may be new
    for one in planned:
        for seed in request.seeds:
            if (one[0].name, seed) not in trials:
                trials[one[0].name, seed] = _run(*one, request, seed, device)
                _write(request, _with_trials(study, planned, trials, request.seeds))
        console.print()
        for part in lay_out(_report(*one, trials, request.seeds), console.width):
            console.print(part, markup=False)
    _say_what_was_written(request, console)


def _prepare(
    request: StudyRequest, files: Sequence[tuple[str, Compiled]]
) -> tuple[list[tuple[Task, Recipe, list[Contender]]], list[str]]:
    """Return each task with its contenders, and the names of those that the user's files made."""
    given = [(pattern, varied) for varied, compiled in files for pattern in planned_patterns(compiled)]
    names = distinct([f"{one.name} {varied}".rstrip() for one, varied in given], request.contenders)
    planned = []
    for task, recipe, window in configure(request.preset, request.tasks, request.changes, request.settings):
        size = recipe.size
        ours = [shipped(name, task, size, window) for name in request.contenders]
        theirs = [contender(pattern, task, size, name) for (pattern, _), name in zip(given, names, strict=True)]
        planned.append((task, recipe, [*ours, *theirs]))
    return planned, names


_Planned = tuple[Task, Recipe, list[Contender]]


def _known(request: StudyRequest, study: Study, planned: Sequence[_Planned]) -> Trials:
    """Return the trials that an earlier run has left in the JSON file."""
    if request.redo:
        return {}
    known = read_trials(request.json, study, [_report(*one, {}, ()) for one in planned], request.seeds)
    require_same(request.json, known, {task.name: everybody for task, _, everybody in planned})
    return known


def _report(
    task: Task, recipe: Recipe, everybody: Sequence[Contender], trials: Trials, seeds: Sequence[int]
) -> TaskReport:
    """Return what is known of one task."""
    missing = tuple((one.name, one.missing) for one in everybody if one.missing)
    known = tuple(trials[task.name, seed] for seed in seeds if (task.name, seed) in trials)
    return TaskReport(task, recipe, known, missing)


def _with_trials(study: Study, planned: Sequence[_Planned], trials: Trials, seeds: Sequence[int]) -> Study:
    """Return the study with the tasks of which something is known."""
    reports = tuple(report for one in planned if (report := _report(*one, trials, seeds)).trials)
    return replace(study, tasks=reports, complete=len(trials) == len(planned) * len(seeds))


def _run(
    task: Task, recipe: Recipe, everybody: Sequence[Contender], request: StudyRequest, seed: int, device: torch.device
) -> Trial:
    """Run one trial."""
    taking_part = [one for one in everybody if not one.missing]
    label = task.name if len(request.seeds) == 1 else f"{task.name}, seed {seed}"
    with _bars(taking_part, recipe, label) as progress:
        return run_trial(taking_part, task, recipe, seed, device, request.wanted, progress)


def _require_somebody(planned: Sequence[tuple[Task, Recipe, list[Contender]]], files: Sequence[str]) -> None:
    """Fail where a task has no contender, or a pattern of the user's takes part in none."""
    for task, _, everybody in planned:
        if all(one.missing for one in everybody):
            notes = tuple(f"{one.name}: {one.missing}" for one in everybody)
            help = "name a FILE, or contenders with --with"
            raise CompileError(
                Diagnostic("no-contender", f"nobody takes part in `{task.name}`", help=help, notes=notes)
            )
    for name in files:
        found = [one for _, _, everybody in planned for one in everybody if one.name == name]
        if all(one.missing for one in found):
            tasks = ", ".join(f"`{task.name}`" for task, _, _ in planned)
            raise CompileError(
                Diagnostic(
                    "not-causal",
                    f"`{name}` sees later positions, and so the answers of {tasks}",
                    help="add `mask causal`, or study it on a task that is not causal: --task listops",
                )
            )


@contextmanager
def _bars(taking_part: Sequence[Contender], recipe: Recipe, label: str) -> Iterator[Progress]:
    """Show a bar for each contender on standard error; nothing where that is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = terminal.messages()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        rows = {one.name: bars.add_task(f"{label}: {one.name}", total=recipe.steps) for one in taking_part}
        yield lambda name, done, planned: bars.update(rows[name], completed=done, total=planned)


def _heading(request: StudyRequest, machine: Mapping[str, object], size: Size) -> str:
    seeds = f"seed{'' if len(request.seeds) == 1 else 's'} {', '.join(map(str, request.seeds))}"
    model = f"{size.layers} layers of width {size.width}, {size.heads} heads"
    cores = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    place = f"{machine['device']}, {cores}, torch {machine['torch']}"
    return f"{place}\n{request.preset}: {model}, {seeds}"


def _settings(request: StudyRequest, recipe: Recipe) -> dict[str, object]:
    budgets = {name: value for name, value in asdict(request.wanted).items() if value is not None}
    return budgets | {
        "preset": request.preset,
        "seeds": list(request.seeds),
        "width": recipe.size.width,
        "layers": recipe.size.layers,
        "heads": recipe.size.heads,
        "batch": recipe.batch,
        "learning_rate": recipe.learning_rate,
    }


def _write(request: StudyRequest, study: Study) -> None:
    if request.json is not None and (study.complete or str(request.json) != STANDARD):
        text = json.dumps(as_json(study), indent=1, allow_nan=False) + "\n"
        if str(request.json) == STANDARD:
            print(text, end="")
        else:
            write_text(request.json, text)
    if request.markdown is not None:
        write_text(request.markdown, as_markdown(study))
    if request.plot is not None:
        from attnc.study.plot import draw_study

        write_bytes(request.plot, draw_study(study))


def _say_what_was_written(request: StudyRequest, console: Console) -> None:
    written = [str(one) for one in (request.json, request.markdown, request.plot) if one is not None]
    if any(one != STANDARD for one in written):
        console.print("wrote " + ", ".join(one for one in written if one != STANDARD), markup=False)
