"""How generated kernels read whole tiles of keys and values: by pointers, or by tensor descriptors of sm_90 and later.

A kernel makes one source per matrix before its loops and reads every tile from it. Where a matrix begins, how far
apart its rows are and how many there are is said once, in `tile_source`: every second row from the first on, say, is
`tile_source(base, 2 * stride, (end + 1) // 2, ...)`.
"""

# ruff: noqa: ANN001, ANN201, D417, SIM108 - Triton's values have no useful Python types, and one branch is compiled
# mypy: disable-error-code="attr-defined, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from attnc.runtime.kernel_math import load_tile, tl, triton


@triton.jit
def tile_source(
    base,
    stride,
    end,
    rows: tl.constexpr,
    columns: tl.constexpr,
    head_size: tl.constexpr,
    descriptors: tl.constexpr,
):
    """Return what `read_tile` reads tiles of a matrix from: its address, or a descriptor that this program makes.

    Args:
        stride: elements from one row to the next; a row is contiguous.
        end: number of rows of the matrix.
        rows: of a tile, up to 256.
        columns: a power of two, at least `head_size`.
        descriptors: whether to make a descriptor: `base` and rows start at multiples of 16 bytes then.
    """
    if descriptors:
        source = tl.make_tensor_descriptor(base, [end, head_size], [stride, 1], [rows, columns])
    else:
        source = base
    return source


@triton.jit
def read_tile(
    source,
    first,
    stride,
    end,
    rows: tl.constexpr,
    columns: tl.constexpr,
    head_size: tl.constexpr,
    ragged: tl.constexpr,
    descriptors: tl.constexpr,
):
    """Read rows `first .. first + rows - 1`, 0 outside of the matrix, from what `tile_source` gave for it.

    Args:
        ragged: whether rows may lie past the end; a descriptor looks at each row in any case.
    """
    if descriptors:
        tile = source.load([first, 0])
    else:
        tile = load_tile(source, first, stride, end, rows, columns, head_size, ragged)
    return tile


@triton.jit
def gather_tile(base, row, stride, end, columns: tl.constexpr, head_size: tl.constexpr, ragged: tl.constexpr):
    """Read chosen rows of a matrix, 0 where a row is `end` or more.

    Args:
        row: their numbers, not negative.
        stride: elements from one row to the next; a row is contiguous.
        columns: a power of two, at least `head_size`.
        ragged: whether a row may be `end` or more.
    """
    column = tl.arange(0, columns)
    pointers = base + (row.to(tl.int64) * stride)[:, None] + column[None, :]
    if ragged:
        if columns == head_size:
            tile = tl.load(pointers, mask=(row < end)[:, None], other=0.0)
        else:
            tile = tl.load(pointers, mask=(row < end)[:, None] & (column < head_size)[None, :], other=0.0)
    else:
        if columns == head_size:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=(column < head_size)[None, :], other=0.0)
    return tile


@triton.jit
def dot_rows(left, left_real, right, right_real, head_size: tl.constexpr, precision: tl.constexpr):
    """Multiply rows of two matrices with each other, `[left rows, right rows]`, a few columns at a time.

    What a rare walk needs takes few registers then: the loops that matter have them.

    Args:
        left, right: addresses of rows, which are contiguous.
        left_real, right_real: whether a row is read; it is 0 otherwise.
        head_size: elements of a row.
    """
    total = tl.zeros([left.shape[0], right.shape[0]], tl.float32)
    for first in tl.range(0, head_size, 16, num_stages=1):
        column = (first + tl.arange(0, 16))[None, :]
        inside = column < head_size
        left_part = tl.load(left[:, None] + column, mask=left_real[:, None] & inside, other=0.0)
        right_part = tl.load(right[:, None] + column, mask=right_real[:, None] & inside, other=0.0)
        total = tl.dot(left_part, tl.trans(right_part), total, input_precision=precision)
    return total
