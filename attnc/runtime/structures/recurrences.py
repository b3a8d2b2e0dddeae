"""Layers whose attention carries sums of keys along: these are all that they keep of the tokens so far."""

from __future__ import annotations

from torch import Tensor

from attnc.runtime.linear import State
from attnc.runtime.structures.caches import check_return_cache


def check_sums(layer: str, x: Tensor, cache: State | None, context: Tensor | None, return_cache: bool) -> None:
    """Hold a cache that is the state of an attention against a call.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the cache is one of another batch or device, or there is a context.
    """
    check_return_cache(layer, return_cache)
    if cache is not None and not isinstance(cache, State):
        raise TypeError(f"{layer}: cache is {type(cache).__name__}, expected what an earlier call returned, or None")
    if context is not None and (cache is not None or return_cache):
        raise ValueError(f"{layer}: cache has sums over the tokens of x, which the keys of a context are no part of")
    if cache is None:
        return
    if not isinstance(cache.memory, Tensor):
        raise TypeError(f"{layer}: cache.memory is {type(cache.memory).__name__}, expected a tensor")
    if cache.memory.dim() != 4 or cache.memory.shape[0] != x.shape[0]:
        raise ValueError(
            f"{layer}: cache has sums of shape {tuple(cache.memory.shape)}, expected {x.shape[0]} batch entries"
        )
    if cache.memory.device != x.device:
        raise ValueError(f"{layer}: cache is on {cache.memory.device}, but x is on {x.device}")


def summed_length(cache: State | None) -> int:
    """Return how many tokens the sums are over; 0 where there are none."""
    return 0 if cache is None else cache.length
