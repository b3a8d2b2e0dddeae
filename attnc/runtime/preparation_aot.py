"""Compiling the kernel that prepares queries and keys without the device that it is for."""

from __future__ import annotations

import torch

from attnc.runtime.aot import ARCHITECTURES, LENGTH, KernelReport, Recorded, report_launch
from attnc.runtime.preparation_launch import preparation_launch


def compile_preparation(
    target: str, dtype: torch.dtype, size: int, *, norm: str = "", turned: bool = True, backward: bool = False
) -> KernelReport:
    """Compile what a call would launch.

    Args:
        target: one of `ARCHITECTURES`.
        dtype: of rows.
        size: elements of a row.
        norm: `unit`, `rms` or empty.
        turned: whether rows are rotated.
        backward: whether it takes gradients back.

    Raises:
        ValueError: an unknown target.
        RuntimeError: Triton is missing or interprets its kernels.
    """
    if target not in ARCHITECTURES:
        raise ValueError(f"unknown target {target}; known: {', '.join(ARCHITECTURES)}")
    with torch.device("meta"):
        rows, grad, out = (torch.empty(2, 4, LENGTH, size, dtype=dtype) for _ in range(3))
        turn = torch.empty(LENGTH, size // 2) if turned else None
    launch = preparation_launch(rows, grad if backward else None, turn, turn, norm, out)
    blocks = {"BLOCK_M": launch.block}  # what reports know tiles by
    return report_launch(
        Recorded(launch.kernel, launch.kernel.__name__, blocks | launch.arguments), target, dtype, size
    )
