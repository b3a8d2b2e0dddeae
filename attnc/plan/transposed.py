"""The passes that gradients of keys and values take: those of the output, seen from the keys."""

from __future__ import annotations

from dataclasses import replace

from attnc.algebra.tiles import derive_tiles
from attnc.algebra.transposition import transpose, transpose_expression, transpose_layout
from attnc.ir.program import Attention
from attnc.plan.kernel_plan import Form, Pass, Plan, Scoring
from attnc.plan.row_lengths import LENGTH, trend_of


def transposed_plan(plan: Plan) -> Plan:
    """Return a plan of the transposed attention, whose passes have the same pairs in the same orders.

    Args:
        plan: for some lengths, alone.
    """
    attention, align = transpose(plan.attention), plan.attention.align.kind
    score = plan.scoring.score_log2
    scoring = Scoring(
        transpose_expression(plan.scoring.score, align),
        None if score is None else transpose_expression(score, align),
        None,
    )
    passes = tuple(_transposed(attention, plan, one) for one in plan.passes)
    return replace(plan, attention=attention, scoring=scoring, passes=passes, choices=(), long_rows=0, short=())


def _transposed(attention: Attention, plan: Plan, one: Pass) -> Pass:
    own = replace(attention, mask=transpose_expression(one.mask, plan.attention.align.kind))
    layout = transpose_layout(one.layout, own)
    turned = Pass(Form.SOFTMAX, own.mask, derive_tiles(own, layout=layout, summaries=True), layout)
    return replace(turned, trend=trend_of(own, turned, LENGTH))
