"""What the launchers of an attention's kernels say.

`templates/launcher.py.jinja` renders a `LaunchView`, named `launch`, to the kernels of a plan, the tables of their
tiles, and a launcher

    _<name>_launch(query, key, value, out, lse, inputs, scale, precision)

which writes `out` and, unless it is None, `lse`: of the scores that the kernels compute, so that `Scoring.dropped` is
for the caller to add. A plan that has other passes for short sequences has a launcher and kernels for those besides,
`_<name>_up_to_<limit>_launch`; kernels that would be the same are written once. The module around them must have in
scope what `kernel_view` asks for, and `RowOrder`, `Tiles` and the functions that launchers call of
`attnc.runtime.launch` and `attnc.runtime.row_orders`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnc.algebra.summaries import summary_source
from attnc.codegen.gluon_view import GluonView, gluon_view, unsuitable_for_gluon
from attnc.codegen.kernel_pieces import InputView, identity_of
from attnc.codegen.kernel_view import KernelView, kept_sums, kernel_view
from attnc.codegen.sweeps import sweeps_of
from attnc.plan.kernel_plan import Plan


@dataclass(frozen=True, slots=True)
class LaunchView:
    """The kernels of a plan for some lengths, in the order in which they run, and their launcher.

    Attributes:
        name: what the names of the launcher and of its kernels begin with, after an underscore.
        limit: the longest sequences that it is for; None for no limit.
        kernels: those that it runs.
        written: those of them that no launcher before it runs.
        summaries: name, position of the ids and kind of each summary that is made before the first kernel, as text.
        keeps: whether kernels hand on what they have summed.
        resumed: whether the first one starts from what a library has summed.
        sums: how many numbers a row has besides its output while it is summed.
        tables: names and lines of the tables of tiles, each once, without those that an earlier launcher has.
        gluon: the kernel in Gluon that calls may take instead; None without one.
    """

    name: str
    limit: int | None
    normalize: str
    kernels: tuple[KernelView, ...]
    written: tuple[KernelView, ...]
    inputs: tuple[InputView, ...]
    summaries: tuple[str, ...]
    keeps: bool
    sums: int
    tables: tuple[tuple[str, tuple[str, ...]], ...]
    gluon: GluonView | None = None
    resumed: bool = False


def launch_views(plan: Plan, *, gluon: bool = False) -> tuple[LaunchView, ...]:
    """Decide everything about the Triton kernels of a plan: those for any length first, then those for short ones.

    Those of the other passes come last, where a library may compute one.

    Args:
        plan: of the attention.
        gluon: whether variants that suit it have a kernel in Gluon besides.
    """
    known: dict[KernelView, KernelView] = {}
    tables: dict[tuple[str, ...], str] = {}
    lengths = list(zip(plan.variants, plan.limits, strict=True))
    views = [_launch_view(variant, variant_name(limit), limit, known, tables) for variant, limit in reversed(lengths)]
    if gluon:
        views = [_with_gluon(view, variant) for view, (variant, _) in zip(views, reversed(lengths), strict=True)]
    others = plan.beside_part
    if others is not None:
        views.append(_launch_view(others, part_name(plan), None, known, tables))
    return tuple(views)


def _with_gluon(view: LaunchView, plan: Plan) -> LaunchView:
    """Add a kernel in Gluon to the launcher of a variant that suits it."""
    if unsuitable_for_gluon(plan):
        return view
    return replace(view, gluon=gluon_view(plan, variant=variant_name(view.limit), identity=view.kernels[0].identity))


def variant_name(limit: int | None) -> str:
    """Return what names of a variant's own parts have besides that of the attention; empty without a limit."""
    return "" if limit is None else f"up_to_{limit}"


def part_name(plan: Plan) -> str:
    """Return the same for what is left where a library computes a part of a plan."""
    assert plan.part is not None
    return f"beside_pass_{plan.part.number + 1}"


def _launch_view(
    plan: Plan,
    variant: str,
    limit: int | None,
    known: dict[KernelView, KernelView],
    known_tables: dict[tuple[str, ...], str],
) -> LaunchView:
    """Decide about the kernels of one variant.

    Args:
        plan: the variant, alone.
        variant: what names of its parts have besides that of the attention.
        limit: see `LaunchView`.
        known: kernels of earlier variants, by what they are apart from their names; learns those of this one.
        known_tables: names of the tables of tiles of earlier variants; learns those of this one.
    """
    name = plan.attention.name
    views = [kernel_view(plan, sweep, variant=variant) for sweep in sweeps_of(plan)]
    views = [replace(view, identity=identity_of(view, name)) for view in views]
    nameless = [replace(view, function="", table="") for view in views]
    written = tuple(view for view, same in zip(views, nameless, strict=True) if same not in known)
    known |= {same: view for view, same in zip(views, nameless, strict=True) if same not in known}
    kernels = tuple(known[same] for same in nameless)
    inputs = tuple(
        replace(versions[0], used=any(one.used for one in versions))
        for versions in zip(*(kernel.inputs for kernel in kernels), strict=True)
    )
    tables = {kernel.tiles: kernel.table for kernel in reversed(kernels) if kernel.tiles not in known_tables}
    known_tables |= tables
    kernels = tuple(replace(kernel, table=known_tables[kernel.tiles]) for kernel in kernels)
    return LaunchView(
        name="_".join(part for part in (name, variant) if part),
        limit=limit,
        normalize=kernels[-1].normalize,
        kernels=kernels,
        written=written,
        inputs=inputs,
        summaries=summaries_text(plan, plan.summaries),
        keeps=len(kernels) > 1 or plan.resumed,
        sums=len(kept_sums(plan.attention)),
        tables=tuple((name, lines) for lines, name in reversed(tables.items())),
        resumed=plan.resumed,
    )


def summaries_text(plan: Plan, names: Iterable[str]) -> tuple[str, ...]:
    """Return the summaries among the names of tables, each as the tuple that the runtime takes."""
    positions = {tensor.name: position for position, tensor in enumerate(plan.attention.tensors)}
    sources = ((name, summary_source(name)) for name in names)
    return tuple(f'("{name}", {positions[source[0]]}, "{source[1]}")' for name, source in sources if source is not None)
