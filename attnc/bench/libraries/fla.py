"""flash-linear-attention: its softmax attention is causal, in sequences or documents; all else of it is linear.

https://github.com/fla-org/flash-linear-attention
"""

from __future__ import annotations

import torch

from attnc.bench.contender import Case, Contender
from attnc.bench.forms import find_form
from attnc.bench.libraries.packing import lengths, positions_first


def contender(case: Case) -> Contender:
    """Return the library's `parallel_attn` for a case.

    Raises:
        Unavailable: it cannot express it.
    """
    form = find_form(case.attention)
    form.without(documents=True)
    from fla.ops.attn.parallel import parallel_attn

    shape = case.shape
    each = lengths(case, form.documents) if form.documents is not None else None
    starts = None if each is None else each.starts.long()
    rows = shape.batch if each is None else 1  # documents are packed into one sequence

    def laid_out(tensor: torch.Tensor) -> torch.Tensor:
        return positions_first(tensor).reshape(rows, -1, tensor.shape[1], tensor.shape[3])

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        three = {"q": laid_out(query), "k": laid_out(key), "v": laid_out(value)}
        out = parallel_attn(**three, scale=form.scale, cu_seqlens=starts)
        return positions_first(out.reshape(shape.batch, shape.queries, shape.heads, shape.value_size))

    return Contender("fla", run, None if each is None else each.seconds, heads_last=True)
