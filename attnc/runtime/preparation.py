"""What is done to queries and keys before their products: norms and rotations (LANGUAGE.md section 7).

Rotations keep the length of a row and commute with a factor on it, and rotations of the same pairs of elements add up:
any chain of steps is one factor, that of its last norm, and one rotation, by the sum of its angles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.autocast import without_autocast
from attnc.runtime.blocks import compute_dtype
from attnc.runtime.composite import needs_composite
from attnc.runtime.compute import runs_triton
from attnc.runtime.direct import is_plain
from attnc.runtime.preparation_launch import launch_preparation


@dataclass(frozen=True, slots=True)
class Preparation:
    """One `prepare` line.

    Attributes:
        form: `unit`, `rms`, or `rotary`, which rotates elements `t` and `t + D/2` by `position * theta ** (-2 t / D)`
            (Su et al., "RoFormer", 2021).
        theta: the base of `rotary`.
    """

    form: str
    theta: float = 10000.0


def prepare(steps: tuple[Preparation, ...], rows: Tensor, positions: Tensor) -> Tensor:
    """Prepare queries or keys, in float32 at least; the result has their dtype.

    Args:
        steps: in order.
        rows: `(B, heads, length, D)`, `D` even where it is rotated.
        positions: int64, broadcasting against `(B, heads, length)`.
    """
    if not steps:
        return rows
    norm = next((step.form for step in reversed(steps) if step.form != "rotary"), "")
    turns = _turns(steps, rows, positions)
    kernels = runs_triton(rows.device) and rows.dtype is not torch.float64 and rows.numel() > 0
    if kernels and is_plain((rows,)) and not needs_composite((rows,)):
        return _Prepared.apply(rows, *turns, norm)  # type: ignore[no-any-return, no-untyped-call]
    return _by_torch(rows, *turns, norm)


def _turns(steps: tuple[Preparation, ...], rows: Tensor, positions: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the cosine and the sine of all rotations together, `positions` by `D / 2`; None where there is none.

    Angles are float64: positions in the thousands leave float32 few digits of a turn.
    """
    bases = [step.theta for step in steps if step.form == "rotary"]
    if not bases:
        return None, None
    half = rows.shape[-1] // 2
    pairs = torch.arange(half, dtype=torch.float64, device=rows.device)
    speeds = torch.stack([torch.exp(pairs * (-math.log(theta) / half)) for theta in bases]).sum(0)
    angles = positions.to(torch.float64).unsqueeze(-1) * speeds
    wide = compute_dtype(rows.dtype)
    return angles.cos().to(wide), angles.sin().to(wide)


def _by_torch(rows: Tensor, cosine: Tensor | None, sine: Tensor | None, norm: str) -> Tensor:
    found = rows.to(compute_dtype(rows.dtype))
    if norm:
        square = found.square()
        found = found * _inverse_norm((square.mean if norm == "rms" else square.sum)(-1, keepdim=True))
    if cosine is not None and sine is not None:
        half = rows.shape[-1] // 2
        first, second = found[..., :half], found[..., half:]
        found = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
    return found.to(rows.dtype)


def _inverse_norm(square: Tensor) -> Tensor:
    """Return one over the root; 0 where the square is 0, whose gradient is 0 as well."""
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).rsqrt(), 0.0)


class _Prepared(torch.autograd.Function):
    """Rows prepared by one kernel, and their gradient by another; derivatives of that are torch's."""

    @staticmethod
    def forward(rows: Tensor, cosine: Tensor | None, sine: Tensor | None, norm: str) -> Tensor:
        """Return prepared rows."""
        with without_autocast(rows.device.type):
            return launch_preparation(rows, None, cosine, sine, norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradient is made of."""
        rows, cosine, sine, ctx.norm = inputs
        ctx.save_for_backward(rows, cosine, sine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of rows."""
        rows, cosine, sine = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain((rows, grad)):
            with torch.enable_grad():
                found = _by_torch(rows, cosine, sine, ctx.norm)
                return (*torch.autograd.grad(found, rows, grad, create_graph=True), None, None, None)
        with without_autocast(rows.device.type):
            return launch_preparation(rows, grad, cosine, sine, ctx.norm), None, None, None
