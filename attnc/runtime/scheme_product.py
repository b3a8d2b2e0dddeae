"""One product of matrices by a bilinear scheme, without derivatives: the levels, their buffers, and the rim."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from attnc.runtime.scheme_kernels import SCHEME_TYPES, FusedScheme, multiply_fused
from attnc.runtime.scheme_steps import BlockProduct, BlockRows, BlockSum, SchemeSteps, plan_steps

SCHEMES_VARIABLE = "ATTNC_SCHEMES"
"""Variable of the environment: `fused` for kernels in place of torch operations, which no device has shown to win."""

HALF_TYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class BilinearScheme:
    """A product of an `m x k` by a `k x n` matrix of blocks in `len(left)` products of sums.

        product[r] = (sum over a of left[r][a] * A[a]) @ (sum over b of right[r][b] * B[b])
        C[c]       =  sum over r of out[c][r] * product[r]

    Entries are numbered along rows. That the numbers mean the product was proven when the pattern was compiled.

    Attributes:
        left: a row of `m * k` numbers for each product.
        right: a row of `k * n` numbers for each product.
        out: a row of a number for each product, for each of the `m * n` entries.
        fused: kernels of one level of it, of its left gradient and of its right one, which GPUs can run instead of
            torch operations; None: there are none.
    """

    m: int
    k: int
    n: int
    left: BlockRows
    right: BlockRows
    out: BlockRows
    fused: tuple[FusedScheme | None, ...] = field(default=(None, None, None), compare=False, repr=False)

    @cached_property
    def steps(self) -> SchemeSteps:
        """What one level does."""
        return plan_steps(self.left, self.right, self.out)

    @cached_property
    def of_left_gradient(self) -> BilinearScheme:
        """The scheme of `G @ B.T`, the gradient of `A`: out of the trace of `A @ B @ G.T`, which is symmetric."""
        return BilinearScheme(
            self.m,
            self.n,
            self.k,
            _turned(self.out),
            _swapped(self.right, self.k, self.n),
            _turned(self.left),
            (self.fused[1], self.fused[0], None),
        )

    @cached_property
    def of_right_gradient(self) -> BilinearScheme:
        """The scheme of `A.T @ G`, the gradient of `B`."""
        return BilinearScheme(
            self.k,
            self.m,
            self.n,
            _swapped(self.left, self.m, self.k),
            _turned(self.out),
            _turned(self.right),
            (self.fused[2], None, self.fused[0]),
        )


def multiply_by_scheme(a: Tensor, b: Tensor, scheme: BilinearScheme, levels: int) -> Tensor:
    """Multiply the part that divides by the scheme and the rim by the library; nothing is recorded."""
    if levels == 1 and (fused := _fused_kernel(scheme, a)) is not None:
        return multiply_fused(fused, a, b)
    p, q, s = a.shape[-2], a.shape[-1], b.shape[-1]
    rows, inner, columns = (size - size % base**levels for size, base in ((p, scheme.m), (q, scheme.k), (s, scheme.n)))
    if 0 in (rows, inner, columns):
        return a @ b
    dtype = a.dtype
    workspace = _Workspace(dtype if dtype in HALF_TYPES and a.device.type != "cpu" else None)
    if dtype in HALF_TYPES:
        a, b = a.float(), b.float()
    result = a.new_empty(*a.shape[:-1], s)
    core = result[..., :rows, :columns]
    _apply_level(a[..., :rows, :inner], b[..., :inner, :columns], core, scheme, levels, workspace)
    if inner < q:
        core += a[..., :rows, inner:] @ b[..., inner:, :columns]
    if rows < p:
        result[..., rows:, :] = a[..., rows:, :] @ b
    if columns < s:
        result[..., :rows, columns:] = a[..., :rows, :] @ b[..., columns:]
    return result.to(dtype)


def _fused_kernel(scheme: BilinearScheme, a: Tensor) -> FusedScheme | None:
    """Return the kernel that multiplies on this device, if the scheme has one for these numbers and it is asked for."""
    wanted = a.is_cuda and a.dtype in SCHEME_TYPES and os.environ.get(SCHEMES_VARIABLE) == "fused"
    return scheme.fused[0] if wanted else None


class _Workspace:
    """Buffers of each level, which all products of that level use in turn.

    Attributes:
        factor_type: what factors are rounded to before the library multiplies them; None: not at all.
    """

    def __init__(self, factor_type: torch.dtype | None) -> None:
        self.factor_type = factor_type
        self._buffers: dict[tuple[int, str, int], Tensor] = {}

    def buffer(self, level: int, side: str, slot: int, like: Tensor) -> Tensor:
        """Return a buffer for a block of the shape of `like`."""
        key = (level, side, slot)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return self._buffers[key]

    def multiply(self, a: Tensor, b: Tensor, result: Tensor, fused: FusedScheme | None = None) -> None:
        """Write a product by the library, or by a kernel, into `result`."""
        if self.factor_type is not None:
            a, b = a.to(self.factor_type), b.to(self.factor_type)
        if fused is not None:
            result.copy_(multiply_fused(fused, a, b))
        elif self.factor_type is not None:
            result.copy_(a @ b)
        else:
            torch.matmul(a, b, out=result)


def _apply_level(
    a: Tensor, b: Tensor, result: Tensor, scheme: BilinearScheme, levels: int, workspace: _Workspace
) -> None:
    """Write `a @ b` into `result`, whose sizes the scheme divides as often as there are levels."""
    if levels == 0:
        workspace.multiply(a, b, result)
        return
    if levels == 1 and (fused := _fused_kernel(scheme, a)) is not None:
        workspace.multiply(a, b, result, fused)
        return
    blocks = {
        "left": _block_views(a, scheme.m, scheme.k),
        "right": _block_views(b, scheme.k, scheme.n),
        "out": _block_views(result, scheme.m, scheme.n),
    }

    def slot(side: str, number: int) -> Tensor:
        return workspace.buffer(levels, side, number, blocks["out" if side == "product" else side][0])

    def operand(side: str, place: int) -> Tensor:
        return blocks[side][place] if place >= 0 else slot(side, -1 - place)

    for step in scheme.steps.steps:
        match step:
            case BlockProduct(target, left, right):
                factors = operand("left", left), operand("right", right)
                _apply_level(*factors, slot("product", target), scheme, levels - 1, workspace)
            case BlockSum("left" | "right" as side, target, int(first), int(second)):
                _add_blocks(slot(side, target), operand(side, first), operand(side, second), step)
            case BlockSum(side, target, first, second):
                where = blocks["out"][target] if side == "out" else slot("product", target)
                terms = [None if one is None else slot("product", one) for one in (first, second)]
                _add_blocks(where, terms[0], terms[1], step)


def _add_blocks(target: Tensor, first: Tensor | None, second: Tensor | None, step: BlockSum) -> None:
    """Write the sum of a step into `target`, or add to it where there is no `first`."""
    if first is None:
        first = target
    if second is None:
        torch.mul(first, step.first_factor, out=target)
    elif step.first_factor == 1:
        torch.add(first, second, alpha=step.second_factor, out=target)
    else:
        torch.mul(first, step.first_factor, out=target)
        target.add_(second, alpha=step.second_factor)


def _block_views(matrix: Tensor, down: int, across: int) -> list[Tensor]:
    """Return views of the blocks of a matrix, along rows."""
    height, width = matrix.shape[-2] // down, matrix.shape[-1] // across
    return [
        matrix[..., i * height : (i + 1) * height, j * width : (j + 1) * width]
        for i in range(down)
        for j in range(across)
    ]


def _turned(rows: BlockRows) -> BlockRows:
    return tuple(zip(*rows, strict=True))


def _swapped(rows: BlockRows, height: int, width: int) -> BlockRows:
    """Number the entries of a matrix along its columns, that is, those of its transpose along rows."""
    return tuple(tuple(row[y * width + x] for x in range(width) for y in range(height)) for row in rows)
