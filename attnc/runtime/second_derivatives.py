"""Derivatives of gradients: what a gradient of a gradient asks of the backward pass, on any device.

They are computed by plain operations, a strip of queries after the other: a strip's output, the gradients that it
contributes to, and from those, by autograd, what the given gradients of these gradients amount to. What strips
contribute to gradients of keys, values and tables adds up, so that nothing is lost by taking one at a time, and memory
is linear in the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.runtime.calls import call_sizes
from attnc.runtime.dense import dense_rows
from attnc.runtime.dropout import Dropout
from attnc.runtime.program import Program

STRIP_PAIRS = 1 << 22
"""Pairs, of all heads, of a strip."""


@dataclass(frozen=True, slots=True)
class FirstPass:
    """Arguments of the backward pass that is differentiated.

    Attributes:
        grad_out, grad_lse: of the output, and of the log-sum-exp if it was used.
        tensors: query, key and value.
        inputs: of the pattern.
        wanted: which of the inputs it gives gradients of.
    """

    grad_out: Tensor
    grad_lse: Tensor | None
    tensors: tuple[Tensor, Tensor, Tensor]
    inputs: Sequence[Tensor]
    wanted: Sequence[bool]


def second_backward(
    program: Program, first: FirstPass, given: Sequence[Tensor | None], scale: float | None, dropout: Dropout | None
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """Return the gradients of `grad_out`, `grad_lse`, of query, key and value, and of the wanted inputs.

    Args:
        program: of the attention.
        first: see `FirstPass`.
        given: gradients of the gradients of query, key, value and of the wanted inputs; None for 0.
        scale: of the call.
        dropout: of the call.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in first.tensors]
    inputs = [tensor.detach().requires_grad_(want) for tensor, want in zip(first.inputs, first.wanted, strict=True)]
    tables = [tensor for tensor, want in zip(inputs, first.wanted, strict=True) if want]
    sizes = call_sizes(*first.tensors)
    totals = [torch.zeros_like(leaf) for leaf in (*leaves, *tables)]
    grad_out = torch.zeros_like(first.grad_out)
    grad_lse = None if first.grad_lse is None else torch.zeros_like(first.grad_lse)
    count = max(1, STRIP_PAIRS // (sizes.B * sizes.H * sizes.M))
    for start in range(0, sizes.N, count):
        rows = slice(start, min(start + count, sizes.N))
        with torch.enable_grad():
            at = torch.arange(rows.start, rows.stop, device=leaves[0].device)
            query, key, value = leaves
            out, lse = dense_rows(program, query, key, value, inputs, sizes, scale, at, dropout)
            found = _strip(first, (out, lse), [*leaves, *tables], rows, given)
        for total, part in zip((grad_out[:, :, rows], *totals), (found[0], *found[2:]), strict=True):
            if part is not None:
                total += part
        if grad_lse is not None and found[1] is not None:
            grad_lse[:, :, rows] += found[1]
    return grad_out, grad_lse, totals[:3], totals[3:]


def _strip(
    first: FirstPass,
    results: tuple[Tensor, Tensor],
    leaves: list[Tensor],
    rows: slice,
    given: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return what a strip contributes: gradients of its `grad_out`, of its `grad_lse`, and of all leaves."""
    out, lse = results
    upstream = [first.grad_out[:, :, rows].detach().requires_grad_()]
    followed = [out]
    if first.grad_lse is not None:
        # rows without keys have no log-sum-exp that could be differentiated
        followed.append(torch.where(lse.isfinite(), lse, 0.0))
        upstream.append(first.grad_lse[:, :, rows].detach().requires_grad_())
    pairs = [(one, grad) for one, grad in zip(followed, upstream, strict=True) if one.requires_grad]
    nothing: tuple[Tensor | None, ...] = (None,) * (2 + len(leaves))
    if not pairs:
        return nothing
    once = torch.autograd.grad(
        [one for one, _ in pairs], leaves, [grad for _, grad in pairs], create_graph=True, allow_unused=True
    )
    used = [
        (grad, of)
        for grad, of in zip(once, given, strict=True)
        if grad is not None and of is not None and grad.requires_grad
    ]
    if not used:
        return nothing
    sources = [*upstream, *leaves]
    twice = torch.autograd.grad(
        [grad for grad, _ in used], sources, [of.to(grad.dtype) for grad, of in used], allow_unused=True
    )
    return twice if len(upstream) == 2 else (twice[0], None, *twice[1:])
