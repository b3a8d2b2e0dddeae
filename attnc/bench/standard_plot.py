"""The benchmark standard as pictures: time against length, and how much faster attnc is than each peer."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from attnc.bench.plot import draw_times, provider_colours
from attnc.bench.standard_report import ORDER
from attnc.bench.standard_row import OURS, StandardRow
from attnc.pictures import figure_class

COLUMNS = 4
"""Panels beside each other."""


def draw_standard(rows: Sequence[StandardRow]) -> dict[str, bytes]:
    """Draw two pictures for each mode, PNGs by the ending of their names; of the heads and precision with most cases.

    Raises:
        CompileError: matplotlib is missing.
    """
    pictures: dict[str, bytes] = {}
    rows = [row for row in rows if not row.small and row.comparison is not None]
    for mode in dict.fromkeys(row.sizes.mode for row in rows):
        counts = Counter(row.sizes.configuration for row in rows if row.sizes.mode is mode)
        most = counts.most_common(1)[0][0]
        own = sorted((row for row in rows if row.sizes.configuration == most), key=lambda row: row.key[0])
        comparisons = [replace(row.comparison, attention=row.pattern) for row in own if row.comparison is not None]
        pictures[f"times-{mode.value}"] = draw_times(comparisons, columns=COLUMNS, panel=(3.9, 3.1), dpi=90)
        pictures[f"speedups-{mode.value}"] = draw_speed_ups(own)
    return pictures


def draw_speed_ups(rows: Sequence[StandardRow]) -> bytes:
    """Draw each peer's time for one of attnc's, a group of bars for each pattern at the length that most have; a PNG.

    Raises:
        CompileError: matplotlib is missing.
    """
    counts = Counter(row.sizes.length for row in rows)
    length = max(counts, key=lambda one: (counts[one], one))
    rows = sorted((row for row in rows if row.sizes.length == length), key=lambda row: row.pattern)
    peers = [name for name in ORDER if name != OURS and any(name in row.speed_ups for row in rows)]
    figure = figure_class()(figsize=(max(5.0, 0.85 * len(rows) + 2), 4.2), layout="constrained")
    panel = figure.subplots()
    _draw_bars(panel, rows, peers)
    sizes = rows[0].sizes
    panel.set_title(str(sizes), loc="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _draw_bars(panel: Any, rows: Sequence[StandardRow], peers: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    width = 0.84 / max(1, len(peers))
    colours = provider_colours((OURS, *peers))
    for place, name in enumerate(peers):
        places = [at - 0.42 + (place + 0.5) * width for at, row in enumerate(rows) if name in row.speed_ups]
        heights = [row.speed_ups[name] - 1 for row in rows if name in row.speed_ups]
        panel.bar(places, heights, width, bottom=1, label=name, color=colours[name])
    panel.axhline(1.0, color="black", linewidth=1)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda ratio, place: f"{ratio:g}"))
    panel.set_xticks(range(len(rows)), [row.pattern for row in rows], rotation=35, ha="right")
    panel.minorticks_off()
    panel.set_ylabel("time of the peer / time of attnc")
    panel.grid(axis="y", alpha=0.25)
    panel.legend(fontsize=8, frameon=False, ncols=3)
