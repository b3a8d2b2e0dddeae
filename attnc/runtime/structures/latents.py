"""Low-rank keys and values, whose upper factor is multiplied with before pairs are weighed or behind them.

With latents `c = down x`, the keys of a head are `up c`, so that a score is `q . (up c)` or `(q up) . c`, and a sum of
values `sum of w (up c)` or `up (sum of w c)`. The first order *expands* all latents to heads; the second *absorbs* the
factor into queries and into what is attended, and all heads attend to the latents themselves (DeepSeek-AI,
*DeepSeek-V2*, 2024). Both are exact; which takes less work depends on the lengths of a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

PRODUCT_ORDERS = ("absorb", "expand")

_ORDERS_ASKED: list[str] = []
"""What `products_in_order` asks for; the last one counts."""


@dataclass(frozen=True, slots=True)
class LatentChain:
    """The products around the upper factor of keys or of values.

    Attributes:
        heads: of queries.
        kv_heads: of keys and values.
        head_size: of both.
        rank: numbers of a latent.
        density: share of all keys up to its own that a query sees, or of all keys where the mask is not `causal`.
        fixed: so many keys besides that a query sees, however many there are.
        causal: whether a query sees no later keys.
    """

    heads: int
    kv_heads: int
    head_size: int
    rank: int
    density: float = 1.0
    fixed: float = 0.0
    causal: bool = False

    def pairs(self, queries: int, keys: int) -> float:
        """Return about how many pairs of one head are allowed, the last query standing at the last key."""
        rows = min(queries, keys) if self.causal else queries
        before = keys - (rows - 1) / 2 if self.causal else keys
        return rows * min(before, self.fixed + self.density * before)

    def absorbs(self, queries: int, keys: int) -> bool:
        """Tell whether it takes less work to absorb the upper factor than to expand so many latents."""
        if _ORDERS_ASKED:
            return _ORDERS_ASKED[-1] == "absorb"
        pairs, factor = self.heads * self.pairs(queries, keys), self.rank * self.head_size
        expanding = self.kv_heads * keys * factor + pairs * self.head_size
        return self.heads * queries * factor + pairs * self.rank < expanding


@contextmanager
def products_in_order(order: str) -> Iterator[None]:
    """Take all products in one order in this block, `absorb` or `expand`, whatever the lengths: for measurements."""
    if order not in PRODUCT_ORDERS:
        raise ValueError(f"order is {order!r}, expected 'absorb' or 'expand'")
    _ORDERS_ASKED.append(order)
    try:
        yield
    finally:
        _ORDERS_ASKED.pop()


def absorb_up(query: Tensor, up: Tensor, kv_heads: int) -> Tensor:
    """Multiply queries with the upper factor of their keys: (B, H, N, D) to (B, H, N, rank).

    Args:
        query: of H heads.
        up: (kv_heads * D, rank).
        kv_heads: heads of keys.
    """
    grouped = torch.unflatten(query, 1, (kv_heads, -1))
    return torch.einsum("bkgnd,kdr->bkgnr", grouped, torch.unflatten(up, 0, (kv_heads, -1))).flatten(1, 2)


def apply_up(attended: Tensor, up: Tensor, kv_heads: int) -> Tensor:
    """Multiply sums of latents with the upper factor of the values: (B, H, N, rank) to (B, H, N, D)."""
    grouped = torch.unflatten(attended, 1, (kv_heads, -1))
    return torch.einsum("bkgnr,kdr->bkgnd", grouped, torch.unflatten(up, 0, (kv_heads, -1))).flatten(1, 2)


def share_latents(latents: Tensor) -> Tensor:
    """Turn (B, M, rank) into one head that all queries share: (B, 1, M, rank), a view."""
    return latents.unsqueeze(1)


def match_heads(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Give keys and values as many heads as either has; what one head is shared by others is not copied."""
    heads = max(key.shape[1], value.shape[1])
    return key.expand(-1, heads, -1, -1), value.expand(-1, heads, -1, -1)
