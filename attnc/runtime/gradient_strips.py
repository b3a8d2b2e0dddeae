"""Gradients of tables that are read for each pair: by kernels that leave what a strip of rows contributes.

No element of such a table belongs to a row or a key. A strip of a few programs' rows is launched at a time, its
contributions are added to the elements that they are of in a fixed order, and its memory is used again: memory is
linear in the length, and nothing is added up by atomics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.runtime.gradient_launch import GradientLaunch, cut_gradients
from attnc.runtime.pairs import Pairs
from attnc.runtime.program import TableRead
from attnc.runtime.row_gradients import add_read
from attnc.runtime.row_orders import PLAIN_ROWS, GridRows, RowOrder
from attnc.runtime.tiles import TileTable

PAIR_AXES = ("diagonal", "pair")
"""`TableRead.axes` of elements that belong neither to a row nor to a key."""

STRIP_BYTES = 1 << 26
"""Memory for what the pairs of a strip contribute to all tables."""


@dataclass(frozen=True, slots=True)
class PairSum:
    """Where contributions of pairs go.

    Attributes:
        heads: coordinates of all heads.
        read: of the table.
        totals: gradients of tables.
    """

    heads: Pairs
    read: TableRead
    totals: Mapping[str, Tensor]

    def add(self, strip: GradientLaunch, pairs: Tensor) -> None:
        """Add what a strip has left: `pairs` of each program, slot, row and key."""
        sizes, heads = self.heads.sizes, self.heads
        by_distance = self.read.axes == "diagonal" and strip.apart > 0
        assert strip.strip_rows is not None
        assert strip.strip_keys is not None
        assert strip.strip_heads is not None
        rows, keys = strip.strip_rows[:, None, :, None].long(), strip.strip_keys[:, :, None, :].long()
        head = strip.strip_heads[:, None, None, None].long()
        real = (rows < sizes.N) & (keys < sizes.M)
        b, h = head // sizes.H, head % sizes.H
        assert heads.shift is not None
        shift = heads.shift.expand(sizes.B, sizes.kv_heads, 1, sizes.g, 1, 1).reshape(sizes.B, sizes.H)[b, h]
        pairs = torch.where(real, pairs, 0.0)
        if by_distance:
            # all that counts is how far apart positions are: of a diagonal of a tile there is one sum
            pairs = sum_diagonals(pairs).unsqueeze(-2)
            steps = torch.arange(pairs.shape[-1], device=pairs.device) - (rows.shape[-2] - 1)
            rows, keys, real = rows[..., :1, :], keys[..., :1] + steps * strip.apart, real[..., :1, :1]
        at = replace(heads, b=b, h=h, r=rows, i=rows + shift, j=keys, shift=shift, allowed=real)
        add_read(at, self.read, pairs, self.totals)


def sum_diagonals(tiles: Tensor) -> Tensor:
    """Sum the diagonals of matrices `[..., R, C]`: `[..., R + C - 1]`, from the lower left corner on.

    Rows are shifted against each other by reading them as if they were one element shorter than they are.
    """
    rows, columns = tiles.shape[-2:]
    padded_rows = torch.nn.functional.pad(tiles.flip(-2), (0, rows)).flatten(-2)
    width = rows + columns - 1
    return torch.unflatten(padded_rows[..., : rows * width], -1, (rows, width)).sum(-2)


Sums = Sequence[Tensor | PairSum | None]
"""For each read of a table: where the sums of rows or keys go, or contributions of pairs; None where nobody asks."""


def pair_strips(
    call: GradientLaunch,
    sums: Sums,
    *,
    reads: tuple[int, ...],
    tiles: TileTable,
    kernel: str,
    passes: int,
    apart: int,
    extra: int = 0,
    order: RowOrder | GridRows = PLAIN_ROWS,
) -> Iterator[tuple[GradientLaunch, list[Tensor | None]]]:
    """Yield the launch of each strip, and memory for the contributions to each read; add them up after it.

    Args:
        call: of all kernels.
        sums: see `Sums`.
        reads: numbers of those that the kernel contributes to.
        tiles: the kernel's table of tiles.
        kernel: what tuned tiles know it by.
        passes: how often it walks the keys.
        apart: how far apart positions are that follow each other; 0 if they vary.
        extra: keys more than there are that it may walk, those of boxes that reach past the last one.
        order: of its rows.
    """
    wanted = [number for number in reads if sums[number] is not None]
    if not wanted:
        return
    whole = cut_gradients(call, tiles=tiles, kernel=kernel, of_keys=False, order=order)
    rows, keys = whole.tiles.query, whole.tiles.key
    slots = passes * (-(-call.M // keys) + 1) + -(-extra // keys)
    count = max(1, STRIP_BYTES // (4 * slots * rows * keys * len(wanted)))
    device = call.query.device
    for first in range(0, whole.grid[0], count):
        programs = min(count, whole.grid[0] - first)
        strip = replace(
            whole,
            grid=(programs,),
            first_program=first,
            slots=slots,
            apart=apart,
            strip_rows=torch.full((programs, rows), call.N, dtype=torch.int32, device=device),
            strip_keys=torch.full((programs, slots, keys), call.M, dtype=torch.int32, device=device),
            strip_heads=torch.zeros(programs, dtype=torch.int32, device=device),
        )
        shape = (programs, slots, rows, keys)
        pairs = [
            torch.empty(shape, dtype=torch.float32, device=device) if number in wanted else None
            for number in range(len(sums))
        ]
        yield strip, pairs
        for number in wanted:
            total, found = sums[number], pairs[number]
            assert isinstance(total, PairSum)
            assert found is not None
            total.add(strip, found)
