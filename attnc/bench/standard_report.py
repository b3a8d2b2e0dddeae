"""The results of the benchmark standard: a line for each case, a table at the end, and a report in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from attnc.bench import cells
from attnc.bench.names import BACKENDS, LIBRARIES, NOT_INSTALLED
from attnc.bench.standard_row import OURS, Sizes, StandardRow

if TYPE_CHECKING:
    from rich.table import Table

ORDER = (OURS, "sdpa", *BACKENDS, "flex 128", "flex 64", *LIBRARIES)
"""Providers, in the order of columns."""

METHOD = """\
Times are medians of interleaved samples, and only of providers whose output (and, with a backward pass, gradients)
agreed with float64 first. `B` times `N` is constant. `GFLOP` are the operations on the allowed pairs, in billions;
`bytes` cross the memory bus if every tensor does once. `floor` is the density times SDPA without a mask in the same
run: what the arithmetic of the allowed pairs alone would take. `sdpa` is PyTorch's own choice of a backend, with a flag
where the pattern has one and a dense mask elsewhere; `sdpa-NAME` is forced to that backend. `flex 128` and `flex 64`
are compiled FlexAttention with blocks of that size; `mask build` is what the former's mask takes beforehand, in no
other column. `x floor` is attnc's time in floors, `fastest / attnc` the time of the fastest peer for one of attnc's,
`memory` what attnc's call needs at most beyond its arguments. The rules are those of
[benchmarks.md](../benchmarks.md).
"""

SMALL_CALLS = """\
One sequence, so that what a call costs besides its work shows: `overhead` is attnc's time less that of SDPA (PyTorch's
own choice of a backend), `ratio` one divided by the other.
"""

MEANS = """\
The time of each peer for one of attnc's, as the geometric mean over the patterns that both computed, whose number
stands in parentheses.
"""


def one_line(row: StandardRow) -> str:
    """Return a case in one line."""
    what = f"{row.pattern} {row.sizes}:"
    if not row.right:
        return f"{what} {row.problems.get(OURS, 'not measured')}"
    if row.small and row.overhead is not None:
        return f"{what} {cells.time(row.seconds[OURS])}, {microseconds(row.overhead)} beside SDPA"
    parts = [cells.time(row.seconds[OURS]), f"{cells.number(row.times_floor)} times the floor"]
    named = dict.fromkeys(("sdpa", "flex 128", row.fastest_peer or "sdpa"))
    parts += [f"{name} {cells.number(row.speed_ups[name])} times as long" for name in named if name in row.speed_ups]
    return f"{what} {', '.join(parts)}"


def summary(rows: Sequence[StandardRow]) -> Table:
    """Lay all cases out as a table."""
    from rich.table import Table

    made = Table()
    for heading in (
        "pattern",
        "N",
        "B",
        "heads",
        "D",
        "mode",
        "attnc",
        "floor",
        "x floor",
        "sdpa",
        "flex",
        "fastest peer",
    ):
        left = heading in ("pattern", "fastest peer")
        made.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    made.add_column("/ attnc", justify="right", no_wrap=True)
    for row in _ordered(rows):
        sizes, seconds = row.sizes, row.seconds
        fastest = row.fastest_peer
        made.add_row(
            row.pattern,
            str(sizes.length),
            str(sizes.batch),
            f"{sizes.heads}/{sizes.kv_heads}",
            str(sizes.head_size),
            sizes.mode.value,
            cells.time(seconds.get(OURS)),
            cells.time(None if row.comparison is None else row.comparison.floor_seconds),
            cells.number(row.times_floor),
            cells.time(seconds.get("sdpa")),
            cells.time(seconds.get("flex 128")),
            fastest or cells.NOTHING,
            cells.number(row.speed_ups.get(fastest or "")),
        )
    return made


def as_markdown(rows: Sequence[StandardRow], machine: Mapping[str, object], settings: Mapping[str, object]) -> str:
    """Write the report: short calls, means, a table for each configuration, and who has no time, and why."""
    lines = ["# The benchmark standard", ""]
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    lines += [f"Measured by `attnc bench --suite standard` on {machine['device']}, {threads}.", ""]
    shown = [name for name, value in machine.items() if name not in ("device", "threads") and value is not None]
    lines += [f"Versions and system: {', '.join(f'{name} {machine[name]}' for name in shown)}."]
    lines += [f"Settings: {', '.join(f'{name} {cells.plain(value)}' for name, value in settings.items())}."]
    lines += ["", METHOD.rstrip()]
    rows = _ordered(rows)
    small = [row for row in rows if row.small]
    long = [row for row in rows if not row.small]
    lines += _small_calls(small)
    lines += _means(long)
    for configuration in dict.fromkeys(row.sizes.configuration for row in long):
        own = [row for row in long if row.sizes.configuration == configuration]
        lines += ["", f"## {_title(own[0].sizes)}", "", *_table(own)]
    lines += _without_time(rows)
    ideas = {row.pattern: row.idea for row in rows}
    lines += ["", "## Patterns", "", *(f"- **{name}**: {cells.escaped(idea)}" for name, idea in sorted(ideas.items()))]
    return "\n".join(lines) + "\n"


def microseconds(seconds: float) -> str:
    """Print a difference of times with its sign."""
    return f"{seconds * 1e6:+.0f} us"


def _ordered(rows: Iterable[StandardRow]) -> list[StandardRow]:
    modes = ("forward", "backward", "both")
    return sorted(
        rows,
        key=lambda row: (
            not row.small,
            row.sizes.dtype,
            -row.sizes.kv_heads,
            row.sizes.head_size,
            modes.index(row.sizes.mode.value),
            row.sizes.length,
            row.pattern,
        ),
    )


def _title(sizes: Sizes) -> str:
    heads = f"{sizes.heads} heads"
    if sizes.kv_heads != sizes.heads:
        heads = f"{sizes.heads} query heads of {sizes.kv_heads} key heads"
    mode = sizes.mode.words
    return f"{mode[0].upper()}{mode[1:]}: {heads} of size {sizes.head_size}, {sizes.dtype}"


def _small_calls(rows: Sequence[StandardRow]) -> list[str]:
    if not rows:
        return []
    made = [
        (
            row.pattern,
            row.sizes.mode.value,
            f"{row.sizes.heads}/{row.sizes.kv_heads}",
            f"{row.sizes.head_size}",
            f"{row.sizes.length}",
            cells.time(row.seconds.get(OURS)),
            cells.time(row.seconds.get("sdpa")),
            cells.NOTHING if row.overhead is None else microseconds(row.overhead),
            cells.number(1 / row.speed_ups["sdpa"] if "sdpa" in row.speed_ups else None),
        )
        for row in rows
    ]
    names, columns = ("pattern", "mode", "heads", "D", "N"), ("attnc", "sdpa", "overhead", "ratio")
    return ["", "## Short calls", "", SMALL_CALLS.rstrip(), "", *cells.table(names, columns, made)]


def _means(rows: Sequence[StandardRow]) -> list[str]:
    """Lay out the mean speed-up over each peer, a row for each configuration and length."""
    groups: dict[tuple[str, int], list[StandardRow]] = {}
    for row in rows:
        groups.setdefault((_title(row.sizes), row.sizes.length), []).append(row)
    peers = [name for name in ORDER if any(name in row.speed_ups for row in rows)]
    made = []
    for (title, length), own in groups.items():
        found = []
        for name in peers:
            ratios = [row.speed_ups[name] for row in own if name in row.speed_ups]
            mean = cells.geometric_mean(ratios)
            found.append(cells.NOTHING if mean is None else f"{mean:.2f} ({len(ratios)})")
        made.append((title, f"{length}", *found))
    if not peers:
        return []
    return ["", "## Speed-ups", "", MEANS.rstrip(), "", *cells.table(("series", "N"), peers, made)]


def _table(rows: Sequence[StandardRow]) -> list[str]:
    others = [name for name in ORDER if name != OURS]
    columns = (
        "density",
        "GFLOP",
        "bytes",
        "floor",
        OURS,
        "x floor",
        *others,
        "mask build",
        "fastest / attnc",
        "memory",
    )
    return cells.table(("pattern", "N", "B"), columns, [_cells(row, others) for row in rows])


def _cells(row: StandardRow, others: Sequence[str]) -> tuple[str, ...]:
    comparison, results, seconds = row.comparison, row.results, row.seconds
    names = (row.pattern, f"{row.sizes.length}", f"{row.sizes.batch}")
    if comparison is None:
        return (*names, *(cells.NOTHING for _ in range(9 + len(others))))
    flex = results.get("flex 128")
    return (
        *names,
        f"{comparison.density:.4f}",
        f"{comparison.flops / 1e9:.4g}",
        cells.volume(comparison.bytes),
        cells.time(comparison.floor_seconds),
        cells.time(seconds.get(OURS)),
        cells.number(row.times_floor),
        *(cells.time(seconds.get(name)) for name in others),
        cells.time(None if flex is None else flex.build_seconds),
        cells.number(row.speed_ups.get(row.fastest_peer or "")),
        cells.volume(results[OURS].memory if OURS in results else None),
    )


def _without_time(rows: Sequence[StandardRow]) -> list[str]:
    """List who has no time, once for each reason, and what is not installed in one line."""
    found: dict[tuple[str, str], list[StandardRow]] = {}
    for row in rows:
        for name, why in row.problems.items():
            found.setdefault((name, why), []).append(row)
    missing = dict.fromkeys(name for name, why in found if why == NOT_INSTALLED)
    lines = [f"- {', '.join(missing)}: not installed."] if missing else []
    for name in ORDER:
        for (who, why), own in found.items():
            if who == name and why != NOT_INSTALLED:
                lines.append(f"- {name}, {_where(own, len(rows))}: {cells.escaped(why)}.")
    return ["", "## Without a time", "", *lines] if lines else []


def _where(rows: Sequence[StandardRow], count: int) -> str:
    """Name the cases of a problem, shortly: by pattern, and by length or mode where only some of those have it."""
    if len(rows) == count:
        return "in every case"
    patterns = ", ".join(dict.fromkeys(row.pattern for row in rows))
    lengths = sorted({row.sizes.length for row in rows})
    modes = list(dict.fromkeys(row.sizes.mode.value for row in rows))
    return f"{patterns} (N = {', '.join(map(str, lengths))}; {', '.join(modes)})"
