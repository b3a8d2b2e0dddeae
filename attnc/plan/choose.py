"""Chooses what will run for one attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from attnc.algebra.assertions import check_assertions
from attnc.algebra.congruences import PairSet
from attnc.algebra.derivation import Step
from attnc.algebra.facts import Facts
from attnc.algebra.proofs import prove_facts
from attnc.algebra.scoring import derive_scoring
from attnc.algebra.separable import joined, separate
from attnc.algebra.simplify import simplify_attention
from attnc.algebra.table_proofs import mark_reads
from attnc.algebra.tiles import derive_tiles
from attnc.algebra.windows import prove_window
from attnc.diagnostics import InternalError
from attnc.ir.nodes import Score, SizeName
from attnc.ir.program import ORIGINAL_KEYS, AlignKind, Attention, NormalizeKind
from attnc.ir.shortening import with_sizes
from attnc.plan.kernel_plan import Choice, Form, Library, Pass, Plan, Scoring, Short
from attnc.plan.lengths import cheapest_by_length
from attnc.plan.library_parts import with_library_parts
from attnc.plan.linear import find_linear_form
from attnc.plan.overrides import alternatives
from attnc.plan.pairwise import check_surroundings, is_surrounded, pairwise_attention
from attnc.plan.row_lengths import LENGTH, count_long_rows, most_keys, trend_of
from attnc.plan.split import Part, decompositions
from attnc.plan.weighing import DENSE, GOOD, Weigher, make_passes

MOST_CHOICES = 8
"""So many ways to compute a mask are weighed."""


def plan_attention(attention: Attention, *, length: int = LENGTH) -> Plan:
    """Simplify an attention, prove what it asserts, and derive the passes that compute it.

    Args:
        attention: checked.
        length: for which costs are compared.

    Raises:
        CompileError: an assertion is false or cannot be decided, or a statement is not compiled yet.
    """
    plan = begin_plan(attention)
    simplified, scoring = plan.attention, plan.scoring
    library = library_call(simplified, scoring, plan.facts)
    asked = None if simplified.decompose is None else simplified.decompose.form
    asked = None if asked == "chunk" else asked  # passes compute what is too short for chunks
    if asked in (None, "none") and is_plain_softmax(simplified, scoring):
        plan = replace(plan, window=prove_window(simplified))
    if asked in (None, "none") and library is not None:
        only = Pass(Form.LIBRARY, simplified.mask, derive_tiles(simplified), library=library)
        return replace(plan, passes=(replace(only, trend=trend_of(simplified, only, LENGTH)),))
    choices = choose_passes(simplified, length)
    plan = _chosen(replace(plan, choices=choices, weighed_at=length))
    if is_plain_softmax(simplified, scoring):
        plan = with_library_parts(plan)
    if asked is not None:
        return plan
    return replace(plan, short=_short(plan))


def begin_plan(attention: Attention) -> Plan:
    """Simplify an attention and find its forms; no pass is derived.

    Args:
        attention: checked.

    Raises:
        CompileError: an assertion is false or cannot be decided, or what is stated does not fit the mask.
    """
    check_assertions(attention)
    declared, steps = simplify_attention(attention)
    declared, _ = mark_reads(declared)
    simplified = pairwise_attention(declared)
    score, score_log2, dropped, scored = derive_scoring(simplified)
    scoring = Scoring(score, score_log2, dropped)
    facts = prove_facts(declared)
    simplified, joins = _with_joined_weight(simplified, causal=facts.causal is True)
    check_surroundings(declared, everything=facts.always is True)
    linear = find_linear_form(declared, facts)
    return Plan(
        simplified,
        scoring,
        (),
        facts,
        (*steps, *joins, *scored),
        declared=declared if is_surrounded(declared) or not isinstance(linear, str) else None,
        linear=None if isinstance(linear, str) else linear,
        quadratic_because=linear if isinstance(linear, str) and declared.feature is not None else "",
    )


def _with_joined_weight(attention: Attention, *, causal: bool) -> tuple[Attention, tuple[Step, ...]]:
    """Join the exponentials of a weight, so that none overflows at distant positions."""
    weight = attention.weight
    weights = None if weight is None else separate(weight, causal=causal)
    if weight is None or weights is None:
        return attention, ()
    found = joined(weight, weights)
    return (
        (attention, ())
        if found == weight
        else (replace(attention, weight=found), (Step("join-exponentials", weight, found),))
    )


def _chosen(plan: Plan) -> Plan:
    """Take the cheapest of the choices, and find out how long its rows are."""
    attention, passes = plan.attention, plan.choices[0].passes
    passes = tuple(
        replace(one, most_keys=most_keys(attention, one, LENGTH), trend=trend_of(attention, one, LENGTH))
        for one in passes
    )
    return _with_proof(replace(plan, passes=passes, long_rows=count_long_rows(attention, passes, LENGTH)))


def _short(plan: Plan) -> tuple[Short, ...]:
    """Return what computes sequences for which a plan's passes do not pay."""
    found = []
    for limit, choices in cheapest_by_length(plan.attention, plan.choices, plan.weighed_at):
        chosen = _chosen(replace(plan, choices=choices))
        found.append(Short(limit, chosen.passes, choices, chosen.proven_disjoint, chosen.long_rows))
    return tuple(found)


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
    weigher = Weigher(attention, length)
    asked = alternatives(attention)
    if asked is not None:
        choices = [weigher.with_effort(weigher.weigh(parts)) for parts in islice(asked, MOST_CHOICES)]
        return tuple(sorted(choices, key=lambda choice: choice.cost))
    ways = islice(decompositions(attention), MOST_CHOICES)
    weighed = [weigher.first(next(ways))]
    for parts in ways:
        if weigher.is_spent or weigher.is_within(weighed[-1].passes, DENSE):
            break
        weighed.append(weigher.weigh(parts))
    return tuple(_revised(weigher, weighed))


