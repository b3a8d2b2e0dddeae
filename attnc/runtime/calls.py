"""A call on a CPU: its tensors in the precision and layout that they are computed in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from attnc.runtime.blocks import bind_tables, compute_dtype, head_pairs
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.program import Program

_REMEMBERED = 64

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: tensors in the precision that they are computed in, last dimension contiguous.

    Attributes:
        query: `[B, G, g, N, D]`.
        key, value: `[B, G, M, D]`, `[B, G, M, E]`.
        heads: coordinates of all heads.
        scale: the call's own factor on the dot product.
    """

    program: Program
    sizes: Sizes
    query: Tensor
    key: Tensor
    value: Tensor
    heads: Pairs
    scale: float | None


def make_call(
    program: Program, query: Tensor, key: Tensor, value: Tensor, inputs: Sequence[Tensor], scale: float | None
) -> Call:
    """Prepare checked arguments: nothing is copied but what has to be."""
    program = program.at(query.shape[2], key.shape[2])
    sizes, groups = call_sizes(query, key, value), key.shape[1]
    dtype = compute_dtype(query.dtype)
    query, key, value = (_ready(tensor, dtype) for tensor in (query, key, value))
    tables = bind_tables(program, inputs, sizes)
    at = head_pairs(program, sizes, tables, dtype, query.device)
    return Call(program, sizes, torch.unflatten(query, 1, (groups, sizes.g)), key, value, at, scale)


def call_sizes(query: Tensor, key: Tensor, value: Tensor) -> Sizes:
    """Return the sizes of checked tensors."""
    batch, heads, queries, head_size = query.shape
    return Sizes(batch, heads, queries, key.shape[2], head_size, heads // key.shape[1], value.shape[3])


def _ready(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def row_values(call: Call, values: Tensor) -> Tensor:
    """Lay numbers of rows `[B, G, 1, g, N, 1]`, any of them 1, out as `[B, G, g, N]`."""
    batch, groups, members, queries, _ = call.query.shape
    return values.expand(batch, groups, 1, members, queries, 1).squeeze(-1).squeeze(2)


def tables_of(call: Call) -> Mapping[str, Tensor]:
    """Return the tables of a call by name, expanded."""
    return call.heads.tables


def remember(store: OrderedDict[object, Kept], name: object, value: Kept) -> None:
    """Keep a value for later calls, and let the oldest of many go."""
    store[name] = value
    if len(store) > _REMEMBERED:
        store.popitem(last=False)
