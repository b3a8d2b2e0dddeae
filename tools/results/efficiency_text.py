"""What the pages say of time and memory against length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attnc.bench.report import duration
from attnc.bench.report import size as size_text
from attnc.pictures import figure_class
from results.efficiency import FLASH, VANILLA
from results.text import load_line, machine_line, paragraph, png, table

TITLE = "Time and memory against length"

NOTHING = "-"

RADIUS, RANK, FEATURES = 128, 256, 256
"""Defaults of `efficiency.attn`."""


def names(rows: Mapping[str, Any], kind: str) -> list[str]:
    """Return the contenders of a kind of rows, in their order."""
    return [*next(row for key, row in rows.items() if key.startswith(kind))]


def section(data: Mapping[str, Any]) -> list[str]:
    """Return the part of the page."""
    chosen = data["settings"]
    size = chosen["head_size"]
    return [
        *paragraph(
            "The shape of the efficiency table of Long Range Arena (Tay et al., 2021): training steps a second and "
            "peak memory of a bidirectional encoder over bytes, relative to the vanilla transformer, which forms the "
            "matrix of all pairs; with flash attention beside it, which the original lacks. The model is PyTorch's "
            f"pre-norm layer with the attention exchanged: {chosen['layers']} layers of width {chosen['width']}, "
            f"{chosen['heads']} heads, one sequence a step; a step is forward, backward and AdamW's update "
            f"(`attnc/study/training.py`). `softmax` is attnc's own full attention, `local window` sees {RADIUS - 1} "
            f"positions to either side, Linformer has {RANK} projected keys, Performer {FEATURES} features, the "
            "linear transformer `elu + 1`. Seconds are those of one thread on the processor, medians of "
            f"{chosen['rounds']} rounds in which all took turns; memory is what a step needs at most beside "
            f"parameters, gradients and the optimiser's state, as torch's allocator gave it out.{load_line(data)}"
        ),
        *model_table(data),
        "",
        *paragraph(model_verdict(data)),
        "![seconds and bytes against length](results/efficiency.png)",
        "",
        *paragraph(
            f"Attention alone, forward and backward, {chosen['alone_heads']} heads of {size}, at "
            f"{chosen['alone'][-1]:,} positions. `operations` are those that the form needs (a multiply-add being "
            "two), `expected` is their ratio to flash attention's, and `products` the part of the time in which "
            "matrices are multiplied. [All lengths, and causal attention](results/efficiency.md)."
        ),
        *work_table(data),
        "",
        *paragraph(work_verdict(data)),
    ]


def details(data: Mapping[str, Any]) -> list[str]:
    """Return the page of all rows."""
    lines = [
        f"# {TITLE}",
        "",
        f"Written by `make study` ([what it says](../results.md)). {machine_line(data['machine'])}.",
    ]
    lines += ["", "## A training step", "", *seconds_table(data, "model", data["settings"]["lengths"])]
    for side, shown in (("full", "all pairs"), ("causal", "causal")):
        lines += [
            "",
            f"## Attention alone, {shown}",
            "",
            *seconds_table(data, f"alone {side}", data["settings"]["alone"]),
        ]
    return lines


def model_table(data: Mapping[str, Any]) -> list[str]:
    """Lay out steps a second and bytes, each with the ratio to the vanilla transformer."""
    rows, lengths = data["rows"], data["settings"]["lengths"]
    cells = []
    for name in names(rows, "model"):
        own = [rows[f"model {length}"] for length in lengths]
        speeds = [
            f"{1 / row[name]['seconds']:.2f} ({row[VANILLA]['seconds'] / row[name]['seconds']:.1f}x)" for row in own
        ]
        memory = [f"{size_text(row[name]['bytes'])} ({row[name]['bytes'] / row[VANILLA]['bytes']:.2f}x)" for row in own]
        cells.append([name, *speeds, *memory])
    kilo = [f"{length / 1024:g}K" for length in lengths]
    return table(["", *(f"steps/s, {one}" for one in kilo), *(f"memory, {one}" for one in kilo)], cells)


def seconds_table(data: Mapping[str, Any], kind: str, lengths: Sequence[int]) -> list[str]:
    """Lay out seconds and bytes at all lengths, and the power of the length that the last two lie on."""
    rows = data["rows"]
    cells = []
    for name in names(rows, kind):
        own = [rows[f"{kind} {length}"].get(name) for length in lengths]
        times = [NOTHING if one is None else duration(one["seconds"]) for one in own]
        memory = [NOTHING if one is None else size_text(one["bytes"]) for one in own]
        known = [(length, one) for length, one in zip(lengths, own, strict=True) if one is not None]
        powers = [f"{power(known, what):.2f}" for what in ("seconds", "bytes")]
        cells.append([name, *times, powers[0], *memory, powers[1]])
    shown = [f"{length:,}" for length in lengths]
    return table(["", *shown, "power", *(f"memory, {one}" for one in shown), "power"], cells)


def power(known: Sequence[tuple[int, Mapping[str, float]]], what: str) -> float:
    """Return the exponent of growth between the last two lengths."""
    (short, before), (long, after) = known[-2:]
    return math.log(after[what] / before[what]) / math.log(long / short)


def model_verdict(data: Mapping[str, Any]) -> str:
    """Say who is ahead of whom at the greatest length, and from where on."""
    rows, lengths = data["rows"], data["settings"]["lengths"]
    last = rows[f"model {lengths[-1]}"]
    flash = last[FLASH]
    ahead = [name for name in last if last[name]["seconds"] < 0.95 * flash["seconds"]]
    smaller = [name for name in last if last[name]["bytes"] < 0.95 * flash["bytes"]]
    parts = [f"{name} {flash['seconds'] / last[name]['seconds']:.1f} times" for name in ahead]
    text = (
        f"At {lengths[-1]:,} positions flash attention alone makes the vanilla transformer "
        f"{last[VANILLA]['seconds'] / flash['seconds']:.1f} times as fast and takes "
        f"{flash['bytes'] / last[VANILLA]['bytes']:.1%} of its memory, without any approximation. "
    )
    text += f"Faster than that are {'; '.join(parts)}. " if parts else "Nothing is faster than that by 5 %. "
    text += (
        f"Less memory than flash attention, by 5 % or more, is needed by {', '.join(smaller)}."
        if smaller
        else "None needs less memory than flash attention by 5 %: that keeps no pairs, and the others keep features."
    )
    shortest = rows[f"model {lengths[0]}"]
    slower = [name for name in shortest if shortest[name]["seconds"] > 1.05 * shortest[FLASH]["seconds"]]
    behind = [name for name in slower if name != VANILLA]
    if behind:
        text += f" At {lengths[0]:,} positions {', '.join(behind)} take longer than flash attention."
    return text


def operations(name: str, length: int, heads: int, size: int) -> float:
    """Return the operations of an attention to all, forward and backward, that its form needs.

    A product has one forward and two backward, of its size each; flash attention computes scores once more, and no
    gradient goes to the directions of features.
    """
    window = length * (2 * RADIUS - 1) - RADIUS * (RADIUS - 1)
    pairs = {"local window": min(window, length**2), "Linformer": length * RANK}.get(name, length**2)
    match name:
        case "vanilla":
            work = 12 * size * pairs
        case "Linformer":
            work = 14 * size * pairs + 12 * length * RANK * size
        case "Performer":
            work = 12 * length * FEATURES * (size + 1) + 8 * length * size * FEATURES
        case "linear transformer":
            work = 12 * length * size * (size + 1)
        case _:
            work = 14 * size * pairs
    return float(heads * work)


def work_table(data: Mapping[str, Any]) -> list[str]:
    """Lay out operations, what they let expect, and what was measured, at the greatest length."""
    chosen = data["settings"]
    length = chosen["alone"][-1]
    row = data["rows"][f"alone full {length}"]
    flash = operations(FLASH, length, chosen["alone_heads"], chosen["head_size"])
    cells = []
    for name, one in row.items():
        work = operations(name, length, chosen["alone_heads"], chosen["head_size"])
        ratio, speed = flash / work, row[FLASH]["seconds"] / one["seconds"]
        measured = [
            duration(one["seconds"]),
            f"{speed:.1f}x",
            f"{work / one['seconds'] / 1e9:.1f}",
            f"{one['products']:.0%}",
        ]
        cells.append([name, f"{work / 1e9:.2f} GFLOP", f"{ratio:.1f}x", *measured, size_text(one["bytes"])])
    return table(["", "operations", "expected", "time", "measured", "GFLOP/s", "products", "memory"], cells)


def work_verdict(data: Mapping[str, Any]) -> str:
    """Say what misses its expectation, and why."""
    chosen = data["settings"]
    length = chosen["alone"][-1]
    row = data["rows"][f"alone full {length}"]
    flash = operations(FLASH, length, chosen["alone_heads"], chosen["head_size"])
    missed = []
    for name, one in row.items():
        expected = flash / operations(name, length, chosen["alone_heads"], chosen["head_size"])
        measured = row[FLASH]["seconds"] / one["seconds"]
        if measured < 0.7 * expected:
            missed.append(
                f"{name} {measured:.1f} instead of {expected:.1f} times ({1 - one['products']:.0%} outside of products)"
            )
    text = "All are as fast as their operations let expect, within 30 %."
    if missed:
        text = (
            f"Operations do not tell the time of the cheap forms: {'; '.join(missed)}. Flash attention does "
            "thousands of operations for each number that it reads. The others read and write arrays of all "
            "positions and features once for every exponential, sum, scaling, copy and gradient, so that much of "
            "their time is that of memory; `products` is the part of it in which matrices are multiplied."
        )
    return f"{text} {causal_verdict(data)}"


def causal_verdict(data: Mapping[str, Any]) -> str:
    """Say what a causal mask does to each form."""
    length = data["settings"]["alone"][-1]
    full, causal = (data["rows"][f"alone {side} {length}"] for side in ("full", "causal"))
    parts = [f"{name} {causal[name]['seconds'] / full[name]['seconds']:.2f}" for name in causal if name in full]
    return (
        f"A causal mask takes {', '.join(parts)} times as long: pairs are halved, but a scan in chunks does more "
        "than one product of all keys and values. There Performer takes "
        f"{causal['Performer']['seconds'] / causal[FLASH]['seconds']:.2f} of flash attention's time and the linear "
        f"transformer {causal['linear transformer']['seconds'] / causal[FLASH]['seconds']:.2f}."
    )


def draw(data: Mapping[str, Any]) -> bytes:
    """Draw seconds and bytes by length: of a step, and of attention alone, full and causal."""
    figure = figure_class()(figsize=(14, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    chosen = data["settings"]
    kinds = (
        ("model", chosen["lengths"], "a training step"),
        ("alone full", chosen["alone"], "attention alone, all pairs"),
        ("alone causal", chosen["alone"], "attention alone, causal"),
    )
    for column, (kind, lengths, title) in enumerate(kinds):
        for place, name in enumerate(names(data["rows"], "model")):
            known = [(length, data["rows"][f"{kind} {length}"].get(name)) for length in lengths]
            found = [(length, one) for length, one in known if one is not None]
            for row, (what, unit) in enumerate((("seconds", 1.0), ("bytes", 2.0**20))):
                values = [one[what] / unit for _, one in found]
                if values:
                    panels[row][column].plot(
                        [x for x, _ in found], values, "o-", color=f"C{place}", label=name, markersize=4
                    )
        panels[0][column].set_title(title, loc="left", fontsize=10)
        for row, label in enumerate(("seconds on the processor", "MiB at most")):
            panel = panels[row][column]
            panel.set(xscale="log", yscale="log", xlabel="positions", ylabel=label)
            panel.set_xticks(lengths, [f"{one:,}" for one in lengths])
            panel.minorticks_off()
            panel.grid(alpha=0.25)
    panels[0][0].legend(fontsize=7, frameon=False)
    return png(figure)
