"""Projections that are products of dense blocks: dense, low rank, block diagonal, Monarch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnc.runtime.structures.block_forms import BLOCK_FORMS, MONARCH_FORMS
from attnc.runtime.structures.forms import FormTable
from attnc.runtime.structures.projection import OUTPUT_VARIANCE, Product, Projection, nearest_of_rank, spread


class DenseProjection(Projection):
    """Any matrix.

    Attributes:
        weight: (out_features, in_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        product: Product | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, product)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial parameters."""
        spread(self.weight, OUTPUT_VARIANCE / self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.multiply(x, self.weight)

    def approximate(self, weight: Tensor) -> None:
        """Take the matrix as it is."""
        self.weight.copy_(weight)


class LowRankProjection(Projection):
    """A matrix `up @ down` of rank at most `rank`.

    Attributes:
        down: (rank, in_features).
        up: (out_features, rank).
    """

    structure = "low_rank"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        product: Product | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, product)
        self.rank = rank
        self.down = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.up = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial parameters; the numbers between the factors have variance 1."""
        spread(self.down, 1 / self.in_features)
        spread(self.up, OUTPUT_VARIANCE / self.rank)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.expand(self.compress(x))

    def compress(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to latents (..., rank)."""
        return self.multiply(x, self.down)

    def expand(self, latents: Tensor) -> Tensor:
        """Map latents (..., rank) to (..., out_features)."""
        return self.multiply(latents, self.up)

    def approximate(self, weight: Tensor) -> None:
        """Keep the largest singular values."""
        up, down = nearest_of_rank(weight, self.rank)
        self.up.copy_(up)
        self.down.copy_(down)

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return f"rank={self.rank}"


class BlockDiagonalProjection(Projection):
    """Features in as many groups as there are blocks; each group of outputs reads its own group of inputs.

    Attributes:
        blocks: (count, out_features // count, in_features // count).
    """

    structure = "block_diagonal"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        count: int,
        *,
        product: Product | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, product)
        self.count = count
        shape = (count, out_features // count, in_features // count)
        self.blocks = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial parameters."""
        spread(self.blocks, OUTPUT_VARIANCE / self.blocks.shape[2])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.multiply_measured(x, self.blocks)

    def chain(self, x: Tensor, *factors: Tensor) -> Tensor:
        """Return the product of (tokens, in_features) with such blocks, by a batched product."""
        (blocks,) = factors
        groups = torch.unflatten(x, 1, (self.count, -1)).transpose(0, 1)
        return self.multiply_blocks(groups, blocks).transpose(0, 1).flatten(1)

    def table(self, device: torch.device) -> FormTable:
        """Return the forms in which the product is computed."""
        return BLOCK_FORMS

    def numbers(self) -> dict[str, int]:
        """Return the number of blocks."""
        return {"blocks": self.count}

    def approximate(self, weight: Tensor) -> None:
        """Keep the blocks on the diagonal."""
        rows, columns = self.blocks.shape[1:]
        split = weight.view(self.count, rows, self.count, columns)
        self.blocks.copy_(torch.stack([split[k, :, k] for k in range(self.count)]))

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return f"blocks={self.count}"


class MonarchProjection(Projection):
    """Two block diagonal matrices with a permutation between them and one behind (Dao et al., *Monarch*, 2022).

    The inputs lie in `count` groups one after the other. The first factor maps each to as many numbers of a middle
    layer, which has `min(in_features, out_features)` of them. Number `m` of that layer goes to block `m % count` of the
    second factor, whose output `s` is feature `s * count + m % count`: the outputs of a block are `count` apart. So
    the part of the matrix between a group of inputs and a block's outputs has as rank how many numbers of the middle
    layer they share, which is 1 where `count` is the square root of the width.

    Attributes:
        first: (count, middle // count, in_features // count).
        second: (count, out_features // count, middle // count).
    """

    structure = "monarch"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        count: int,
        *,
        product: Product | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, product)
        self.count = count
        middle = min(in_features, out_features) // count
        self.first = nn.Parameter(torch.empty(count, middle, in_features // count, device=device, dtype=dtype))
        self.second = nn.Parameter(torch.empty(count, out_features // count, middle, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial parameters; the numbers between the factors have variance 1."""
        spread(self.first, 1 / self.first.shape[2])
        spread(self.second, OUTPUT_VARIANCE / self.second.shape[2])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.multiply_measured(x, self.first, self.second)

    def chain(self, x: Tensor, *factors: Tensor) -> Tensor:
        """Return the product of (tokens, in_features) with such factors, by two batched products."""
        first, second = factors
        groups = torch.unflatten(x, 1, (self.count, -1)).transpose(0, 1)
        middle = self.multiply_blocks(groups, first).transpose(0, 1)
        crossed = middle.reshape(-1, second.shape[2], self.count).permute(2, 0, 1)
        return self.multiply_blocks(crossed, second).permute(1, 2, 0).flatten(1)

    def table(self, device: torch.device) -> FormTable:
        """Return the forms in which the product is computed."""
        return MONARCH_FORMS

    def numbers(self) -> dict[str, int]:
        """Return the number of blocks."""
        return {"blocks": self.count}

    def approximate(self, weight: Tensor) -> None:
        """Take the nearest matrix of the allowed rank between each group of inputs and each block of outputs."""
        count, middle = self.count, self.first.shape[1]
        parts = weight.view(-1, count, count, self.first.shape[2])  # output of the block, block, group, input
        first, second = weight.new_zeros(self.first.shape), weight.new_zeros(self.second.shape)
        for group in range(count):
            for block in range(count):
                places = [t for t in range(middle) if (group * middle + t) % count == block]
                left, right = nearest_of_rank(parts[:, block, group], len(places))
                first[group, places] = _with_zeros(right, len(places), 0)
                second[block][:, [(group * middle + t) // count for t in places]] = _with_zeros(left, len(places), 1)
        self.first.copy_(first)
        self.second.copy_(second)

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return f"blocks={self.count}"


def _with_zeros(factor: Tensor, length: int, axis: int) -> Tensor:
    """Add zeros where a part of a matrix has a lower rank than there is room for."""
    shape = list(factor.shape)
    shape[axis] = length - factor.shape[axis]
    return torch.cat([factor, factor.new_zeros(shape)], axis)
