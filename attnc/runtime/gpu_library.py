"""Windows around the diagonal on a GPU: PyTorch's own FlashAttention, where tuning on the device found it faster.

It keeps what kernels of ours keep of a row, so that each of the two passes may be computed by either. Two promises are
the library's, not ours: values are taken to be finite, as 0 times NaN reaches rows that mask its key; and gradients of
queries are added up in any order, unless `torch.use_deterministic_algorithms` says otherwise. So nothing is computed in
this way but what `attnc tune` has measured.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from attnc.runtime.program import Program
from attnc.runtime.tuned import takes_library

_flash_forward = torch.ops.aten._flash_attention_forward.default
_flash_backward = torch.ops.aten._flash_attention_backward.default

HEAD_STEP, LARGEST_FLASH_HEAD = 8, 256
"""Head sizes that it takes are multiples of the first, up to the second."""

LEAST_CAPABILITY = 8
"""Of NVIDIA's devices that it runs on."""

EVERYTHING = (-1, -1)
"""The window in which every query sees every key."""

_MARK = ", library"


def library_name(program: Program, *, backward: bool, part: bool = False) -> str:
    """Return what tuning knows the library's call by, as it knows kernels by theirs.

    Args:
        program: of the attention.
        backward: whether it is the call of the backward pass.
        part: whether it computes the program's part, and kernels the other passes.
    """
    which = f" pass {program.part.number}" if part and program.part is not None else ""
    return f"{program.identity}{_MARK}{which}{' backward' if backward else ''}"


def is_library_name(kernel: str) -> bool:
    """Tell whether tuning knows a library's call by this name, and no kernel."""
    return _MARK in kernel


def library_label(kernel: str) -> str:
    """Return what a library's call computes, in a word: all of it, or a pass."""
    words = kernel.partition(_MARK)[2].split()
    return " ".join(words[:2]) if words[:1] == ["pass"] else "whole"


def suits_flash_attention(program: Program, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Tell whether the library computes what a program does for these tensors, and takes them as they are."""
    return (
        program.window is not None
        and takes_tensors(query, key, value)
        and (query.shape[2] == key.shape[2] or program.library == "full")
    )


def takes_tensors(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Tell whether the library takes tensors as they are."""
    head_size = query.shape[3]
    return (
        runs_flash_attention(query.device)
        and query.numel() > 0
        and query.dtype in (torch.float16, torch.bfloat16)
        and head_size == value.shape[3]
        and head_size % HEAD_STEP == 0
        and head_size <= LARGEST_FLASH_HEAD
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
    )


def takes_scale(scale: float | None) -> bool:
    """Tell whether the library takes a factor: it scales the maximum of a row's dot products, as that of the scores."""
    return scale is None or scale >= 0


def runs_flash_attention(device: torch.device) -> bool:
    """Tell whether the installed PyTorch has windows of FlashAttention, and a device runs them."""
    if device.type != "cuda" or torch.version.hip is not None or not has_windows():
        return False
    return torch.cuda.get_device_capability(device)[0] >= LEAST_CAPABILITY


@cache
def has_windows() -> bool:
    """Tell whether the operators have arguments for windows: older ones have none."""
    return all(
        {"window_size_left", "window_size_right"} <= {argument.name for argument in operator._schema.arguments}
        for operator in (_flash_forward, _flash_backward)
    )


def is_window_call(
    program: Program, tensors: tuple[Tensor, Tensor, Tensor], scale: float | None, *, dropout: bool, backward: bool
) -> bool:
    """Tell whether a call is to be computed by the library: it can be, and was measured to be faster.

    Args:
        program: of the call.
        tensors: query, key and value.
        scale: the caller's factor on the dot product.
        dropout: whether weights are dropped.
        backward: whether it is the backward pass.
    """
    if dropout or not takes_scale(scale) or not suits_flash_attention(program, *tensors):
        return False
    query, key, value = tensors
    lengths = query.shape[2], key.shape[2]
    return takes_library(library_name(program, backward=backward), query, value.shape[3], lengths)


def window_forward(
    window: tuple[int, int] | None, tensors: tuple[Tensor, Tensor, Tensor], scale: float | None
) -> tuple[Tensor, Tensor]:
    """Return the output `(B, H, N, E)`, laid out as `(B, N, H, E)`, and the log-sum-exp `(B, H, N)`.

    Args:
        window: as that of a program; there is one.
        tensors: query, key and value; as many keys as queries, or a window of everything.
        scale: the caller's factor on the dot product.
    """
    lengths = tensors[0].shape[2], tensors[1].shape[2]
    given = [tensor.transpose(1, 2) for tensor in tensors]
    causal, options = _flash_window(window)
    out, lse, *_ = _flash_forward(*given, None, None, *lengths, 0.0, causal, False, scale=scale, **options)
    return out.transpose(1, 2).detach(), lse  # no view of anything, so that callers may change it in place


def window_backward(
    window: tuple[int, int] | None,
    grad_out: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    scale: float | None,
) -> list[Tensor]:
    """Return the gradients of query, key and value, in the library's layout.

    Args:
        window: of the forward pass, whoever computed that.
        grad_out: of the output.
        tensors: query, key and value.
        results: output and log-sum-exp.
        scale: the caller's factor on the dot product.
    """
    grad_out = grad_out if grad_out.stride(3) == 1 else grad_out.contiguous()
    query = tensors[0]
    lengths = query.shape[2], tensors[1].shape[2]
    given = [tensor.transpose(1, 2) for tensor in (grad_out, *tensors, results[0])]
    random = query.new_empty((2,), dtype=torch.uint64), query.new_empty((), dtype=torch.uint64)  # of dropout: unread
    causal, options = _flash_window(window)
    found = _flash_backward(
        *given, results[1].contiguous(), None, None, *lengths, 0.0, causal, *random, scale=scale, **options
    )
    return [grad.transpose(1, 2) for grad in found]


def _flash_window(window: tuple[int, int] | None) -> tuple[bool, dict[str, int]]:
    """Return whether the mask is causal to the library, and its arguments for any other window."""
    assert window is not None
    before, behind = window
    if (before, behind) == (-1, 0):
        return True, {}
    return False, {} if window == EVERYTHING else {"window_size_left": before, "window_size_right": behind}
