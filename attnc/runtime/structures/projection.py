"""What all structures of projection matrices share: sizes, the product of their dense blocks, dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnc.runtime.autocast import lower_precision, without_autocast
from attnc.runtime.structures.forms import (
    CHAINS,
    FormTable,
    forms_apply,
    multiply_by_form,
    multiply_traced,
    projection_name,
)

Product = Callable[[Tensor, Tensor], Tensor]
"""Computes `x @ weight.T` for `x` of shape (..., inputs) and `weight` of shape (outputs, inputs)."""

OUTPUT_VARIANCE = 1 / 3
"""Variance of initial outputs for independent inputs of variance 1: that of `nn.Linear`."""


class Projection(nn.Module):
    """A linear map of features without a bias, whose matrix has a structure.

    Args:
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        product: takes the products with the structure's dense blocks; None for PyTorch's own.

    Attributes:
        structure: what the language calls it.
        keeps_positions: whether forms take (batch, positions, inputs), and not tokens of any order.
    """

    structure = "dense"
    keeps_positions = False

    def __init__(self, in_features: int, out_features: int, product: Product | None = None) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.product = product

    @property
    def measured_as(self) -> str:
        """What measurements of forms know this structure by."""
        return projection_name(self.structure, **self.numbers())

    def numbers(self) -> dict[str, int]:
        """Return the structure's own numbers, by which measurements tell it from others."""
        return {}

    def table(self, device: torch.device) -> FormTable:
        """Return the forms in which the product is computed on a device."""
        return FormTable(CHAINS[self.structure])

    def chain(self, x: Tensor, *factors: Tensor) -> Tensor:
        """Return the product of (tokens, in_features) with a matrix of such factors, by torch operations."""
        raise NotImplementedError

    def multiply_measured(self, x: Tensor, *factors: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features) by the form that was measured, or the default one.

        Raises:
            ValueError: `x` has another number of features or dimensions, or another dtype than the parameters.
        """
        self.check_input(x, factors[0])
        if self.product is not None or not forms_apply(self.structure, x):
            out = self.chain(self._as_forms_take(x), *factors)
        else:
            x, *lowered = lower_precision(x, *factors)
            with without_autocast(x.device.type):
                out = self._multiply_chosen(x, lowered)
        return out if self.keeps_positions else out.reshape(*x.shape[:-1], self.out_features)

    def check_input(self, x: Tensor, factor: Tensor) -> None:
        """Raise ValueError where `x` has another number of features or dimensions, or dtype, than is multiplied."""
        wanted = f"(B, N, {self.in_features})" if self.keeps_positions else f"(..., {self.in_features})"
        if x.dim() == 0 or x.shape[-1] != self.in_features or (self.keeps_positions and x.dim() != 3):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected {wanted}")
        lowered, weight = lower_precision(x, factor)
        if lowered.dtype != weight.dtype:
            found, needed = (str(one.dtype).removeprefix("torch.") for one in (x, factor))
            raise ValueError(f"x is {found}, but the parameters of {self.structure} are {needed}: they must agree")

    def _multiply_chosen(self, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
        sizes, given = (self.in_features, self.out_features), self._as_forms_take(x)
        if torch.compiler.is_compiling():
            return multiply_traced(self.structure, self.measured_as, self.chain, sizes, given, *factors)
        tokens, table = x.numel() // self.in_features, self.table(x.device)
        return multiply_by_form(self.measured_as, table, self.chain, (*sizes, tokens), given, *factors)

    def _as_forms_take(self, x: Tensor) -> Tensor:
        return x if self.keeps_positions else x.reshape(-1, self.in_features)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return `x @ weight.T`, by the product that was chosen."""
        return functional.linear(x, weight) if self.product is None else self.product(x, weight)

    def multiply_blocks(self, x: Tensor, blocks: Tensor) -> Tensor:
        """Return `x[k] @ blocks[k].T` for every block: (blocks, tokens, inputs) to (blocks, tokens, outputs)."""
        if self.product is None:
            return torch.bmm(x, blocks.transpose(1, 2))
        return torch.stack([self.product(one, block) for one, block in zip(x, blocks, strict=True)])

    def to_dense(self) -> Tensor:
        """Return the matrix, (out_features, in_features): for tests and for looking at; no call builds it."""
        weight = next(self.parameters())
        identity = torch.eye(self.in_features, dtype=weight.dtype, device=weight.device)
        dense: Tensor = self(identity[None])[0]
        return dense.transpose(0, 1)

    @torch.no_grad()
    def from_dense(self, weight: Tensor) -> float:
        """Take the matrix of this structure that is nearest to a dense one, and return how far that is.

        Args:
            weight: (out_features, in_features).

        Returns:
            The Frobenius norm of the difference, divided by that of `weight`.

        Raises:
            ValueError: `weight` has another shape, or the structure has no such matrix.
        """
        if not isinstance(weight, Tensor) or tuple(weight.shape) != (self.out_features, self.in_features):
            found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"weight is {found}, expected a tensor ({self.out_features}, {self.in_features})")
        exact = weight.detach().to("cpu", torch.float64)
        self.approximate(exact)
        size = float(exact.norm())
        return self.distance(exact) / size if size else 0.0

    def approximate(self, weight: Tensor) -> None:
        """Set the parameters to those of the nearest matrix; `weight` is float64 on the CPU."""
        raise NotImplementedError

    def distance(self, weight: Tensor) -> float:
        """Return the Frobenius norm of the difference to a dense matrix, which is float64 on the CPU."""
        return float((self.to_dense().to(weight) - weight).norm())

    def extra_repr(self) -> str:
        """Return what is printed between the parentheses."""
        described = f"{self.in_features} -> {self.out_features}, {self.describe()}".rstrip(", ")
        return described if self.product is None else f"{described}, {self.product}"

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return ""


def spread(parameter: Tensor, variance: float) -> None:
    """Fill a parameter with independent numbers of mean 0, as evenly distributed as those of `nn.Linear`."""
    bound = (3 * variance) ** 0.5
    nn.init.uniform_(parameter, -bound, bound)


def nearest_of_rank(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return `left` and `right` whose product is the nearest matrix of a rank, by singular values (Eckart and Young).

    Args:
        matrices: (..., rows, columns).
        rank: at most the smaller of both.

    Returns:
        (..., rows, rank) and (..., rank, columns), with the singular values shared evenly.
    """
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    roots = values[..., :rank].sqrt()
    return left[..., :, :rank] * roots[..., None, :], roots[..., :, None] * right[..., :rank, :]
