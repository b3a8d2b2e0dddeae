"""Kernels of products with a block diagonal matrix, and with a Monarch matrix, whose middle layer stays on the chip.

Neither copies anything to another order: permutations are arithmetic on indices. Weights come with any strides, so that
the same kernels multiply with the transposes, for gradients.
"""

# ruff: noqa: ANN001, ANN201, N803, SIM108 - Triton's values have no useful Python types, and one branch is compiled
# mypy: disable-error-code="attr-defined, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from attnc.runtime.kernel_math import tl, triton


@triton.jit(do_not_specialize=("tokens",))
def block_diagonal_kernel(
    x_ptr, blocks_ptr, out_ptr,
    x_stride, out_stride, blocks_stride_k, blocks_stride_o, blocks_stride_i,
    tokens, count, inputs, outputs,
    DOT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Multiply a tile of tokens with rows of one block; those of one tile of tokens follow each other."""
    pid = tl.program_id(0)
    parts = tl.cdiv(outputs, BLOCK_O)
    part, rest = pid % parts, pid // parts
    block = rest % count
    token = (rest // count).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    out = part * BLOCK_O + tl.arange(0, BLOCK_O)
    x_rows = x_ptr + token[:, None] * x_stride + block * inputs
    of_block = blocks_ptr + block.to(tl.int64) * blocks_stride_k + out[None, :].to(tl.int64) * blocks_stride_o
    sums = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_I):
        given = start + tl.arange(0, BLOCK_I)
        x = tl.load(x_rows + given[None, :], mask=(token < tokens)[:, None] & (given < inputs)[None, :], other=0.0)
        inside = (given < inputs)[:, None] & (out < outputs)[None, :]
        weights = tl.load(of_block + given[:, None] * blocks_stride_i, mask=inside, other=0.0)
        sums = tl.dot(x.to(DOT), weights.to(DOT), sums, input_precision="ieee")
    target = out_ptr + token[:, None] * out_stride + block * outputs + out[None, :]
    inside = (token < tokens)[:, None] & (out < outputs)[None, :]
    tl.store(target, sums.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def monarch_middle(group, block, turn, count: tl.constexpr, middle: tl.constexpr):
    """Find the number of a middle layer that a group has as `turn`-th of those that it shares with a block.

    Returns:
        Which of the group's it is, which of the block's, and whether there is one.
    """
    own = (block + count - (group * middle) % count) % count + turn * count
    return own, (group * middle + own) // count, (own < middle) & (group < count) & (block < count)


@triton.jit
def load_first_factor(
    pointer, given, inputs, stride_p, stride_q, stride_k,
    count: tl.constexpr, middle: tl.constexpr, TURNED: tl.constexpr, COUNT: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Load what `given` inputs of all sources are multiplied with: (sources, inputs, turns * targets)."""
    source = tl.arange(0, COUNT)[:, None, None]
    pair = tl.arange(0, PAIRS)[None, None, :]
    if TURNED:
        _, number, exists = monarch_middle(pair % COUNT, source, pair // COUNT, count, middle)
    else:
        number, _, exists = monarch_middle(source, pair % COUNT, pair // COUNT, count, middle)
    places = source * stride_p + number * stride_q + given[None, :, None] * stride_k
    return tl.load(pointer + places, mask=exists & (given < inputs)[None, :, None], other=0.0)


@triton.jit
def load_second_factor(
    pointer, out, outputs, stride_u, stride_o, stride_v,
    count: tl.constexpr, middle: tl.constexpr, TURNED: tl.constexpr, COUNT: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Load what leads to outputs `out` of all targets: (targets, sources * turns, outputs)."""
    SHARED: tl.constexpr = PAIRS // COUNT  # noqa: N806
    target = tl.arange(0, COUNT)[:, None, None]
    pair = tl.arange(0, PAIRS)[None, :, None]
    if TURNED:
        number, _, exists = monarch_middle(target, pair // SHARED, pair % SHARED, count, middle)
    else:
        _, number, exists = monarch_middle(pair // SHARED, target, pair % SHARED, count, middle)
    places = target * stride_u + out[None, None, :] * stride_o + number * stride_v
    return tl.load(pointer + places, mask=exists & (out < outputs)[None, None, :], other=0.0)


@triton.jit(do_not_specialize=("tokens",))
def monarch_kernel(
    x_ptr, first_ptr, second_ptr, out_ptr, x_stride, out_stride,
    first_stride_p, first_stride_q, first_stride_k, second_stride_u, second_stride_o, second_stride_v,
    tokens, inputs, outputs,
    count: tl.constexpr, middle: tl.constexpr, TURNED: tl.constexpr, DOT: tl.constexpr,
    COUNT: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Multiply a tile of tokens with both factors.

    Sources are groups, which have their inputs next to each other, and targets blocks, whose outputs are `count` apart;
    where it is `TURNED`, the other way round. Between the factors, each source has for each target as many numbers as
    they share, so that the permutation swaps two axes of a tensor in registers.
    """
    SHARED: tl.constexpr = PAIRS // COUNT  # noqa: N806
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[None, :, None]
    one = tl.arange(0, COUNT)[:, None, None]
    x_rows = x_ptr + token * x_stride
    out_rows = out_ptr + token * out_stride
    exists = (one < count) & (token < tokens)
    middle_layer = tl.zeros((COUNT, BLOCK_T, PAIRS), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_I):
        given = start + tl.arange(0, BLOCK_I)
        at = given[None, None, :]
        if TURNED:
            places = at * count + one
        else:
            places = one * inputs + at
        x = tl.load(x_rows + places, mask=exists & (at < inputs), other=0.0)
        weights = load_first_factor(
            first_ptr, given, inputs, first_stride_p, first_stride_q, first_stride_k,
            count, middle, TURNED, COUNT, PAIRS,
        )  # fmt: skip
        middle_layer = tl.dot(x.to(DOT), weights.to(DOT), middle_layer, input_precision="ieee")
    by_source = tl.reshape(middle_layer.to(DOT), (COUNT, BLOCK_T, SHARED, COUNT))
    by_target = tl.reshape(tl.permute(by_source, (3, 1, 0, 2)), (COUNT, BLOCK_T, PAIRS))
    for start in range(0, outputs, BLOCK_O):
        out = start + tl.arange(0, BLOCK_O)
        at = out[None, None, :]
        weights = load_second_factor(
            second_ptr, out, outputs, second_stride_u, second_stride_o, second_stride_v,
            count, middle, TURNED, COUNT, PAIRS,
        )  # fmt: skip
        sums = tl.dot(by_target, weights.to(DOT), input_precision="ieee")
        if TURNED:
            places = one * outputs + at
        else:
            places = at * count + one
        tl.store(out_rows + places, sums.to(out_ptr.dtype.element_ty), mask=exists & (at < outputs))
