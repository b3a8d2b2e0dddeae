"""Depthwise convolutions along positions as sums over taps: no transposed copy, features stay next to each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from attnc.runtime.structures.forms import CHAINS, ON_CPU, Form, FormTable

TAP_STRIP = 256
"""Positions of a strip, which stays in a processor's cache from one tap to the next."""


def tap_forms(later: int, stride: int) -> FormTable:
    """Return the forms of a convolution along positions with a matrix behind it.

    Args:
        later: how many positions behind its own an output reads.
        stride: positions from one output to the next.
    """
    product, gradients = partial(_multiply_taps, later, stride), partial(_tap_gradients, later, stride)
    return FormTable(CHAINS["conv"], (Form("taps, matmul", product, gradients),), ON_CPU["conv"])


def _multiply_taps(later: int, stride: int, x: Tensor, kernel: Tensor, weight: Tensor) -> Tensor:
    """Map (batch, positions, inputs) to (batch, positions that are left, outputs)."""
    return functional.linear(_mix_taps(x, kernel, later, stride), weight)


def _mix_taps(x: Tensor, kernel: Tensor, later: int, stride: int) -> Tensor:
    """Return the convolution, (batch, positions that are left, inputs)."""
    size, outputs = kernel.shape[1], -(-x.shape[1] // stride)
    taps = kernel.t().contiguous()
    padded = functional.pad(x, (0, 0, size - 1 - later, later))
    mixed = x.new_empty((x.shape[0], outputs, x.shape[2]))
    for start in range(0, outputs, TAP_STRIP):
        strip = mixed[:, start : start + TAP_STRIP]
        torch.mul(_read_by(padded, 0, start, strip, stride), taps[0], out=strip)
        for tap in range(1, size):
            strip.addcmul_(_read_by(padded, tap, start, strip, stride), taps[tap])
    return mixed


def _read_by(padded: Tensor, tap: int, start: int, strip: Tensor, stride: int) -> Tensor:
    """Return the view of positions that the outputs of a strip from `start` on multiply with a tap."""
    first = start * stride + tap
    return padded[:, first : first + (strip.shape[1] - 1) * stride + 1 : stride]


def _tap_gradients(
    later: int, stride: int, wants: Sequence[bool], grad: Tensor, x: Tensor, kernel: Tensor, weight: Tensor
) -> tuple[Tensor | None, ...]:
    size, positions = kernel.shape[1], x.shape[1]
    of_x = of_kernel = of_weight = None
    if wants[2]:
        of_weight = grad.flatten(0, 1).t() @ _mix_taps(x, kernel, later, stride).flatten(0, 1)
    if not (wants[0] or wants[1]):
        return of_x, of_kernel, of_weight
    of_mixed, taps = grad @ weight, kernel.t().contiguous()
    padded = functional.pad(x, (0, 0, size - 1 - later, later))
    of_padded = torch.zeros_like(padded)
    of_taps = taps.new_zeros(taps.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    for start in range(0, of_mixed.shape[1], TAP_STRIP):
        strip = of_mixed[:, start : start + TAP_STRIP]
        for tap in range(size):
            if wants[1]:
                read = _read_by(padded, tap, start, strip, stride)
                of_taps[tap] += (read * strip).sum((0, 1), dtype=of_taps.dtype)
            if wants[0]:
                _read_by(of_padded, tap, start, strip, stride).addcmul_(strip, taps[tap])
    of_x = of_padded[:, size - 1 - later : size - 1 - later + positions] if wants[0] else None
    return of_x, of_taps.t().to(kernel.dtype) if wants[1] else None, of_weight
