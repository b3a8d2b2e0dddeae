"""The product by a scheme as a torch operator, which `torch.compile` leaves whole and differentiates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.autocast import without_autocast
from attnc.runtime.scheme_product import BilinearScheme, multiply_by_scheme

_ARGUMENTS = "(Tensor a, Tensor b, int[] shape, float[] numbers, int levels) -> Tensor"


def scheme_operator(a: Tensor, b: Tensor, scheme: BilinearScheme, levels: int) -> Tensor:
    """Return `a @ b` of two matrices, or two batches of as many, by the operator."""
    numbers = [number for rows in (scheme.left, scheme.right, scheme.out) for row in rows for number in row]
    return torch.ops.attnc.scheme_product(a, b, [scheme.m, scheme.k, scheme.n], numbers, levels)  # type: ignore[no-any-return]


def _forward(a: Tensor, b: Tensor, shape: Sequence[int], numbers: Sequence[float], levels: int) -> Tensor:
    with without_autocast(a.device.type):
        product = multiply_by_scheme(a, b, _scheme(tuple(shape), tuple(numbers)), levels)
    return product.contiguous()


def _fake(a: Tensor, b: Tensor, shape: Sequence[int], numbers: Sequence[float], levels: int) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.shape[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, ctx.shape, ctx.numbers, ctx.levels = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    a, b = ctx.saved_tensors
    scheme = _scheme(tuple(ctx.shape), tuple(ctx.numbers))
    of_a = scheme_operator(gradient, b.mT, scheme.of_left_gradient, ctx.levels)
    of_b = scheme_operator(a.mT, gradient, scheme.of_right_gradient, ctx.levels)
    return of_a, of_b, None, None, None


@lru_cache(maxsize=64)
def _scheme(shape: tuple[int, int, int], numbers: tuple[float, ...]) -> BilinearScheme:
    m, k, n = shape
    rank = len(numbers) // (m * k + k * n + m * n)
    columns = ((m * k, rank), (k * n, rank), (rank, m * n))
    sides = []
    start = 0
    for width, height in columns:
        rows = (numbers[place : place + width] for place in range(start, start + height * width, width))
        sides.append(tuple(rows))
        start += height * width
    return BilinearScheme(m, k, n, sides[0], sides[1], sides[2])


def _register() -> None:
    """Register the operator, unless another copy of this file did, as in a module that stands alone."""
    if hasattr(torch.ops.attnc, "scheme_product"):
        return
    operator = torch.library.custom_op("attnc::scheme_product", _forward, mutates_args=(), schema=_ARGUMENTS)
    operator.register_fake(_fake)
    operator.register_autograd(_backward, setup_context=_save)


_register()
