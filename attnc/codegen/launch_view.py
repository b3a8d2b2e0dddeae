"""What the launcher of an attention's kernels says.

`templates/launcher.py.jinja` renders a `LaunchView`, named `launch`, to the kernels of a plan, the tables of their
tiles, and a launcher

    _<name>_launch(query, key, value, out, lse, inputs, scale, precision)

which writes `out` and, unless it is None, `lse`: of the scores that the kernels compute, so that `Scoring.dropped` is
for the caller to add. The module around it must have in scope what `kernel_view` asks for, and `RowOrder`, `Tiles` and
the functions that the launcher calls of `attnc.runtime.launch` and `attnc.runtime.row_orders`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnc.algebra.summaries import summary_source
from attnc.codegen.kernel_view import InputView, KernelView, kept_sums, kernel_view
from attnc.codegen.sweeps import sweeps_of
from attnc.plan.kernel_plan import Plan


@dataclass(frozen=True, slots=True)
class LaunchView:
    """The kernels of a plan, in the order in which they run, and their launcher.

    Attributes:
        summaries: name, position of the ids and kind of each summary that is made before the first kernel, as text.
        keeps: whether kernels hand on what they have summed.
        sums: how many numbers a row has besides its output while it is summed.
        tables: names and lines of the tables of tiles, each once.
    """

    name: str
    normalize: str
    kernels: tuple[KernelView, ...]
    inputs: tuple[InputView, ...]
    summaries: tuple[str, ...]
    keeps: bool
    sums: int
    tables: tuple[tuple[str, tuple[str, ...]], ...]


def launch_view(plan: Plan) -> LaunchView:
    """Decide everything about the Triton kernels of a plan."""
    kernels = tuple(kernel_view(plan, sweep) for sweep in sweeps_of(plan))
    inputs = tuple(
        replace(versions[0], used=any(one.used for one in versions))
        for versions in zip(*(kernel.inputs for kernel in kernels), strict=True)
    )
    tables = {kernel.tiles: kernel.table for kernel in reversed(kernels)}
    kernels = tuple(replace(kernel, table=tables[kernel.tiles]) for kernel in kernels)
    return LaunchView(
        name=plan.attention.name,
        normalize=kernels[-1].normalize,
        kernels=kernels,
        inputs=inputs,
        summaries=summaries_text(plan, plan.summaries),
        keeps=len(kernels) > 1,
        sums=len(kept_sums(plan.attention)),
        tables=tuple((name, lines) for lines, name in reversed(tables.items())),
    )


def summaries_text(plan: Plan, names: Iterable[str]) -> tuple[str, ...]:
    """Return the summaries among the names of tables, each as the tuple that the runtime takes."""
    positions = {tensor.name: position for position, tensor in enumerate(plan.attention.tensors)}
    sources = ((name, summary_source(name)) for name in names)
    return tuple(f'("{name}", {positions[source[0]]}, "{source[1]}")' for name, source in sources if source is not None)
