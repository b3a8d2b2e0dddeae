"""Logarithms of a scan's weights: running maxima that keep every exponent at 0 or below.

A weight is `exp(row log + key log)`, at most 1 where a row sees a key, while either log alone may be in the thousands.
Sums over the keys before a row are therefore kept times `exp(-reference)`, where the reference is the greatest log of
those keys: what is added has exponents at most 0, and so has what a row makes of it. Differences are taken in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST_LOG = -1e300
"""Stands for the log of 0 where logs are subtracted from each other; in float32 it is minus infinity."""


@dataclass(frozen=True, slots=True)
class ScanLogs:
    """Logs of the weights of a scan, `(B or 1, H or 1, N)` of float64.

    Attributes:
        rows: of rows.
        keys: of keys; minus infinity leaves a key out.
        start: of the state that the scan starts from, `(B or 1, H or 1)`.
    """

    rows: Tensor
    keys: Tensor
    start: Tensor

    @classmethod
    def of(
        cls, rows: Tensor | None, keys: Tensor | None, start: Tensor | None, like: Tensor, *, has_state: bool
    ) -> ScanLogs | None:
        """Return logs with 0 where none are given; None where there are none at all.

        Args:
            rows: of rows.
            keys: of keys.
            start: of a state.
            like: a tensor `(B, *, N, *)` on the device.
            has_state: whether the scan starts from a state.
        """
        if rows is None and keys is None and start is None:
            return None
        options = {"dtype": torch.float64, "device": like.device}
        zeros = torch.zeros((1, 1, like.shape[2]), **options)  # type: ignore[call-overload]
        rows = zeros if rows is None else rows.double()
        if start is None:
            none = 0.0 if has_state or keys is None else LOWEST_LOG
            start = torch.full((1, 1), none, **options)  # type: ignore[call-overload]
        return cls(rows, zeros if keys is None else keys.double(), start.double().clamp(min=LOWEST_LOG))


def running_references(logs: ScanLogs, chunk: int, reverse: bool) -> Tensor:
    """Return the reference of the sums that each chunk starts from, in the order of the walk, and of the last sums.

    Returns:
        `(B or 1, H or 1, C + 1)`, never falling, at least `LOWEST_LOG`.
    """
    greatest = chunk_maxima(logs.keys, chunk)
    if reverse:
        greatest = greatest.flip(-1)
    batch, heads = (max(sizes) for sizes in zip(greatest.shape[:2], logs.start.shape, strict=True))
    first = logs.start.expand(batch, heads).unsqueeze(-1)
    return torch.cat([first, greatest.expand(batch, heads, -1)], -1).cummax(-1).values


def chunk_maxima(keys: Tensor, chunk: int) -> Tensor:
    """Return the greatest log of each chunk of keys, the last of which may be short."""
    length = keys.shape[-1]
    whole = length - length % chunk
    found = torch.unflatten(keys[..., :whole], -1, (whole // chunk, chunk)).amax(-1)
    if whole < length:
        found = torch.cat([found, keys[..., whole:].amax(-1, keepdim=True)], -1)
    return found


def weights_of(exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `exp` of float64 exponents at most 0, in another type."""
    return exponents.to(dtype).exp()
