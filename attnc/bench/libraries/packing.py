"""Tensors in the layouts that libraries take, and documents as the lengths of packed sequences."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from attnc.bench.contender import Case


@dataclass(frozen=True, slots=True)
class Lengths:
    """Sequences packed one after the other, over all batch entries.

    Attributes:
        each: their lengths.
        starts: where each begins, and where the last ends: int32, on the case's device.
        seconds: time that finding them took.
    """

    each: tuple[int, ...]
    starts: torch.Tensor
    seconds: float

    @property
    def longest(self) -> int:
        """Return the greatest length."""
        return max(self.each)


def lengths(case: Case, documents: str | None) -> Lengths:
    """Return the lengths of a case's documents, or of its batch entries where it has none."""
    begin = time.perf_counter()
    shape = case.shape
    each = [shape.keys] * shape.batch
    if documents is not None:
        ids = case.data[documents]
        assert isinstance(ids, torch.Tensor)
        rows = ids.expand(shape.batch, shape.keys)
        each = [int(count) for row in rows for count in torch.unique_consecutive(row, return_counts=True)[1]]
    starts = torch.tensor([0, *each]).cumsum(0).to(device=case.device, dtype=torch.int32)
    return Lengths(tuple(each), starts, time.perf_counter() - begin)


def positions_first(tensor: torch.Tensor) -> torch.Tensor:
    """Turn (batch, head, position, size) into (batch, position, head, size), a view."""
    return tensor.transpose(1, 2)


def packed(tensor: torch.Tensor) -> torch.Tensor:
    """Turn (batch, head, position, size) into (batch * position, head, size)."""
    return positions_first(tensor).flatten(0, 1)


def unpacked(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """Turn (batch * position, head, size) into (batch, head, position, size), a view."""
    return positions_first(tensor.view(batch, -1, *tensor.shape[1:]))
