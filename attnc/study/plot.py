"""Curves of a study as a picture: accuracy and loss against operations, time and memory."""

from __future__ import annotations

import io
import statistics
from typing import Any

from attnc.pictures import figure_class
from attnc.study.curves import read
from attnc.study.report import Study, TaskReport

AXES = (("flops", "training FLOPs"), ("seconds", "seconds of training"))

QUANTITIES = (("accuracy", "accuracy"), ("loss", "loss, nats"))

COLOURS = ("#000000", "#7f7f7f", "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf")


def draw_study(study: Study) -> bytes:
    """Draw two rows of panels for each task, the mean over seeds with the range shaded; a PNG.

    Raises:
        CompileError: matplotlib is missing.
    """
    rows = len(QUANTITIES) * len(study.tasks)
    figure = figure_class()(figsize=(14.5, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, len(AXES) + 1, squeeze=False)
    for number, report in enumerate(study.tasks):
        for offset, (quantity, label) in enumerate(QUANTITIES):
            row = panels[len(QUANTITIES) * number + offset]
            for panel, (axis, title) in zip(row, AXES, strict=False):
                _draw_curves(panel, report, axis, quantity)
                panel.set_xlabel(title)
            _draw_memory(row[-1], report, quantity)
            for panel in row:
                panel.set_ylabel(label)
                panel.grid(alpha=0.25)
                _draw_limits(panel, report, quantity)
            row[0].set_title(f"{report.task.name}, length {report.task.length}", loc="left")
            if offset == 0:
                row[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw_curves(panel: Any, report: TaskReport, axis: str, quantity: str) -> None:
    for number, name in enumerate(report.names()):
        every = [one for one in report.of(number) if one.points]
        if not every:
            continue
        unit = statistics.fmean(getattr(one, axis) for one in every)
        last = min(one.points[-1].step for one in every)
        steps = [point.step for point in every[0].points if point.step <= last]
        values = [[getattr(read(one.points, step), quantity) for one in every] for step in steps]
        places = [step * unit for step in steps]
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": "--" if number >= len(COLOURS) else "-"}
        # the first is drawn wide, so that one that learns exactly alike does not hide it
        wide = 4.0 if number == 0 else 1.5
        panel.plot(places, [statistics.fmean(one) for one in values], marker=".", label=name, linewidth=wide, **style)
        if len(every) > 1:
            low, high = [min(one) for one in values], [max(one) for one in values]
            panel.fill_between(places, low, high, alpha=0.15, color=style["color"], linewidth=0)
    panel.set_xlim(left=0)


def _draw_memory(panel: Any, report: TaskReport, quantity: str) -> None:
    """Draw a point for each contender: what it has at equal steps, and what it needs for it."""
    for number, name in enumerate(report.names()):
        every = [one for one in report.of(number) if one.readings and one.bytes is not None]
        if every:
            memory = statistics.fmean(one.bytes / 2**20 for one in every if one.bytes is not None)
            value = statistics.fmean(getattr(one.readings["steps"], quantity) for one in every)
            panel.plot([memory], [value], marker="o", linestyle="", label=name, color=COLOURS[number % len(COLOURS)])
    panel.set_xlabel("MiB of parameters and activations, at equal steps")
    panel.set_xlim(0, 1.1 * panel.get_xlim()[1])


def _draw_limits(panel: Any, report: TaskReport, quantity: str) -> None:
    if quantity == "accuracy":
        chance = statistics.fmean(trial.chance for trial in report.trials)
        panel.axhline(chance, color="0.5", linestyle=":", linewidth=1)
        panel.set_ylim(0, 1.04)
    else:
        panel.set_ylim(0, 1.05 * panel.get_ylim()[1])
