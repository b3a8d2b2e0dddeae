"""Depthwise convolutions along positions as sums over taps: no transposed copy, features stay next to each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from attnc.runtime.structures.forms import CHAINS, ON_CPU, Form, FormTable


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
    size = kernel.shape[1]
    taps = kernel.t().contiguous()
    padded = functional.pad(x, (0, 0, size - 1 - later, later))
    mixed = _read_by(padded, 0, x.shape[1], stride) * taps[0]
    for tap in range(1, size):
        mixed.addcmul_(_read_by(padded, tap, x.shape[1], stride), taps[tap])
    return mixed


def _read_by(padded: Tensor, tap: int, positions: int, stride: int) -> Tensor:
    """Return the view of positions that outputs multiply with a tap."""
    return padded[:, tap : tap + positions : stride]


def _tap_gradients(
    later: int, stride: int, wants: Sequence[bool], grad: Tensor, x: Tensor, kernel: Tensor, weight: Tensor
) -> tuple[Tensor | None, ...]:
    size, positions = kernel.shape[1], x.shape[1]
    of_x = of_kernel = of_weight = None
    if wants[2]:
        of_weight = grad.flatten(0, 1).t() @ _mix_taps(x, kernel, later, stride).flatten(0, 1)
    if not (wants[0] or wants[1]):
        return of_x, of_kernel, of_weight
    of_mixed = grad @ weight
    if wants[1]:
        padded = functional.pad(x, (0, 0, size - 1 - later, later))
        wide = torch.promote_types(x.dtype, torch.float32)
        sums = [(_read_by(padded, tap, positions, stride) * of_mixed).sum((0, 1), dtype=wide) for tap in range(size)]
        of_kernel = torch.stack(sums, 1).to(kernel.dtype)
    if wants[0]:
        taps = kernel.t().contiguous()
        of_padded = x.new_zeros((x.shape[0], positions + size - 1, x.shape[2]))
        for tap in range(size):
            _read_by(of_padded, tap, positions, stride).addcmul_(of_mixed, taps[tap])
        of_x = of_padded[:, size - 1 - later : size - 1 - later + positions]
    return of_x, of_kernel, of_weight
