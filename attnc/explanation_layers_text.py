"""The explanation of a layer for people: what it computes, and what each projection costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attnc.explanation_layers import LayerExplanation, ProjectionCost
from attnc.explanation_plan_text import plain_table
from attnc.explanation_products import ONLY_FORM, TakenForm
from attnc.ir.show_layer import show_layer, show_projection, show_sizes
from attnc.schemes import describe_scheme

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

COUNTED = (
    "  FLOPs are useful ones, a multiply-add being two; bytes the least traffic at 2 bytes an element: parameters and",
    "  activations. Norms, rotations and activation functions are not counted.",
)


def lay_out_layer(explanation: LayerExplanation) -> Iterator[RenderableType]:
    """Yield what is to be printed of one layer, part by part."""
    from rich.text import Text

    plan = explanation.plan
    yield Text(f"{plan.name}(width = {plan.sizes.width})", style="bold cyan")
    yield ""
    yield Text("Layer", style="bold")
    yield from (f"  {line}" for line in show_layer(plan.layer).splitlines())
    yield f"  {show_sizes(plan.sizes)}"
    yield ""
    yield Text(f"Projections at {explanation.length:,} positions", style="bold")
    yield _projections(explanation)
    yield from COUNTED
    yield from _forms(explanation)
    for scheme in dict.fromkeys(one.scheme for one in plan.projections if one.scheme is not None):
        yield ""
        title, *rest = describe_scheme(scheme, brief=True)
        yield Text(f"Scheme {title}", style="bold")
        yield from (f"  {line}" for line in rest)


def _forms(explanation: LayerExplanation) -> Iterator[str]:
    """Say why each projection that has several forms is computed as it is."""
    by_form: dict[TakenForm, list[str]] = {}
    for one in explanation.projections:
        if one.taken.reason != ONLY_FORM:
            by_form.setdefault(one.taken, []).append(one.plan.matrix.name)
    yield from (f"  {', '.join(names)}: {form.name} ({form.reason})." for form, names in by_form.items())


def _projections(explanation: LayerExplanation) -> Table:
    table = plain_table("", "structure", "matrix", "parameters", "of dense", "MFLOP", "MB", "computed by")
    for one in explanation.projections:
        table.add_row(*_row(one))
    called, sums = explanation.plan.layer.attention, (explanation.attention_flops, explanation.flops)
    work = ["data decides" if flops is None else _millions(flops) for flops in sums]
    table.add_row("attention", called, "", "", "", work[0], _millions(explanation.attention_bytes), "")
    table.add_row("layer", "", "", f"{explanation.parameters:,}", "", work[1], _millions(explanation.bytes), "")
    return table


def _row(one: ProjectionCost) -> tuple[str, ...]:
    matrix = one.plan.matrix
    direction = "" if one.plan.direction is None else f", {one.plan.direction.value}"
    return (
        matrix.name,
        show_projection(matrix.projection),
        f"{matrix.rows} x {matrix.columns}",
        f"{one.parameters:,}",
        f"{one.parameters / one.dense:.1%}",
        _millions(one.flops),
        _millions(one.bytes),
        one.taken.name + direction,
    )


def _millions(number: float) -> str:
    return f"{number / 1e6:,.1f}"
