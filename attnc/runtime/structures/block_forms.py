"""Forms of products with block diagonal matrices, and with two of them in a row: torch operations, and kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnc.runtime.structures.factor_gradients import block_gradient, monarch_gradients
from attnc.runtime.structures.factor_launch import (
    launch_blocks,
    launch_monarch,
    suits_block_kernel,
    suits_monarch_kernel,
)
from attnc.runtime.structures.factor_operators import blocks_operator, monarch_operator
from attnc.runtime.structures.forms import CHAINS, ON_CPU, TRACED, Form, FormTable

STRIP_TOKENS = 128
"""Tokens of a strip: what lies between the factors of some hundred features stays in a processor's cache."""


def multiply_placed(x: Tensor, blocks: Tensor) -> Tensor:
    """Return the product with a block diagonal matrix, each block's written where it belongs.

    Args:
        x: (tokens, count * inputs).
        blocks: (count, outputs, inputs).

    Returns:
        (tokens, count * outputs).
    """
    count, outputs, inputs = blocks.shape
    out = x.new_empty(x.shape[0], count * outputs)
    groups = torch.unflatten(x, 1, (count, inputs)).transpose(0, 1)
    torch.bmm(groups, blocks.transpose(1, 2), out=out.view(-1, count, outputs).transpose(0, 1))
    return out


def _placed_gradients(wants: Sequence[bool], grad: Tensor, x: Tensor, blocks: Tensor) -> tuple[Tensor | None, ...]:
    of_x = multiply_placed(grad, blocks.transpose(1, 2)) if wants[0] else None
    return of_x, block_gradient(grad, x, blocks) if wants[1] else None


def multiply_in_strips(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the product with a Monarch matrix, a strip of tokens after the other.

    Between the factors, a strip has its tokens along rows: then both permutations move whole rows.

    Args:
        x: (tokens, inputs).
        first: (count, middle, inputs of a group).
        second: (count, outputs of a block, middle).
    """
    count, outputs = second.shape[:2]
    out = x.new_empty(x.shape[0], count * outputs)
    for start in range(0, x.shape[0], STRIP_TOKENS):
        groups = torch.unflatten(x[start : start + STRIP_TOKENS], 1, (count, -1)).permute(1, 2, 0)
        middle = _crossed(torch.bmm(first, groups), count)
        turned = torch.bmm(second, middle).transpose(0, 1).flatten(0, 1)
        out[start : start + STRIP_TOKENS].copy_(turned.t())
    return out


def _strip_gradients(
    wants: Sequence[bool], grad: Tensor, x: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of inputs and factors; what lies between is computed again, strip by strip."""
    count, middle, inputs = first.shape
    of_x = x.new_empty(x.shape) if wants[0] else None
    wide = torch.promote_types(x.dtype, torch.float32)
    of_first, of_second = (
        one.new_zeros(one.shape, dtype=wide) if is_wanted else None
        for one, is_wanted in zip((first, second), wants[1:], strict=True)
    )
    for start in range(0, x.shape[0], STRIP_TOKENS):
        groups = torch.unflatten(x[start : start + STRIP_TOKENS], 1, (count, inputs)).permute(1, 2, 0)
        of_out = _crossed(grad[start : start + STRIP_TOKENS].t().contiguous(), count)
        if of_second is not None:
            between = _crossed(torch.bmm(first, groups), count)
            of_second += torch.bmm(of_out, between.transpose(1, 2))
        if of_x is None and of_first is None:
            continue
        of_middle = torch.bmm(second.transpose(1, 2), of_out).transpose(0, 1).reshape(count, middle, -1)
        if of_first is not None:
            of_first += torch.bmm(of_middle, groups.transpose(1, 2))
        if of_x is not None:
            target = of_x[start : start + STRIP_TOKENS].view(-1, count, inputs).transpose(0, 1)
            torch.bmm(of_middle.transpose(1, 2), first, out=target)
    return of_x, *(None if one is None else one.to(x.dtype) for one in (of_first, of_second))


def _crossed(rows: Tensor, count: int) -> Tensor:
    """Return what the second factor's blocks read, or the gradients of what they write: each `count`-th row."""
    return rows.reshape(-1, count, rows.shape[-1]).transpose(0, 1)


def _kernel_product(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return launch_monarch(x, first, second, turned=False)


def _block_kernel_gradients(
    wants: Sequence[bool], grad: Tensor, x: Tensor, blocks: Tensor
) -> tuple[Tensor | None, ...]:
    of_x = launch_blocks(grad, blocks.transpose(1, 2)) if wants[0] else None
    return of_x, block_gradient(grad, x, blocks) if wants[1] else None


def _monarch_kernel_gradients(
    wants: Sequence[bool], grad: Tensor, x: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor | None, ...]:
    of_x = launch_monarch(grad, first, second, turned=True) if wants[0] else None
    return of_x, *monarch_gradients(wants[1:], grad, x, first, second)


BLOCK_FORMS = FormTable(
    CHAINS["block_diagonal"],
    (
        Form("placed bmm", multiply_placed, _placed_gradients),
        Form("kernel", launch_blocks, _block_kernel_gradients, blocks_operator, suits_block_kernel),
    ),
    ON_CPU["block_diagonal"],
)
MONARCH_FORMS = FormTable(
    CHAINS["monarch"],
    (
        Form("bmms of strips", multiply_in_strips, _strip_gradients),
        Form("kernel", _kernel_product, _monarch_kernel_gradients, monarch_operator, suits_monarch_kernel),
    ),
    ON_CPU["monarch"],
)
TRACED.update({"block_diagonal": BLOCK_FORMS, "monarch": MONARCH_FORMS})
