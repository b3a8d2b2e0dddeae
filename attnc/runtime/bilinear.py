"""Products of matrices by bilinear schemes such as Strassen's, in plain torch operations, with derivatives.

A level cuts both matrices into blocks and multiplies sums of blocks; each of those products is taken by the next level,
and by the library after the last. Rows and columns that do not divide are left to the library. Gradients are products
of the same cost by the scheme's own symmetries, and can be differentiated again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.autocast import lower_precision, without_autocast
from attnc.runtime.scheme_operator import scheme_operator
from attnc.runtime.scheme_product import BilinearScheme, multiply_by_scheme


def scheme_linear(x: Tensor, weight: Tensor, scheme: BilinearScheme, levels: int = 1) -> Tensor:
    """Return `x @ weight.T` by a scheme.

    Args:
        x: (..., in).
        weight: (out, in).
        scheme: of `m x k` by `k x n` blocks: rows of `x`, `in`, `out`.
        levels: how often it is applied, at least once.
    """
    return scheme_matmul(x, weight.mT, scheme, levels)


@dataclass(frozen=True, slots=True)
class SchemeProduct:
    """`x @ weight.T` by a scheme, for projections that take their product as an argument."""

    scheme: BilinearScheme
    levels: int = 1

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply, as `scheme_linear` does."""
        return scheme_linear(x, weight, self.scheme, self.levels)

    def __str__(self) -> str:
        """Name the scheme by its shape."""
        scheme = self.scheme
        title = f"<{scheme.m}, {scheme.k}, {scheme.n}; {len(scheme.left)}>"
        return f"by {title}" if self.levels == 1 else f"by {title} {self.levels} times"


def scheme_matmul(a: Tensor, b: Tensor, scheme: BilinearScheme, levels: int = 1) -> Tensor:
    """Return `a @ b` by a scheme.

    Differs from `torch.matmul` in rounding alone; `docs/bilinear.md` bounds the error. Sums of float16 and bfloat16 are
    float32. Autocast applies as to any product.

    Args:
        a: (..., p, q), of any strides.
        b: (..., q, s), of the same dtype; leading dimensions broadcast.
        scheme: of `m x k` by `k x n` blocks.
        levels: how often it is applied. What is left of `p`, `q`, `s` by `m`, `k`, `n` to the power of it is multiplied
            by the library, and so is everything where one of them is smaller than that power.

    Raises:
        TypeError: tensors that are not floating point, or of two dtypes.
        ValueError: levels below 1, or sizes that do not fit.
    """
    a, b = lower_precision(a, b)
    _check(a, b, levels)
    if b.dim() == 2:
        flat = _product(a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), b, scheme, levels)
        return flat.reshape(*a.shape[:-1], b.shape[-1])
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    flat = _product(_as_batch(a, batch), _as_batch(b, batch), scheme, levels)
    return flat.reshape(*batch, a.shape[-2], b.shape[-1])


def _check(a: Tensor, b: Tensor, levels: int) -> None:
    if levels < 1:
        raise ValueError(f"levels must be at least 1, not {levels}")
    if not a.is_floating_point() or a.dtype != b.dtype:
        raise TypeError(f"two floating point tensors of one dtype are needed, not {a.dtype} and {b.dtype}")
    fewest = 1 if b.dim() == 2 else 2
    if a.dim() < fewest or b.dim() < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matrices of the shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be multiplied")


def _product(a: Tensor, b: Tensor, scheme: BilinearScheme, levels: int) -> Tensor:
    if torch.compiler.is_compiling():
        return scheme_operator(a, b, scheme, levels)
    return _SchemeProduct.apply(a, b, scheme, levels)  # type: ignore[no-any-return, no-untyped-call]


def _as_batch(matrices: Tensor, batch: torch.Size) -> Tensor:
    rows, columns = matrices.shape[-2:]
    return matrices.expand(*batch, rows, columns).reshape(math.prod(batch), rows, columns)


class _SchemeProduct(torch.autograd.Function):
    """`a @ b` of two matrices, or two batches of as many matrices."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, scheme: BilinearScheme, levels: int) -> Tensor:
        with without_autocast(a.device.type):
            return multiply_by_scheme(a, b, scheme, levels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, b, ctx.scheme, ctx.levels = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        a, b = ctx.saved_tensors
        scheme, levels = ctx.scheme, ctx.levels
        of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_a = _product(gradient, b.mT, scheme.of_left_gradient, levels)
        if ctx.needs_input_grad[1]:
            of_b = _product(a.mT, gradient, scheme.of_right_gradient, levels)
        return of_a, of_b, None, None

    @staticmethod
    def jvp(ctx: Any, a_tangent: Tensor | None, b_tangent: Tensor | None, *_: None) -> Tensor | None:
        a, b = ctx.saved_tensors
        tangent = None
        if a_tangent is not None:
            tangent = _product(a_tangent, b, ctx.scheme, ctx.levels)
        if b_tangent is not None:
            other = _product(a, b_tangent, ctx.scheme, ctx.levels)
            tangent = other if tangent is None else tangent + other
        return tangent

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], a: Tensor, b: Tensor, scheme: BilinearScheme, levels: int
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        batched = [
            one.unsqueeze(0).expand(size, *one.shape) if dim is None else one.movedim(dim, 0)
            for one, dim in zip((a, b), in_dims, strict=False)
        ]
        inner = batched[0].shape[1:-2]
        flat = [one.reshape(math.prod(one.shape[:-2]), *one.shape[-2:]) for one in batched]
        product = _product(flat[0], flat[1], scheme, levels)
        return product.reshape(size, *inner, *product.shape[-2:]), 0
