"""What is measured: ways to compute one attention on one set of tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from attnc.bench.cases import Data, Shape
from attnc.ir.program import Attention

Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Unavailable(Exception):  # noqa: N818 - a statement about a peer rather than a failure
    """A peer cannot compute this case; the text says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """One attention on one set of tensors.

    Attributes:
        query, key, value: in the precision that is measured.
        data: inputs and learned tensors on the same device.
        backward: whether gradients are needed.
    """

    attention: Attention
    shape: Shape
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    data: Data
    backward: bool = False

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.query.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of query, key and value."""
        return self.query.dtype


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to compute a case.

    Attributes:
        name: as the report prints it.
        run: maps query, key and value to the output.
        build_seconds: time that the preparation of mask or tables for this length took, apart from `run`; None where
            there is none.
        held: bytes of that mask or of those tables, which live as long as they are used.
        note: what a reader must know to judge the time.
        around: entered around each sample, and not timed.
        audit: given what is to be timed, says why its time would not be one of this contender; empty if it would.
        heads_last: whether it wants tensors laid out as (batch, position, head, size) in memory.
    """

    name: str
    run: Run
    build_seconds: float | None = None
    held: int = 0
    note: str = ""
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    audit: Callable[[Callable[[], object]], str] = lambda work: ""
    heads_last: bool = False

    def arranged(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of (batch, head, position, size) whose memory is as this contender wants it."""
        return tensor.transpose(1, 2).contiguous().transpose(1, 2) if self.heads_last else tensor


Make = Callable[[Case], Contender]


def first_line(error: Exception) -> str:
    """Return an error in one line, for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
