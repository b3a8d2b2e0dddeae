"""FlashInfer: causal and full, windows before the query, documents and batches, soft caps. It has no backward pass.

https://docs.flashinfer.ai/api/attention.html
"""

from __future__ import annotations

import time
from typing import Any

import torch

from attnc.bench.contender import Case, Contender, Unavailable
from attnc.bench.forms import Form, find_form
from attnc.bench.libraries.packing import lengths, packed, unpacked

WORKSPACE = 128 << 20
"""Bytes of the buffer that its wrappers ask for."""


def contender(case: Case) -> Contender:
    """Return FlashInfer for a case.

    Raises:
        Unavailable: it cannot express it, or gradients are needed.
    """
    if case.backward:
        raise Unavailable("it has no backward pass")
    form = find_form(case.attention)
    form.without(window=True, full=True, documents=True, cap=True)
    if form.windowed and not form.causal:
        raise Unavailable("it has no windows behind the query")
    options: dict[str, Any] = {
        "causal": form.causal,
        "sm_scale": form.scale,
        "window_left": -1 if form.left is None else form.left,
        "logits_soft_cap": form.cap,
    }
    if case.shape.batch > 1 or form.documents is not None:
        return _ragged(case, form, options)
    from flashinfer import single_prefill_with_kv_cache

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = single_prefill_with_kv_cache(*(packed(tensor) for tensor in (query, key, value)), **options)
        return unpacked(out, 1)

    return Contender("flashinfer", run, heads_last=True)


def _ragged(case: Case, form: Form, options: dict[str, Any]) -> Contender:
    """Return the attention of several sequences; what is planned once for their lengths counts as the mask's build."""
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

    begin = time.perf_counter()
    shape = case.shape
    workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device=case.device)
    wrapper = BatchPrefillWithRaggedKVCacheWrapper(workspace, kv_layout="NHD")
    starts = lengths(case, form.documents).starts
    wrapper.plan(starts, starts, shape.heads, shape.kv_heads, shape.head_size, q_data_type=case.dtype, **options)
    seconds = time.perf_counter() - begin

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return unpacked(wrapper.run(*(packed(tensor) for tensor in (query, key, value))), shape.batch)

    return Contender("flashinfer", run, seconds, WORKSPACE, heads_last=True)
