"""A call on a CPU, cut into parts: batch entries and heads that share a schedule, in the layout of blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from attnc.runtime.blocks import bind_tables, block_pairs, common_shape, compute_dtype, head_pairs
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.program import Formula, Program
from attnc.runtime.schedule import (
    BASE,
    FAR,
    FULL,
    MASK,
    MASK_ELEMENTS,
    NOTHING,
    Band,
    Cost,
    Schedule,
    far_form_of,
    is_shared,
    make_schedules,
    mask_period,
)
from attnc.runtime.views import band_keys, band_rows

_SCHEDULES: OrderedDict[object, tuple[Schedule, ...]] = OrderedDict()
_REMEMBERED = 64
_LARGEST_KEY = 4096

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


@dataclass(frozen=True, slots=True)
class Part:
    """The batch entries and heads of a call that share a schedule; `rows` are tensors `[B, G, g, N, ...]`."""

    call: Call
    schedule: Schedule
    query: Tensor
    key: Tensor
    value: Tensor
    heads: Pairs

    def of_rows(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor `[B, G, g, N, ...]`, as a view."""
        batch, groups, members = _slices(self.schedule, self.call.sizes)
        return tensor[batch, groups, members]

    def of_keys(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor `[B, G, M, ...]`, as a view."""
        batch, groups, _ = _slices(self.schedule, self.call.sizes)
        return tensor[batch, groups]


def make_call(
    program: Program, query: Tensor, key: Tensor, value: Tensor, inputs: Sequence[Tensor], scale: float | None
) -> Call:
    """Prepare checked arguments: nothing is copied but what has to be."""
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


def cut_call(call: Call, by_tiles: bool) -> Iterator[Part]:
    """Yield the parts of a call.

    Args:
        call: to be cut.
        by_tiles: weights will be materialised a block at a time; otherwise the flash operator computes them.
    """
    for schedule in _schedules(call, by_tiles):
        batch, groups, members = _slices(schedule, call.sizes)
        yield Part(
            call,
            schedule,
            call.query[batch, groups, members],
            call.key[batch, groups],
            call.value[batch, groups],
            _slice_pairs(call.heads, batch, groups, members),
        )


def _schedules(call: Call, by_tiles: bool) -> tuple[Schedule, ...]:
    program, sizes = call.program, call.sizes
    heads = sizes.B * sizes.H
    additive = program.bias is not None and not by_tiles
    kinds = (MASK, *range(len(program.intervals)))
    cost = Cost(
        pair=heads * (sizes.D + sizes.value_size),
        splits=tuple(
            (kind, 512 if mask_period(program, kind) or far_form_of(program, kind) else 128) for kind in kinds
        ),
        widest=max(64, MASK_ELEMENTS // (BASE * (sizes.H if additive else 1))),
        masks_everything=additive,
    )
    read = [call.heads.tables[name] for name in program.bound_tables]
    if sum(table.numel() for table in read) > _LARGEST_KEY:
        return make_schedules(program, sizes, call.heads.tables, cost)
    name = (program, sizes, cost, *(str(table.tolist()) for table in read))
    found = _SCHEDULES.get(name)
    if found is None:
        found = make_schedules(program, sizes, call.heads.tables, cost)
        remember(_SCHEDULES, name, found)
    return found


def remember(store: OrderedDict[object, Kept], name: object, value: Kept) -> None:
    """Keep a value for later calls, and let the oldest of many go."""
    store[name] = value
    if len(store) > _REMEMBERED:
        store.popitem(last=False)


def _slices(schedule: Schedule, sizes: Sizes) -> tuple[slice, slice, slice]:
    start, stop = schedule.heads
    if (stop - start) % sizes.g or start % sizes.g:
        return (
            slice(*schedule.batch),
            slice(start // sizes.g, start // sizes.g + 1),
            slice(start % sizes.g, start % sizes.g + 1),
        )
    return slice(*schedule.batch), slice(start // sizes.g, stop // sizes.g), slice(0, sizes.g)


def _slice_pairs(at: Pairs, batch: slice, groups: slice, members: slice) -> Pairs:
    def cut(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = tensor[batch] if tensor.shape[0] > 1 else tensor
        tensor = tensor[:, groups] if tensor.shape[1] > 1 else tensor
        return tensor[:, :, :, members] if tensor.shape[3] > 1 else tensor

    shift = at.shift
    if shift is not None and shift.dim() != 6:
        shift = shift.expand(1, 1, 1, 1, 1, 1)
    return replace(at, b=cut(at.b), h=cut(at.h), shift=cut(shift))


def row_values(call: Call, values: Tensor) -> Tensor:
    """Lay numbers of rows `[B, G, 1, g, N, 1]`, any of them 1, out as `[B, G, g, N]`."""
    batch, groups, members, queries, _ = call.query.shape
    return values.expand(batch, groups, 1, members, queries, 1).squeeze(-1).squeeze(2)


def band_pairs(part: Part, band: Band) -> Pairs:
    """Return the coordinates of all blocks of a band."""
    return block_pairs(part.heads, band_rows(band, False), band_keys(band, False))


def band_mask(part: Part, band: Band) -> Tensor | None:
    """Return the mask of a band, broadcastable to `[B, G, S, g, R, W]`; None where every pair is allowed."""
    if not band.masked:
        return None
    masks, offset = [], 0
    for width, kind in band.pieces:
        masks.append(_piece_mask(part, band.part(0, band.count, offset, width), kind))
        offset += width
    if len(masks) == 1:
        return masks[0]
    shape = common_shape(*(mask.shape[:5] for mask in masks))
    return torch.cat([mask.expand(*shape, mask.shape[5]) for mask in masks], -1)


def _condition(program: Program, kind: int) -> Formula | None:
    """Return what tells which pairs of a kind of piece are allowed; None for all or nothing."""
    if kind >= FAR + MASK:
        far = far_form_of(program, kind - FAR)
        return None if far is None else far.condition
    if kind in (FULL, NOTHING):
        return None
    return program.mask if kind == MASK else program.intervals[kind].residual


def _piece_mask(part: Part, piece: Band, kind: int) -> Tensor:
    program = part.call.program
    formula = _condition(program, kind)
    if formula is None:
        return torch.full((1, 1, 1, 1, piece.rows, piece.width), kind != NOTHING)
    shared = is_shared(piece, mask_period(program, kind))
    mask = formula(block_pairs(part.heads, band_rows(piece, shared), band_keys(piece, shared)))
    shape = (1, 1, 1 if shared else piece.count, 1, piece.rows, piece.width)
    return mask.expand(common_shape(mask.shape, shape))


def shrink(part: Part, most: int) -> Iterator[Part]:
    """Yield a part in pieces of at most so many query heads, all batch entries counted."""
    batch, groups, members = part.query.shape[:3]
    group_step = max(1, min(groups, most // members))
    batch_step = max(1, most // (groups * members)) if group_step == groups else 1
    for first in range(0, batch, batch_step):
        for start in range(0, groups, group_step):
            yield _piece(part, first, min(batch, first + batch_step), start, min(groups, start + group_step))


def _piece(part: Part, first: int, last: int, start: int, stop: int) -> Part:
    schedule, sizes = part.schedule, part.call.sizes
    if (last - first, stop - start) == part.query.shape[:2]:
        return part
    members = part.query.shape[2]
    origin = schedule.heads[0]
    heads = (origin + start * sizes.g, origin + stop * sizes.g) if members == sizes.g else schedule.heads
    batch = (schedule.batch[0] + first, schedule.batch[0] + last)
    rows, groups = slice(first, last), slice(start, stop)
    return Part(
        part.call,
        replace(schedule, batch=batch, heads=heads),
        part.query[rows, groups],
        part.key[rows, groups],
        part.value[rows, groups],
        _slice_pairs(part.heads, rows, groups, slice(None)),
    )


def tables_of(call: Call) -> Mapping[str, Tensor]:
    """Return the tables of a call by name, expanded."""
    return call.heads.tables
