"""Shorter keys and values (LANGUAGE.md section 8), and the landmarks of Nystrom's approximation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype

PINV_STEPS = 6
"""Steps by which the inverse between landmarks is approached, as in the paper."""


@dataclass(frozen=True, slots=True)
class Shortening:
    """A `keys` statement.

    Attributes:
        form: `mean_pool`, `conv`, `conv2d` or `project`.
        window: keys that are joined, along each side of a grid in `conv2d`; of `project`, the rank.
        stride: from one window to the next.
        width: positions in a row of the grid of `conv2d`.
        length: most keys that `project` takes.
    """

    form: str
    window: int
    stride: int = 1
    width: int = 0
    length: int = 0

    @property
    def learned(self) -> tuple[str, str] | None:
        """Names of the tensors that shorten keys and values; None if both are averaged."""
        if self.form == "mean_pool":
            return None
        kind = "projection" if self.form == "project" else "filter"
        return f"key_{kind}", f"value_{kind}"

    def count(self, keys: int) -> int:
        """Return how many keys so many become."""
        match self.form:
            case "project":
                return self.window
            case "conv2d":
                return self._windows(keys // self.width) * self._windows(self.width)
            case _:
                return self._windows(keys)

    def least(self, count: int) -> int | None:
        """Return the least number of keys that become so many; None if there is none."""
        match self.form:
            case "project":
                return self.length if count == self.window else None
            case "conv2d":
                columns = self._windows(self.width)
                rows = count // columns if columns and count % columns == 0 else 0
                return ((rows - 1) * self.stride + self.window) * self.width if rows else None
            case _:
                return (count - 1) * self.stride + self.window

    def _windows(self, length: int) -> int:
        return max(0, (length - self.window) // self.stride + 1)

    def check(self, keys: int, head_size: int, value_size: int) -> None:
        """Raise ValueError where so many keys, or values of this size, cannot be shortened."""
        if self.form == "project" and keys > self.length:
            raise ValueError(f"key has length {keys}, expected at most {self.length}, which `keys project` is made for")
        if self.form == "conv2d" and keys % self.width:
            raise ValueError(f"key has length {keys}, expected a multiple of {self.width}, the width of the grid")
        if self.form in ("conv", "conv2d") and value_size != head_size:
            raise ValueError(
                f"value has head size {value_size}, expected {head_size} as key has: `keys {self.form}` has a filter "
                "for each element of a head"
            )

    def apply(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Shorten keys or values `(B, G, K, D)` along their positions.

        `weights` are `(D, window)`, `(D, window, window)` or `(rank, length)`; None for averages.
        """
        batch, heads, keys, size = rows.shape
        if self.form == "project":
            assert weights is not None
            return weights[:, :keys].to(rows.dtype) @ rows
        if self.count(keys) == 0:
            return rows[:, :, :0]
        if weights is None:
            return rows.unfold(2, self.window, self.stride).mean(-1)
        columns = rows.transpose(2, 3).reshape(batch * heads, size, keys)
        weights = weights.to(rows.dtype).unsqueeze(1)
        if self.form == "conv":
            found = torch.nn.functional.conv1d(columns, weights, stride=self.stride, groups=size)
        else:
            grid = torch.unflatten(columns, 2, (-1, self.width))
            found = torch.nn.functional.conv2d(grid, weights, stride=self.stride, groups=size).flatten(2)
        return torch.unflatten(found, 0, (batch, heads)).transpose(2, 3)


def landmarks(rows: Tensor, count: int) -> Tensor:
    """Return the means of `count` stretches of rows `(B, H, N, D)`, as even as the length allows."""
    length = rows.shape[2]
    if length % count == 0:
        return torch.unflatten(rows, 2, (count, -1)).mean(3)
    place = torch.arange(length, device=rows.device) * count // length
    sums: Tensor = rows.new_zeros((*rows.shape[:2], count, rows.shape[3])).index_add(2, place, rows)
    ends = -(torch.arange(1, count + 1, device=rows.device) * -length // count)  # where the next stretch begins
    sizes = torch.diff(ends, prepend=ends.new_zeros(1))
    return sums / sizes.view(-1, 1)


def nystrom(query: Tensor, key: Tensor, value: Tensor, count: int, scale: float) -> Tensor:
    """Approximate softmax attention by three softmaxes through landmarks.

    `softmax(Q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ K^T) V`, with `Q~` and `K~` the means of stretches of rows
    (Xiong et al., "Nystromformer", 2021). Key and value have as many heads as the query.
    """
    few = min(count, query.shape[2], key.shape[2])
    queries, keys = landmarks(query, few), landmarks(key, few)
    between = torch.softmax((queries @ keys.transpose(-2, -1)).to(compute_dtype(query.dtype)) * scale, -1)
    summary = pseudo_inverse(between) @ _attend_by_products(queries, key, value, scale).to(between.dtype)
    return _attend_by_products(query, keys, summary.to(value.dtype), scale)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend with the weights in memory, which landmarks keep few of; the library's call has no further derivatives."""
    scores = (query @ key.transpose(-2, -1)).to(compute_dtype(query.dtype)) * scale
    return torch.softmax(scores, -1).to(value.dtype) @ value


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """Approach the inverse of square matrices of nonnegative numbers by the iteration of the paper (equation 11)."""
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    rows, columns = matrix.sum(-1).amax(-1), matrix.sum(-2).amax(-1)
    found = matrix.transpose(-2, -1) / (rows * columns)[..., None, None]
    for _ in range(PINV_STEPS):
        product = matrix @ found
        found = found @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
    return found
