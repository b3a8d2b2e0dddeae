"""Convolutional projections (Wu et al., *CvT*, 2021): depthwise along a sequence or a grid, then a dense matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnc.runtime.structures.forms import FormTable
from attnc.runtime.structures.projection import OUTPUT_VARIANCE, Product, Projection, spread
from attnc.runtime.structures.tap_forms import tap_forms


class Convolution(Projection):
    """A map of whole sequences: what outputs are at one position depends on inputs at several.

    Attributes:
        weight: (out_features, in_features).
    """

    weight: nn.Parameter
    stride: int

    def to_dense(self, positions: int = 1) -> Tensor:
        """Return the map of a sequence of so many positions: (outputs, out_features, positions, in_features)."""
        size = positions * self.in_features
        inputs = torch.eye(size, dtype=self.weight.dtype, device=self.weight.device)
        outputs: Tensor = self(inputs.view(size, positions, self.in_features))
        return torch.unflatten(outputs.permute(1, 2, 0), 2, (positions, self.in_features))

    def distance(self, weight: Tensor) -> float:
        """Return how far the matrix is from one; the kernel that `approximate` has set is exact."""
        return float((self.weight.to(weight) - weight).norm())

    def require_every_position(self) -> None:
        """Raise ValueError where positions are left out."""
        if self.stride != 1:
            raise ValueError(
                f"a kernel of stride {self.stride} leaves positions out, so that no dense matrix is near it"
            )


class ConvProjection(Convolution):
    """Output `t` reads `kernel` positions about `t * stride`, each feature by itself, then mixes the features.

    The last position that it reads is `t * stride` where `causal`, and `t * stride + (kernel - 1) // 2` else. Positions
    outside of the sequence are zeros; N positions give `ceil(N / stride)`.

    Attributes:
        kernel: (in_features, kernel size).
        weight: (out_features, in_features).
    """

    structure = "conv"
    keeps_positions = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: int,
        stride: int = 1,
        *,
        causal: bool = False,
        product: Product | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, product)
        self.size, self.stride, self.causal = kernel, stride, causal
        self.kernel = nn.Parameter(torch.empty(in_features, kernel, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def later(self) -> int:
        """How many positions behind its own an output reads."""
        return 0 if self.causal else (self.size - 1) // 2

    def reset_parameters(self) -> None:
        """Draw initial parameters; the numbers between kernel and matrix have variance 1."""
        spread(self.kernel, 1 / self.size)
        spread(self.weight, OUTPUT_VARIANCE / self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, in_features) to (B, ceil(N / stride), out_features)."""
        return self.multiply_measured(x, self.kernel, self.weight)

    def chain(self, x: Tensor, *factors: Tensor) -> Tensor:
        """Return the same by PyTorch's convolution and product."""
        kernel, weight = factors
        padded = functional.pad(x.transpose(1, 2), (self.size - 1 - self.later, self.later))
        mixed = functional.conv1d(padded, kernel[:, None], stride=self.stride, groups=self.in_features)
        return self.multiply(mixed.transpose(1, 2), weight)

    def table(self, device: torch.device) -> FormTable:
        """Return the forms in which the product is computed."""
        return tap_forms(self.later, self.stride)

    def numbers(self) -> dict[str, int]:
        """Return how large the kernel is, and how far one output is from the next."""
        return {"kernel": self.size, "stride": self.stride}

    def approximate(self, weight: Tensor) -> None:
        """Take the matrix as it is, and a kernel that reads an output's own position alone."""
        self.require_every_position()
        self.kernel.zero_()
        self.kernel[:, self.size - 1 - self.later] = 1
        self.weight.copy_(weight)

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return f"kernel={self.size}, stride={self.stride}, causal={self.causal}"


class GridConvProjection(Convolution):
    """The same on a grid of points in rows of `width`: output `(t, u)` reads a square about `(t, u) * stride`.

    The square begins `kernel // 2` points before that one along both axes. Points outside of the grid are zeros.
    R rows give `ceil(R / stride)` rows of `ceil(width / stride)` points.

    Attributes:
        kernel: (in_features, kernel size, kernel size).
        weight: (out_features, in_features).
    """

    structure = "conv2d"
    keeps_positions = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        kernel: int,
        stride: int = 1,
        *,
        product: Product | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, product)
        self.width, self.size, self.stride = width, kernel, stride
        self.kernel = nn.Parameter(torch.empty(in_features, kernel, kernel, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial parameters; the numbers between kernel and matrix have variance 1."""
        spread(self.kernel, 1 / self.size**2)
        spread(self.weight, OUTPUT_VARIANCE / self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, in_features), N a multiple of the grid's width, to (B, points that are left, out_features)."""
        self.check_input(x, self.kernel)
        if x.shape[1] % self.width:
            raise ValueError(f"{x.shape[1]} positions are not a grid in rows of {self.width}")
        grid = torch.unflatten(x.transpose(1, 2), 2, (-1, self.width))
        before, after = self.size // 2, (self.size - 1) // 2
        padded = functional.pad(grid, (before, after, before, after))
        mixed = functional.conv2d(padded, self.kernel[:, None], stride=self.stride, groups=self.in_features)
        return self.multiply(mixed.flatten(2).transpose(1, 2), self.weight)

    def approximate(self, weight: Tensor) -> None:
        """Take the matrix as it is, and a kernel that reads an output's own point alone."""
        self.require_every_position()
        self.kernel.zero_()
        self.kernel[:, self.size // 2, self.size // 2] = 1
        self.weight.copy_(weight)

    def describe(self) -> str:
        """Return the structure's own numbers."""
        return f"grid in rows of {self.width}, kernel={self.size}, stride={self.stride}"
