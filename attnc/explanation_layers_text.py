"""The explanation of a layer for people: what it computes, and what each projection costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attnc.explanation_latents import CacheSize
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
    yield from _latents(explanation)
    yield ""
    yield Text("Cache", style="bold")
    yield f"  {_cache(explanation.cache)}"
    if explanation.cache.call_of:
        yield f"  Rows depend on `{explanation.cache.call_of}` of their call: stretches are not the whole sequence."
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


def _latents(explanation: LayerExplanation) -> Iterator[RenderableType]:
    """Yield both orders of products around low-rank keys and values, and why there is but one."""
    from rich.text import Text

    if not explanation.latents:
        return
    yield ""
    yield Text("Order of products around low-rank keys and values", style="bold")
    if any(one.whole for one in explanation.latents):
        yield _orders(explanation)
        yield "  q are queries, c latents, w the weights of pairs, up maps latents to heads; a cache has the latents."
    for one in explanation.latents:
        if one.plan.expanded_because:
            yield f"  `{one.plan.name}` is always expanded: {one.plan.expanded_because}."


def _orders(explanation: LayerExplanation) -> Table:
    length = f"{explanation.length:,}"
    table = plain_table("", "", "", f"{length} tokens: MFLOP", "MB", "one token: MFLOP", "MB", "taken for")
    for one in explanation.latents:
        step = {price.form: price for price in one.step}
        for place, price in enumerate(sorted(one.whole, key=lambda price: price.form)):
            other = step[price.form]
            calls = [name for name, found in ((f"{length} tokens", price), ("one", other)) if found.chosen]
            table.add_row(
                one.plan.name if place == 0 else "",
                price.form,
                price.products,
                _millions(price.flops),
                _millions(price.bytes),
                _millions(other.flops),
                _millions(other.bytes),
                " and ".join(calls),
            )
    return table


def _cache(cache: CacheSize) -> str:
    match cache.kept:
        case "keys" if cache.per_token < cache.of_heads:
            return f"{cache.per_token:,} numbers of each token; keys and values of heads would be {cache.of_heads:,}"
        case "keys":
            return f"{cache.per_token:,} numbers of each token: keys and values of heads"
        case "sums":
            return (
                f"{cache.once:,} numbers however many tokens: sums over keys; keys and values would be "
                f"{cache.of_heads:,} of each token"
            )
        case _:
            return f"none: {cache.refused_because}"


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
