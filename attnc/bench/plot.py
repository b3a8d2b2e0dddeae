"""Time against length, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from attnc.bench.report import duration
from attnc.bench.run import Comparison
from attnc.pictures import figure_class


def draw_times(comparisons: Sequence[Comparison]) -> bytes:
    """Draw time against length on logarithmic axes, a panel for each attention, the floor dashed; a PNG.

    Raises:
        CompileError: matplotlib is missing.
    """
    names = list(dict.fromkeys(comparison.attention for comparison in comparisons))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = figure_class()(figsize=(5.6 * columns, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for position, panel in enumerate(panels.flat):
        if position >= len(names):
            panel.set_axis_off()
            continue
        _draw_panel(panel, names[position], [one for one in comparisons if one.attention == names[position]])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def _draw_panel(panel: Any, name: str, comparisons: list[Comparison]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    comparisons = sorted(comparisons, key=lambda one: one.shape.queries)
    contenders = list(dict.fromkeys(result.name for one in comparisons for result in one.results if result.timing))
    for contender in contenders:
        points = [
            (one.shape.queries, result.timing.median)
            for one in comparisons
            for result in one.results
            if result.name == contender and result.timing is not None
        ]
        width = 2.4 if contender == "attnc" else 1.3
        panel.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=width, label=contender)
    lengths = [one.shape.queries for one in comparisons]
    panel.plot(lengths, [one.dense_seconds for one in comparisons], color="0.6", linewidth=1, label="sdpa, no mask")
    panel.plot(lengths, [one.floor_seconds for one in comparisons], color="black", linestyle="--", label="floor")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(lengths, [str(length) for length in lengths])
    panel.minorticks_off()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda seconds, place: duration(seconds)))
    panel.set_xlabel("length")
    panel.set_ylabel("forward and backward" if comparisons[0].backward else "forward")
    panel.set_title(name, loc="left")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=8, frameon=False)
