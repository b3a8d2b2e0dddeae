"""What a forward pass keeps of each query, so that the backward pass need not sweep over its keys first."""

from __future__ import annotations

from attnc.ir.program import Attention, NormalizeKind


def state_of(attention: Attention) -> str:
    """Return `lse` (log-sum-exp), `peak` (greatest score, and sum of weights), `total` (sum of weights) or nothing."""
    match attention.normalize.kind:
        case NormalizeKind.SOFTMAX:
            return "lse" if attention.weight is None else "peak"
        case NormalizeKind.ROWS:
            return "total"
        case _:
            return ""
