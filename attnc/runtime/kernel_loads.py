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
