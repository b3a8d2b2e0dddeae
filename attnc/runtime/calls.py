"""A call on a CPU: its tensors in the precision and layout that they are computed in."""

from __future__ import annotations

import ctypes
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

import torch
from torch import Tensor

from attnc.runtime.blocks import LazyTables, compute_dtype, head_pairs
from attnc.runtime.dropout import Dropout
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.program import Program

_LARGEST_KEY = 1 << 22
"""Most elements of a table that is identified by its values."""

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: tensors in the precision that they are computed in, last dimension contiguous.

    Attributes:
        query: `[B, G, g, N, D]`.
        key, value: `[B, G, M, D]`, `[B, G, M, E]`.
        heads: coordinates of all heads.
        scale: the call's own factor on the dot product.
        dropout: of weights; None for none.
        seen: what identifies the values of tables, as far as that was asked for.
    """

    program: Program
    sizes: Sizes
    query: Tensor
    key: Tensor
    value: Tensor
    heads: Pairs
    scale: float | None
    dropout: Dropout | None = None
    seen: dict[str, tuple[object, ...] | None] = field(default_factory=dict, compare=False)


def make_call(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: Sequence[Tensor],
    scale: float | None,
    dropout: Dropout | None,
) -> Call:
    """Prepare checked arguments: nothing is copied but what has to be."""
    program = program.at(query.shape[2], key.shape[2])
    sizes, groups = call_sizes(query, key, value), key.shape[1]
    dtype = compute_dtype(query.dtype)
    query, key, value = (_ready(tensor, dtype) for tensor in (query, key, value))
    tables = LazyTables(program, inputs, sizes)
    at = head_pairs(program, sizes, tables, dtype, query.device)
    return Call(program, sizes, torch.unflatten(query, 1, (groups, sizes.g)), key, value, at, scale, dropout)


def call_sizes(query: Tensor, key: Tensor, value: Tensor) -> Sizes:
    """Return the sizes of checked tensors."""
    batch, heads, queries, head_size = query.shape
    return Sizes(batch, heads, queries, key.shape[2], head_size, heads // key.shape[1], value.shape[3])


def _ready(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def tables_of(call: Call) -> Mapping[str, Tensor]:
    """Return the tables of a call by name, expanded."""
    return call.heads.tables


def contents(call: Call, names: Iterable[str]) -> tuple[object, ...] | None:
    """Identify the values of some tables of a call, summaries by what they summarise; None if they are too many."""
    tables, sources = call.heads.tables, {name: position for name, position, _ in call.program.summaries}
    found = []
    for name in sorted({call.program.tensors[sources[name]].name if name in sources else name for name in names}):
        if name not in call.seen:
            call.seen[name] = _content(tables[name])
        found.append(call.seen[name])
    return None if None in found else tuple(found)


def _content(table: Tensor) -> tuple[object, ...] | None:
    """Identify the values of a table on the CPU; None if they are too many."""
    for axis in range(table.dim()):
        if table.stride(axis) == 0:
            table = table.narrow(axis, 0, 1)
    if table.numel() > _LARGEST_KEY:
        return None
    own = table.contiguous()
    values = ctypes.string_at(own.data_ptr(), own.nbytes)
    return table.dtype, table.shape, hashlib.blake2b(values, digest_size=16).digest()


class Store(Generic[Kept]):
    """What calls leave for later ones: what was used last, up to a limit of the sizes' sum."""

    def __init__(self, limit: int) -> None:
        self._limit, self._total = limit, 0
        self._kept: OrderedDict[object, tuple[Kept, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, name: object) -> Kept | None:
        """Return what has this name; None if it was not kept."""
        with self._lock:
            found = self._kept.get(name)
            if found is None:
                return None
            self._kept.move_to_end(name)
            return found[0]

    def put(self, name: object, value: Kept, size: int) -> None:
        """Keep a value, and let go of those that were not used for longest."""
        with self._lock:
            _, old = self._kept.pop(name, (None, 0))
            self._kept[name] = value, size
            self._total += size - old
            while self._total > self._limit:
                _, (_, old) = self._kept.popitem(last=False)
                self._total -= old
