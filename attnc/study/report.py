"""The results of a study: means over seeds, as tables and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from attnc.bench.report import duration
from attnc.bench.report import size as size_text
from attnc.study.curves import Budgets
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
Every contender is the same transformer but for its attention; `huggingface` is a GPT-2 or a BERT of the same sizes.
Initial weights (but most of `huggingface`'s), examples and their order are the same for one seed, and evaluated
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


def lay_out(report: TaskReport, width: int) -> list[Table | str]:
    """Return what is printed of a task: costs, accuracies and losses in one table or more, and what is to be said.

    Args:
        report: of the task.
        width: characters of a line; a table that is wider is broken between its parts.
    """
    columns = _columns(report)
    names = list(columns)[1:]
    losses = [name for name in names if name.startswith(LOSS)]
    accuracies = list(BUDGETS.values())
    costs = [name for name in names if name not in losses and name not in accuracies]
    parts = [costs, accuracies, losses]
    while len(parts) > 1 and _width(columns, [name for part in parts[:2] for name in part]) <= width:
        parts[:2] = [parts[0] + parts[1]]
    return [_title(report), *(_table(columns, names) for names in parts), _caption(report)]


def _width(columns: Mapping[str, Sequence[str]], names: Sequence[str]) -> int:
    return 1 + sum(3 + max(map(len, (name, *columns[name]))) for name in ("", *names))


def _table(columns: Mapping[str, Sequence[str]], names: Sequence[str]) -> Table:
    from rich.table import Table

    made = Table()
    for name in ("", *names):
        made.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in zip(*(columns[name] for name in ("", *names)), strict=True):
        made.add_row(*row)
    return made


def as_markdown(study: Study) -> str:
    """Write a report: a table for each task, who took part, and what the columns mean."""
    machine, settings = study.machine, study.settings
    chosen = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in settings.items())
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    libraries = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers") if machine.get(name))
    lines = [
        "# Architectures compared",
        "",
        f"Measured by `attnc study` on {machine['device']}, {threads}, {libraries}.",
        f"Settings: {chosen}.",
        "",
        METHOD.rstrip(),
    ]
    for report in study.tasks:
        columns = _columns(report)
        lines += ["", f"## {_title(report)}", ""]
        lines += [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
        lines += [f"| {' | '.join(row)} |".replace(SHORT, "\\*") for row in zip(*columns.values(), strict=True)]
        lines += ["", *(f"- {line}".replace(SHORT, "\\*") for line in _caption(report).splitlines())]
        lines += [f"- {result.name}: `{result.what}`" for result in report.trials[0].results]
    return "\n".join(lines) + "\n"


def as_json(study: Study) -> Any:
    """Return everything that was measured, ready for `json.dumps`. Times are seconds, memory is bytes."""
    return {
        "machine": dict(study.machine),
        "settings": dict(study.settings),
        "complete": study.complete,
        "tasks": [task_json(report) for report in study.tasks],
    }


def task_json(report: TaskReport) -> dict[str, Any]:
    """Return one task ready for `json.dumps`."""
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


def _columns(report: TaskReport) -> dict[str, list[str]]:
    """Return the cells of each column by its heading; that of the names has none."""
    every = [report.of(number) for number in range(len(report.names()))]
    columns = {
        "": report.names(),
        "pairs": [f"{first.density:.1%}" for first, *_ in every],
        "MFLOP": [f"{first.flops / 1e6:,.0f}" for first, *_ in every],
        "time": [duration(statistics.median(one.seconds for one in results)) for results in every],
        "memory": [NOTHING if first.bytes is None else size_text(first.bytes) for first, *_ in every],
    }
    for budget, name in BUDGETS.items():
        cells = [_reading(results, budget) for results in every]
        columns[name] = [accuracy for accuracy, _ in cells]
        columns[f"{LOSS}, {name.split()[1]}"] = [loss for _, loss in cells]
    return columns


def _reading(results: Sequence[Result], budget: str) -> tuple[str, str]:
    """Return accuracy and loss at a budget."""
    if any(one.problem for one in results):
        return NOTHING, NOTHING
    readings = [one.readings[budget] for one in results]
    short = "" if all(one.reached for one in readings) else SHORT
    accuracy = _spread([100 * one.accuracy for one in readings], 1)
    return f"{accuracy} %{short}", _spread([one.loss for one in readings], 2)


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
