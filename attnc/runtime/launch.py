"""The host's side of a generated Triton kernel: layouts, strides, tiles, numbers; no kernel is chosen by measuring.

A generated launcher calls `start_launch`, reads its inputs with `read_tables`, runs its kernel on what both return, and
ends with `finish_launch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from attnc.runtime.dropout import Dropout
from attnc.runtime.row_orders import PLAIN_ROWS, GridRows, RowOrder
from attnc.runtime.tensor_rows import are_describable, in_rows
from attnc.runtime.tiles import (
    BY_HEADS,
    FEW_ROWS,
    IN_TURNS,
    Tiles,
    TileTable,
    are_tiles_assumed,
    count_programs,
    count_shares,
    count_turn,
    padded,
)
from attnc.runtime.tuned import tiles_of_launch

LOG2_E = math.log2(math.e)

LONGEST = 2**30 - 1024
"""Most queries or keys: kernels count positions, those of a last incomplete tile included, below 2**30."""

LEAST_CHUNK = 16
"""Keys that a second walk takes at once where nothing else needs registers."""

MOST_PROGRAMS = 2**31 - 1


@dataclass(slots=True)
class Launch:
    """Arguments of one kernel launch.

    Attributes:
        query, key, value, out: as the caller's, with a contiguous last dimension, or with zeros behind it.
        target_out: where the caller wants `out`; differs from `out` where that is longer, or the caller's is strided.
        lse, total: what is kept of each row, contiguous; None where nothing is.
        written_lse, target_lse: memory of both, and where the caller wants it.
        qk_scale: factor on the dot product, base 2 included, not negative.
        D, head_size, value_size: the caller's head size; those of the tensors above.
        block_d, block_v: head sizes padded to powers of two.
        chunk_n, chunk_v: keys, and columns of the value, that a second walk takes at once: such that it does not need
            more registers than the first.
        wide_tables: whether an element of some input lies beyond 32-bit offsets.
        kept_out, kept_m, kept_l: what a call's kernels hand on: sums of weighted values, maxima, sums of weights.
        shares: programs that take turns at the keys of the same rows and leave sums; with 1 each has rows of its own.
        joined: how many programs have left sums of the same rows, to be joined instead of walking keys; 0 for none.
        part_out, part_m, part_l: sums that such programs leave.
        seed, drop_below, keep_scale: of dropout; None without.
        row_start, row_end: the rows of this launch, where a kernel takes them: all of them or some.
        turn: heads, or classes of their rows, that take turns at starting a tile of rows each.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    target_out: Tensor
    lse: Tensor | None
    total: Tensor | None
    written_lse: Tensor | None
    target_lse: Tensor | None
    tiles: Tiles
    grid: tuple[int]
    qk_scale: float
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
    chunk_n: int
    chunk_v: int = 16
    wide_tables: bool = False
    kept_out: Tensor | None = None
    kept_m: Tensor | None = None
    kept_l: Tensor | None = None
    shares: int = 1
    joined: int = 0
    part_out: Tensor | None = None
    part_m: Tensor | None = None
    part_l: Tensor | None = None
    row_start: int = 0
    row_end: int = 0
    turn: int = 1
    seed: Tensor | None = None
    drop_below: int = 0
    keep_scale: float = 1.0

    @property
    def all_registers(self) -> bool:
        """Whether the kernel may use all registers, see `compile_options`."""
        return self.joined > 0

    @property
    def persistent(self) -> int:
        """Programs for each multiprocessor that get several tiles of rows; those that share keys have one each."""
        return self.tiles.persistent if self.shares == 1 and not self.joined else 0

    @property
    def fused(self) -> bool:
        """Whether loops are fused: masked dot products are minus infinity there, and times 0 they would be NaN."""
        return self.tiles.fused and self.qk_scale > 0


class TableReader(Protocol):
    """What `read_tables` needs to know of a launch."""

    query: Tensor
    B: int
    H: int
    wide_tables: bool


