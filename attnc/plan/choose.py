"""Chooses what will run for one attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from attnc.algebra.assertions import check_assertions
from attnc.algebra.congruences import PairSet
from attnc.algebra.counting import bounds_read, count_pairs
from attnc.algebra.facts import Facts
from attnc.algebra.index_sets import DEFAULT_OPERATIONS
from attnc.algebra.proofs import prove_facts
from attnc.algebra.scoring import derive_scoring
from attnc.algebra.simplify import simplify_attention
from attnc.algebra.table_proofs import mark_reads
from attnc.algebra.tiles import derive_tiles
from attnc.diagnostics import CompileError, Diagnostic, InternalError, Label
from attnc.ir.nodes import Score
from attnc.ir.program import AlignKind, Attention, NormalizeKind
from attnc.plan.cost import estimate_passes
from attnc.plan.kernel_plan import Choice, Form, Library, Pass, Plan, Scoring
from attnc.plan.overrides import alternatives
from attnc.plan.row_lengths import count_long_rows, most_keys
from attnc.plan.split import Part, decompositions
from attnc.source import Span

LENGTH = 8192
"""Length for which plans are compared unless the caller has another one in hand."""

MOST_CHOICES = 8
"""So many ways to compute a mask are weighed."""

OPERATIONS = 30_000
"""What a question about a part of a mask may take; one that takes more is no good part."""

COUNTED = 100_000
"""What counting the pairs of one head may take; a mask that takes more has no known density."""

DENSE = 1.3
"""A plan that computes so many pairs for each allowed one is not worth improving."""


def plan_attention(attention: Attention, *, length: int = LENGTH) -> Plan:
    """Simplify an attention, prove what it asserts, and derive the passes that compute it.

    Args:
        attention: checked.
        length: for which costs are compared.

    Raises:
        CompileError: an assertion is false or cannot be decided, or a statement is not compiled yet.
    """
    if attention.uncompiled:
        raise CompileError(*(not_compiled_yet(d.span, f"`{d.statement} {d.form}`") for d in attention.uncompiled))
    check_assertions(attention)
    simplified, steps = simplify_attention(attention)
    simplified, _ = mark_reads(simplified)
    score, score_log2, dropped, scored = derive_scoring(simplified)
    scoring = Scoring(score, score_log2, dropped)
    facts = prove_facts(simplified)
    plan = Plan(simplified, scoring, (), facts, (*steps, *scored))
    library = library_call(simplified, scoring, facts)
    asked = None if simplified.decompose is None else simplified.decompose.form
    if asked in (None, "none") and library is not None:
        only = Pass(Form.LIBRARY, simplified.mask, derive_tiles(simplified), library=library)
        return replace(plan, passes=(only,))
    choices = choose_passes(simplified, length)
    passes = _refined(simplified, choices[0].passes)
    passes = tuple(replace(one, most_keys=most_keys(simplified, one, LENGTH)) for one in passes)
    long_rows = count_long_rows(simplified, passes, LENGTH)
    return _with_proof(replace(plan, passes=passes, choices=choices, long_rows=long_rows))


def _refined(attention: Attention, passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """Derive tiles again, with a full budget, where a small one may not have been enough."""
    if (len(passes) == 1 and passes[0].layout.is_plain) or all(one.tiles.exact for one in passes):
        return passes
    return make_passes(attention, ((one.mask, one.layout) for one in passes))


def _with_proof(plan: Plan) -> Plan:
    """Prove that the passes are disjoint and complete, as far as sets can."""
    if len(plan.passes) == 1:
        return plan
    masks = tuple(one.mask for one in plan.passes)
    proven = PairSet.of(plan.attention).disjoint_cover(plan.attention.mask, masks)
    if proven is False:
        raise InternalError(f"the parts of `{plan.attention.name}` overlap or leave pairs out")
    return replace(plan, proven_disjoint=proven is True)


def choose_passes(attention: Attention, length: int = LENGTH) -> tuple[Choice, ...]:
    """Return the ways to compute a mask that were weighed, the cheapest first.

    Args:
        attention: simplified.
        length: queries and keys for which the costs are compared.

    Raises:
        CompileError: a `decompose` statement does not fit the mask.
    """
    weighed: list[Choice] = []
    asked = alternatives(attention)
    enough = None
    for parts in islice(decompositions(attention) if asked is None else asked, MOST_CHOICES):
        passes = make_passes(attention, parts, operations=OPERATIONS if weighed else DEFAULT_OPERATIONS)
        estimate = estimate_passes(attention, passes, length)
        weighed.append(Choice(passes, estimate.cost))
        if asked is not None or any(bounds_read(one.tiles) for one in passes):
            continue
        if enough is None:
            enough = DENSE * (count_pairs(attention, length, length, operations=COUNTED) or 0)
        if estimate.computed <= enough:
            break
    return tuple(sorted(weighed, key=lambda choice: choice.cost))


def make_passes(
    attention: Attention, parts: Iterable[Part], *, operations: int = DEFAULT_OPERATIONS
) -> tuple[Pass, ...]:
    """Derive the tiles of each part of a mask in a layout of its own.

    Args:
        attention: simplified.
        parts: disjoint masks that together are the attention's, each with the layout of its pass. The layout's
            positions hold every pair of the mask.
        operations: see `derive_tiles`.
    """
    return tuple(
        Pass(
            Form.SOFTMAX,
            mask,
            derive_tiles(replace(attention, mask=mask), layout=layout, operations=operations, summaries=True),
            layout,
        )
        for mask, layout in parts
    )


def with_passes(plan: Plan, parts: Iterable[Part]) -> Plan:
    """Return a plan that computes each part of the mask in a layout of its own, see `make_passes`."""
    return replace(plan, passes=make_passes(plan.attention, parts))


def library_call(attention: Attention, scoring: Scoring, facts: Facts) -> Library | None:
    """Return the call of `scaled_dot_product_attention` that an attention is, if it is one.

    It is one where the mask is proven to be everything or exactly causal, the score is the scaled dot product, and the
    scale is the usual one (a call may give another). The call aligns at the start, as do `end` and `start` where there
    are as many queries as keys; `align at` need not.
    """
    plain = (
        attention.normalize.kind is NormalizeKind.SOFTMAX
        and attention.normalize.sink is None
        and attention.weight is None
        and attention.scale is None
        and isinstance(scoring.score, Score)
        and scoring.dropped is None
    )
    if not plain:
        return None
    if facts.everything:
        return Library.FULL
    aligned = attention.align.kind is not AlignKind.AT
    return Library.CAUSAL if facts.exactly_causal and aligned else None


def not_compiled_yet(span: Span | None, what: str) -> Diagnostic:
    """Say that a statement or a layer is understood and checked, but has no code yet.

    Args:
        span: the statement, or the declaration's name.
        what: how the message calls it, with its backquotes: "`feature favor`", "the layer `block`".
    """
    return Diagnostic(
        "not-compiled-yet",
        f"{what} cannot be compiled yet",
        () if span is None else (Label(span, "it is checked, and nothing more"),),
        "`attnc check` accepts it; remove it to compile the rest of the file",
    )
