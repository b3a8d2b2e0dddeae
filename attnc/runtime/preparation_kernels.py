"""The kernel that prepares queries and keys, and the one of its gradient. It knows no pattern."""

# ruff: noqa: ANN001, ANN201, N803 - Triton's values have no useful Python types
# mypy: disable-error-code="attr-defined, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from attnc.runtime.kernel_math import tl, triton

PREPARATION_COUNTS = ("heads", "length")
"""Numbers for whose values no kernel is compiled anew."""


@triton.jit(do_not_specialize=PREPARATION_COUNTS)
def prepare_rows_kernel(
    rows_ptr, grad_ptr, out_ptr, cosine_ptr, sine_ptr,
    rows_stride_b, rows_stride_h, rows_stride_n,
    grad_stride_b, grad_stride_h, grad_stride_n,
    out_stride_b, out_stride_h, out_stride_n,
    turn_stride_b, turn_stride_h, turn_stride_n,
    heads, length,
    SIZE: tl.constexpr, NORM: tl.constexpr, TURN: tl.constexpr, BACKWARD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Divide rows by their norm and rotate them, or take gradients of such rows back to the rows.

    A row lies in two halves of up to BLOCK_D elements each, whose elements at the same place are rotated together. NORM
    is 0 for none, 1 for the root of the sum of squares, 2 for that of their mean. Where BACKWARD, `grad` is of what the
    rows became, and is not read elsewhere; neither are cosine and sine without TURN.
    """
    pid = tl.program_id(0)
    blocks = tl.cdiv(length, BLOCK_N)
    sequence = pid // blocks
    batch = (sequence // heads).to(tl.int64)
    head = (sequence % heads).to(tl.int64)
    row = (pid % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    wide_row = row.to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    half: tl.constexpr = (SIZE + 1) // 2
    inside = (row < length)[:, None]
    in_first = inside & (column < half)
    in_second = inside & (column < SIZE - half)
    base = rows_ptr + batch * rows_stride_b + head * rows_stride_h + wide_row * rows_stride_n + column
    first = tl.load(base, mask=in_first, other=0.0).to(tl.float32)
    second = tl.load(base + half, mask=in_second, other=0.0).to(tl.float32)
    if NORM > 0:
        square = tl.sum(first * first + second * second, 1)
        if NORM == 2:
            square = square / SIZE
        safe = tl.where(square == 0, 1.0, square)
        inverse = tl.where(square == 0, 0.0, 1.0 / tl.sqrt(safe))[:, None]
        first = first * inverse
        second = second * inverse
    if TURN:
        turn = batch * turn_stride_b + head * turn_stride_h + wide_row * turn_stride_n + column
        cosine = tl.load(cosine_ptr + turn, mask=in_second, other=1.0)
        sine = tl.load(sine_ptr + turn, mask=in_second, other=0.0)
    if BACKWARD:
        source = grad_ptr + batch * grad_stride_b + head * grad_stride_h + wide_row * grad_stride_n + column
        grad_first = tl.load(source, mask=in_first, other=0.0).to(tl.float32)
        grad_second = tl.load(source + half, mask=in_second, other=0.0).to(tl.float32)
        if TURN:
            turned = grad_first * cosine + grad_second * sine
            grad_second = grad_second * cosine - grad_first * sine
            grad_first = turned
        if NORM > 0:
            along = tl.sum(first * grad_first + second * grad_second, 1)[:, None]
            if NORM == 2:
                along = along / SIZE
            grad_first = (grad_first - first * along) * inverse
            grad_second = (grad_second - second * along) * inverse
        first = grad_first
        second = grad_second
    elif TURN:
        turned = first * cosine - second * sine
        second = second * cosine + first * sine
        first = turned
    target = out_ptr + batch * out_stride_b + head * out_stride_h + wide_row * out_stride_n + column
    tl.store(target, first.to(out_ptr.dtype.element_ty), mask=in_first)
    tl.store(target + half, second.to(out_ptr.dtype.element_ty), mask=in_second)