def _revised(weigher: Weigher, weighed: list[Choice]) -> list[Choice]:
    """Sort choices by cost, and derive those with more effort that are or may be the cheapest one."""
    plain, *others = weighed
    best = min(weighed, key=lambda choice: choice.cost)
    if best is not plain and not weigher.is_within(best.passes, GOOD):
        plain = weigher.with_effort(plain)
    ordered = sorted([plain, *others], key=lambda choice: choice.cost)
    return sorted([weigher.with_effort(ordered[0]), *ordered[1:]], key=lambda choice: choice.cost)


def with_known_sizes(plan: Plan, keys: int, head_size: int) -> Plan:
    """Return the plan of calls with so many original keys and this head size, where its pairs cannot see them."""
    if not any(one.hidden for one in plan.attention.tensors):
        return plan
    given = {ORIGINAL_KEYS: keys, SizeName.HEAD_SIZE.value: head_size}
    return plan_attention(with_sizes(plan.operation, given))


def with_passes(plan: Plan, parts: Iterable[Part]) -> Plan:
    """Return a plan that computes each part of the mask in a layout of its own, see `make_passes`."""
    return replace(plan, passes=make_passes(plan.attention, parts), short=(), part=None)


def library_call(attention: Attention, scoring: Scoring, facts: Facts) -> Library | None:
    """Return the call of `scaled_dot_product_attention` that an attention is, if it is one.

    It is one where the mask is proven to be everything or exactly causal, the score is the scaled dot product, and the
    scale is the usual one (a call may give another). The call aligns at the start, as do `end` and `start` where there
    are as many queries as keys; `align at` need not.
    """
    if not is_plain_softmax(attention, scoring):
        return None
    if facts.always:
        return Library.FULL
    aligned = attention.align.kind is not AlignKind.AT
    return Library.CAUSAL if facts.exactly_causal and aligned else None


def is_plain_softmax(attention: Attention, scoring: Scoring) -> bool:
    """Tell whether weights are the softmax of scaled dot products, the scale the usual one, and nothing else."""
    return (
        attention.normalize.kind is NormalizeKind.SOFTMAX
        and attention.normalize.sink is None
        and attention.weight is None
        and attention.scale is None
        and isinstance(scoring.score, Score)
        and scoring.dropped is None
    )
