"""Bounds of runs of equal ids, one pass over the ids: what programs know of `doc[b, i] == doc[b, j]` in a tile.

With `P[j]` the greatest id up to `j` and `S[j]` the least from `j` on, both never decrease, and the rows `low .. high`
touch keys from `start[low]` to before `stop[high]` alone; those from `full_start[high]` to before `full_stop[low]` have
the only id of all these rows. Exact for ids that never decrease; for others right, and longer than need be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Summary = tuple[str, int, str]
"""Its name in bounds, the position of the ids among the inputs, and which of the four it is."""


def summarize(ids: Tensor, kind: str) -> Tensor:
    """Return one summary of ids: int32, of their shape.

    Args:
        ids: integers `[.., M]`.
        kind: `start`, `stop`, `full_start` or `full_stop`.
    """
    return _found(*_extremes(ids), kind)


def summarize_inputs(inputs: Sequence[Any], summaries: Sequence[Summary]) -> Iterator[Tensor]:
    """Yield the summaries of some inputs in order; what is common to those of one input is made once."""
    extremes = {position: _extremes(inputs[position]) for _, position, _ in summaries}
    return (_found(*extremes[position], kind) for _, position, kind in summaries)


def _extremes(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least id from each position on, and the greatest up to it."""
    ids = ids.contiguous()
    if ids.numel() == 0:
        return ids, ids
    return ids.flip(-1).cummin(-1).values.flip(-1), ids.cummax(-1).values


def _found(least: Tensor, greatest: Tensor, kind: str) -> Tensor:
    if least.numel() == 0:
        return least.to(torch.int32)
    among, wanted, right = {
        "start": (greatest, least, False),
        "stop": (least, greatest, True),
        "full_start": (least, greatest, False),
        "full_stop": (greatest, least, True),
    }[kind]
    return torch.searchsorted(among, wanted, right=right, out_int32=True)


def with_summaries(inputs: Sequence[Any], summaries: Sequence[Summary]) -> tuple[Any, ...]:
    """Return the inputs and, after them, summaries of some of them. Nothing waits for the device."""
    return (*inputs, *summarize_inputs(inputs, summaries))


def ids_from_cu_seqlens(cu_seqlens: Tensor, length: int) -> Tensor:
    """Return the ids of packed sequences, as an input `doc: int[B, M] sorted` takes them.

    Args:
        cu_seqlens: where each sequence begins, and where the last one ends: integers `[sequences + 1]` that begin with
            0 and never decrease, as variable-length interfaces take them.
        length: number of packed positions. Those past the last sequence have an id of their own.

    Returns:
        int32 `[1, length]` on the device of `cu_seqlens`, without waiting for it.

    Raises:
        TypeError: `cu_seqlens` is no tensor of integers.
        ValueError: it has another shape.
    """
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype.is_floating_point or cu_seqlens.dtype is torch.bool:
        found = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise TypeError(f"cu_seqlens is {found}, expected a tensor of integers")
    if cu_seqlens.dim() != 1 or not len(cu_seqlens):
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}, expected (sequences + 1,)")
    positions = torch.arange(length, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens[1:].contiguous(), positions, right=True, out_int32=True)[None]
