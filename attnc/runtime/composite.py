"""Attention as plain torch operations, a strip of query rows at a time: for what an operator cannot do.

Tensors that carry tangents (forward mode) and those of `torch.func` (`grad`, `jvp`, `vmap`, `jacrev`, ...) see through
plain operations, but not into an operator: forward mode would silently be given tangents of 0. All pairs are computed
here, those that the mask forbids as well. Memory is that of one strip, linear in the lengths, where nothing is recorded
for a backward pass; a reverse transform (`func.grad`, `func.vjp`) records the weights of all pairs, `N x M` numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attnc.runtime.autocast import without_autocast
from attnc.runtime.blocks import compute_dtype
from attnc.runtime.dense import dense_attention
from attnc.runtime.dropout import Dropout
from attnc.runtime.pairs import Sizes
from attnc.runtime.program import Program
from attnc.runtime.transforms import are_transforms_active, have_tangents

STRIP_PAIRS = 1 << 20
"""Most pairs of a strip, all heads counted, unless a single row of queries has more."""


def needs_composite(tensors: Sequence[Tensor]) -> bool:
    """Tell whether a call's tensors are such that an operator would not see all of."""
    return are_transforms_active() or have_tangents(tensors)


def composite_attention(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: Sequence[Tensor],
    sizes: Sizes,
    scale: float | None,
    dropout: Dropout | None,
) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp `[B, H, N]` of checked arguments, as differentiable as torch operations are."""
    dtype = compute_dtype(query.dtype)
    wide, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with without_autocast(query.device.type):
        parts = [
            dense_attention(program, wide[:, :, part], key, value, inputs, sizes, scale, dropout, rows)
            for part, rows in row_strips(sizes, query.device)
        ]
    out, lse = (torch.cat(list(found), 2) for found in zip(*parts, strict=True))
    return out.to(query.dtype), lse


def row_strips(sizes: Sizes, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Yield strips of query rows, as a slice and as numbers."""
    step = max(1, STRIP_PAIRS // (sizes.B * sizes.H * sizes.M))
    for first in range(0, sizes.N, step):
        last = min(sizes.N, first + step)
        yield slice(first, last), torch.arange(first, last, device=device)
