"""Projections with few entries: banded, and masked by a condition on row and column. No product builds the matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from attnc.runtime.autocast import lower_precision, without_autocast
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.structures.forms import FormTable
from attnc.runtime.structures.placed_tiles import read_tiles, tile_forms
from attnc.runtime.structures.projection import OUTPUT_VARIANCE, Product, Projection
from attnc.runtime.structures.tiling import Tiling, band_entries, entries_of, tile_matrix
from attnc.runtime.transforms import are_transforms_active, have_tangents, refuse_gradients_in_batches


class SparseProjection(Projection):
    """A matrix with entries at fixed places.

    Args:
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        tilings: of its entries.
        product: takes the products of tiles; None for PyTorch's own.
        device: of the parameter.
        dtype: of the parameter.

    Attributes:
        values: (entries,), row by row.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        tilings: Tilings,
        product: Product | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(in_features, out_features, product)
        self.tilings = tilings
        self.values = nn.Parameter(torch.empty(tilings.rows.numel(), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial parameters, larger ones in rows with fewer entries."""
        nn.init.uniform_(self.values, -1, 1)
        rows = self.tilings.rows
        counts = torch.bincount(rows, minlength=self.out_features)[rows]
        bounds = (3 * OUTPUT_VARIANCE / counts).sqrt()
        with torch.no_grad():
            self.values.mul_(bounds.to(self.values.device, self.values.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.multiply_measured(x, self.values)

    def chain(self, x: Tensor, *factors: Tensor) -> Tensor:
        """Return the product of (tokens, in_features) with a matrix of such entries."""
        x, values = lower_precision(x, *factors)
        plain, swapped = self.tilings.on(x.device)
        with without_autocast(x.device.type):
            if self.product is not None:
                return multiply_tiles(x, values, plain, self.multiply_blocks)
            return multiply_sparse(x, values, plain, swapped)

    def table(self, device: torch.device) -> FormTable:
        """Return the forms in which the product is computed on a device."""
        return self.tilings.forms(device)

    def numbers(self) -> dict[str, int]:
        """Return the number of entries."""
        return {"entries": self.values.numel()}

    def approximate(self, weight: Tensor) -> None:
        """Keep the entries."""
        self.values.copy_(weight[self.tilings.rows, self.tilings.columns])


class BandedProjection(SparseProjection):
    """A band along the diagonal: entries with `abs(i * columns - j * rows) < width * max(rows, columns)`.

    In a square matrix that is `abs(i - j) < width`.
    """

    structure = "banded"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        *,
        product: Product | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.width = width
        tilings = banded_tilings(out_features, in_features, width)
        super().__init__(in_features, out_features, tilings, product, device, dtype)

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return f"width={self.width}, entries={self.values.numel()}"


class MaskedProjection(SparseProjection):
    """The entries that a pattern's condition over `i` and `j`, row and column, allows."""

    structure = "masked"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        allowed: Callable[[Pairs], Tensor],
        *,
        product: Product | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        tilings = masked_tilings(out_features, in_features, allowed)
        super().__init__(in_features, out_features, tilings, product, device, dtype)

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return f"entries={self.values.numel()}"


class Tilings:
    """How products with a sparse matrix, and with its transpose, are cut into tiles; layers of a stack share it.

    Attributes:
        rows, columns: of each entry, row by row, on the CPU.
    """

    def __init__(self, rows: Tensor, columns: Tensor, height: int, width: int) -> None:
        if not rows.numel():
            raise ValueError(f"a matrix of {height} x {width} has no entry that its condition allows")
        self.rows, self.columns = rows, columns
        self._size = height, width
        plain, swapped = tile_matrix(height, width, rows, columns), tile_matrix(width, height, columns, rows)
        self._devices = {torch.device("cpu"): (plain, swapped)}
        self._forms: dict[torch.device, FormTable] = {}

    def on(self, device: torch.device) -> tuple[Tiling, Tiling]:
        """Return both with their index tensors on a device: made from the entries, and so no part of a state."""
        found = self._devices.get(device)
        if found is None:
            plain, swapped = self._devices[torch.device("cpu")]
            with torch.inference_mode(False):  # what is remembered may be trained with later
                self._devices[device] = found = plain.to(device), swapped.to(device)
        return found

    def forms(self, device: torch.device) -> FormTable:
        """Return the forms of products on a device."""
        found = self._forms.get(device)
        if found is None:
            self._forms[device] = found = tile_forms(*self.on(device))
        return found

    def __deepcopy__(self, memo: object) -> Tilings:
        return self

    def __reduce__(self) -> tuple[type[Tilings], tuple[object, ...]]:
        return Tilings, (self.rows, self.columns, *self._size)


@lru_cache(maxsize=64)
def banded_tilings(rows: int, columns: int, width: int) -> Tilings:
    """Return how products with a band are cut."""
    with torch.inference_mode(False):
        return Tilings(*band_entries(rows, columns, width), rows, columns)


@lru_cache(maxsize=64)
def masked_tilings(rows: int, columns: int, allowed: Callable[[Pairs], Tensor]) -> Tilings:
    """Return how products with a masked matrix are cut."""
    sizes = Sizes(1, 1, rows, columns, 1, 1, 1)

    def condition(row: Tensor, column: Tensor) -> Tensor:
        return allowed(Pairs(sizes, {}, torch.float64, row.device, i=row, j=column))

    with torch.inference_mode(False):
        return Tilings(*entries_of(rows, columns, condition), rows, columns)


def multiply_sparse(x: Tensor, values: Tensor, plain: Tiling, swapped: Tiling) -> Tensor:
    """Return the product of (tokens, columns) with the transpose of a sparse matrix: (tokens, rows).

    Its gradients are products of the same kind, which add in a fixed order. What `torch.func` transforms, and forward
    mode, see the operations themselves.
    """
    if have_tangents((x, values)) or (not torch.compiler.is_compiling() and are_transforms_active()):
        return multiply_tiles(x, values, plain)
    return _multiply(x, values, plain, swapped)


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
        refuse_gradients_in_batches("a product with a sparse matrix", (grad,))
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


def multiply_tiles(x: Tensor, values: Tensor, tiling: Tiling, multiply: Product | None = None) -> Tensor:
    """Return the product of (tokens, columns) with the transpose of a sparse matrix: (tokens, rows).

    `multiply` takes (tiles, tokens, width) and (tiles, rows, width) to (tiles, tokens, rows); None is `torch.bmm`.
    """
    found = []
    for batch in tiling.batches:
        empty = values.new_zeros(batch.count * batch.rows * batch.width)
        tiles = empty.index_put((batch.places,), values[batch.entries]).view(batch.count, batch.rows, batch.width)
        read = read_tiles(x, batch)
        turned = torch.bmm(tiles, read.transpose(1, 2)) if multiply is None else multiply(read, tiles).transpose(1, 2)
        found.append(turned.flatten(0, 1))
    found.append(found[0].new_zeros(1, x.shape[0]))  # for rows without entries
    return torch.cat(found)[tiling.row_places].t()


def sample_tiles(left: Tensor, right: Tensor, tiling: Tiling) -> Tensor:
    """Return `left.T @ right` at the entries of a sparse matrix: (tokens, rows) and (tokens, columns) to (entries,)."""
    found = []
    for batch in tiling.batches:
        rows = left[:, batch.outputs.clamp(max=tiling.rows - 1)].view(-1, batch.count, batch.rows)
        found.append(torch.bmm(rows.permute(1, 2, 0), read_tiles(right, batch)).flatten()[batch.places])
    return torch.cat(found)[tiling.entry_places]
