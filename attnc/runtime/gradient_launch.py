"""The host's side of generated kernels of gradients.

A generated launcher calls `start_gradients`, reads its inputs with `read_tables`, cuts the grid of each of its kernels
with `cut_gradients`, and ends with `finish_gradients`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.runtime.dropout import Dropout
from attnc.runtime.launch import (
    LOG2_E,
    LONGEST,
    MOST_PROGRAMS,
    check_lengths,
    dropout_numbers,
    precision_of,
)
from attnc.runtime.row_orders import PLAIN_ROWS, GridRows, RowOrder
from attnc.runtime.tensor_rows import with_contiguous_rows
from attnc.runtime.tiles import BY_HEADS, FEW_ROWS, IN_TURNS, Tiles, TileTable, are_tiles_assumed, count_turn, padded
from attnc.runtime.tuned import tiles_of_launch


@dataclass(slots=True)
class GradientLaunch:
    """Arguments of the launch of a kernel of gradients.

    Attributes:
        query, key, value, grad_out: as the caller's, with a contiguous last dimension.
        tiles, grid: of the kernel.
        seed, drop_below, keep_scale: of dropout; None without.
        first_program: number of the first program of a strip.
        turn: as that of `Launch`.
        slots: tiles of keys that a program may visit, in strips.
        strip_rows, strip_keys, strip_heads: rows, keys of each slot, and heads of all batch entries that a strip's
            programs compute pairs of.
        apart: how far apart positions of rows, and of keys, of a tile are that follow each other; 0 if they vary.
        grad_query, grad_key, grad_value: written to, or added to.
        lse, total, delta: of each query, float32 `(B, H, N)`: what the forward pass kept, and what all gradients of a
            row's weights have in common; None where the pattern has none.
        qk_scale: factor on the dot product, base 2 included.
        query_scale, key_scale: what sums for queries and for keys are multiplied by in the end.
        D, head_size, value_size, block_d, block_v, chunk_n, chunk_v, wide_tables: as those of `Launch`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    grad_query: Tensor
    grad_key: Tensor
    grad_value: Tensor
    lse: Tensor | None
    total: Tensor | None
    delta: Tensor | None
    qk_scale: float
    query_scale: float
    key_scale: float
    scale_given: bool
    precision: str
    B: int
    H: int
    N: int
    M: int
    D: int
    g: int
    head_size: int
    value_size: int
    block_d: int
    block_v: int
    tiles: Tiles
    grid: tuple[int] = (0,)
    chunk_n: int = 16
    chunk_v: int = 16
    wide_tables: bool = False
    seed: Tensor | None = None
    drop_below: int = 0
    keep_scale: float = 1.0
    first_program: int = 0
    slots: int = 0
    strip_rows: Tensor | None = None
    strip_keys: Tensor | None = None
    strip_heads: Tensor | None = None
    apart: int = 0
    turn: int = 1

    @property
    def all_registers(self) -> bool:
        """Whether the kernel may use all registers, see `compile_options`."""
        return True


