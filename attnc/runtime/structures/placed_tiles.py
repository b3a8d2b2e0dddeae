"""Products with sparse matrices, each tile's written where it belongs: no transposed copy of all outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from attnc.runtime.structures.forms import CHAINS, ON_CPU, Form, FormTable
from attnc.runtime.structures.tiling import TileBatch, Tiling


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
    tokens = x.shape[0]
    written = sum(batch.count * batch.rows for batch in tiling.batches)
    make: Callable[..., Tensor] = x.new_empty if written == tiling.rows else x.new_zeros
    out = make((tokens, tiling.rows))
    padded = torch.cat([values, values.new_zeros(1)]) if any(one.held is None for one in tiling.batches) else values
    for batch in tiling.batches:
        size = batch.count * batch.rows * batch.width
        flat = padded.index_select(0, batch.sources) if batch.held is None else values.narrow(0, batch.held, size)
        tiles = flat.reshape(batch.count, batch.rows, batch.width)
        read = _gather_tiles(x, batch)
        if batch.written is None:
            found = torch.bmm(read, tiles.transpose(1, 2)).transpose(0, 1).reshape(tokens, -1)
            at = batch.outputs.index_select(0, batch.present)
            out.index_copy_(1, at, found.index_select(1, batch.present))
        elif batch.written[2] == 1:
            torch.bmm(read, tiles.transpose(1, 2), out=_columns_of(out, batch))
        else:
            _columns_of(out, batch).copy_(torch.bmm(read, tiles.transpose(1, 2)))
    return out


def _placed_tile_gradients(
    plain: Tiling, swapped: Tiling, wants: Sequence[bool], grad: Tensor, x: Tensor, values: Tensor
) -> tuple[Tensor | None, ...]:
    grad = grad.contiguous()
    of_x = _multiply_placed_tiles(swapped, grad, values) if wants[0] else None
    return of_x, _sample_placed_tiles(plain, grad, x) if wants[1] else None


def _sample_placed_tiles(tiling: Tiling, left: Tensor, right: Tensor) -> Tensor:
    """Return `left.T @ right` at the entries of a sparse matrix: (tokens, rows) and (tokens, columns) to (entries,)."""
    found = []
    for batch in tiling.batches:
        if batch.written is None:
            gathered = left.index_select(1, batch.outputs.clamp(max=tiling.rows - 1))
            rows = gathered.view(-1, batch.count, batch.rows).transpose(0, 1)
        else:
            rows = _columns_of(left, batch)
        products = torch.bmm(rows.transpose(1, 2), _gather_tiles(right, batch)).flatten()
        found.append(products if batch.held is not None else products.index_select(0, batch.places))
    return torch.cat(found).index_select(0, tiling.entry_places)


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
