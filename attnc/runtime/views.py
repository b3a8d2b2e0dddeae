"""Strided views of the rows and keys of a band: no copies, few large calls."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from attnc.runtime.bands import Band


def row_view(tensor: Tensor, band: Band) -> Tensor:
    """View rows of `[..., N, D]` as `[..., S, R, D]`."""
    return _row_blocks(tensor, -2, band).transpose(-1, -2)


def row_numbers_view(tensor: Tensor, band: Band) -> Tensor:
    """View rows of `[..., N]` as `[..., S, R]`."""
    return _row_blocks(tensor, -1, band)


def _row_blocks(tensor: Tensor, axis: int, band: Band) -> Tensor:
    """Put the blocks of a band where its rows are, and the rows of each last."""
    step = band.row_step or band.rows
    return tensor.narrow(axis, band.row, (band.count - 1) * step + band.rows).unfold(axis, band.rows, step)


def key_view(tensor: Tensor, band: Band) -> Tensor:
    """View keys of `[..., M, D]` as `[..., S, W, D]`; windows may overlap, so it is for reading only.

    Pieces that do not lie side by side are copied.
    """
    if band.starts:
        return torch.cat([tensor.narrow(-2, start, width) for start, width in band.runs()], -2).unsqueeze(-3)
    if band.key_step == 0:
        return tensor.narrow(-2, band.key, band.width).unsqueeze(-3).expand(*tensor.shape[:-2], band.count, -1, -1)
    span = (band.count - 1) * band.key_step + band.width
    return tensor.narrow(-2, band.key, span).unfold(-2, band.width, band.key_step).transpose(-1, -2)


def add_to_keys(total: Tensor, part: Tensor, band: Band) -> None:
    """Add gradients `[..., S, W, D]` of the windows of a band to those of the keys `[..., M, D]`, in a fixed order."""
    if band.starts:
        offset = 0
        for start, width in band.runs():
            total.narrow(-2, start, width).add_(part.squeeze(-3)[..., offset : offset + width, :])
            offset += width
        return
    if band.key_step == 0:
        total.narrow(-2, band.key, band.width).add_(part.sum(-3) if band.count > 1 else part.squeeze(-3))
        return
    for offset in range(0, band.width, band.key_step):
        width = min(band.key_step, band.width - offset)
        key_view(total, band.part(0, band.count, offset, width)).add_(part[..., offset : offset + width, :])


def band_rows(band: Band, shared: bool) -> Tensor:
    """Return the numbers of the rows of a band, `[S, R]`, or those of its first block where all are alike."""
    first = torch.arange(band.row, band.row + band.rows).view(1, -1)
    if shared or band.count == 1:
        return first
    return first + band.row_step * torch.arange(band.count).view(-1, 1)


def band_keys(band: Band, shared: bool) -> Tensor:
    """Return the numbers of the keys of a band, `[S, W]`, or those of its first block where all are alike."""
    if band.starts:
        return torch.cat([torch.arange(start, start + width) for start, width in band.runs()]).view(1, -1)
    first = torch.arange(band.key, band.key + band.width).view(1, -1)
    if shared or band.count == 1:
        return first
    return first + band.key_step * torch.arange(band.count).view(-1, 1)


def are_joined(tensors: Iterable[Tensor]) -> bool:
    """Tell whether entries and key heads of tensors `[X, G, ...]` lie in memory as one dimension."""
    return all(
        tensor.shape[0] == 1 or tensor.shape[1] == 1 or tensor.stride(0) == tensor.shape[1] * tensor.stride(1)
        for tensor in tensors
    )


def block_product(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ right` of blocks `[X, G, S, I, K]` and `[X, G, S, K, J]`, views that may overlap in memory.

    `torch.matmul` would copy every window of keys before it multiplies.
    """
    entries, groups, blocks = right.shape[:3]
    if blocks == 1:
        return left @ right
    if right.stride(2) == 0:  # blocks that read the same keys are one
        return torch.unflatten(left.flatten(2, 3) @ right[:, :, 0], 2, left.shape[2:4])
    result = left.new_empty((blocks, entries, groups, left.shape[3], right.shape[4]))
    joined = are_joined((left, right))
    for number in range(blocks):
        factors = left[:, :, number], right[:, :, number]
        if joined:
            torch.bmm(*(factor.flatten(0, 1) for factor in factors), out=result[number].flatten(0, 1))
            continue
        for entry in range(entries):
            torch.bmm(*(factor[entry] for factor in factors), out=result[number, entry])
    return result.movedim(0, 2)
