"""How a plan came about, for people: coordinates, split, costs, what was rejected, what is computed beforehand."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attnc.algebra.summaries import BlockExtreme
from attnc.algebra.windows import UNBOUNDED, Dense, Stretch
from attnc.explanation import Explanation
from attnc.explanation_plan import Costs, Prepass, Weighed, layout_reason
from attnc.ir.program import NormalizeKind
from attnc.plan.cost import TILE
from attnc.plan.kernel_plan import Plan
from attnc.plan.weighing import DENSE

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDTH = 110
"""Columns of a wrapped sentence."""

UNITS = (
    "Costs are expected times in pairs of one head: 1 for a pair in a full tile, more where the mask is tested; rows,"
    " tile tests, further launches and merges are counted in."
)

SUMMARIES = {
    "start": "the first key that a tile touches, by its first row",
    "stop": "the key after the last one that it touches, by its last row",
    "full_start": "the first key whose id is that of every row, by the last row",
    "full_stop": "the key after the last such one, by the first row",
}


def plain_table(*headings: str) -> Table:
    """Return a table without lines."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), pad_edge=True, show_header=any(headings), header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def form_lines(explanation: Explanation) -> Iterator[RenderableType]:
    """Yield what is done before pairs are weighed, and the prices of the forms that the operation has."""
    for place, sentence in enumerate(explanation.surroundings):
        yield from _wrapped(f"{'Then' if place else 'First'} {sentence}.")
    if not explanation.forms:
        if explanation.surroundings:
            yield ""
        return
    yield f"  At {explanation.length:,} positions, of the forms that compute the same:"
    table = plain_table("", "form", "FLOPs", "bytes", "")
    for one in explanation.forms:
        word = "chosen" if one.chosen else "approximated" if explanation.forms[0].form == "nystrom" else "rejected"
        flops = "?" if one.flops is None else f"{int(one.flops):,}"
        table.add_row(word, one.form, flops, f"{one.bytes:,}", FORMS[one.form])
    yield table
    yield ""


FORMS = {
    "pairs": "each allowed pair is weighed",
    "linear": "one product of keys and values serves all queries",
    "chunked": "sums of keys by values are carried along",
    "nystrom": "an approximation: three softmaxes through landmarks",
}
"""What the forms of an operation do."""


def plan_lines(explanation: Explanation) -> Iterator[RenderableType]:
    """Yield the derivation of a plan from the normal form."""
    plan = explanation.plan
    if explanation.whole.short:
        yield from _wrapped(_by_length(explanation))
    yield from _wrapped(_passes_sentence(plan))
    if explanation.is_linear:
        return
    if len(plan.passes) > 1 or not plan.passes[0].layout.is_plain:
        for place, (one, cost) in enumerate(zip(plan.passes, explanation.passes, strict=True), start=1):
            yield from _wrapped(f"pass {place}, {cost.layout}: {cost.mask}", indent=4)
            yield from _wrapped(f"{layout_reason(one.layout)}.", indent=8)
            if plan.part is not None and plan.part.number == place - 1:
                yield from _wrapped(_library_part(plan.part.pairs), indent=8)
    if plan.long_rows:
        yield from _wrapped(_long_rows(plan.long_rows))
    for prepass in explanation.prepasses:
        yield from _prepass(prepass)
    if explanation.costs is not None:
        yield from _weighing(explanation.choices, explanation.costs, plan)


def _by_length(explanation: Explanation) -> str:
    """Say which plan computes calls of which length, and which of them is shown."""
    whole = explanation.whole
    parts = [f"{words} {_named_passes(one)}" for words, one in zip(whole.ranges, whole.variants, strict=True)]
    return (
        f"One module, and the call's length decides: {', '.join(parts)}. Here is what {explanation.length:,} positions"
        " take."
    )


def _named_passes(plan: Plan) -> str:
    layouts = ["plain order" if one.layout.is_plain else str(one.layout) for one in plan.passes]
    return " + ".join(layouts)


def _passes_sentence(plan: Plan) -> str:
    if plan.linear is not None or (plan.operation.decompose is not None and plan.operation.decompose.form == "nystrom"):
        return "Calls of each length take the cheapest of the forms below."
    if len(plan.passes) == 1 and plan.passes[0].library is not None:
        return "One pass: the pattern is a library call, and nothing else is weighed."
    if len(plan.passes) == 1:
        layout = plan.passes[0].layout
        return "One pass in plain order." if layout.is_plain else f"One pass in the coordinates {layout}."
    merged = "log-sum-exp" if plan.attention.normalize.kind is NormalizeKind.SOFTMAX else "adding up"
    proof = (
        "sets prove that no pair is in two of them and none in neither, for every length"
        if plan.proven_disjoint
        else "disjoint by construction: each part is written as what earlier parts leave over"
    )
    count = len(plan.passes)
    return f"{count} passes over parts of the mask, merged by {merged}; {proof}."


