"""An explanation for people: normal form, derivation, proofs, what a tile visits, and the cost."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attnc.algebra.key_intervals import Coverage, KeyInterval
from attnc.explanation import ELEMENT_SIZE, MACHINES, Explanation
from attnc.explanation_gradients import KEPT
from attnc.explanation_plan import numbering
from attnc.explanation_plan_text import form_lines, plain_table, plan_lines
from attnc.ir.nodes import Index, IndexName
from attnc.ir.show import show, show_attention
from attnc.plan.kernel_plan import Library, Pass, Plan

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MODEL = (
    "  At best: the larger of (forward FLOPs of what is computed) / published dense bfloat16 peak and least traffic /",
    "  published bandwidth. No program reaches it; `attnc bench` measures what this one takes.",
)

CLAIMS = (
    ("causal", "no query sees a later key"),
    ("nonempty", "every query sees a key"),
    ("symmetric", "i sees j if and only if j sees i"),
    ("contiguous", "the keys of a query are one interval"),
)

CALLS = {
    Library.FULL: "scaled_dot_product_attention(query, key, value)",
    Library.CAUSAL: "scaled_dot_product_attention(query, key, value, is_causal=True), where N = M",
}

READ_BY = {
    "head": "one element for all pairs of a head",
    "row": "one for the keys of a query",
    "column": "one for the queries of a key",
    "diagonal": "one for pairs whose positions are as far apart",
    "pair": "any pairs may read the same one",
}

STEPS_SHOWN = 60
"""Steps of a derivation that are printed; longer ones are cut, and JSON has the rules of all."""


def lay_out(explanation: Explanation) -> Iterator[RenderableType]:
    """Yield what is to be printed of one attention, part by part."""
    plan = explanation.plan
    yield _heading(_signature(plan))
    yield ""
    yield _section("Normal form")
    yield from (f"  {line}" for line in show_attention(plan.operation).splitlines())
    yield ""
    yield _section("Derivation")
    yield from _derivation(plan)
    yield ""
    yield _section("Proofs, for every length")
    yield _proofs(plan)
    yield ""
    yield _section("Plan")
    yield from plan_lines(explanation)
    yield ""
    yield from form_lines(explanation)
    for number, one in enumerate(() if explanation.is_linear else plan.passes, start=1):
        which = f"Pass {number}: what" if len(plan.passes) > 1 else "What"
        yield _section(f"{which} the queries i_lo .. i_hi of one tile visit")
        if one.library is not None and len(plan.passes) == 1:
            yield f"  Nothing of the kind: the pattern is one call of {CALLS[one.library]}."
            yield "  Where that does not fit the call, these tiles:"
        elif one.library is not None:
            place = f" of the positions from {one.first} on" if one.first else ""
            yield f"  On a CPU, where N = M, it is the library's causal attention{place}. Elsewhere, these tiles:"
        if numbers := numbering(one.layout):
            yield f"  {numbers} What is tested is about positions."
        yield _boxes(one) if one.layout.is_grid else _intervals(one)
        yield ""
    yield _section("Gradients")
    yield from _gradients(explanation)
    yield ""
    yield _section(f"Cost at {explanation.length:,} positions, {explanation.heads} heads of {explanation.head_size}")
    yield _cost(explanation)
    yield from _formula(explanation)
    yield from MODEL
    for note in explanation.notes:
        yield f"  note: {note}"


def _signature(plan: Plan) -> str:
    params = ", ".join(f"{name} = {show(value)}" for name, value in plan.attention.params)
    return f"{plan.attention.name}({params})" if params else plan.attention.name


def _heading(text: str) -> RenderableType:
    from rich.text import Text

    return Text(text, style="bold cyan")


def _section(text: str) -> RenderableType:
    from rich.text import Text

    return Text(text, style="bold")


def _derivation(plan: Plan) -> Iterator[RenderableType]:
    if not plan.derivation:
        yield "  none: the pattern is in normal form as it stands"
        return
    table = plain_table("", "rule", "before", "after")
    for number, step in enumerate(plan.derivation[:STEPS_SHOWN], start=1):
        table.add_row(str(number), step.rule, show(step.before), show(step.after))
    yield table
    hidden = len(plan.derivation) - STEPS_SHOWN
    if hidden > 0:
        yield f"  and {hidden} more steps"


def _proofs(plan: Plan) -> Table:
    from rich.text import Text

    words = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("undecided", "yellow")}
    table = plain_table("", "", "")
    for name, meaning in CLAIMS:
        table.add_row(name, words[getattr(plan.facts, name)], meaning)
    return table


def _intervals(one: Pass) -> Table:
    from rich.text import Text

    table = plain_table("keys from", "up to, without", "in them", "")
    for interval in one.tiles.intervals:
        full = interval.coverage is Coverage.FULL
        work = Text("no test", "green") if full else Text(_test(interval))
        table.add_row(show(interval.start), show(interval.stop), work, Text(interval.label, "dim"))
    if not one.tiles.intervals:
        table.add_row("nothing", "", "", "the mask allows no pair")
    return table


def _boxes(one: Pass) -> Table:
    """Say how far boxes reach along each axis of a grid."""
    from rich.text import Text

    table = plain_table("coordinate", "of keys, from", "to", "in the box", "")
    key, grid = Index(IndexName.KEY), one.layout.query.grid
    for interval in one.tiles.intervals:
        for axis, side in zip(grid.axes, one.layout.key.sides, strict=True):
            low = "0" if side.low is None else show(side.low)
            last = str(axis.extent - 1) if axis.extent else "the last one"
            high = last if side.high is None else show(side.high)
            is_first = axis is grid.axes[0]
            test, label = (Text(_test(interval)), Text(interval.label, "dim")) if is_first else (Text(""), Text(""))
            table.add_row(show(axis.coordinate(key)), low, high, test, label)
    return table


def _test(interval: KeyInterval) -> str:
    """Say what is tested of each pair, and which tiles are skipped."""
    residual = show(interval.residual)
    tests = [] if residual == "true" else [residual]
    tests += ["j < M"] if interval.ragged else []
    text = f"test {' and '.join(f'({test})' if ' or ' in test and len(tests) > 1 else test for test in tests)}"
    if interval.tile_test is not None:
        text += f"\nonly tiles j_lo .. j_hi with {show(interval.tile_test)}"
    return text if tests else "no test of the mask"


def _gradients(explanation: Explanation) -> Iterator[RenderableType]:
    """Say what is differentiated by what, and which pairs share an element of a table."""
    gradients = explanation.gradients
    table = plain_table("of", "by", "derivative", "")
    for one in gradients.slopes:
        table.add_row(one.function, one.by, show(one.slope), "" if one.read is None else READ_BY[one.read])
    yield table
    kept = f"output and {KEPT[gradients.kept]}" if gradients.kept else "the output alone"
    yield f"  Kept for them: {kept}, {gradients.kept_bytes:,} bytes; all sums have a fixed order."


def _cost(explanation: Explanation) -> Table:
    tiles = explanation.tiles
    table = plain_table("", "", "")
    several = len(explanation.passes) > 1
    table.add_row("allowed pairs", _count(explanation.pairs), "one head, exact; the mean where heads differ")
    table.add_row("density", "?" if explanation.density is None else f"{explanation.density:.4g}", "of all pairs")
    if not explanation.is_linear:
        table.add_row(
            f"tiles of {tiles.query} x {tiles.key}",
            f"{_count(tiles.full)} full, {_count(tiles.partial)} partial",
            f"{_count(tiles.empty)} empty ones are never visited" + ("; all passes together" if several else ""),
        )
    for place, one in enumerate(explanation.passes, start=1):
        name = f"pairs computed, pass {place}" if several else "pairs computed"
        allowed = f", for {_count(one.pairs)} allowed" if several and one.pairs is not None else ""
        table.add_row(name, _count(one.pairs_computed), f"form {one.form}, layout {one.layout}{allowed}")
    waste = explanation.waste
    if not explanation.is_linear:
        table.add_row("waste", "?" if waste is None else f"{waste:.3f}", "pairs computed for each allowed one")
    work = "" if explanation.forms else ": 4 D for each pair"
    table.add_row("useful FLOPs", _count(explanation.flops), f"forward, all heads, one batch entry{work}")
    work = "three times as many" if explanation.is_linear else "10 D for each pair"
    table.add_row("  for gradients", _count(explanation.gradients.flops), work)
    table.add_row(
        "least traffic", f"{explanation.bytes:,} bytes", f"{ELEMENT_SIZE} bytes an element, read or written once"
    )
    for machine in MACHINES:
        seconds = explanation.seconds_on(machine)
        table.add_row(
            f"at best, {machine.name}", "?" if seconds is None else _time(seconds), "a bound, not a measurement"
        )
    return table


def _formula(explanation: Explanation) -> Iterator[str]:
    formula = explanation.formula
    if formula is None:
        return
    words = f"For N = M, pairs(N) = {formula.statement()}."
    yield from textwrap.wrap(words, 110, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
    if not formula.derived:
        yield "  It was fitted to exact counts and confirmed at further lengths."


def _count(number: float | None) -> str:
    if number is None:
        return "?"
    return f"{number:,}" if isinstance(number, int) else f"{number:,.2f}"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
