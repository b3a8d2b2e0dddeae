"""Shorter keys and values, and Nystrom's approximation, straight from LANGUAGE.md sections 8 and 10."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attnc.ir.program import Deferred

STEPS = 6


def shortened(keys: Deferred, rows: Tensor, weights: Tensor | None) -> Tensor:
    """Shorten keys or values `(B, G, K, D)`, key by key.

    `weights` are the learned filter `(D, kernel)` or `(D, kernel, kernel)`, the projection `(rank, length)`, or None.
    """
    length = rows.shape[2]
    if keys.form == "project":
        assert weights is not None
        return torch.einsum("rk,bgkd->bgrd", weights[:, :length].to(rows.dtype), rows)
    stride = int(keys.number("stride"))
    if keys.form == "conv2d":
        assert weights is not None
        return _grid(rows, weights.to(rows.dtype), int(keys.number("width")), int(keys.number("kernel")), stride)
    window = int(keys.number("window" if keys.form == "mean_pool" else "kernel"))
    found = []
    for first in range(0, length - window + 1, stride):
        part = rows[:, :, first : first + window]
        if weights is None:
            found.append(part.mean(2))
        else:
            found.append(torch.einsum("bgkd,dk->bgd", part, weights.to(rows.dtype)))
    return torch.stack(found, 2) if found else rows[:, :, :0]


def _grid(rows: Tensor, weights: Tensor, width: int, kernel: int, stride: int) -> Tensor:
    height = rows.shape[2] // width
    found = []
    for top in range(0, height - kernel + 1, stride):
        for left in range(0, width - kernel + 1, stride):
            places = [(top + down) * width + left + right for down in range(kernel) for right in range(kernel)]
            found.append(torch.einsum("bgkd,dk->bgd", rows[:, :, places], weights.flatten(1)))
    return torch.stack(found, 2) if found else rows[:, :, :0]


def approximated(asked: Deferred, query: Tensor, key: Tensor, value: Tensor, scale: float | Tensor) -> Tensor:
    """Compute the three softmaxes of Xiong et al., "Nystromformer" (2021), with six steps towards the inverse."""
    count = min(int(asked.number("landmarks")), query.shape[2], key.shape[2])
    queries, keys = _means(query, count), _means(key, count)
    first, middle, last = (
        torch.softmax(scale * left @ right.transpose(-2, -1), -1)
        for left, right in ((query, keys), (queries, keys), (queries, key))
    )
    return first @ _inverse(middle) @ (last @ value)


def _means(rows: Tensor, count: int) -> Tensor:
    """Average stretches of rows: row `r` belongs to landmark `r * count // N`."""
    owners = [row * count // rows.shape[2] for row in range(rows.shape[2])]
    found = [rows[:, :, [row for row, owner in enumerate(owners) if owner == one]].mean(2) for one in range(count)]
    return torch.stack(found, 2)


def _inverse(matrix: Tensor) -> Tensor:
    """Take six steps of `Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4` from `A^T / (|A|_1 |A|_inf)`."""
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    norms = torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(matrix, torch.inf)
    found: Tensor = matrix.transpose(-2, -1) / norms[..., None, None]
    for _ in range(STEPS):
        step = matrix @ found
        found = 0.25 * found @ (13 * one - step @ (15 * one - step @ (7 * one - step)))
    return found


def filters(keys: Deferred, tables: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Return what shortens keys and what shortens values."""
    if keys.form == "mean_pool":
        return None, None
    kind = "projection" if keys.form == "project" else "filter"
    return tables[f"key_{kind}"], tables[f"value_{kind}"]
