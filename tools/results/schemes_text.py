"""What the pages say of products by bilinear schemes, from the files of `tools/time_schemes.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import time_schemes
import torch

from attnc.algebra.bilinear.prices import Rates
from attnc.pictures import figure_class
from results.schemes import SETTINGS
from results.text import listed, load_line, paragraph, png, table

TITLE = "Products by Strassen's scheme and others"

SHOWN = ("strassen", "winograd")

SIZES = (512, 1024, 2048, 4096)
"""Sizes in the table of the page; the others are in the files."""


def rates(data: Mapping[str, Any]) -> Rates:
    """Return the rates that were measured."""
    flops, bandwidth = data["rates"]
    return Rates("measured", flops, bandwidth, getattr(torch, data["dtype"]).itemsize)


def section(data: Mapping[str, Any], two_threads: Mapping[str, Any] | None) -> list[str]:
    """Return the part of the page.

    Args:
        data: of one thread, time on the processor.
        two_threads: of two, wall time; None where there is no such file.
    """
    flops, bandwidth = data["rates"]
    lines = [
        *paragraph(
            "Square products of float32 numbers, the library's and by `L` levels of a scheme, in turns; milliseconds "
            "of one thread on the processor, the least of all rounds, and the greatest error over the greatest "
            f"entries of both factors. `model` is the speedup that the cost model lets expect at {flops / 1e9:.0f} "
            f"GFLOP/s in products and {bandwidth / 1e9:.0f} GB/s in sums of matrices, `bound` the proven one "
            f"([how](bilinear.md#the-error)). `make study` takes {SETTINGS['rounds']} rounds for each row and keeps "
            f"the least of earlier runs on the same machine.{load_line(data)} [All schemes, sizes and "
            "levels](results/strassen_one_thread.md)."
        ),
        *times_table(data),
        "",
        *paragraph(verdict(data)),
        "![speedups and errors by size](results/schemes.png)",
        "",
    ]
    if two_threads is not None:
        found = best(two_threads)
        lines += paragraph(
            f"With two threads and wall time ([all rows](results/strassen.md)) the best of these is {found[0]} with "
            f"{found[1]} level{'' if found[1] == 1 else 's'} at {found[2]:,}: {found[3]:.2f} times the library's "
            "speed. One long product shares the cores better than many short ones, and other programs on the machine "
            "cost the latter more."
        )
    return lines


def cells(data: Mapping[str, Any]) -> dict[tuple[str, int, int], Mapping[str, Any]]:
    """Return rows by scheme, levels and size."""
    found = {}
    for key, row in data["rows"].items():
        name, levels, size = key.split()
        found[name, int(levels), int(size)] = row
    return found


def times_table(data: Mapping[str, Any]) -> list[str]:
    """Lay the shown schemes out: a line for each scheme, level and size."""
    lines = []
    for (name, levels, size), row in sorted(
        cells(data).items(), key=lambda one: (SHOWN.index(one[0][0]) if one[0][0] in SHOWN else 9, one[0])
    ):
        if name in SHOWN and size in SIZES:
            plain, scheme = row["seconds"]
            found = time_schemes.load(name, levels)
            bound = found.accuracy.bound(size, levels, time_schemes.UNITS[data["dtype"]], output_unit=0.0)
            lines.append(
                [
                    name,
                    f"{levels}",
                    f"{size:,}",
                    f"{1e3 * plain:.1f}",
                    f"{1e3 * scheme:.1f}",
                    f"{plain / scheme:.2f}",
                    f"{found.gain((size,) * 3, rates(data)):.2f}",
                    *(f"{error:.1e}" for error in (*row["errors"], bound)),
                ]
            )
    headings = [
        "scheme",
        "levels",
        "size",
        "library",
        "scheme",
        "speedup",
        "model",
        "library's error",
        "error",
        "bound",
    ]
    return table(headings, lines)


def best(data: Mapping[str, Any]) -> tuple[str, int, int, float]:
    """Return scheme, levels, size and speedup of the fastest of the shown ones."""
    speeds = {key: row["seconds"][0] / row["seconds"][1] for key, row in cells(data).items() if key[0] in SHOWN}
    key = max(speeds, key=lambda one: speeds[one])
    return (*key, speeds[key])


def verdict(data: Mapping[str, Any]) -> str:
    """Say from where on a level pays, what it gains, and what it costs in accuracy."""
    rows = cells(data)
    largest = max(size for _, _, size in rows)
    parts = []
    for levels in sorted({levels for name, levels, _ in rows if name == SHOWN[0]}):
        own = {size: row for (name, count, size), row in rows.items() if (name, count) == (SHOWN[0], levels)}
        slower = [size for size, row in own.items() if row["seconds"][0] < row["seconds"][1]]
        faster = [size for size in own if size > max(slower, default=0)]
        found = time_schemes.load(SHOWN[0], levels)
        start = f"from {min(faster):,} on" if faster else f"nowhere up to {max(own):,}"
        last = own[max(own)]
        gain = last["seconds"][0] / last["seconds"][1]
        error = last["errors"][1] / last["errors"][0]
        parts.append(
            f"{levels} level{'' if levels == 1 else 's'} {start} (the model says "
            f"{found.break_even(rates(data)):,.0f}), {gain:.2f} times the library's speed at {max(own):,} (the "
            f"model: {found.gain((max(own),) * 3, rates(data)):.2f}), with {error:.1f} times its error"
        )
    return (
        f"Strassen's scheme is faster than the library: {'; '.join(parts)}. The model takes products of blocks at "
        f"the rate of a product of {largest:,} and additions at the bandwidth of large sums. "
        f"{explanation(data)}Errors grow by less than the bound's factor of about 3 a level."
    )


def explanation(data: Mapping[str, Any]) -> str:
    """Say where the time goes that the model does not know of, where a profile was taken."""
    shares = data.get("products")
    if shares is None:
        return ""
    size = shares["size"]
    parts = []
    for levels in (key for key in shares if key != "size"):
        found = time_schemes.load(SHOWN[0], int(levels))
        ratio = (found.scheme.rank / (found.scheme.m * found.scheme.k * found.scheme.n)) ** int(levels)
        expected = ratio * found.gain((size,) * 3, rates(data))
        parts.append(f"{1 - shares[levels]:.1%} by {levels} ({1 - expected:.1%} in the model)")
    return (
        f"Profiled at {size:,}, additions and what surrounds them take {listed(parts)} of a product's time, which is "
        "where the gain falls short. "
    )


def draw(data: Mapping[str, Any]) -> bytes:
    """Draw speedups, and errors over the library's, by size."""
    figure = figure_class()(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = cells(data)
    kinds = sorted({(name, levels) for name, levels, _ in rows if name in SHOWN})
    for place, (name, levels) in enumerate(kinds):
        own = sorted((size, row) for (one, count, size), row in rows.items() if (one, count) == (name, levels))
        sizes = [size for size, _ in own]
        style = {"color": f"C{place}", "label": f"{name}, {levels}", "markersize": 4}
        left.plot(sizes, [row["seconds"][0] / row["seconds"][1] for _, row in own], "o-", **style)
        found = time_schemes.load(name, levels)
        left.plot(sizes, [found.gain((size,) * 3, rates(data)) for size in sizes], ":", color=f"C{place}", linewidth=1)
        right.plot(sizes, [row["errors"][1] for _, row in own], "o-", **style)
    plain = {size: row["errors"][0] for (_, _, size), row in rows.items()}
    right.plot(sorted(plain), [plain[size] for size in sorted(plain)], "k-", label="library")
    left.axhline(1, color="0.5", linewidth=1)
    left.set(ylabel="speedup over the library (dotted: the model)", ylim=(0, None))
    right.set(ylabel="greatest error over greatest entries", yscale="log")
    for panel in (left, right):
        panel.set(xscale="log", xlabel="size")
        panel.set_xticks(sorted(plain), [f"{size:,}" for size in sorted(plain)])
        panel.minorticks_off()
        panel.grid(alpha=0.25)
    right.legend(fontsize=7, frameon=False)
    return png(figure)
