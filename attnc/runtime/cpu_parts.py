"""A pass of several on a CPU that is plain causal attention from some position on: one call for each member of a group.

The operator skips the tiles behind the diagonal by itself, and needs neither masks nor bands.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnc.runtime.merging import merge
from attnc.runtime.sections import Section

_attend_causally = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_causal_gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def first_causal_row(section: Section) -> int | None:
    """Return the row from which on a section is causal attention and has no other pairs; None where it is not."""
    first, sizes = section.frame.sweep.causal_from, section.call.sizes
    return first if first is not None and sizes.N == sizes.M and first < sizes.N else None


def causal_forward(section: Section, first: int, taken: tuple[Tensor, Tensor], scale: float, *, merges: bool) -> None:
    """Compute a section, and put it into its output and log-sum-exp, or merge it with what is there.

    Args:
        section: causal from `first` on.
        first: row.
        taken: output `[X, G, g, rows, E]` and log-sum-exp `[X, G, g, rows]` of the section.
        scale: of dot products.
        merges: whether something is there.
    """
    out, lse = taken
    if not merges:
        out[..., :first, :].zero_()
        lse[..., :first].fill_(-torch.inf)
    key, value = section.key[:, :, first:], section.value[:, :, first:]
    for member in range(section.query.shape[2]):
        query = section.query[:, :, member, first:]
        found, found_lse = _attend_causally(query, key, value, 0.0, True, scale=scale)
        own, own_lse = out[:, :, member, first:], lse[:, :, member, first:]
        if merges:
            merge(own, own_lse, found, found_lse)
        else:
            own.copy_(found)
            own_lse.copy_(found_lse)


def causal_backward(
    section: Section, first: int, known: tuple[Tensor, Tensor, Tensor], sums: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Add the gradients of a section up.

    Args:
        section: causal from `first` on; its queries are scaled.
        first: row.
        known: gradient of the output, output and log-sum-exp of its rows, of all passes together.
        sums: gradients of its queries, keys and values.
    """
    key, value = section.key[:, :, first:], section.value[:, :, first:]
    for member in range(section.query.shape[2]):
        grad_out, out, lse = (tensor[:, :, member, first:] for tensor in known)
        query = section.query[:, :, member, first:]
        found = _causal_gradients(grad_out, query, key, value, out, lse, 0.0, True, scale=1.0)
        sums[0][:, :, member, first:].add_(found[0])
        sums[1][:, :, first:].add_(found[1])
        sums[2][:, :, first:].add_(found[2])
