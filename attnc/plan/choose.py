"""Chooses what will run for one attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnc.algebra.assertions import check_assertions
from attnc.algebra.coordinates import Layout
from attnc.algebra.facts import Facts
from attnc.algebra.proofs import prove_facts
from attnc.algebra.scoring import derive_scoring
from attnc.algebra.simplify import simplify_attention
from attnc.algebra.table_proofs import mark_reads
from attnc.algebra.tiles import derive_tiles
from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.nodes import Expr, Score
from attnc.ir.program import AlignKind, Attention, NormalizeKind
from attnc.plan.kernel_plan import Form, Library, Pass, Plan, Scoring
from attnc.source import Span


def plan_attention(attention: Attention) -> Plan:
    """Simplify an attention, prove what it asserts, and derive the passes that compute it.

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
    library = library_call(simplified, scoring, facts)
    form = Form.SOFTMAX if library is None else Form.LIBRARY
    only_pass = Pass(form, simplified.mask, derive_tiles(simplified), library=library)
    return Plan(simplified, scoring, (only_pass,), facts, (*steps, *scored))


def with_passes(plan: Plan, parts: Sequence[tuple[Expr, Layout]]) -> Plan:
    """Return a plan that computes each part of the mask in a layout of its own.

    Args:
        plan: of the attention.
        parts: disjoint masks that together are the attention's, each with the layout of its pass. The layout's
            positions hold every pair of the mask.
    """
    passes = (
        Pass(Form.SOFTMAX, mask, derive_tiles(replace(plan.attention, mask=mask), layout=layout), layout)
        for mask, layout in parts
    )
    return replace(plan, passes=tuple(passes))


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