def start_launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor | None,
    *,
    scale: float | None,
    precision: str | None,
    tiles: TileTable,
    kernel: str,
    base_2: bool,
    dropout: Dropout | None = None,
    order: RowOrder | GridRows = PLAIN_ROWS,
    most_keys: int = LONGEST,
    uneven: bool = False,
) -> Launch | None:
    """Prepare a launch; None if there is nothing to compute.

    Args:
        query: `(B, H, N, D)`, any strides.
        key: `(B, G, M, D)`, `G` dividing `H`.
        value: `(B, G, M, E)`.
        out: `(B, H, N, E)`, written in place.
        lse: `(B, H, N)` float32, written in place: the log-sum-exp, or the sum of weights; or `(2, B, H, N)` for the
            maximum and the sum; or None.
        scale: the caller's factor on the dot product.
        precision: of float32 products: `ieee` (the default) or `tf32`.
        tiles: the kernel's table of tiles.
        kernel: what tuned tiles know it by.
        base_2: whether scores are in base 2.
        dropout: of weights.
        order: of the kernel's rows.
        most_keys: about how many keys a program visits at most.
        uneven: whether rows become longer or shorter along the sequence.

    Raises:
        ValueError: a size or the number of programs exceeds what a kernel can count.
    """
    batch, heads, queries, head_size = query.shape
    keys, value_size = key.shape[2], value.shape[3]
    check_lengths(queries, keys)
    if out.numel() == 0:
        return None
    query, key, value, written = in_rows(query, key, value, out)
    cut = _cut_grid((kernel, tiles), (query, key, value), order, most_keys, uneven)
    query, factor = _with_factor(query, head_size**-0.5 if scale is None else float(scale))
    written_lse = None if lse is None else lse.contiguous()
    kept, total = _parts_of_state(written_lse)
    return Launch(
        query=query,
        key=key,
        value=value,
        out=written,
        target_out=out,
        lse=kept,
        total=total,
        written_lse=written_lse,
        target_lse=lse,
        tiles=cut.tiles,
        grid=(cut.programs,),
        qk_scale=factor * LOG2_E if base_2 else factor,
        scale_given=scale is not None,
        precision=precision_of(query, precision),
        B=batch,
        H=heads,
        N=queries,
        M=keys,
        D=head_size,
        g=heads // key.shape[1],
        head_size=query.shape[3],
        value_size=value.shape[3],
        block_d=padded(head_size),
        block_v=padded(value_size),
        chunk_n=_chunk(padded(max(head_size, value_size)), cut.tiles),
        shares=cut.shares,
        turn=cut.turn,
        row_end=queries,
        **dropout_numbers(dropout),
    )


def _with_factor(query: Tensor, factor: float) -> tuple[Tensor, float]:
    """Return queries and a factor that is not negative: kernels take it out of the maximum of a row."""
    return (-query, -factor) if factor < 0 else (query, factor)


def check_lengths(queries: int, keys: int) -> None:
    """Raise ValueError where a kernel cannot count so many."""
    if max(queries, keys) > LONGEST:
        raise ValueError(f"a kernel takes up to {LONGEST} queries and keys, these are {queries} and {keys}")


