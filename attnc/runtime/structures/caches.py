"""What a layer keeps of the tokens so far, so that each is projected once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LayerCache(NamedTuple):
    """Keys and values of a layer, as it attends to them.

    Attributes:
        key: (B, kv_heads, M, head_size), turned to their positions already; (B, M, rank) latents where the layer may
            absorb the upper factor of its keys.
        value: the same of values.
        of_context: whether they come from a context, to which the tokens of later calls add nothing.
    """

    key: Tensor
    value: Tensor
    of_context: bool = False

    @property
    def length(self) -> int:
        """How many tokens there are keys of."""
        return self.key.shape[-2]


def cached_length(cache: LayerCache | None) -> int:
    """Return how many tokens are in a cache; 0 where there is none."""
    return 0 if cache is None else cache.length


def extend_cache(cache: LayerCache | None, key: Tensor, value: Tensor, of_context: bool) -> LayerCache:
    """Put keys and values behind those of a cache."""
    if cache is not None:
        key, value = torch.cat((cache.key, key), -2), torch.cat((cache.value, value), -2)
    return LayerCache(key, value, of_context)


def check_cache(
    layer: str,
    query: Tensor,
    cache: LayerCache | None,
    context: Tensor | None,
    return_cache: bool,
    *,
    key: tuple[int, ...],
    value: tuple[int, ...],
) -> None:
    """Hold a cache against a call.

    Args:
        layer: its name.
        query: of the call.
        cache: what was given.
        context: what was given.
        return_cache: what was given.
        key: heads and head size of what is kept of keys, or the rank of latents.
        value: the same of values.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the cache is one of another layer, batch, dtype or device, or of tokens where there is a context.
    """
    check_return_cache(layer, return_cache)
    if cache is None:
        return
    if not isinstance(cache, LayerCache):
        raise TypeError(f"{layer}: cache is {type(cache).__name__}, expected what an earlier call returned, or None")
    if context is not None and not cache.of_context:
        raise ValueError(f"{layer}: cache has the tokens of earlier calls, to which a context cannot be added")
    for name, tensor, wanted in (("key", cache.key, key), ("value", cache.value, value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{layer}: cache.{name} is {type(tensor).__name__}, expected a tensor")
        shape = tuple(tensor.shape)
        if (*shape[:-2], *shape[-1:]) != (query.shape[0], *wanted) or shape[-2] != cache.key.shape[-2]:
            expected = ", ".join(str(size) for size in (query.shape[0], *wanted[:-1], "M", wanted[-1]))
            raise ValueError(f"{layer}: cache.{name} has shape {shape}, expected ({expected})")
        if tensor.dtype != query.dtype:
            found, needed = (str(one.dtype).removeprefix("torch.") for one in (tensor, query))
            raise ValueError(f"{layer}: cache.{name} is {found}, but queries are {needed}: they must agree")
        if tensor.device != query.device:
            raise ValueError(f"{layer}: cache.{name} is on {tensor.device}, but x is on {query.device}")


def check_return_cache(layer: str, return_cache: object) -> None:
    """Raise TypeError where `return_cache` is no bool."""
    if not isinstance(return_cache, bool):
        raise TypeError(f"{layer}: return_cache is {type(return_cache).__name__}, expected a bool")


def refuse_cache(layer: str, cache: object, return_cache: bool, reason: str) -> None:
    """Raise ValueError where a layer that cannot go on from a cache is asked to."""
    check_return_cache(layer, return_cache)
    if cache is not None or return_cache:
        raise ValueError(f"{layer}: cache: {reason}")


torch.serialization.add_safe_globals([LayerCache])
