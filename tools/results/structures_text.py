"""What the pages say of structured layers in training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from attnc.pictures import figure_class
from results.text import listed, machine_line, paragraph, png, table

TITLE = "Structured projections: parameters, operations, loss"

NAMES = {
    "dense": "dense",
    "dense, narrow": "dense, half the width",
    "low_rank": "`low_rank(8)`",
    "block_diagonal": "`block_diagonal(4)`",
    "monarch": "`monarch(8)`",
    "banded": "`banded(9)`",
    "scattered": "`masked`, a random quarter",
}
"""How contenders are called in tables."""


def trials(data: Mapping[str, Any], task: str) -> list[Mapping[str, Any]]:
    """Return the trials of a task, one for each seed."""
    return [row for row in data["rows"].values() if row["task"] == task]


def every(data: Mapping[str, Any], task: str) -> dict[str, list[Mapping[str, Any]]]:
    """Return the results of each contender, one for each seed."""
    found = trials(data, task)
    return {one["name"]: [trial["contenders"][k] for trial in found] for k, one in enumerate(found[0]["contenders"])}


def section(data: Mapping[str, Any]) -> list[str]:
    """Return the part of the page."""
    chosen = data["settings"]
    steps = {task: trials(data, task)[0]["steps"] for task in chosen["tasks"]}
    lines = paragraph(
        "Layers of `tools/results/structures.attn` in the models and tasks of `attnc study --preset tiny` ([what "
        "they are](study.md)): two layers of width 64 with two heads, in which all matrices of the attention and of "
        "the feed-forward network have one structure with about a quarter of the dense parameters, beside dense "
        f"layers and dense layers of width {chosen['narrow']}, which have about as few. All see the same examples, "
        f"in {chosen['seeds']} trainings from {chosen['seeds']} seeds; mean and standard deviation. `equal steps` is "
        f"after {' and '.join(f'{count} ({task})' for task, count in steps.items())}, `equal operations` after as "
        f"many steps as {chosen['budget']:.0%} of the dense layers' operations pay for. `in layers` counts the free "
        "elements of their matrices; MFLOP are those of a step by the rule of `attnc study`, and `time` is that of a "
        "step, over the dense layers'. [Every training](results/structured_layers.md)."
    )
    for task in chosen["tasks"]:
        chance = statistics.fmean(trial["chance"] for trial in trials(data, task))
        lines += [f"### {task}: chance {chance:.1%}", "", *task_table(data, task), ""]
    lines += ["![loss against operations and parameters](results/structured_layers.png)", "", *paragraph(verdict(data))]
    return lines


def details(data: Mapping[str, Any]) -> list[str]:
    """Return the page of all trainings."""
    lines = [
        f"# {TITLE}",
        "",
        f"Written by `make study` ([what it says](../results.md)). {machine_line(data['machine'])}.",
    ]
    headings = ["", "steps", "loss", "accuracy", "steps for equal operations", "loss", "accuracy", "time of a step"]
    for task in data["settings"]["tasks"]:
        for trial in trials(data, task):
            cells = []
            for one in trial["contenders"]:
                readings = [one["readings"][name] for name in ("steps", "flops")]
                found = [
                    cell
                    for each in readings
                    for cell in (f"{each['steps']:.0f}", f"{each['loss']:.3f}", f"{each['accuracy']:.1%}")
                ]
                cells.append([NAMES[one["name"]], *found, f"{1e3 * one['seconds']:.1f} ms"])
            lines += ["", f"## {task}, seed {trial['seed']}", "", *table(headings, cells)]
    return lines


def task_table(data: Mapping[str, Any], task: str) -> list[str]:
    """Lay a task out."""
    found = every(data, task)
    dense = found["dense"]
    cells = []
    for name, results in found.items():
        first = results[0]
        share = first["layer_elements"] / dense[0]["layer_elements"]
        ratio = statistics.median(one["seconds"] / own["seconds"] for one, own in zip(results, dense, strict=True))
        cells.append(
            [
                NAMES[name],
                f"{first['parameters']:,}",
                f"{first['layer_elements']:,} ({share:.0%})",
                f"{first['flops'] / 1e6:,.0f}",
                f"{ratio:.2f}",
                *(reading(results, "steps", what) for what in ("loss", "accuracy")),
                *(reading(results, "flops", what) for what in ("loss", "accuracy")),
            ]
        )
    headings = ["", "parameters", "in layers", "MFLOP", "time", "loss, equal steps", "accuracy"]
    return table([*headings, "loss, equal operations", "accuracy"], cells)


def reading(results: Sequence[Mapping[str, Any]], budget: str, what: str) -> str:
    """Write mean and standard deviation at a budget."""
    values = [one["readings"][budget][what] for one in results]
    scale, digits, unit = (100, 1, " %") if what == "accuracy" else (1, 2, "")
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return f"{mean}{unit}" if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}{unit}"


def losses(data: Mapping[str, Any], task: str, budget: str) -> dict[str, float]:
    """Return mean losses at a budget."""
    found = every(data, task)
    return {
        name: statistics.fmean(one["readings"][budget]["loss"] for one in results) for name, results in found.items()
    }


SOLVED = 0.05
"""A mean loss below this is as good as any other."""


def leaders(found: Mapping[str, float]) -> str:
    """Say who has the least loss, or who has none to speak of."""
    solved = [name for name, loss in found.items() if loss < SOLVED]
    if 1 < len(solved) <= len(found) / 2:
        return f"{listed([NAMES[name] for name in solved])} have a loss below {SOLVED:g}"
    if len(solved) > 1:
        others = [NAMES[name] for name in found if name not in solved]
        return f"all have a loss below {SOLVED:g}" + (f" but {listed(others)}" if others else "")
    best = min(found, key=lambda name: found[name])
    return f"{NAMES[best]} has the least loss ({found[best]:.2f})"


def ahead(found: Mapping[str, float], of: str) -> str:
    """Say which structures have less loss than a dense contender, unless both have solved the task."""
    bound = max(found[of], SOLVED)
    names = [NAMES[name] for name, loss in found.items() if loss < bound and not name.startswith("dense")]
    return listed(names) if names else "no structure"


def verdict(data: Mapping[str, Any]) -> str:
    """Say who learned most at each budget, and how structures stand to dense layers with as few parameters."""
    parts = []
    for task in data["settings"]["tasks"]:
        steps, operations = losses(data, task, "steps"), losses(data, task, "flops")
        parts.append(
            f"On {task}, after equal steps {leaders(steps)}; dense layers with as few parameters are behind "
            f"{ahead(steps, 'dense, narrow')}. After equal operations {leaders(operations)}"
            + (
                "."
                if operations["dense"] < SOLVED
                else f"; dense layers of full width are behind {ahead(operations, 'dense')}."
            )
        )
    saved = [
        one["flops"] / found["dense"][0]["flops"]
        for found in (every(data, task) for task in data["settings"]["tasks"])
        for name, (one, *_) in found.items()
        if not name.startswith("dense")
    ]
    ratios = [
        statistics.median(one["seconds"] / own["seconds"] for one, own in zip(results, found["dense"], strict=True))
        for found in (every(data, task) for task in data["settings"]["tasks"])
        for name, results in found.items()
        if not name.startswith("dense")
    ]
    return " ".join(parts) + (
        f" Time is another matter: with {min(saved):.0%} to {max(saved):.0%} of the operations, steps with "
        f"structures take {min(ratios):.2f} to {max(ratios):.2f} of the dense layers' time at this width, the most "
        "where a product is many small ones. Differences within a standard deviation are none, and what holds for "
        "two layers of this size need not hold for larger ones."
    )


def draw(data: Mapping[str, Any]) -> bytes:
    """Draw losses against parameters of layers after equal steps, and against operations."""
    tasks = data["settings"]["tasks"]
    figure = figure_class()(figsize=(12, 4.2 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False)
    for row, task in enumerate(tasks):
        for place, (name, results) in enumerate(every(data, task).items()):
            first = results[0]
            for panel, budget, x in zip(
                panels[row], ("steps", "flops"), (first["layer_elements"], first["flops"] / 1e6), strict=True
            ):
                values = [one["readings"][budget]["loss"] for one in results]
                mean = statistics.fmean(values)
                spread = [[mean - min(values)], [max(values) - mean]]
                panel.errorbar(
                    [x], [mean], spread, marker="o", capsize=3, color=f"C{place}", label=NAMES[name].replace("`", "")
                )
        panels[row][0].set(xlabel="free elements of the layers' matrices", title=f"{task}, equal steps")
        panels[row][1].set(xlabel="MFLOP of a step", title=f"{task}, equal operations")
        for panel in panels[row]:
            panel.set_ylabel("loss, nats")
            panel.set_ylim(bottom=0)
            panel.set_xlim(left=0)
            panel.grid(alpha=0.25)
    panels[0][1].legend(fontsize=7, frameon=False)
    return png(figure)
