"""What programs know of data before they run: bounds of runs of equal ids, and extremes of blocks of any table.

Both take one pass over the data, on its device, and nothing waits for it.

Of ids that are compared for equality: with `P[j]` the greatest id up to `j` and `S[j]` the least from `j` on, both
never decrease, and the rows `low .. high` touch keys from `start[low]` to before `stop[high]` alone; those from
`full_start[high]` to before `full_stop[low]` have the only id of all these rows. Exact for ids
that never decrease; for others right, and longer than need be.

Of other tables: the least and the greatest element of each block, `least_1x64` for blocks of 64 along dimension 1, and
of several dimensions together. Past the end of the table the last block repeats its last element, or, as in
`least0_1x64`, has 0 there, which is what reads past the end give. A block of floats with a NaN in it has NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Summary = tuple[str, int, str]
"""Its name in bounds, the position of the table among the inputs, and which summary it is."""

RUNS = ("start", "stop", "full_start", "full_stop")
"""Bounds of runs."""


def summarize(ids: Tensor, kind: str) -> Tensor:
    """Return one summary of a table.

    Args:
        ids: integers `[.., M]` for bounds of runs, which are int32 and of their shape; any table for its extremes.
        kind: one of `RUNS`, or which extremes of which blocks.
    """
    return _found(*_extremes(ids), kind) if kind in RUNS else block_extremes(ids, kind)


def summarize_inputs(inputs: Sequence[Any], summaries: Sequence[Summary]) -> Iterator[Tensor]:
    """Yield the summaries of some inputs in order; what is common to those of one input is made once."""
    extremes = {position: _extremes(inputs[position]) for _, position, kind in summaries if kind in RUNS}
    return (
        _found(*extremes[position], kind) if kind in RUNS else block_extremes(inputs[position], kind)
        for _, position, kind in summaries
    )


def block_extremes(table: Tensor, kind: str) -> Tensor:
    """Return the least or greatest element of each block of a table, in its dtype; see the top of this file."""
    word, *blocks = kind.split("_")
    found = table.detach()
    for axis, length in (map(int, block.split("x")) for block in blocks):
        found = _of_blocks(found, axis, length, word)
    return found


def _of_blocks(table: Tensor, axis: int, length: int, word: str) -> Tensor:
    count = -(-table.shape[axis] // length)
    if table.numel() == 0:
        return table.new_zeros([count if at == axis else size for at, size in enumerate(table.shape)])
    missing = count * length - table.shape[axis]
    if missing:
        last = table.narrow(axis, table.shape[axis] - 1, 1)
        past = torch.zeros_like(last) if word.endswith("0") else last
        table = torch.cat([table, past.expand(*last.shape[:axis], missing, *last.shape[axis + 1 :])], axis)
    cut = torch.unflatten(table, axis, (count, length))
    if table.dtype is torch.bool:
        return cut.any(axis + 1) if word.startswith("greatest") else cut.all(axis + 1)
    return cut.amax(axis + 1) if word.startswith("greatest") else cut.amin(axis + 1)


def widened(summary: Tensor, table: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a summary of a table as one of the table that is expanded to a shape: where it has one element, alike."""
    sizes = [
        size if own == 1 and size != 1 else here
        for size, own, here in zip(shape, table.shape, summary.shape, strict=True)
    ]
    return summary.expand(sizes)


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
