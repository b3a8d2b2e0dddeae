"""Tables of what tuning found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attnc.bench.cases import Shape
from attnc.runtime.gpu_library import is_library_name, library_label
from attnc.tuning.measured import TunedKernel, describe
from attnc.tuning.projections import TunedProjection
from attnc.tuning.static import DOUBT, Candidate, Ranking

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 8
"""Candidates of a kernel that a table shows."""

TRUST = (
    "Nothing here was measured. The order comes from registers, shared memory and the instructions of the inner loop, "
    "with the rates that the vendors publish; caches, latencies and clocks under load are left out. Candidates within "
    f"{DOUBT * 100:.0f} % of each other are not told apart, and the figures are no times to quote: `attnc tune` on the "
    "device measures."
)


def ranking_table(ranking: Ranking, gpu: str, dtype: str, shape: Shape) -> Table:
    """Lay out the candidates of one kernel: the best, the default, and why others are out of the question."""
    from rich.table import Table

    sizes = f"{shape.queries} positions, {shape.heads} heads of {shape.head_size}, {dtype}"
    table = Table(title=f"{ranking.kernel} on {gpu}: {sizes}", title_justify="left", caption_justify="left")
    table.add_column("tiles")
    for heading in ("registers", "shared memory", "programs", "other instructions", "estimate"):
        table.add_column(heading, justify="right")
    table.add_column("")
    working = [one for one in ranking.candidates if one.works]
    shown = working[:SHOWN] + [one for one in ranking.candidates if one.is_default and one not in working[:SHOWN]]
    for one in shown:
        table.add_row(*_cells(one, ranking))
    table.caption = _caption(ranking, working)
    return table


def _cells(one: Candidate, ranking: Ranking) -> tuple[str, ...]:
    marks = [mark for mark, holds in (("default", one.is_default), ("best", one == ranking.best)) if holds]
    return (
        describe(one.tiles),
        str(one.registers),
        f"{one.shared / 1024:.0f} KiB",
        str(one.estimate.programs),
        str(one.estimate.others),
        f"{one.estimate.seconds * 1e3:.3g} ms" if one.works else one.estimate.problem,
        ", ".join(marks),
    )


def _caption(ranking: Ranking, working: Sequence[Candidate]) -> str:
    reasons = Counter(_kind(one.estimate.problem) for one in ranking.candidates if not one.works)
    parts = [f"{len(ranking.candidates)} compiled, {len(working)} work"]
    parts += [f"{count} {reason}" for reason, count in reasons.most_common()]
    parts += [f"{ranking.left_out} left out by the budget"] if ranking.left_out else []
    return "; ".join(parts)


def _kind(problem: str) -> str:
    return next((kind for kind in ("spilled", "shared memory") if kind in problem), problem)


def tuned_table(
    attention: str, kernels: Sequence[TunedKernel], machine: Mapping[str, object], dtype: str, shape: Shape
) -> Table:
    """Lay out what was measured: for each kernel the default, the fastest, and what failed."""
    from rich.table import Table

    sizes = f"{shape.queries} positions, {shape.heads} heads of {shape.head_size}, {dtype}"
    title = f"{attention} on {machine['device']}: {sizes}"
    table = Table(title=title, title_justify="left")
    table.add_column("kernel")
    table.add_column("configuration")
    table.add_column("time", justify="right")
    table.add_column("default / time", justify="right")
    table.add_column("")
    for kernel in kernels:
        which = f", {library_label(kernel.identity)}" if is_library_name(kernel.identity) else ""
        name = f"{kernel.identity.split()[0]}, {'backward' if kernel.backward else 'forward'}{which}"
        default = kernel.default.timing
        assert default is not None
        table.add_row(name, "default", f"{default.median * 1e3:.3g} ms", "", "" if kernel.best.tiles else "kept")
        timed = [one for one in kernel.trials if one.timing is not None]
        for one in timed[:SHOWN]:
            assert one.timing is not None
            ratio = f"{default.median / one.timing.median:.2f}"
            chosen = "chosen" if one is kernel.best else ""
            table.add_row("", describe(one.tiles), f"{one.timing.median * 1e3:.3g} ms", ratio, chosen)
        for one in [one for one in kernel.trials if one.timing is None][:SHOWN]:
            table.add_row("", describe(one.tiles), "", "", one.problem)
        rest = len(timed) - SHOWN
        more = [f"{rest} slower ones"] if rest > 0 else []
        more += [f"{kernel.left_out} left out by the budget"] if kernel.left_out else []
        if more:
            table.add_row("", f"({'; '.join(more)})", "", "", "")
    return table


def projection_table(
    layer: str, tuned: Sequence[TunedProjection], machine: Mapping[str, object], dtype: str, shape: tuple[int, int]
) -> Table:
    """Lay out the forms of a layer's projections: the default, the fastest, and what failed."""
    from rich.table import Table

    batch, length = shape
    title = f"projections of {layer} on {machine['device']}: {batch} x {length} positions, {dtype}"
    table = Table(title=title, title_justify="left")
    for heading in ("projection", "form"):
        table.add_column(heading)
    for heading in ("time", "default / time"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for one in tuned:
        sizes = f"{one.module.in_features} -> {one.module.out_features}"
        name = f"{', '.join(one.names)}: {one.module.measured_as.removeprefix('projection ')}, {sizes}"
        default = next(trial.timing for trial in one.trials if trial.name == one.default)
        for trial in one.trials:
            if trial.timing is None:
                table.add_row(name, trial.name, "", "", trial.problem)
            else:
                ratio = "" if default is None else f"{default.median / trial.timing.median:.2f}"
                marks = (("default", trial.name == one.default), ("chosen", trial is one.best))
                words = ", ".join(mark for mark, holds in marks if holds)
                table.add_row(name, trial.name, f"{trial.timing.median * 1e3:.3g} ms", ratio, words)
            name = ""
    return table
