"""Gradients of the blocks of block diagonal and Monarch matrices, as batched products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_gradient(grad: Tensor, x: Tensor, blocks: Tensor) -> Tensor:
    """Return the gradient of the blocks of a block diagonal matrix; both factors are read in place."""
    count, outputs, inputs = blocks.shape
    left = torch.unflatten(grad, 1, (count, outputs)).permute(1, 2, 0)
    return torch.bmm(left, torch.unflatten(x, 1, (count, inputs)).transpose(0, 1))


def monarch_gradients(
    wants: Sequence[bool], grad: Tensor, x: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the factors of a Monarch matrix; what lies between them is computed again.

    Args:
        wants: which of the two are wanted.
        grad: of the outputs, (tokens, outputs).
        x: (tokens, inputs).
        first: see `MonarchProjection`.
        second: the same.
    """
    count, middle, inputs = first.shape
    if not any(wants):
        return None, None
    groups = torch.unflatten(x, 1, (count, inputs)).transpose(0, 1)
    of_out = torch.unflatten(grad, 1, (-1, count)).permute(2, 1, 0)
    of_first = of_second = None
    if wants[1]:
        between = torch.bmm(groups, first.transpose(1, 2)).transpose(0, 1)
        of_second = torch.bmm(of_out, between.reshape(-1, middle, count).permute(2, 0, 1))
    if wants[0]:
        of_middle = torch.bmm(of_out.transpose(1, 2), second).permute(1, 2, 0).reshape(-1, count, middle)
        of_first = torch.bmm(of_middle.permute(1, 2, 0), groups)
    return of_first, of_second
