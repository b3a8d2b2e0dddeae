"""Counting the pairs of a mask by evaluating it block by block: for what the set analysis cannot count.

Time is quadratic in the length, memory is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch

from attnc.ir.nodes import IndexName, SizeName
from attnc.ir.program import Attention
from attnc.ir.walk import depends_on, tables
from attnc.reference import evaluate_tensor, pair_environment

BLOCK_PAIRS = 1 << 23
"""Pairs that are evaluated at once."""

Inputs = Mapping[str, "torch.Tensor | float"]


@dataclass(frozen=True, slots=True)
class Block:
    """A block of rows of a mask.

    Attributes:
        rows: query rows, as a slice.
        allowed: bool, `(1 or B, 1 or H, rows, M)`; batch and heads are of length 1 where they make no difference.
    """

    rows: slice
    allowed: torch.Tensor


def mask_blocks(
    attention: Attention,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None = None,
    *,
    rows_at_once: int | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Block]:
    """Evaluate a mask in blocks of rows, each with all of its keys.

    Args:
        attention: whose mask, inputs and alignment count.
        sizes: all that its expressions use.
        inputs: those that mask and alignment read.
        rows_at_once: rows of a block; what fits unless said.
        device: where `inputs` are.
    """
    queries, keys = sizes[SizeName.QUERIES], sizes[SizeName.KEYS]
    batch = sizes[SizeName.BATCH] if varies(attention, IndexName.BATCH) else 1
    heads = sizes[SizeName.HEADS] if varies(attention, IndexName.HEAD) else 1
    if rows_at_once is None:
        rows_at_once = max(1, BLOCK_PAIRS // max(1, keys * batch * heads))
    place = torch.device(device) if device is not None else None
    for start in range(0, queries, rows_at_once):
        rows = torch.arange(start, min(start + rows_at_once, queries), device=place)
        env = pair_environment(attention, sizes, inputs, rows=rows, device=place)
        allowed = evaluate_tensor(attention.mask, env)
        yield Block(slice(start, start + len(rows)), allowed.expand(batch, heads, len(rows), keys))


def count_pairs(
    attention: Attention,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None = None,
    *,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Fraction:
    """Count the allowed pairs of one head, the mean over batch and heads.

    `progress` is called with the number of rows of each block that was counted.
    """
    total, copies = 0, 1
    for block in mask_blocks(attention, sizes, inputs, device=device):
        total += int(block.allowed.sum())
        copies = block.allowed.shape[0] * block.allowed.shape[1]
        progress(block.rows.stop - block.rows.start)
    return Fraction(total, copies)


def varies(attention: Attention, index: IndexName) -> bool:
    """Tell whether the mask or the position of a query differs between batch entries, or between heads."""
    return depends_on(attention.mask, index) or depends_on(attention.align.shift, index)


def reads_data(attention: Attention) -> bool:
    """Tell whether the mask or the position of a query depends on inputs or learned tensors."""
    return bool(tables(attention.mask) or tables(attention.align.shift))
