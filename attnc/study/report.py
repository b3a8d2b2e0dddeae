"""The results of a study: means over seeds, as tables and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from attnc.bench.report import duration
from attnc.bench.report import size as size_text
from attnc.study.curves import Budgets, Reading
from attnc.study.tasks import Task
from attnc.study.training import Recipe
from attnc.study.trial import Result, Trial

if TYPE_CHECKING:
    from rich.table import Table

BUDGETS = {"steps": "equal steps", "flops": "equal FLOPs", "seconds": "equal time"}

LOSS = "loss"

NOTHING = "-"
"""A cell without a figure."""

SHORT = "*"
"""Marks figures of a training that was shorter than its budget."""

METHOD = """\
Every contender is the same transformer but for its attention (`huggingface` is a GPT-2 or a BERT of the same sizes,
with its own initial weights): initial weights, examples and their order are the same for one seed, and evaluated
examples are in no training. The learning rate is constant after a warm-up, so that any budget can be read off one
training, between two evaluations in proportion. `equal steps` is after the same number of steps, `equal FLOPs` and
`equal time` after as many as what the first contender's steps cost pays for. `pairs` are the allowed ones of all pairs
of a query and a key. MFLOP are those of a step, forward and backward: 6 for each token and element of a matrix of
weights, 14 times the head size for each allowed pair and head. `time` of a step is the median of steps taken in turns.
`memory` is parameters, and what a step needs at most beside them, gradients and the optimiser's state. `chance` is what
the most frequent answer alone gives.
"""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task.

    Attributes:
        trials: one for each seed.
        missing: names of contenders that took no part, and why.
    """

    task: Task
    recipe: Recipe
    trials: tuple[Trial, ...]
    missing: tuple[tuple[str, str], ...]

    def of(self, number: int) -> list[Result]:
        """Return one contender's results, of all seeds."""
        return [trial.results[number] for trial in self.trials]

    def names(self) -> list[str]:
        """Return the names of those who took part."""
        return [result.name for result in self.trials[0].results]


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that was found out.

    Attributes:
        complete: whether all tasks are there that were asked for.
    """

    machine: Mapping[str, object]
    settings: Mapping[str, object]
    tasks: tuple[TaskReport, ...]
    complete: bool = False


def lay_out(report: TaskReport) -> list[Any]:
    """Return what is printed of a task: a table; two where means with their spreads need the room."""
    headings, rows = _cells(report)
    losses = [number for number, heading in enumerate(headings) if heading == LOSS]
    if len(report.trials) == 1:
        return [_table(headings, rows, _title(report), _caption(report))]
    others = [number for number in range(len(headings)) if number not in losses]
    budgets = [f"{LOSS}, {name}" for name in BUDGETS.values()]
    return [
        _table([headings[k] for k in others], [[row[k] for k in others] for row in rows], _title(report), ""),
        _table(["", *budgets], [[row[k] for k in (0, *losses)] for row in rows], "", _caption(report)),
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str, caption: str) -> Table:
    from rich.table import Table

    made = Table(title=title or None, caption=caption or None, title_justify="left", caption_justify="left")
    for heading in headings:
        made.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made


def as_markdown(study: Study) -> str:
    """Write a report: a table for each task, and what the columns mean."""
    machine, settings = study.machine, study.settings
    chosen = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in settings.items())
    lines = [
        "# Architectures compared",
        "",
        f"Measured by `attnc study` on {machine['device']}, {machine['threads']} threads, torch {machine['torch']}.",
        f"Settings: {chosen}.",
        "",
        METHOD.rstrip(),
    ]
    for report in study.tasks:
        headings, rows = _cells(report)
        lines += ["", f"## {_title(report)}", ""]
        lines += [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
        lines += [f"| {' | '.join(row)} |".replace(SHORT, "\\*") for row in rows]
        lines += ["", *(f"{line}  " for line in _caption(report).replace(SHORT, "\\*").splitlines())]
    return "\n".join(lines) + "\n"


def as_json(study: Study) -> Any:
    """Return everything that was measured, ready for `json.dumps`. Times are seconds, memory is bytes."""
    return {
        "machine": dict(study.machine),
        "settings": dict(study.settings),
        "complete": study.complete,
        "tasks": [_task_json(report) for report in study.tasks],
    }


def _task_json(report: TaskReport) -> dict[str, Any]:
    task, recipe = report.task, report.recipe
    return {
        "task": task.name,
        "length": task.length,
        "vocabulary": task.vocabulary,
        "classes": task.classes,
        "causal": task.causal,
        "settings": dict(task.settings),
        "recipe": asdict(recipe),
        "missing": dict(report.missing),
        "trials": [
            {
                "seed": trial.seed,
                "chance": trial.chance,
                "budgets": asdict(trial.budgets),
                "contenders": [_result_json(result) for result in trial.results],
            }
            for trial in report.trials
        ],
    }


def _result_json(result: Result) -> dict[str, Any]:
    points = [
        {**asdict(point), "flops": point.step * result.flops, "seconds": point.step * result.seconds}
        for point in result.points
    ]
    return {**asdict(result), "points": points, "bytes": result.bytes}


def _cells(report: TaskReport) -> tuple[list[str], list[list[str]]]:
    headings = ["", "pairs", "MFLOP", "time", "memory"]
    for name in BUDGETS.values():
        headings += [name, LOSS]
    rows = []
    for number, name in enumerate(report.names()):
        every = report.of(number)
        first = every[0]
        cells = [
            name,
            f"{first.density:.1%}",
            f"{first.flops / 1e6:,.0f}",
            duration(statistics.median(one.seconds for one in every)),
            NOTHING if first.bytes is None else size_text(first.bytes),
        ]
        failed = any(one.problem for one in every)
        for budget in BUDGETS:
            cells += [NOTHING, NOTHING] if failed else _reading([one.readings[budget] for one in every])
        rows.append(cells)
    return headings, rows


def _reading(readings: Sequence[Reading]) -> list[str]:
    short = "" if all(one.reached for one in readings) else SHORT
    accuracy = _spread([100 * one.accuracy for one in readings], 1)
    return [f"{accuracy} %{short}", _spread([one.loss for one in readings], 2)]


def _spread(values: Sequence[float], digits: int) -> str:
    """Write the mean, and the standard deviation where there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _title(report: TaskReport) -> str:
    task = report.task
    settings = ", ".join(f"{name} {value:g}" for name, value in task.settings.items())
    return f"{task.name}: length {task.length}, {settings}"


def _caption(report: TaskReport) -> str:
    trials = report.trials
    chance = _spread([100 * trial.chance for trial in trials], 1)
    lines = [f"chance {chance} %; {_budgets([trial.budgets for trial in trials], report.names()[0])}"]
    if any(not one.reached for trial in trials for result in trial.results for one in result.readings.values()):
        lines.append(f"{SHORT} the budget pays for more steps than were taken")
    failures = {result.name: result.problem for trial in trials for result in trial.results if result.problem}
    return "\n".join([*lines, *(f"{name}: {why}" for name, why in (*failures.items(), *report.missing))])


def _budgets(budgets: Sequence[Budgets], first: str) -> str:
    flops = statistics.fmean(one.flops for one in budgets)
    seconds = statistics.fmean(one.seconds for one in budgets)
    return f"budgets: {budgets[0].steps:,} steps; {flops:.3g} FLOP; {duration(seconds)}"


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
