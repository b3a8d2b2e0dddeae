"""FlashAttention-2 (`flash_attn`): causal and full, windows, documents, soft caps and ALiBi slopes.

https://github.com/Dao-AILab/flash-attention
"""

from __future__ import annotations

from typing import Any

import torch

from attnc.bench.contender import Case, Contender
from attnc.bench.forms import find_form
from attnc.bench.libraries.packing import lengths, packed, positions_first, unpacked


def contender(case: Case) -> Contender:
    """Return FlashAttention for a case.

    Raises:
        Unavailable: it cannot express it.
    """
    form = find_form(case.attention)
    form.without(window=True, full=True, documents=True, cap=True, slopes=True)
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    def reach(far: int | None) -> int:
        return -1 if far is None else far

    options: dict[str, Any] = {
        "softmax_scale": form.scale,
        "causal": form.causal,
        "window_size": (reach(form.left), reach(form.right)),
        "softcap": form.cap or 0.0,
    }
    note = ""
    if form.slopes is not None:
        slopes = case.data[form.slopes]
        assert isinstance(slopes, torch.Tensor)
        options["alibi_slopes"] = slopes.float()
        note = "gives its slopes no gradient"
    if form.documents is None:

        def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            out = flash_attn_func(*(positions_first(tensor) for tensor in (query, key, value)), **options)
            return positions_first(out)

        return Contender("flash-attn", dense, note=note, heads_last=True)
    each = lengths(case, form.documents)
    options |= {
        "cu_seqlens_q": each.starts,
        "cu_seqlens_k": each.starts,
        "max_seqlen_q": each.longest,
        "max_seqlen_k": each.longest,
    }

    def documents(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = flash_attn_varlen_func(*(packed(tensor) for tensor in (query, key, value)), **options)
        return unpacked(out, case.shape.batch)

    return Contender("flash-attn", documents, each.seconds, note=note, heads_last=True)
