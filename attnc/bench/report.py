"""Comparisons as tables for people and as JSON for machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from attnc.bench.names import Mode
from attnc.bench.run import Comparison, Result

if TYPE_CHECKING:
    from rich.table import Table


def as_json(comparisons: Iterable[Comparison], machine: dict[str, object], settings: dict[str, object]) -> Any:
    """Return everything that was measured, ready for `json.dumps`. Times are seconds, memory is bytes."""
    return {"machine": machine, "settings": settings, "comparisons": [asdict(one) for one in comparisons]}


def table(comparison: Comparison) -> Table:
    """Lay one comparison out as a table."""
    from rich.table import Table

    what = comparison.mode.words
    title = f"{comparison.attention}  {comparison.shape}  {what}"
    made = Table(title=title, title_justify="left", caption=_caption(comparison), caption_justify="left")
    made.add_column("", no_wrap=True)
    for heading in ("time", "useful", "x floor", "memory", "mask build", "error"):
        made.add_column(heading, justify="right", no_wrap=True)
    rows = [_cells(result) for result in comparison.results]
    noted = any(row[-1] for row in rows)
    if noted:
        made.add_column("note", overflow="fold")
    for row in rows:
        made.add_row(*(row if noted else row[:-1]))
    return made


def _cells(result: Result) -> tuple[str, ...]:
    timing = result.timing
    if timing is None:
        build = duration(result.build_seconds) if result.build_seconds is not None else ""
        return (result.name, "-", "", "", "", build, "", result.problem)
    return (
        result.name,
        duration(timing.median),
        speed(result.flops_per_second or 0.0),
        "" if result.times_floor is None else f"{result.times_floor:.2f}",
        "" if result.memory is None else size(result.memory),
        "" if result.build_seconds is None else duration(result.build_seconds),
        "" if result.error is None else f"{result.error:.0e}",
        result.note,
    )


def _caption(comparison: Comparison) -> str:
    rows = max((result.checked_rows for result in comparison.results), default=0)
    queries = comparison.shape.queries
    checked = f"all {queries}" if rows >= queries else f"{rows} of {queries}"
    lines = [
        f"{comparison.pairs:,.0f} allowed pairs a head, density {comparison.density:.4g}; dense SDPA without a mask"
        f" {duration(comparison.dense_seconds)}, times the density {duration(comparison.floor_seconds)}: the floor.",
        f"Every time is of a contender whose output agreed with float64 on {checked} rows"
        + (", and its gradients at a small length." if comparison.mode is not Mode.FORWARD else "."),
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Print a time with three digits and a fitting unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            return f"{seconds / scale:.3g} {unit}"
    raise AssertionError(seconds)


def speed(flops_per_second: float) -> str:
    """Print a rate of floating-point operations."""
    if flops_per_second >= 1e12:
        return f"{flops_per_second / 1e12:.1f} TFLOP/s"
    return f"{flops_per_second / 1e9:.3g} GFLOP/s"


def size(count: int) -> str:
    """Print a number of bytes."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"