def _library_part(pairs: Dense) -> str:
    return (
        f"On a GPU PyTorch's FlashAttention computes it, {_dense(pairs)}, where `attnc tune` has measured that to be"
        " faster; kernels of the other passes begin with its sums."
    )


def _dense(pairs: Dense) -> str:
    """Say a window or a rectangle in words."""
    if pairs.is_rectangle:
        return f"a rectangle of {_positions('queries', pairs.rows)} and {_positions('keys', pairs.keys)}"
    before, behind = pairs.window
    place = f" of {_positions('positions', pairs.rows)}" if pairs.rows[0] else ""
    if (before, behind) == (UNBOUNDED, 0):
        return f"causal attention{place}"
    reach = ["all" if side == UNBOUNDED else str(side) for side in (before, behind)]
    return f"a window of {reach[0]} before and {reach[1]} behind each query{place}"


def _positions(what: str, stretch: Stretch) -> str:
    first, past = stretch
    if past is None:
        return f"{what} from {first} on" if first else f"all {what}"
    return f"{what} {first} .. {past - 1}"


def _long_rows(count: int) -> str:
    rows = "The row at position 0 has" if count == 1 else f"The rows at positions 0 .. {count - 1} have"
    return (
        f"{rows} many more keys than the others: on a GPU several programs share these keys and the sums are joined, so"
        " that no program holds the others up."
    )


def _weighing(choices: tuple[Weighed, ...], costs: Costs, plan: Plan) -> Iterator[RenderableType]:
    if len(choices) == 1:
        yield from _wrapped(_alone(costs, plan))
        return
    yield from _wrapped(f"Weighed at {plan.weighed_at:,} positions. {UNITS}")
    table = plain_table("", "cost", "", "")
    parts = [f"pass {place} {_millions(cost)}" for place, cost in enumerate(costs.passes, start=1)]
    if len(parts) > 1:
        parts.append(f"launches and merges {_millions(costs.between)}" if costs.between else "in one launch")
    chosen = ", ".join(parts) if len(parts) > 1 else choices[0].passes[0][0]
    table.add_row("chosen", _millions(choices[0].cost), "", chosen)
    for choice in choices[1:]:
        table.add_row("rejected", _millions(choice.cost), f"{choice.relative:.2f} x", _named(choice))
    yield table


def _alone(costs: Costs, plan: Plan) -> str:
    """Say why nothing else was weighed."""
    if plan.attention.decompose is not None:
        return "Nothing else was weighed: the pattern's `decompose` statement asks for this."
    cost = f"Expected cost at {plan.weighed_at:,} positions: {_millions(sum(costs.passes))} pairs of one head."
    if costs.is_dense:
        return (
            f"{cost} Nothing else was weighed: tiles of {TILE} x {TILE} compute {costs.density:.2f} pairs for each"
            f" allowed one, and up to {DENSE} is dense enough."
        )
    return (
        f"{cost} Nothing else was weighed: no congruence of `i - j`, of `i` or of `j` was proven for all pairs of the"
        " mask or of a part of it that could be computed apart."
    )


def _named(choice: Weighed) -> str:
    if len(choice.passes) == 1:
        layout = choice.passes[0][0]
        return "plain order" if layout == "identity" else f"{layout}, one pass"
    return "\n".join(f"{layout}: {mask}" for layout, mask in choice.passes)


def _prepass(prepass: Prepass) -> Iterator[str]:
    size = "" if prepass.bytes is None else f", {prepass.bytes:,} bytes for one batch entry"
    before = "Before the passes, on the device and without waiting for it:"
    if prepass.of_runs:
        yield from _wrapped(
            f"{before} {len(prepass.kinds)} int32 tables from one pass over `{prepass.table}`, O(M log M){size}."
            " Ids that are not sorted cost speed and never correctness."
        )
    else:
        yield from _wrapped(
            f"{before} extremes of blocks of `{prepass.table}`, from one pass over it{size}. Tiles in which they leave"
            " no allowed pair are skipped."
        )
    for kind in prepass.kinds:
        yield from _wrapped(f"`{prepass.table}.{kind}`: {_summary(kind)}", indent=4)


def _summary(kind: str) -> str:
    """Say what a summary holds."""
    extreme = BlockExtreme.of(kind)
    if extreme is None:
        return SUMMARIES[kind]
    word = "greatest (any)" if extreme.greatest else "least (all)"
    blocks = " by ".join(str(length) for _, length in extreme.blocks)
    axes = ", ".join(str(axis) for axis, _ in extreme.blocks)
    past = ", with 0 past the end" if extreme.padded else ""
    return f"the {word} of each block of {blocks} along dimension {axes}{past}"


def _millions(cost: float) -> str:
    return f"{cost / 1e6:.2f} M"


def _wrapped(text: str, indent: int = 2) -> Iterator[str]:
    room = " " * indent
    yield from textwrap.wrap(text, WIDTH, initial_indent=room, subsequent_indent=room, break_long_words=False)