def _parts_of_state(state: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return where maxima and sums of rows go, if both are kept; else the same place for either."""
    if state is not None and state.dim() == 4:
        return state[0], state[1]
    return state, state


def dropout_numbers(dropout: Dropout | None) -> dict[str, Any]:
    """Return what a launch knows of dropout, by field."""
    if dropout is None:
        return {}
    return {"seed": dropout.seed, "drop_below": dropout.below, "keep_scale": dropout.factor}


def next_launch(
    call: Launch,
    *,
    tiles: TileTable,
    kernel: str,
    order: RowOrder | GridRows = PLAIN_ROWS,
    most_keys: int = LONGEST,
    uneven: bool = False,
) -> Launch:
    """Prepare the launch of the next kernel of the same call, with tiles and an order of rows of its own.

    Raises:
        ValueError: it needs more programs than a launch may have.
    """
    cut = _cut_grid((kernel, tiles), (call.query, call.key, call.value), order, most_keys, uneven)
    chunk = _chunk(max(call.block_d, call.block_v), cut.tiles)
    return replace(call, tiles=cut.tiles, grid=(cut.programs,), chunk_n=chunk, shares=cut.shares, turn=cut.turn)


def keep_sums(call: Launch, *, rows: int) -> None:
    """Give the kernels of one call memory for what they hand on to each other: float32, nothing in it yet.

    Args:
        call: the first launch, before the next one is made from it.
        rows: how many numbers each row has besides its unnormalised output: 2 for the maximum and the sum of a
            softmax, 1 for a sum alone, or 0.
    """
    call.kept_out, call.kept_m, call.kept_l = _new_sums(call, (call.B, call.H, call.N), rows)


@dataclass(frozen=True, slots=True)
class Begun:
    """What a library has made of some of the keys of rows that follow each other.

    Attributes:
        first: of the rows.
        out: weighted means of the values `(B, H, rows, E)`.
        lse: log-sum-exps `(B, H, rows)`, float32; each row has a key.
    """

    first: int
    out: Tensor
    lse: Tensor


def begin_sums(call: Launch, begun: Begun) -> None:
    """Give the first kernel of a call what a library has summed, as if a kernel had: softmax, scores in base 2.

    Args:
        call: with memory from `keep_sums`.
        begun: as it comes from the library; a mean with its log-sum-exp is a sum whose weights come to 1.
    """
    kept_out, kept_m, kept_l = call.kept_out, call.kept_m, call.kept_l
    assert kept_out is not None
    assert kept_m is not None
    assert kept_l is not None
    rows, value_size = begun.out.shape[2:]
    past = begun.first + rows
    if value_size < call.value_size:
        kept_out.zero_()
    for start, stop in ((0, begun.first), (past, call.N)):
        if start < stop:
            kept_out.narrow(2, start, stop - start).zero_()
            kept_m.narrow(2, start, stop - start).fill_(-math.inf)
            kept_l.narrow(2, start, stop - start).zero_()
    kept_out.narrow(2, begun.first, rows).narrow(3, 0, value_size).copy_(begun.out)
    kept_m.narrow(2, begun.first, rows).copy_(begun.lse * LOG2_E)
    kept_l.narrow(2, begun.first, rows).fill_(1.0)


def launch_steps(call: Launch, *, rows: int, long_rows: int = 0) -> tuple[Launch, ...]:
    """Return what a kernel is launched with: once, or for shares of the keys of all rows and then for joining those.

    Args:
        call: the launch of the kernel.
        rows: see `keep_sums`.
        long_rows: how many of the first rows have many more keys than the others. They are computed first, by programs
            that share their keys, where there are programs to spare.
    """
    if call.shares > 1:
        return _shared(call, rows)
    end = -(-long_rows // FEW_ROWS) * FEW_ROWS
    if not 0 < end < call.N:
        return (call,)
    few = replace(call.tiles, query=FEW_ROWS, key=min(call.tiles.key, 64), warps=4, chunk=16, persistent=0)
    heads = call.B * call.H
    programs = end // FEW_ROWS * heads
    shares = count_shares(few, programs, call.M, call.query.device)
    if shares == 1:
        return (call,)
    chunk = _chunk(max(call.block_d, call.block_v), few)
    first = replace(call, tiles=few, grid=(programs,), chunk_n=chunk, shares=shares, row_end=end)
    started = count_programs(call.tiles, -(-(call.N - end) // call.tiles.query) * heads, call.query.device)
    others = replace(call, grid=(started,), row_start=end)
    return (*_shared(first, rows), others)


def _shared(call: Launch, rows: int) -> tuple[Launch, Launch]:
    """Return the launch of programs that share keys, and that of what joins their sums."""
    out, maxima, sums = _new_sums(call, (call.grid[0] * call.shares, call.tiles.query), rows)
    share = replace(call, grid=(call.grid[0] * call.shares,), part_out=out, part_m=maxima, part_l=sums)
    return share, replace(share, grid=call.grid, chunk_n=LEAST_CHUNK, shares=1, joined=call.shares)


def _new_sums(call: Launch, shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return memory for sums of weighted values, maxima and sums of weights; `rows` as in `keep_sums`."""
    out = call.query.new_empty((*shape, call.value_size), dtype=torch.float32)
    sums = [call.query.new_empty(shape, dtype=torch.float32) if rows > count else None for count in (1, 0)]
    return out, sums[0], sums[1]


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a launch is cut: programs with rows of their own, how many share the keys of each, and who takes turns.

    Programs are as many as tiles of rows, or fewer, which get several tiles each.
    """

    tiles: Tiles
    programs: int
    shares: int
    turn: int


def _cut_grid(
    kernel: tuple[str, TileTable],
    tensors: tuple[Tensor, Tensor, Tensor],
    order: RowOrder | GridRows,
    most_keys: int,
    uneven: bool,
) -> _Cut:
    """Choose tiles, count the programs, and choose how many share keys, and how many take turns."""
    query, key, value = tensors
    batch, heads, queries, head_size = query.shape
    rows = order.most(queries)
    describable = are_describable((key, value), rows=queries, heads=heads * batch)
    width = max(padded(head_size), padded(value.shape[3]))
    chosen = tiles_of_launch(*kernel, tensors, rows, descriptors=describable)
    if order != PLAIN_ROWS and not are_tiles_assumed() and width <= 128:
        # A class or a few runs may have far fewer rows than a tile. Of large heads, kernels with fewer rows spill.
        few = next((size for size in (16, 32, 64) if rows <= size < chosen.query), chosen.query)
        if few * width <= 32 * 64 and few < chosen.query:
            chosen = replace(chosen, query=few, warps=4, chunk=16)
        chosen = replace(chosen, query=few)
    if isinstance(order, GridRows):
        if rows > LONGEST:
            raise ValueError(f"a kernel takes up to {LONGEST} points of a grid, these {queries} queries have {rows}")
        chosen = replace(chosen, query=min(chosen.query, order.rows))
    classes = order.classes(queries)
    programs = classes * -(-rows // chosen.query) * heads * batch
    if programs > MOST_PROGRAMS:
        raise ValueError(f"a launch has up to {MOST_PROGRAMS} programs, this one needs {programs}")
    keys = min(-(-key.shape[2] // classes), most_keys)
    together, walked = heads // key.shape[1] * classes, key.shape[2] * (key.shape[3] + value.shape[3])
    launched = chosen.order or (IN_TURNS if uneven else BY_HEADS)
    shares = count_shares(chosen, programs, keys, query.device)
    started = count_programs(chosen, programs, query.device) if shares == 1 else programs
    dealt = started if shares == 1 and chosen.persistent else 0
    size = walked * key.element_size()
    turn = count_turn(launched, classes * heads * batch, together, size, query.device, dealt=dealt)
    return _Cut(chosen, started, shares, turn)


def _chunk(width: int, tiles: Tiles) -> int:
    """Return how many keys a second walk takes at once."""
    return tiles.chunk or (16 if width > 128 and tiles.key > 16 else 32)


def finish_launch(call: Launch) -> None:
    """Copy results to where the caller wants them, if the kernel could not write there."""
    if call.out is not call.target_out:
        call.target_out.copy_(call.out[..., : call.target_out.shape[3]])
    if call.written_lse is not None and call.target_lse is not None and call.written_lse is not call.target_lse:
        call.target_lse.copy_(call.written_lse)


def read_tables(
    call: TableReader, inputs: Sequence[Any], broadcast: Sequence[Sequence[str]]
) -> tuple[Tensor | float | int, ...]:
    """Prepare inputs and learned tensors for a kernel.

    Args:
        call: the launch that they are for; learns whether their offsets need 64 bits.
        inputs: tensors and numbers in the order of declaration.
        broadcast: per input, `B`, `H` or nothing per dimension: a dimension of size 1 is expanded to that size.

    Returns:
        Tensors on the query's device, int tensors of 32 or 64 bits; scalars as numbers, or as tensors of one element
        where they stand on the device already (no synchronisation).
    """
    sizes = {"B": call.B, "H": call.H}
    found: list[Tensor | float | int] = []
    for given, letters in zip(inputs, broadcast, strict=True):
        if not letters:
            found.append(_number(given, call.query.device))
            continue
        pairs = zip(letters, given.shape, strict=True)
        table = given.expand([sizes.get(letter, size) if size == 1 else size for letter, size in pairs])
        found.append(table.to(torch.int32) if table.dtype in (torch.uint8, torch.int8, torch.int16) else table)
    call.wide_tables = any(isinstance(table, Tensor) and _extent(table) >= 2**31 for table in found)
    return tuple(found)


def precision_of(query: Tensor, precision: str | None) -> str:
    """Only products of float32 have a choice, and only some targets have TF32."""
    if query.dtype != torch.float32 or precision is None:
        return "ieee"
    return precision


def _number(given: Any, device: torch.device) -> Tensor | float | int:
    if isinstance(given, Tensor):
        if given.device == device and device.type != "cpu":
            return given
        given = given.item()
    return int(given) if isinstance(given, bool) else given


def _extent(table: Tensor) -> int:
    """Return a bound on offsets of elements from the first one."""
    return sum((size - 1) * abs(stride) for size, stride in zip(table.shape, table.stride(), strict=True))