def start_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    state: Tensor | None,
    delta: Tensor | None,
    *,
    kept: str,
    scale: float | None,
    own_scale: bool,
    precision: str | None,
    base_2: bool,
    dropout: Dropout | None,
    add: tuple[bool, bool],
) -> GradientLaunch:
    """Prepare what all kernels of one call have in common, and memory for what they compute.

    Args:
        query: `(B, H, N, D)`, of the forward pass.
        key: `(B, G, M, D)`.
        value: `(B, G, M, E)`.
        grad_out: `(B, H, N, E)`.
        state: what the forward pass kept: `(B, H, N)`, or `(2, B, H, N)` for a maximum and a sum.
        delta: `(B, H, N)`.
        kept: what `state` is: `lse`, `peak`, `total` or nothing.
        scale: the caller's factor on the dot product.
        own_scale: whether the pattern has one. Where the caller gave none, gradients of queries are left without it.
        precision: as that of the forward pass.
        base_2: whether scores are in base 2.
        dropout: of weights.
        add: whether several kernels, or none, add to the gradients of a query, and of a key: they begin with 0 then.

    Raises:
        ValueError: a size exceeds what a kernel can count.
    """
    batch, heads, queries, head_size = query.shape
    keys, value_size = key.shape[2], value.shape[3]
    check_lengths(queries, keys)
    is_own = own_scale and scale is None
    natural = (head_size**-0.5 if scale is None else float(scale)) if not is_own else 1.0
    first, second = (None, None) if state is None else (state[0], state[1]) if kept == "peak" else (state, state)
    wide = torch.float32
    return GradientLaunch(
        query=with_contiguous_rows(query),
        key=with_contiguous_rows(key),
        value=with_contiguous_rows(value),
        grad_out=with_contiguous_rows(grad_out),
        grad_query=_new_gradient(query, add[0], wide if is_own or add[0] else query.dtype),
        grad_key=_new_gradient(key, add[1], wide if add[1] else key.dtype),
        grad_value=_new_gradient(value, add[1], wide if add[1] else value.dtype),
        lse=first.contiguous() if first is not None and kept != "total" else None,
        total=second.contiguous() if second is not None and kept != "lse" else None,
        delta=None if delta is None else delta.contiguous(),
        qk_scale=natural * LOG2_E if base_2 else natural,
        query_scale=natural,
        key_scale=(math.log(2.0) if base_2 else 1.0) if is_own else natural,
        scale_given=scale is not None,
        precision=precision_of(query, precision),
        B=batch,
        H=heads,
        N=queries,
        M=keys,
        D=head_size,
        g=heads // key.shape[1],
        head_size=head_size,
        value_size=value_size,
        block_d=padded(head_size),
        block_v=padded(value_size),
        tiles=Tiles(0, 0, warps=4, stages=1),
        **dropout_numbers(dropout),
    )


def _new_gradient(like: Tensor, starts_at_0: bool, dtype: torch.dtype) -> Tensor:
    """Return memory for a gradient."""
    make = torch.zeros if starts_at_0 else torch.empty
    return make(like.shape, dtype=dtype, device=like.device)


def cut_gradients(
    call: GradientLaunch,
    *,
    tiles: TileTable,
    kernel: str,
    of_keys: bool,
    order: RowOrder | GridRows = PLAIN_ROWS,
    uneven: bool = False,
) -> GradientLaunch:
    """Prepare the launch of one kernel.

    Args:
        call: of all kernels.
        tiles: the kernel's table of tiles.
        kernel: what tuned tiles know it by.
        of_keys: whether its rows are keys.
        order: of its rows.
        uneven: whether rows become longer or shorter along the sequence; the longest are started first.

    Raises:
        ValueError: it needs more programs than a launch may have.
    """
    count, heads = (call.M, call.H // call.g) if of_keys else (call.N, call.H)
    rows = order.most(count)
    chosen = tiles_of_launch(kernel, tiles, (call.query, call.key, call.value), LONGEST)
    own = chosen.key if of_keys else chosen.query
    if not are_tiles_assumed():
        own = next((size for size in (FEW_ROWS, 32) if rows <= size < own), own)
    if isinstance(order, GridRows):
        own = min(own, order.rows)
    chosen = replace(chosen, key=own) if of_keys else replace(chosen, query=own)
    classes = order.classes(count)
    programs = classes * -(-rows // own) * heads * call.B
    if programs > MOST_PROGRAMS:
        raise ValueError(f"a launch has up to {MOST_PROGRAMS} programs, this one needs {programs}")
    # a key head's queries are those of its whole group; the query heads of a group walk the same keys
    together, walked = (1, call.g * call.N) if of_keys else (call.g, call.M)
    size = walked * (call.head_size + call.value_size) * call.key.element_size()
    launched = chosen.order or (IN_TURNS if uneven else BY_HEADS)
    turn = count_turn(launched, classes * heads * call.B, together * classes, size, call.query.device)
    return replace(call, tiles=chosen, grid=(programs,), turn=turn)


def finish_gradients(call: GradientLaunch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; that of the query in float32 where a factor is still missing."""
    return call.grad_query, call.grad_key, call.grad_value
