"""The kernels of block diagonal and Monarch matrices as torch operators, which `torch.compile` leaves whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnc.runtime.structures.factor_gradients import block_gradient, monarch_gradients
from attnc.runtime.structures.factor_launch import launch_blocks, launch_monarch


def blocks_operator(x: Tensor, blocks: Tensor) -> Tensor:
    """Return the product of (tokens, inputs) with a block diagonal matrix, by the operator."""
    return torch.ops.attnc.block_diagonal(x, blocks)  # type: ignore[no-any-return]


def monarch_operator(x: Tensor, first: Tensor, second: Tensor, turned: bool = False) -> Tensor:
    """Return the product of (tokens, inputs) with a Monarch matrix, or with its transpose, by the operator."""
    return torch.ops.attnc.monarch(x, first, second, turned)  # type: ignore[no-any-return]


def _fake_blocks(x: Tensor, blocks: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], blocks.shape[0] * blocks.shape[1])


def _save_blocks(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _blocks_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, blocks = ctx.saved_tensors
    wants = ctx.needs_input_grad
    of_x = blocks_operator(grad, blocks.transpose(1, 2)) if wants[0] else None
    return of_x, block_gradient(grad, x, blocks) if wants[1] else None


def _fake_monarch(x: Tensor, first: Tensor, second: Tensor, turned: bool) -> Tensor:
    outputs = first.shape[2] if turned else second.shape[1]
    return x.new_empty(x.shape[0], first.shape[0] * outputs)


def _save_monarch(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.turned = inputs[3]


def _monarch_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, first, second = ctx.saved_tensors
    wants = ctx.needs_input_grad
    of_x = monarch_operator(grad, first, second, not ctx.turned) if wants[0] else None
    outer = (x, grad) if ctx.turned else (grad, x)  # what a transpose takes in is what the matrix puts out
    return of_x, *monarch_gradients(wants[1:3], outer[0], outer[1], first, second), None


def _register_factors() -> None:
    """Register the operators, unless another copy of this file did, as in a module that stands alone."""
    if hasattr(torch.ops.attnc, "monarch"):
        return
    blocks = torch.library.custom_op(
        "attnc::block_diagonal", launch_blocks, mutates_args=(), schema="(Tensor x, Tensor blocks) -> Tensor"
    )
    blocks.register_fake(_fake_blocks)
    blocks.register_autograd(_blocks_backward, setup_context=_save_blocks)
    schema = "(Tensor x, Tensor first, Tensor second, bool turned) -> Tensor"
    monarch = torch.library.custom_op("attnc::monarch", launch_monarch, mutates_args=(), schema=schema)
    monarch.register_fake(_fake_monarch)
    monarch.register_autograd(_monarch_backward, setup_context=_save_monarch)


_register_factors()
