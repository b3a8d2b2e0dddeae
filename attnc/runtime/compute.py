"""The forward and the backward pass of checked arguments, on the device that they are on."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype
from attnc.runtime.checks import check_head_sizes
from attnc.runtime.cpu import cpu_backward, cpu_forward, new_output, rows_outside
from attnc.runtime.dropout import Dropout
from attnc.runtime.gpu_library import is_window_call, window_forward
from attnc.runtime.gpu_parts import part_forward, part_of_call
from attnc.runtime.kernel_gradients import kernel_backward
from attnc.runtime.program import Program


def runs_triton(device: torch.device) -> bool:
    """Tell whether tensors on a device are computed by the Triton kernel.

    `ATTNC_TARGET=triton` forces it for CPU tensors (under Triton's interpreter), `torch` forbids it for them.
    """
    if device.type == "cpu":
        return os.environ.get("ATTNC_TARGET", "auto") == "triton"
    return device.type == "cuda"


def compute_forward(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: Sequence[Tensor],
    scale: float | None,
    precision: str | None,
    dropout_p: float,
    seed: Tensor | None,
    with_state: bool,
) -> tuple[Tensor, Tensor]:
    """Return output and what is kept of rows, the latter empty unless it is asked for."""
    if runs_triton(query.device):
        return launch_forward(program, query, key, value, inputs, scale, precision, dropout_p, seed, with_state)
    out, state = cpu_forward(program, query, key, value, inputs, scale, Dropout.of(dropout_p, seed))
    return out, state if with_state else out.new_empty((0,))


def compute_backward(
    program: Program,
    grads: tuple[Tensor, Tensor | None],
    tensors: tuple[Tensor, Tensor, Tensor, Sequence[Tensor]],
    results: tuple[Tensor, Tensor],
    scale: float | None,
    precision: str | None,
    dropout: Dropout | None,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of query, key, value and of those inputs that are wanted."""
    if runs_triton(tensors[0].device):
        return kernel_backward(program, grads, tensors, results, scale, precision, dropout, wanted)
    return cpu_backward(program, grads, tensors, results, scale, wanted, dropout)


def launch_forward(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: Sequence[Tensor],
    scale: float | None,
    precision: str | None,
    dropout_p: float,
    seed: Tensor | None,
    with_state: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the kernels of a program, or the library's call that it is."""
    program = program.at(query.shape[2], key.shape[2])
    if program.launch is None:
        raise RuntimeError(f"{program.name}: tensors on {query.device} need triton, which is not installed")
    shape = program.state_shape(*query.shape[:3]) if with_state else (0,)
    state = query.new_empty(shape, dtype=compute_dtype(query.dtype))
    if is_library_call(program, query, key, bool(state.numel()), dropout_p):
        causal = program.library == "causal"
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return rows_outside(out), state
    tensors, drops = (query, key, value), dropout_p > 0
    if is_window_call(program, tensors, scale, dropout=drops, backward=False):
        out, lse = window_forward(program.window, tensors, scale)
        return out, lse if with_state else state
    check_head_sizes(program.name, query, value)
    out = output_of(query, value)
    kept, dropout = state if state.numel() else None, Dropout.of(dropout_p, seed)
    part = part_of_call(program, tensors, scale, dropout=drops, backward=False)
    if part is not None and part.launch is not None:
        begun = part_forward(part, tensors, scale)
        part.launch(query, key, value, out, kept, tuple(inputs), scale, precision, begun=begun)
        return out, state
    program.launch(query, key, value, out, kept, tuple(inputs), scale, precision, dropout)
    return out, state


def is_library_call(program: Program, query: Tensor, key: Tensor, with_state: bool, dropout_p: float) -> bool:
    """Tell whether one call of `scaled_dot_product_attention` on a GPU gives all that is asked for."""
    plain = query.device.type == "cuda" and not with_state and not dropout_p
    return plain and program.is_library_call(query.shape[2], key.shape[2])


def output_of(query: Tensor, value: Tensor) -> Tensor:
    """Return memory for an output `(B, H, N, E)`, laid out as `(B, N, H, E)`."""
    return new_output(query, (*query.shape[:3], value.shape[3]))
