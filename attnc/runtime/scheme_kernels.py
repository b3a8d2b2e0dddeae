"""What fused kernels of bilinear schemes call, and their launch.

A kernel multiplies by one level of a scheme in one pass over both factors: sums are formed of tiles as they are read,
and a tile of each block of the result is stored once. Sizes that do not divide are filled up with zeros on reading.
"""

# ruff: noqa: ANN001, ANN201, D417 - Triton's values have no useful Python types
# mypy: disable-error-code="attr-defined, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.kernel_math import tl, triton
from attnc.runtime.tiles import target_of

SCHEME_TYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Types of numbers that fused kernels multiply."""

LONGEST_STRIDE = 1 << 24
"""Strides of rows and columns are shorter, so that offsets inside of a tile take 32 bits."""


@triton.jit
def scheme_tile(rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # noqa: N803
    """Return which batch entry, tile of rows and tile of columns a program computes.

    Eight tiles of rows are walked before the next tile of columns, so that neighbours find theirs in the cache.
    """
    down = tl.cdiv(rows, BLOCK_M)
    across = tl.cdiv(columns, BLOCK_N)
    pid = tl.program_id(0)
    batch = pid // (down * across)
    pid = pid % (down * across)
    first = pid // (8 * across) * 8
    height = tl.minimum(down - first, 8)
    tile_m = first + pid % (8 * across) % height
    tile_n = pid % (8 * across) // height
    return batch.to(tl.int64), tile_m, tile_n


@triton.jit
def scheme_places(first, count: tl.constexpr, block, size, end):
    """Find `count` places from `first` on in one of the blocks of a matrix.

    Args:
        first: in the block.
        size: of a block.
        end: of the matrix.

    Returns:
        The first place in the matrix, and which of the places exist.
    """
    local = first + tl.arange(0, count)
    return (block * size + first).to(tl.int64), (local < size) & (block * size + local < end)


@triton.jit
def scheme_offsets(rows: tl.constexpr, columns: tl.constexpr, stride_row, stride_column):
    """Return how far the elements of a tile are from its first, in 32 bits: strides are below 2**24."""
    return tl.arange(0, rows)[:, None] * stride_row + tl.arange(0, columns)[None, :] * stride_column


@triton.jit
def load_scheme_tile(pointer, offsets, row, has_row, column, has_column, stride_row, stride_column):
    """Load the tile of a matrix that begins in this row and column, 0 outside of the block."""
    first = pointer + (row * stride_row + column * stride_column)
    return tl.load(first + offsets, mask=has_row[:, None] & has_column[None, :], other=0.0)


@triton.jit
def store_scheme_tile(pointer, tile, offsets, row, has_row, column, has_column, stride_row, stride_column):
    """Store the tile of a matrix that begins in this row and column, where the block is."""
    first = pointer + (row * stride_row + column * stride_column)
    tl.store(first + offsets, tile.to(pointer.dtype.element_ty), mask=has_row[:, None] & has_column[None, :])


@dataclass(frozen=True, slots=True)
class SchemeTiles:
    """How a fused kernel is cut: rows, columns and inner size of a tile of a block."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class FusedScheme:
    """A fused kernel of one level of an `m x k x n` scheme.

    Attributes:
        kernel: jitted.
        tiles: by target (as in `runtime.tiles`) and bytes of a number.
    """

    kernel: Any = field(repr=False)
    m: int
    k: int
    n: int
    tiles: Mapping[tuple[str, int], SchemeTiles]

    def __deepcopy__(self, memo: object) -> FusedScheme:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        function = self.kernel.fn
        return rebuild_fused, (function.__module__, function.__name__, self.m, self.k, self.n, self.tiles)

    def arguments(self, a: Tensor, b: Tensor, c: Tensor, precision: str) -> dict[str, Any]:
        """Return what the kernel is launched with, by name, for batches of matrices."""
        p, q, s = a.shape[1], a.shape[2], b.shape[2]
        tiles = self.tiles[target_of(a.device), a.element_size()]
        strides = {
            f"{name}_stride_{axis}": stride
            for name, axes, tensor in (("a", "bpq", a), ("b", "bqs", b), ("c", "bps", c))
            for axis, stride in zip(axes, tensor.stride(), strict=True)
        }
        return {
            "a_ptr": a,
            "b_ptr": b,
            "c_ptr": c,
            "p": p,
            "q": q,
            "s": s,
            "rows": -(-p // self.m),
            "inner": -(-q // self.k),
            "columns": -(-s // self.n),
            **strides,
            "PRECISION": precision,
            "BLOCK_M": tiles.rows,
            "BLOCK_N": tiles.columns,
            "BLOCK_K": tiles.inner,
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }


def rebuild_fused(
    module: str, name: str, m: int, k: int, n: int, tiles: Mapping[tuple[str, int], SchemeTiles]
) -> FusedScheme | None:
    """Return a fused kernel of a module that is loaded; None where it is not, and torch operations do the same."""
    kernel = getattr(sys.modules.get(module), name, None)
    return None if kernel is None else FusedScheme(kernel, m, k, n, tiles)


def multiply_fused(fused: FusedScheme, a: Tensor, b: Tensor, *, precision: str = "ieee") -> Tensor:
    """Return `a @ b` by one level of a scheme in one kernel.

    Args:
        fused: the kernel.
        a: (..., p, q), float16, bfloat16 or float32, of any strides.
        b: (..., q, s), of the same dtype and leading dimensions.
        precision: of products of float32, as `input_precision` of Triton's `dot`.

    Raises:
        TypeError: another dtype, or two of them.
        ValueError: sizes that do not fit.
    """
    if a.dtype not in SCHEME_TYPES or a.dtype is not b.dtype:
        raise TypeError(f"two tensors of float16, bfloat16 or float32 are needed, not {a.dtype} and {b.dtype}")
    if a.dim() < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matrices of the shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied")
    left, right = (_with_short_strides(one.reshape(one.shape[:-2].numel(), *one.shape[-2:])) for one in (a, b))
    result = a.new_empty(left.shape[0], left.shape[1], right.shape[2])
    arguments = fused.arguments(left, right, result, precision)
    programs = count_scheme_programs(result.shape[0], arguments)
    if programs:
        fused.kernel[(programs,)](**arguments)
    return result.reshape(*a.shape[:-1], b.shape[-1])


def _with_short_strides(matrices: Tensor) -> Tensor:
    """Return matrices whose tiles are addressed in 32 bits, a copy where they were not."""
    return matrices if max(matrices.stride()[1:]) < LONGEST_STRIDE else matrices.contiguous()


def count_scheme_programs(batch: int, arguments: Mapping[str, Any]) -> int:
    """Return how many programs a launch with these arguments has."""
    down = -(-int(arguments["rows"]) // int(arguments["BLOCK_M"]))
    across = -(-int(arguments["columns"]) // int(arguments["BLOCK_N"]))
    return batch * down * across
