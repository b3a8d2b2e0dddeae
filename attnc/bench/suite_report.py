"""The results of a suite: a line as each case is measured, a table at the end, and the same in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attnc.bench import cells
from attnc.bench.report import duration
from attnc.bench.suite_row import SuiteRow

if TYPE_CHECKING:
    from rich.table import Table

METHOD = """\
Times are medians of interleaved samples, and only of contenders whose output agreed with float64 first. `pairs` are the
allowed ones of one head; `in 64 x 64` those in visited tiles of that size, `computed` those in the rectangles that
really ran ({tile}); `waste 64` and `waste` are those for each allowed one. `flex` is FlexAttention compiled, with
blocks of 128 (its default) and of 64; `mask build` is the time of its default block mask, which `with build` counts and
the other ratios do not. `sdpa` has the pattern as a dense mask, where that fits into memory. `floor` is the density
times SDPA without a mask in the same run: what the arithmetic of the allowed pairs alone would take.
"""

TRAINING = """\
Times are of forward and backward passes together, the floor's as well, and gradients agreed with float64 at a small
length. `memory` is what both passes need at most beyond query, key and value, the dense mask of `sdpa` included.
"""


def one_line(row: SuiteRow) -> str:
    """Return a case in one line."""
    what = f"{row.pattern} at {row.length}:"
    if not row.right:
        return f"{what} {row.problems.get('attnc', 'not measured')}"
    parts = [
        duration(row.seconds["attnc"]),
        f"{cells.number(row.times_floor)} times the floor",
        f"waste {cells.number(row.waste_in_tiles)} in tiles of 64 x 64, {cells.number(row.waste)} in all",
    ]
    if row.times_flex is not None:
        parts.append(f"flex {cells.number(row.times_flex)} times as long")
    return f"{what} {', '.join(parts)}"


def summary(rows: Sequence[SuiteRow]) -> Table:
    """Lay all cases out as a table."""
    from rich.table import Table

    made = Table()
    for heading in (
        "pattern",
        "N",
        "waste 64",
        "waste",
        "attnc",
        "flex",
        "build",
        "sdpa",
        "floor",
        "x floor",
        "flex/attnc",
    ):
        left = heading == "pattern"
        made.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in _ordered(rows):
        made.add_row(
            row.pattern,
            str(row.length),
            cells.number(row.waste_in_tiles),
            cells.number(row.waste),
            cells.time(row.seconds.get("attnc")),
            cells.time(row.seconds.get("flex 128")),
            cells.time(row.build_seconds.get("flex 128")),
            cells.time(row.sdpa),
            cells.time(row.floor_seconds),
            cells.number(row.times_floor),
            cells.number(row.times_flex),
        )
    return made


def as_markdown(rows: Sequence[SuiteRow], machine: Mapping[str, object], settings: Mapping[str, object]) -> str:
    """Write a report: a table for each length, what could not be measured and why, and what the columns mean."""
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    backward = bool(settings.get("backward"))
    lines = [
        f"# {'Training with sparse' if backward else 'Sparse'} patterns: attnc beside other ways to compute them",
        "",
    ]
    place = f"{machine['device']}, {threads}, torch {machine['torch']}"
    lines += [f"Measured by `attnc bench --suite sparsity{' --backward' if backward else ''}` on {place}."]
    chosen = ", ".join(f"{name} {cells.plain(value)}" for name, value in settings.items() if value is not None)
    tiles = ", ".join(dict.fromkeys(row.tile for row in rows if row.tile)) or "none"
    lines += [f"Settings: {chosen}.", "", METHOD.format(tile=tiles).rstrip()]
    lines += ["", TRAINING.rstrip()] if backward else []
    for length in sorted({row.length for row in rows}):
        lines += ["", f"## N = {length}", "", *_table([row for row in _ordered(rows) if row.length == length])]
    problems = [(row, name, why) for row in _ordered(rows) for name, why in row.problems.items()]
    if problems:
        lines += ["", "## Without a time", ""]
        lines += [f"- {row.pattern} at {row.length}, {name}: {cells.escaped(why)}" for row, name, why in problems]
    ideas = {row.pattern: row for row in _ordered(rows)}
    lines += ["", "## Patterns", ""]
    lines += [
        f"- **{name}**: {cells.escaped(row.idea)} Passes at N = {row.length}: {'; '.join(row.layouts)}."
        for name, row in ideas.items()
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[SuiteRow]) -> list[str]:
    """Lay rows out, without the columns in which none of them has a figure."""
    every = [_cells(row) for row in rows]
    return cells.table(
        ("pattern",), list(every[0]), [(row.pattern, *own.values()) for row, own in zip(rows, every, strict=True)]
    )


def _cells(row: SuiteRow) -> dict[str, str]:
    return {
        "pairs": cells.whole(row.pairs),
        "density": cells.NOTHING if row.density is None else f"{row.density:.4f}",
        "in 64 x 64": cells.whole(row.in_tiles),
        "waste 64": cells.number(row.waste_in_tiles),
        "computed": cells.whole(row.computed),
        "waste": cells.number(row.waste),
        "attnc": cells.time(row.seconds.get("attnc")),
        "flex": cells.time(row.seconds.get("flex 128")),
        "flex 64": cells.time(row.seconds.get("flex 64")),
        "mask build": cells.time(row.build_seconds.get("flex 128")),
        "sdpa": cells.time(row.sdpa),
        "floor": cells.time(row.floor_seconds),
        "x floor": cells.number(row.times_floor),
        "flex / attnc": cells.number(row.times_flex),
        "best flex / attnc": cells.number(row.times_best_flex),
        "with build": cells.number(row.times_flex_with_build),
        "memory": cells.volume(row.memory("attnc")),
        "memory of sdpa": cells.volume(row.memory("sdpa")),
        "of flex": cells.volume(row.memory("flex 128")),
    }


def _ordered(rows: Sequence[SuiteRow]) -> list[SuiteRow]:
    return sorted(rows, key=lambda row: (row.length, row.pattern))
