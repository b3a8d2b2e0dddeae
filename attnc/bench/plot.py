"""Time against length, as a picture."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from attnc.bench.report import duration
from attnc.bench.run import Comparison
from attnc.pictures import figure_class

DENSE = "sdpa, no mask"

OWN_LEGENDS = 3
"""Panels that have room for legends of their own."""


def draw_times(
    comparisons: Sequence[Comparison], *, columns: int = 3, panel: tuple[float, float] = (5.6, 4.2), dpi: int = 140
) -> bytes:
    """Draw time against length on logarithmic axes, a panel for each attention, the floor dashed; a PNG.

    Args:
        comparisons: one for each attention and length.
        columns: panels beside each other.
        panel: width and height of each, in inches.
        dpi: dots an inch.

    Raises:
        CompileError: matplotlib is missing.
    """
    names = list(dict.fromkeys(comparison.attention for comparison in comparisons))
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = figure_class()(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
    colours = provider_colours(result.name for one in comparisons for result in one.results if result.timing)
    for position, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if position >= len(names):
            axes.set_axis_off()
            continue
        own = [one for one in comparisons if one.attention == names[position]]
        _draw_panel(axes, names[position], own, colours)
        if len(names) <= OWN_LEGENDS:
            axes.legend(fontsize=8, frameon=False)
    if len(names) > OWN_LEGENDS:
        _legend_of_all(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def provider_colours(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name, the same for `sdpa, causal` and `sdpa, dense mask`."""
    names = list(dict.fromkeys(names))
    providers = list(dict.fromkeys(name.partition(",")[0] for name in names))
    return {name: f"C{providers.index(name.partition(',')[0]) % 10}" for name in names}


def _draw_panel(panel: Any, name: str, comparisons: list[Comparison], colours: dict[str, str]) -> None:
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
        style: dict[str, Any] = {"linewidth": width, "color": colours[contender], "label": contender}
        panel.plot(*zip(*points, strict=True), marker="o", markersize=4, **style)
    lengths = [one.shape.queries for one in comparisons]
    panel.plot(lengths, [one.dense_seconds for one in comparisons], color="0.6", marker=".", label=DENSE)
    floors = [one.floor_seconds for one in comparisons]
    panel.plot(lengths, floors, color="black", linestyle="--", marker=".", label="floor")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(lengths, [str(length) for length in lengths])
    panel.minorticks_off()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda seconds, place: duration(seconds)))
    panel.set_xlabel("length")
    panel.set_ylabel(comparisons[0].mode.words)
    panel.set_title(name, loc="left")
    panel.grid(alpha=0.25)


def _legend_of_all(figure: Any) -> None:
    """Put one legend under all panels, with each provider once."""
    found: dict[str, Any] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label if label == DENSE else label.partition(",")[0], handle)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=len(found), fontsize=9, frameon=False)
