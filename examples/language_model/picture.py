"""The curves of a training as a picture."""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from attnc.pictures import figure_class
from language_model.agreement import Agreement
from language_model.training import Learner

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")

LEAST = 1e-9
"""Where a difference of zero stands on the logarithmic axis."""

SMOOTH = 40
"""The training loss is averaged over one in so many of all steps, since each sees text of its own."""


def draw(learners: Sequence[Learner], found: Sequence[Agreement]) -> bytes:
    """Draw losses against steps and against time, and where they are known the differences to SDPA; a PNG.

    Raises:
        CompileError: matplotlib is missing.
    """
    names = list(dict.fromkeys(learner.pattern.name for learner in learners))
    colours = dict(zip(names, itertools.cycle(COLOURS)))
    panels = 3 if found else 2
    figure = figure_class()(figsize=(5.6 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels)
    _draw_steps(axes[0], learners, colours)
    _draw_time(axes[1], learners, colours)
    if found:
        _draw_differences(axes[2], found, colours)
    for panel in axes:
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def _style(learner: Learner, colours: dict[str, str]) -> dict[str, Any]:
    """Return SDPA's curve as dashes on top of attnc's, since it covers it."""
    if learner.by == "attnc":
        return {"color": colours[learner.pattern.name], "linewidth": 2.4, "alpha": 0.6, "label": learner.name}
    return {"color": "black", "linewidth": 0.9, "linestyle": (0, (4, 4)), "label": learner.name}


def _draw_steps(panel: Any, learners: Sequence[Learner], colours: dict[str, str]) -> None:
    count = max(1, len(learners[0].curves.training) // SMOOTH)
    for learner in learners:
        losses = learner.curves.training
        means = [statistics.fmean(losses[end - count : end]) for end in range(count, len(losses) + 1)]
        panel.plot(range(count, len(losses) + 1), means, **_style(learner, colours))
    panel.set_xlabel("step")
    panel.set_ylabel("nats a byte")
    panel.set_title(f"training loss, mean of {count} steps" if count > 1 else "training loss", loc="left")


def _draw_time(panel: Any, learners: Sequence[Learner], colours: dict[str, str]) -> None:
    for learner in learners:
        steps = sorted(learner.curves.validation)
        losses = [learner.curves.validation[step] for step in steps]
        # by the median, since a pause of the machine would bend the curve of whoever was at work
        elapsed = [step * learner.curves.step_seconds for step in steps]
        style = _style(learner, colours) | {"color": colours[learner.pattern.name]}
        panel.plot(elapsed, losses, marker="o", markersize=3.5, **style)
    panel.set_xlabel("seconds of training, by the median step")
    panel.set_ylabel("nats a byte")
    panel.set_title("loss on held-out text", loc="left")


def _draw_differences(panel: Any, found: Sequence[Agreement], colours: dict[str, str]) -> None:
    for one in found:
        heights = list(itertools.accumulate(one.differences, max, initial=LEAST))[1:]
        panel.plot(range(1, len(heights) + 1), heights, color=colours[one.pattern], linewidth=1.6, label=one.pattern)
    panel.set_yscale("log")
    panel.set_xlabel("step")
    panel.set_title("attnc and SDPA: greatest difference of training losses so far", loc="left")
