"""Plain full or causal attention on a CPU: PyTorch's flash operator on the caller's tensors, and nothing around it.

What a general call prepares takes longer than short sequences do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnc.runtime.dropout import Dropout
from attnc.runtime.program import Program

_library_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_library_gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def suits_library(program: Program, query: Tensor, key: Tensor, value: Tensor, dropout: Dropout | None) -> bool:
    """Tell whether the operator computes a call as it is: in the tensors' own precision, heads and layout."""
    return (
        program.library is not None
        and dropout is None
        and query.dtype in (torch.float32, torch.float64)
        and query.shape[1] == key.shape[1]
        and query.shape[3] == value.shape[3]
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and program.at(query.shape[2], key.shape[2]).is_library_call(query.shape[2], key.shape[2])
    )


def library_forward(
    program: Program, query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> tuple[Tensor, Tensor] | None:
    """Return output and log-sum-exp; None where NaN or infinities are about, which masked pairs must not spread."""
    out, lse = _library_attention(query, key, value, 0.0, program.library == "causal", scale=scale)
    return (out, lse) if bool(torch.isfinite(out.sum())) else None


def library_backward(
    program: Program,
    grad_out: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    scale: float | None,
) -> list[Tensor] | None:
    """Return the gradients of query, key and value; None where they are not finite."""
    grad_out = grad_out if grad_out.stride(3) == 1 else grad_out.contiguous()
    causal = program.library == "causal"
    found = _library_gradients(grad_out, *tensors, *results, 0.0, causal, scale=scale)
    if not bool(torch.isfinite(sum(grad.sum() for grad in found))):
        return None
    return [grad.contiguous() for grad in found]
