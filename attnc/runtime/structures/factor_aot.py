"""Compiling the kernels of block diagonal and Monarch matrices without the device that they are for."""

from __future__ import annotations

import torch

from attnc.runtime.aot import ARCHITECTURES, LENGTH, KernelReport, Recorded, report_launch
from attnc.runtime.kernel_launch import KernelLaunch
from attnc.runtime.structures.factor_launch import block_launch, monarch_launch
from attnc.runtime.tiles import assume_target


def compile_factors(
    target: str, dtype: torch.dtype, inputs: int, outputs: int, blocks: int
) -> tuple[KernelReport, ...]:
    """Compile the kernels of a block diagonal matrix, its transpose, a Monarch matrix and its transpose.

    Args:
        target: one of `ARCHITECTURES`.
        dtype: of inputs and factors.
        inputs: columns of the matrix.
        outputs: rows of the matrix.
        blocks: of each factor.

    Raises:
        ValueError: an unknown target.
        RuntimeError: Triton is missing or interprets its kernels.
    """
    if target not in ARCHITECTURES:
        raise ValueError(f"unknown target {target}; known: {', '.join(ARCHITECTURES)}")
    middle = min(inputs, outputs) // blocks
    with torch.device("meta"):
        x, out = (torch.empty(LENGTH, size, dtype=dtype) for size in (inputs, outputs))
        of_block = torch.empty(blocks, outputs // blocks, inputs // blocks, dtype=dtype)
        first = torch.empty(blocks, middle, inputs // blocks, dtype=dtype)
        second = torch.empty(blocks, outputs // blocks, middle, dtype=dtype)
    with assume_target(target):
        launches = (
            block_launch(x, of_block, out),
            block_launch(out, of_block.transpose(1, 2), x),
            monarch_launch(x, first, second, out, turned=False),
            monarch_launch(out, first, second, x, turned=True),
        )
    return tuple(_report(launch, target, dtype, inputs // blocks) for launch in launches)


def _report(launch: KernelLaunch, target: str, dtype: torch.dtype, inputs: int) -> KernelReport:
    known = {"BLOCK_M": launch.arguments["BLOCK_T"], "BLOCK_N": launch.arguments["BLOCK_O"]}  # as reports know tiles
    recorded = Recorded(launch.kernel, launch.kernel.__name__, known | launch.arguments)
    return report_launch(recorded, target, dtype, inputs)
