"""xFormers (`memory_efficient_attention`): causal and full, windows, documents.

https://facebookresearch.github.io/xformers/components/ops.html
"""

from __future__ import annotations

from typing import Any

import torch

from attnc.bench.contender import Case, Contender, Unavailable
from attnc.bench.forms import Form, find_form
from attnc.bench.libraries.packing import lengths, positions_first


def contender(case: Case) -> Contender:
    """Return xFormers for a case.

    Raises:
        Unavailable: it cannot express it.
    """
    form = find_form(case.attention)
    form.without(window=True, full=True, documents=True)
    from xformers.ops import memory_efficient_attention

    shape = case.shape
    bias, seconds = _bias(case, form)
    rows = 1 if form.documents is not None else shape.batch  # documents are packed into one sequence

    def laid_out(tensor: torch.Tensor) -> torch.Tensor:
        """Turn (B, H, N, D) into (B, N, H, D); with groups into (B, N, key heads, group, D), keys repeated."""
        tensor = positions_first(tensor).reshape(rows, -1, tensor.shape[1], tensor.shape[3])
        if shape.group == 1:
            return tensor
        own = tensor.shape[2] // shape.kv_heads
        tensor = tensor.view(rows, -1, shape.kv_heads, own, tensor.shape[3])
        return tensor.expand(-1, -1, -1, shape.group, -1)

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        three = (laid_out(tensor) for tensor in (query, key, value))
        out = memory_efficient_attention(*three, attn_bias=bias, scale=form.scale)
        return positions_first(out.reshape(shape.batch, shape.queries, shape.heads, shape.value_size))

    return Contender("xformers", run, seconds, heads_last=True)


def _bias(case: Case, form: Form) -> tuple[Any, float | None]:
    """Return the object that says which keys are seen, and the seconds that finding documents took."""
    from xformers.ops.fmha import attn_bias

    if form.documents is None:
        if not form.windowed:
            return (attn_bias.LowerTriangularMask() if form.causal else None), None
        reach = [case.shape.keys if far is None else far for far in (form.left, form.right)]
        return attn_bias.LocalAttentionFromBottomRightMask(window_left=reach[0], window_right=reach[1]), None
    each = lengths(case, form.documents)
    bias = attn_bias.BlockDiagonalMask.from_seqlens(list(each.each))
    bias = bias.make_causal() if form.causal else bias
    if form.left is not None and form.causal:
        bias = bias.make_local_attention(form.left + 1)
    elif form.windowed:
        raise Unavailable("it has no windows of both sides in documents")
    return bias, each.seconds
