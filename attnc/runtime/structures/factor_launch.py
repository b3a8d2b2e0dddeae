"""The host's side of the kernels of block diagonal and Monarch matrices: which calls they suit, and their tiles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.kernel_launch import LEAST_BLOCK, KernelCall, KernelLaunch, launchable
from attnc.runtime.kernel_math import tl  # type: ignore[attr-defined]
from attnc.runtime.structures.factor_kernels import block_diagonal_kernel, monarch_kernel
from attnc.runtime.tiles import Tiles, target_of

FACTOR_TYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Types of numbers that the kernels multiply."""

LARGEST_MIDDLE = 1024
"""Numbers of the middle layer of a token, padded, for which a tile of 16-bit numbers stays on every target's chip."""

MOST_NUMBERS = {
    ("sm_80", 2): 64,
    ("sm_86", 2): 64,
    ("sm_90", 2): 128,
    ("sm_100", 2): 128,
    ("gfx942", 2): 128,
    ("sm_80", 4): 32,
    ("sm_86", 4): 32,
    ("sm_90", 4): 64,
    ("sm_100", 4): 64,
    ("gfx942", 4): 64,
    ("cpu", 2): 128,
    ("cpu", 4): 128,
}
"""Numbers of the middle layer of a tile that a thread keeps in registers, by target and bytes of an input's number."""

MOST_WARPS = 8
"""Warps of a program whose threads may have as many registers as there are."""

MOST_TOKENS = 64
"""Tokens of a tile of the kernel of Monarch matrices."""


@dataclass(frozen=True, slots=True)
class FactorTiles:
    """How a kernel is cut: tokens, outputs and inputs of a tile, threads and stages."""

    tokens: int
    outputs: int
    inputs: int
    warps: int
    stages: int


BLOCK_TILES = {
    ("sm_80", 2): FactorTiles(128, 64, 64, 4, 3),
    ("sm_86", 2): FactorTiles(128, 64, 32, 4, 3),
    ("sm_90", 2): FactorTiles(128, 64, 64, 4, 3),
    ("sm_100", 2): FactorTiles(128, 64, 64, 4, 3),
    ("gfx942", 2): FactorTiles(128, 64, 64, 4, 1),
    ("sm_80", 4): FactorTiles(32, 32, 32, 4, 2),
    ("sm_86", 4): FactorTiles(32, 32, 32, 4, 2),
    ("sm_90", 4): FactorTiles(32, 32, 32, 4, 2),
    ("sm_100", 4): FactorTiles(32, 32, 32, 4, 2),
    ("gfx942", 4): FactorTiles(32, 32, 32, 4, 1),
    ("cpu", 2): FactorTiles(64, 64, 64, 4, 1),
    ("cpu", 4): FactorTiles(64, 64, 64, 4, 1),
}
"""Tiles of block diagonal products by target and bytes of a number, of what is compiled without spills."""


def kernels_run_here(x: Tensor) -> bool:
    """Tell whether kernels compute tensors on a device: GPUs, and CPUs where `ATTNC_TARGET=triton` interprets them."""
    wanted = x.is_cuda or (x.device.type == "cpu" and os.environ.get("ATTNC_TARGET", "auto") == "triton")
    return wanted and hasattr(block_diagonal_kernel, "arg_names")


def suits_block_kernel(x: Tensor, factors: Sequence[Tensor]) -> bool:
    """Tell whether the kernel of block diagonal matrices can compute a call."""
    return kernels_run_here(x) and all(one.dtype is x.dtype for one in factors) and x.dtype in FACTOR_TYPES


def suits_monarch_kernel(x: Tensor, factors: Sequence[Tensor]) -> bool:
    """Tell whether the kernel of Monarch matrices can compute a call: the middle layer has to fit on the chip."""
    if not suits_block_kernel(x, factors):
        return False
    count, middle, _ = factors[0].shape
    return padded_count(count) * pairs_of(count, middle) * max(2, x.dtype.itemsize) <= 2 * LARGEST_MIDDLE


def padded_count(count: int) -> int:
    """Return how many sources and targets a kernel knows for so many blocks."""
    return 1 << (count - 1).bit_length()


