"""The products around low-rank keys and values in both orders with their prices, and what a cache keeps of a token."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from attnc.explanation_forms import feature_count
from attnc.ir.program import NormalizeKind
from attnc.plan.latents import LatentPlan, latent_orders
from attnc.plan.layer_caches import Kept
from attnc.plan.layer_plan import ELEMENT_SIZE, LayerPlan


@dataclass(frozen=True, slots=True)
class OrderPrice:
    """One order of the products around the upper factor of keys or values, for one batch entry.

    Attributes:
        form: `absorb` or `expand`.
        products: as a formula.
        flops: useful operations, a multiply-add being two.
        bytes: least traffic, what lies between two products written and read.
        chosen: whether it is taken at these lengths.
    """

    form: str
    products: str
    flops: int
    bytes: int
    chosen: bool

    def as_json(self) -> dict[str, Any]:
        """Return one entry of `whole` or `step`."""
        return {
            "form": self.form,
            "products": self.products,
            "flops": self.flops,
            "bytes": self.bytes,
            "chosen": self.chosen,
        }


@dataclass(frozen=True, slots=True)
class LatentPrices:
    """Low-rank keys or values in numbers.

    Attributes:
        whole: prices where all tokens are queries, the order that is taken first; empty where there is one order.
        step: prices where one token is, the others being in a cache.
    """

    plan: LatentPlan
    whole: tuple[OrderPrice, ...]
    step: tuple[OrderPrice, ...]

    def as_json(self) -> dict[str, Any]:
        """Return one entry of `latents`."""
        return {
            "name": self.plan.name,
            "rank": self.plan.rank,
            "expanded_because": self.plan.expanded_because,
            "whole": [one.as_json() for one in self.whole],
            "step": [one.as_json() for one in self.step],
        }


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What a layer keeps of the tokens so far, in numbers of one batch entry.

    Attributes:
        kept: `keys`, `sums` or `nothing`.
        per_token: what each token adds.
        of_heads: what keys and values of all heads would add.
        once: what there is whatever the number of tokens.
        call_of: as that of a `CachePlan`.
    """

    kept: str
    per_token: int
    of_heads: int
    once: int
    refused_because: str
    call_of: str

    def as_json(self) -> dict[str, Any]:
        """Return what `explain --json` prints of it."""
        return {
            "kept": self.kept,
            "numbers_per_token": self.per_token,
            "numbers_of_heads": self.of_heads,
            "numbers": self.once,
            "refused_because": self.refused_because,
            "call_of": self.call_of,
        }


def latent_prices(plan: LayerPlan, length: int) -> tuple[LatentPrices, ...]:
    """Return the prices of both orders for each of the low-rank keys and values of a layer."""
    found = []
    for one in plan.latents:
        whole, step = ((_prices(plan, one, count, length) if one.is_choice else ()) for count in (length, 1))
        found.append(LatentPrices(one, whole, step))
    return tuple(found)


def cache_size(plan: LayerPlan) -> CacheSize:
    """Return what a layer keeps of the tokens so far."""
    sizes, cache = plan.sizes, plan.cache
    heads = 2 * sizes.kv_heads * sizes.head_size
    once = 0
    if cache.kept is Kept.SUMS:
        operation = plan.attention.operation
        width = sizes.head_size + (operation.normalize.kind is NormalizeKind.ROWS)
        once = prod((sizes.heads, feature_count(operation.feature, sizes.head_size), width))
    return CacheSize(cache.kept.value, cache.numbers, heads, once, cache.refused_because, cache.call_of)


def _prices(plan: LayerPlan, one: LatentPlan, queries: int, keys: int) -> tuple[OrderPrice, ...]:
    orders = latent_orders(one, plan.sizes, plan.growth, queries, keys)
    return tuple(
        OrderPrice(
            order.form,
            order.products,
            round(order.cost.flops),
            round(order.cost.elements * ELEMENT_SIZE),
            place == 0,
        )
        for place, order in enumerate(orders)
    )
