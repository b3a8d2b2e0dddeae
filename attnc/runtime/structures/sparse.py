"""Projections with few entries: banded, and masked by a condition on row and column. No product builds the matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnc.runtime.autocast import lower_precision, without_autocast
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.structures.projection import OUTPUT_VARIANCE, Projection
from attnc.runtime.structures.tiling import TileBatch, Tiling, band_entries, entries_of, tile_matrix
from attnc.runtime.transforms import are_transforms_active, have_tangents


class SparseProjection(Projection):
    """A matrix with entries at fixed places.

    Args:
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        entries: row and column of each, row by row.
        device: of the parameter.
        dtype: of the parameter.

    Attributes:
        values: (entries,), row by row.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        entries: tuple[Tensor, Tensor],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        rows, columns = entries
        if not rows.numel():
            raise ValueError(f"a matrix of {out_features} x {in_features} has no entry that its condition allows")
        self.tilings = {torch.device("cpu"): _Tilings(rows, columns, out_features, in_features)}
        self.values = nn.Parameter(torch.empty(rows.numel(), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial parameters, larger ones in rows with fewer entries."""
        nn.init.uniform_(self.values, -1, 1)
        rows = self.tilings[torch.device("cpu")].rows
        counts = torch.bincount(rows, minlength=self.out_features)[rows]
        bounds = (3 * OUTPUT_VARIANCE / counts).sqrt()
        with torch.no_grad():
            self.values.mul_(bounds.to(self.values.device, self.values.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        x, values = lower_precision(x, self.values)
        tilings = self.tilings_on(x.device)
        with without_autocast(x.device.type):
            out = multiply_sparse(x.reshape(-1, self.in_features), values, tilings)
        return out.reshape(*x.shape[:-1], self.out_features)

    def tilings_on(self, device: torch.device) -> _Tilings:
        """Return how products are cut, on a device: made from the condition, and so no part of the state."""
        found = self.tilings.get(device)
        if found is None:
            self.tilings[device] = found = self.tilings[torch.device("cpu")].to(device)
        return found

    def approximate(self, weight: Tensor) -> None:
        """Keep the entries."""
        tilings = self.tilings[torch.device("cpu")]
        self.values.copy_(weight[tilings.rows, tilings.columns])


class BandedProjection(SparseProjection):
    """A band along the diagonal: entries with `abs(i * columns - j * rows) < width * max(rows, columns)`.

    In a square matrix that is `abs(i - j) < width`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.width = width
        super().__init__(in_features, out_features, band_entries(out_features, in_features, width), device, dtype)

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return f"width={self.width}, entries={self.values.numel()}"


class MaskedProjection(SparseProjection):
    """The entries that a pattern's condition over `i` and `j`, row and column, allows."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        allowed: Callable[[Pairs], Tensor],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = Sizes(1, 1, out_features, in_features, 1, 1, 1)

        def condition(row: Tensor, column: Tensor) -> Tensor:
            return allowed(Pairs(sizes, {}, torch.float64, row.device, i=row, j=column))

        super().__init__(in_features, out_features, entries_of(out_features, in_features, condition), device, dtype)

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return f"entries={self.values.numel()}"


class _Tilings:
    """How products with a sparse matrix, and with its transpose, are cut into tiles."""

    def __init__(self, rows: Tensor, columns: Tensor, height: int, width: int) -> None:
        self.rows, self.columns = rows, columns
        self.plain = tile_matrix(height, width, rows, columns)
        self.swapped = tile_matrix(width, height, columns, rows)

    def to(self, device: torch.device) -> _Tilings:
        """Return the same with its index tensors on a device."""
        moved = object.__new__(_Tilings)
        moved.rows, moved.columns = self.rows, self.columns
        moved.plain, moved.swapped = self.plain.to(device), self.swapped.to(device)
        return moved


def multiply_sparse(x: Tensor, values: Tensor, tilings: _Tilings) -> Tensor:
    """Return the product of (tokens, columns) with the transpose of a sparse matrix: (tokens, rows).

    Its gradients are products of the same kind, which add in a fixed order. What `torch.func` transforms, and forward
    mode, see the operations themselves.
    """
    if have_tangents((x, values)) or (not torch.compiler.is_compiling() and are_transforms_active()):
        return multiply_tiles(x, values, tilings.plain)
    return _multiply(x, values, tilings.plain, tilings.swapped)


def _multiply(x: Tensor, values: Tensor, plain: Tiling, swapped: Tiling) -> Tensor:
    found: Tensor = _SparseProduct.apply(x, values, plain, swapped)  # type: ignore[no-untyped-call]
    return found


def _sample(left: Tensor, right: Tensor, plain: Tiling, swapped: Tiling) -> Tensor:
    found: Tensor = _SampledProduct.apply(left, right, plain, swapped)  # type: ignore[no-untyped-call]
    return found


class _SparseProduct(torch.autograd.Function):
    """`x @ matrix.T`; differentiable any number of times, since its gradients are products of the same two kinds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, plain: Tiling, swapped: Tiling) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.tilings = plain, swapped
        return multiply_tiles(x, values, plain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, values = ctx.saved_tensors
        plain, swapped = ctx.tilings
        of_x = _multiply(grad, values, swapped, plain) if ctx.needs_input_grad[0] else None
        of_values = _sample(grad, x, plain, swapped) if ctx.needs_input_grad[1] else None
        return of_x, of_values, None, None


class _SampledProduct(torch.autograd.Function):
    """`left.T @ right` at the entries of a sparse matrix."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, plain: Tiling, swapped: Tiling) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.tilings = plain, swapped
        return sample_tiles(left, right, plain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        left, right = ctx.saved_tensors
        plain, swapped = ctx.tilings
        of_left = _multiply(right, grad, plain, swapped) if ctx.needs_input_grad[0] else None
        of_right = _multiply(left, grad, swapped, plain) if ctx.needs_input_grad[1] else None
        return of_left, of_right, None, None


def multiply_tiles(x: Tensor, values: Tensor, tiling: Tiling) -> Tensor:
    """Return the product of (tokens, columns) with the transpose of a sparse matrix: (tokens, rows)."""
    found = []
    for batch in tiling.batches:
        empty = values.new_zeros(batch.count * batch.rows * batch.width)
        tiles = empty.index_put((batch.places,), values[batch.entries]).view(batch.count, batch.rows, batch.width)
        found.append(torch.bmm(tiles, _inputs(x, batch).transpose(1, 2)).flatten(0, 1))
    found.append(found[0].new_zeros(1, x.shape[0]))  # for rows without entries
    return torch.cat(found)[tiling.row_places].t()


def sample_tiles(left: Tensor, right: Tensor, tiling: Tiling) -> Tensor:
    """Return `left.T @ right` at the entries of a sparse matrix: (tokens, rows) and (tokens, columns) to (entries,)."""
    found = []
    for batch in tiling.batches:
        rows = left[:, batch.outputs.clamp(max=tiling.rows - 1)].view(-1, batch.count, batch.rows)
        found.append(torch.bmm(rows.permute(1, 2, 0), _inputs(right, batch)).flatten()[batch.places])
    return torch.cat(found)[tiling.entry_places]


def _inputs(x: Tensor, batch: TileBatch) -> Tensor:
    """Return what the tiles of a batch read, (tiles, tokens, width): a view where their columns are in step."""
    if batch.columns is not None:
        return x[:, batch.columns.flatten()].view(-1, batch.count, batch.width).transpose(0, 1)
    read = x[:, batch.first : batch.first + (batch.count - 1) * batch.step + batch.width]
    if batch.count == 1:
        return read[None]
    return read.unfold(1, batch.width, batch.step).transpose(0, 1) if batch.step else read.expand(batch.count, -1, -1)