def pairs_of(count: int, middle: int) -> int:
    """Return how many numbers a source has for all targets, padded."""
    shared = -(-middle // count)
    return max(LEAST_BLOCK, padded_count(count) * (1 << (shared - 1).bit_length()))


def launch_blocks(x: Tensor, blocks: Tensor) -> Tensor:
    """Return the product of (tokens, count * inputs) with a block diagonal matrix, blocks of any strides."""
    x = with_rows(x)
    out = x.new_empty(x.shape[0], blocks.shape[0] * blocks.shape[1])
    _start(block_launch(x, blocks, out), x, out)
    return out


def launch_monarch(x: Tensor, first: Tensor, second: Tensor, turned: bool) -> Tensor:
    """Return the product of (tokens, inputs) with a Monarch matrix, or with its transpose where `turned`."""
    x = with_rows(x)
    count, outputs = (first.shape[0], first.shape[2]) if turned else second.shape[:2]
    out = x.new_empty(x.shape[0], count * outputs)
    _start(monarch_launch(x, first, second, out, turned), x, out)
    return out


def with_rows(x: Tensor) -> Tensor:
    """Return a matrix whose rows are contiguous: itself, or a copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _start(launch: KernelLaunch, x: Tensor, out: Tensor) -> None:
    if not out.numel():
        return
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():  # Triton launches on the current one
        tokens, warps, stages = (launch.arguments[name] for name in ("BLOCK_T", "num_warps", "num_stages"))
        call = KernelCall(x, Tiles(tokens, tokens, warps, stages))
        launchable(launch.kernel, call)[(launch.programs,)](**launch.arguments)


def block_launch(x: Tensor, blocks: Tensor, out: Tensor) -> KernelLaunch:
    """Return the launch of a product with a block diagonal matrix."""
    count, outputs, inputs = blocks.shape
    tiles = BLOCK_TILES[target_of(x.device), max(2, x.dtype.itemsize)]
    tiles = replace(tiles, outputs=min(tiles.outputs, tile_for(outputs)), inputs=min(tiles.inputs, tile_for(inputs)))
    arguments = {
        "x_ptr": x, "blocks_ptr": blocks, "out_ptr": out,
        "x_stride": x.stride(0), "out_stride": out.stride(0),
        **{f"blocks_stride_{axis}": stride for axis, stride in zip("koi", blocks.stride(), strict=True)},
        "tokens": x.shape[0], "count": count, "inputs": inputs, "outputs": outputs,
        **_tile_arguments(x, tiles),
    }  # fmt: skip
    programs = -(-x.shape[0] // tiles.tokens) * count * -(-outputs // tiles.outputs)
    return KernelLaunch(block_diagonal_kernel, programs, arguments)


def monarch_launch(x: Tensor, first: Tensor, second: Tensor, out: Tensor, turned: bool) -> KernelLaunch:
    """Return the launch of a product with a Monarch matrix or its transpose."""
    count, middle, _ = first.shape
    # [source, number, input] of the factor that is met first, and [target, output, number] of the other one
    met = second.transpose(1, 2) if turned else first
    left = first.transpose(1, 2) if turned else second
    pairs = pairs_of(count, middle)
    tiles = monarch_tiles(x, padded_count(count), pairs)
    arguments = {
        "x_ptr": x, "first_ptr": met, "second_ptr": left, "out_ptr": out,
        "x_stride": x.stride(0), "out_stride": out.stride(0),
        **{f"first_stride_{axis}": stride for axis, stride in zip("pqk", met.stride(), strict=True)},
        **{f"second_stride_{axis}": stride for axis, stride in zip("uov", left.stride(), strict=True)},
        "tokens": x.shape[0], "count": count, "middle": middle, "inputs": met.shape[2], "outputs": left.shape[1],
        "TURNED": turned, "COUNT": padded_count(count), "PAIRS": pairs,
        **_tile_arguments(x, tiles),
    }  # fmt: skip
    return KernelLaunch(monarch_kernel, -(-x.shape[0] // tiles.tokens), arguments)


def monarch_tiles(x: Tensor, count: int, pairs: int) -> FactorTiles:
    """Return tiles with as many tokens as registers have room for."""
    numbers = MOST_NUMBERS[target_of(x.device), max(2, x.dtype.itemsize)] * 32 * monarch_warps(count)
    tokens = min(MOST_TOKENS, max(LEAST_BLOCK, numbers // (count * pairs)))
    return FactorTiles(tokens, LEAST_BLOCK, LEAST_BLOCK, monarch_warps(count), 1)


def monarch_warps(count: int) -> int:
    """Return the warps of a program: each has sources of its own."""
    return min(MOST_WARPS, max(4, count))


def tile_for(size: int) -> int:
    """Return the least tile that holds so many."""
    return max(LEAST_BLOCK, 1 << (size - 1).bit_length())


def _tile_arguments(x: Tensor, tiles: FactorTiles) -> dict[str, Any]:
    return {
        "DOT": getattr(tl, str(x.dtype).removeprefix("torch.")),
        "BLOCK_T": tiles.tokens, "BLOCK_O": tiles.outputs, "BLOCK_I": tiles.inputs,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
