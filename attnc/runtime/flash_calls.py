"""How a band becomes calls of PyTorch's flash operator, which takes tensors `[outer, inner, rows or keys, D]`.

Blocks are the inner dimension where they can: neighbours read overlapping keys, which are in the cache then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from attnc.runtime.bands import Band
from attnc.runtime.sections import Run
from attnc.runtime.views import add_to_keys, are_joined, key_view


class Inner(Enum):
    """What the inner dimension of a call is; the outer one has entries and key heads, or entries alone."""

    BLOCKS = auto()
    MEMBERS = auto()
    HEADS = auto()
    ONE = auto()
    """Nothing: the single rows of all query heads of a key head are the rows of the call, which reads keys once."""


ROW_GAIN = 3
"""How much less time the rows of several heads take as rows of one call: so many threads may go idle for it."""


@dataclass(frozen=True, slots=True)
class FlashCall:
    """Views for one call.

    Attributes:
        band: its rows and keys; a single block unless `inner` is `BLOCKS`.
        entries: which it has.
        groups: key heads, all of the part.
        inner: what the inner dimension is.
        size: its length.
        member: of the query heads of each key head, unless `inner` is `MEMBERS` or `ONE`.
        block: which of the blocks that masks are made for the band is, unless `inner` is `BLOCKS`.
        members: query heads of each key head, where `inner` is `ONE`.
    """

    band: Band
    entries: Run
    groups: int
    inner: Inner
    size: int
    member: int
    block: int = 0
    members: int = 1

    def rows(self, tensor: Tensor) -> Tensor:
        """View rows `[X, G, g, rows, D]`, or numbers of rows, as the operator takes them."""
        strides = tensor.stride()
        if self.inner is Inner.ONE:
            return self._joined(tensor.select(3, self.band.row), 0, 2, tensor.shape[2], self._first_row(tensor))
        return self._joined(tensor, self._row_step(strides), 3, self.band.rows, self._first_row(tensor))

    def keys(self, tensor: Tensor) -> Tensor:
        """View keys `[X, G, keys, D]` as the operator takes them."""
        if self.band.starts:
            return self._gathered(tensor)
        strides = tensor.stride()
        step = self.band.key_step * strides[2] if self.inner is Inner.BLOCKS else 0
        offset = int(tensor.storage_offset()) + self.entries[0] * strides[0] + self.band.key * strides[2]
        return self._joined(tensor, step, 2, self.band.width, offset)

    def spread_rows(self, tensor: Tensor) -> Tensor:
        """View rows `[X, G, g, rows, ...]` as `[X, G, inner, R, ...]`, in whichever order they lie in memory."""
        if self.inner is Inner.ONE:
            return tensor[slice(*self.entries), :, :, self.band.row].unsqueeze(2)
        strides = tensor.stride()
        inner = 1 if self.inner is Inner.HEADS else self.size
        size = (self.entries[1] - self.entries[0], self.groups, inner, self.band.rows, *tensor.shape[4:])
        return tensor.as_strided(size, (*strides[:2], self._row_step(strides), *strides[3:]), self._first_row(tensor))

    def spread(self, found: Tensor) -> Tensor:
        """View what a call gave as `[X, G, inner, rows or keys, ...]`."""
        if self.inner is Inner.HEADS:
            return found.unsqueeze(2)
        return found.view(-1, self.groups, *found.shape[1:])

    def pairs(self, tensor: Tensor) -> Tensor:
        """View `[X, G, S, g, ...]`, any of them 1, as `[outer, inner, ...]`, any of them 1."""
        if tensor.shape[0] > 1:
            tensor = tensor[slice(*self.entries)]
        if self.inner is Inner.MEMBERS:
            return tensor[:, :, 0].flatten(0, 1)
        if self.inner is Inner.ONE:
            members = tensor[:, :, 0].expand(-1, -1, self.members, *(-1,) * (tensor.dim() - 4))
            return members.flatten(0, 1).transpose(1, 2)
        tensor = tensor[:, :, :, min(self.member, tensor.shape[3] - 1)]
        if self.inner is Inner.HEADS:
            return tensor[:, :, min(self.block, tensor.shape[2] - 1)]
        return tensor.flatten(0, 1)

    def add_keys(self, total: Tensor, found: Tensor) -> None:
        """Add gradients of the keys of this call to `[X, G, keys, D]`."""
        found = self.spread(found)
        if self.inner is Inner.MEMBERS:
            found = found.sum(2, keepdim=True)
        add_to_keys(total[slice(*self.entries)], found, self.band)

    def _gathered(self, tensor: Tensor) -> Tensor:
        """Copy the keys of a single block whose pieces do not lie side by side."""
        found = key_view(tensor[slice(*self.entries)], self.band)
        if self.inner is Inner.HEADS:
            return found.squeeze(2)
        return found.flatten(0, 1).expand(-1, self.size, -1, -1)

    def _row_step(self, strides: Sequence[int]) -> int:
        return self.band.row_step * strides[3] if self.inner is Inner.BLOCKS else strides[2]

    def _first_row(self, tensor: Tensor) -> int:
        entry, _, member, row, *_ = tensor.stride()
        return int(tensor.storage_offset()) + self.entries[0] * entry + self.member * member + self.band.row * row

    def _joined(self, tensor: Tensor, step: int, axis: int, length: int, offset: int) -> Tensor:
        """View rows or keys, which lie along an axis, with this step between those of the inner dimension."""
        strides, entries = tensor.stride(), self.entries[1] - self.entries[0]
        rest, steps = (length, *tensor.shape[axis + 1 :]), strides[axis:]
        if self.inner is Inner.HEADS:
            return tensor.as_strided((entries, self.groups, *rest), (*strides[:2], *steps), offset)
        outer = strides[1] if self.groups > 1 else strides[0]
        return tensor.as_strided((entries * self.groups, self.size, *rest), (outer, step, *steps), offset)


def flash_calls(
    band: Band, heads: Sequence[int], tensors: Sequence[Tensor], mask: Tensor | None
) -> Iterator[FlashCall]:
    """Yield the calls that make up a band.

    Args:
        band: all blocks, or some of them.
        heads: entries, key heads, and members of each.
        tensors: what the operator takes of the part, `[X, G, ...]` each.
        mask: `[X, G, S, g, R, W]`, any of them 1, or None.
    """
    entries, groups, members = heads
    together = are_joined(tensors)
    if mask is not None and entries > 1:
        together = together and mask.shape[0] == mask.shape[1] == 1
    threads = min(torch.get_num_threads(), entries * groups * members)
    if together and band.count == band.rows == 1 < members and threads <= ROW_GAIN * entries * groups:
        yield FlashCall(band, (0, entries), groups, Inner.ONE, 1, 0, members=members)
        return
    if together and band.count == 1 and members > 1:
        yield FlashCall(band, (0, entries), groups, Inner.MEMBERS, members, 0)
        return
    for member in range(members):
        if together:
            yield FlashCall(band, (0, entries), groups, Inner.BLOCKS, band.count, member)
        elif entries > band.count:
            for number in range(band.count):
                block = band.part(number, 1, 0, band.width)
                yield FlashCall(block, (0, entries), groups, Inner.HEADS, groups, member, number)
        else:
            for entry in range(entries):
                yield FlashCall(band, (entry, entry + 1), groups, Inner.BLOCKS, band.count, member)
