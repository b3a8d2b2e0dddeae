"""Arguments that only attentions with a decomposition take: states, seeds of features, numbers of original keys."""

from __future__ import annotations

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype
from attnc.runtime.checks import kind_of
from attnc.runtime.decomposition import Decomposition
from attnc.runtime.linear import State
from attnc.runtime.pairs import Sizes
from attnc.runtime.program import Program
from attnc.runtime.shorten import Shortening


def check_original(given: object, keys: int, shorten: Shortening) -> int:
    """Return the number of original keys, which must give so many shortened ones."""
    least = shorten.least(keys) if given is None else given
    if least is None:
        raise ValueError(f"M is {keys}, which `keys {shorten.form}` never gives")
    if isinstance(least, bool) or not isinstance(least, int):
        raise TypeError(f"K is {kind_of(given)}, expected an int or None")
    if shorten.count(least) != keys:
        raise ValueError(f"K is {least}, which gives {shorten.count(least)} keys, and M is {keys}")
    return least


def check_feature_seed(seed: object) -> int | None:
    """Return the seed of random features."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"feature_seed is {kind_of(seed)}, expected an int or None")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"feature_seed is {seed}, expected an int of 64 bits")
    return seed


def check_turns(decomposition: Decomposition, head_size: int) -> None:
    """Raise ValueError where pairs of elements are turned and one is left over."""
    if any(step.form == "rotary" for step in decomposition.prepare) and head_size % 2:
        raise ValueError(f"query has head size {head_size}, expected an even one: `prepare rotary` turns pairs")


def check_carried(name: str, program: Program, decomposition: Decomposition, sizes: Sizes, dropout_p: float) -> None:
    """Raise ValueError where no state can stand for the positions before.

    Args:
        name: of the argument that asks for it.
        program: of the pairs.
        decomposition: what surrounds them; it has a causal linear form.
        sizes: of the call.
        dropout_p: probability of a weight to be dropped.
    """
    feature, linear = decomposition.feature, decomposition.linear
    if dropout_p:
        raise ValueError(f"{name}: weights cannot be dropped where they are never formed; dropout_p must be 0")
    if feature is not None and feature.form == "cosformer":
        raise ValueError(f"{name}: the features of `cosformer` depend on the number of all keys")
    if linear is not None and linear.lengths:
        raise ValueError(
            f"{name}: the weights of {program.name} depend on {linear.lengths}, which is of one call, and not of the "
            "whole sequence; a state carries weights of positions alone, and tables of any length (`[?]`)"
        )
    if sizes.N > sizes.M:
        raise ValueError(f"query has {sizes.N} rows, expected at most the {sizes.M} keys with {name}")


def check_state(state: object, program: Program, decomposition: Decomposition, sizes: Sizes, query: Tensor) -> int:
    """Hold a state against a call; return the positions that it stands for.

    Raises:
        TypeError: it is no state, or has anything else in it than one does.
        ValueError: it is of another shape, device or dtype than the call's would be.
    """
    if not isinstance(state, State):
        raise TypeError(f"state is {kind_of(state)}, expected what an earlier call returned, or None")
    if not isinstance(state.memory, Tensor):
        raise TypeError(f"state has a memory that is {kind_of(state.memory)}, expected a tensor")
    feature = decomposition.feature
    features = sizes.D if feature is None else feature.size(sizes.D)
    wanted = (sizes.B, sizes.H, features, sizes.value_size + (program.normalize == "rows"))
    if tuple(state.memory.shape) != wanted:
        raise ValueError(f"state has a memory of shape {tuple(state.memory.shape)}, expected {wanted}")
    _check_part("memory", state.memory, query, compute_dtype(query.dtype))
    if state.log is not None:
        if not isinstance(state.log, Tensor):
            raise TypeError(f"state has a log that is {kind_of(state.log)}, expected a tensor or None")
        heads, batch = (1, sizes.H), (1, sizes.B)
        if state.log.dim() != 2 or state.log.shape[0] not in batch or state.log.shape[1] not in heads:
            shape = tuple(state.log.shape)
            raise ValueError(f"state has a log of shape {shape}, expected {(sizes.B, sizes.H)} or 1 for either")
        _check_part("log", state.log, query, torch.float64)
    if isinstance(state.length, bool) or not isinstance(state.length, int):
        raise TypeError(f"state has a length that is {kind_of(state.length)}, expected an int")
    if state.length < 0:
        raise ValueError(f"state has a length of {state.length}, expected at least 0")
    return state.length


def _check_part(name: str, part: Tensor, query: Tensor, least: torch.dtype) -> None:
    if part.device != query.device:
        raise ValueError(f"state is on {part.device}, but query is on {query.device}: they must agree")
    if part.dtype not in (least, torch.float64):
        told = str(part.dtype).removeprefix("torch.")
        raise ValueError(f"state has a {name} of {told}, expected {str(least).removeprefix('torch.')}")
