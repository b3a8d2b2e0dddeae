"""Products with sparse matrices, each tile's written where it belongs: no transposed copy of all outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from attnc.runtime.structures.forms import CHAINS, ON_CPU, Form, FormTable
from attnc.runtime.structures.tiling import TileBatch, Tiling

TILE_STRIP = 1024
"""Tokens of a strip: what all tiles read of some thousand features stays in a processor's cache."""


def tile_forms(plain: Tiling, swapped: Tiling) -> FormTable:
    """Return the forms of products with a sparse matrix.

    Args:
        plain: of the matrix.
        swapped: of its transpose.
    """
    gradients = partial(_placed_tile_gradients, plain, swapped)
    placed = Form("placed bmm of tiles", partial(_multiply_placed_tiles, plain), gradients)
    return FormTable(CHAINS["banded"], (placed,), ON_CPU["banded"])


def _multiply_placed_tiles(tiling: Tiling, x: Tensor, values: Tensor) -> Tensor:
    """Return the product of (tokens, columns) with the transpose of a sparse matrix: (tokens, rows)."""
    written = sum(batch.count * batch.rows for batch in tiling.batches)
    make: Callable[..., Tensor] = x.new_empty if written == tiling.rows else x.new_zeros
    out = make((x.shape[0], tiling.rows))
    padded = torch.cat([values, values.new_zeros(1)]) if any(one.held is None for one in tiling.batches) else values
    tiles = [_tiles_of(batch, padded).transpose(1, 2) for batch in tiling.batches]
    for start in range(0, x.shape[0], TILE_STRIP):
        for batch, factor in zip(tiling.batches, tiles, strict=True):
            read = _gather_tiles(x[start : start + TILE_STRIP], batch)
            _write_tiles(out[start : start + TILE_STRIP], read, factor, batch)
    return out


def _tiles_of(batch: TileBatch, padded: Tensor) -> Tensor:
    """Return the tiles of a batch, (tiles, rows, width); `padded` are the entries, and a zero where one is needed."""
    size = batch.count * batch.rows * batch.width
    flat = padded.index_select(0, batch.sources) if batch.held is None else padded.narrow(0, batch.held, size)
    return flat.reshape(batch.count, batch.rows, batch.width)


def _write_tiles(out: Tensor, read: Tensor, factor: Tensor, batch: TileBatch) -> None:
    """Write the products of a batch into the columns of (tokens, all rows) that they have."""
    if batch.written is None:
        found = torch.bmm(read, factor).transpose(0, 1).reshape(out.shape[0], -1)
        at = batch.outputs.index_select(0, batch.present)
        out.index_copy_(1, at, found.index_select(1, batch.present))
    elif batch.written[2] == 1:
        torch.bmm(read, factor, out=_columns_of(out, batch))
    else:
        _columns_of(out, batch).copy_(torch.bmm(read, factor))


def _placed_tile_gradients(
    plain: Tiling, swapped: Tiling, wants: Sequence[bool], grad: Tensor, x: Tensor, values: Tensor
) -> tuple[Tensor | None, ...]:
    grad = grad.contiguous()
    of_x = _multiply_placed_tiles(swapped, grad, values) if wants[0] else None
    return of_x, _sample_placed_tiles(plain, grad, x) if wants[1] else None


def _sample_placed_tiles(tiling: Tiling, left: Tensor, right: Tensor) -> Tensor:
    """Return `left.T @ right` at the entries of a sparse matrix: (tokens, rows) and (tokens, columns) to (entries,)."""
    wide = torch.promote_types(left.dtype, torch.float32)
    sums = [left.new_zeros((one.count, one.rows, one.width), dtype=wide) for one in tiling.batches]
    for start in range(0, left.shape[0], TILE_STRIP):
        of_left, of_right = left[start : start + TILE_STRIP], right[start : start + TILE_STRIP]
        for batch, total in zip(tiling.batches, sums, strict=True):
            total += torch.bmm(_gather_rows(of_left, batch).transpose(1, 2), _gather_tiles(of_right, batch))
    found = [
        total.flatten() if batch.held is not None else total.flatten().index_select(0, batch.places)
        for batch, total in zip(tiling.batches, sums, strict=True)
    ]
    return torch.cat(found).index_select(0, tiling.entry_places).to(left.dtype)


def _gather_rows(left: Tensor, batch: TileBatch) -> Tensor:
    """Return the columns of (tokens, all rows) that the tiles of a batch have, (tiles, tokens, rows)."""
    if batch.written is not None and batch.written[2] == 1:
        return _columns_of(left, batch)
    gathered = left.index_select(1, batch.outputs.clamp(max=left.shape[1] - 1))
    return gathered.view(-1, batch.count, batch.rows).transpose(0, 1)


def _columns_of(out: Tensor, batch: TileBatch) -> Tensor:
    """Return a view of what the tiles of a batch write, (tiles, tokens, rows), in contiguous (tokens, all rows)."""
    assert batch.written is not None
    first, tile, row = batch.written
    shape, strides = (batch.count, out.shape[0], batch.rows), (tile, out.stride(0), row)
    return out.as_strided(shape, strides, out.storage_offset() + first)


def _gather_tiles(x: Tensor, batch: TileBatch) -> Tensor:
    """Do the same as `read_tiles` for what nobody differentiates."""
    if batch.columns is None:
        return read_tiles(x, batch)
    return x.index_select(1, batch.columns.flatten()).view(-1, batch.count, batch.width).transpose(0, 1)


def read_tiles(x: Tensor, batch: TileBatch) -> Tensor:
    """Return what the tiles of a batch read, (tiles, tokens, width): a view where their columns are in step."""
    if batch.columns is not None:
        return x[:, batch.columns.flatten()].view(-1, batch.count, batch.width).transpose(0, 1)
    read = x[:, batch.first : batch.first + (batch.count - 1) * batch.step + batch.width]
    if batch.count == 1:
        return read[None]
    return read.unfold(1, batch.width, batch.step).transpose(0, 1) if batch.step else read.expand(batch.count, -1, -1)
