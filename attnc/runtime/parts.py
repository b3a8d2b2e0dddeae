"""A section, cut into parts: entries and heads that share a schedule, in the layout of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.runtime.bands import (
    FULL,
    MASK,
    NOTHING,
    Band,
    condition_of,
    far_form_of,
    follows_diagonals,
    is_shared,
    is_shared_by_classes,
    mask_period,
)
from attnc.runtime.blocks import block_pairs, common_shape
from attnc.runtime.calls import Call, Store, contents
from attnc.runtime.costs import Cost
from attnc.runtime.pairs import Pairs
from attnc.runtime.program import Formula, Program
from attnc.runtime.schedule import BASE, MASK_ELEMENTS, Schedule
from attnc.runtime.sections import Frame, Section, cut_of
from attnc.runtime.skipping import choose_schedules
from attnc.runtime.tiles import padded
from attnc.runtime.tuned import Slabs, find_tuned
from attnc.runtime.views import are_joined, band_keys, band_rows

_SCHEDULES: Store[tuple[Schedule, ...]] = Store(64)


@dataclass(frozen=True, slots=True)
class Part:
    """The entries and heads of a section that share a schedule.

    Attributes:
        section: those entries and heads alone.
        schedule: says where they lie in the whole section.
        members: query heads of a key head in the whole section.
    """

    section: Section
    schedule: Schedule
    members: int

    @property
    def frame(self) -> Frame:
        """Rows and keys by number."""
        return self.section.frame

    @property
    def heads(self) -> Pairs:
        """Coordinates of the heads."""
        return self.section.heads

    @property
    def query(self) -> Tensor:
        """Queries `[X, G, g, rows, D]`, X entries."""
        return self.section.query

    @property
    def key(self) -> Tensor:
        """Keys `[X, G, keys, D]`."""
        return self.section.key

    @property
    def value(self) -> Tensor:
        """Values `[X, G, keys, E]`."""
        return self.section.value

    def of_rows(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor `[X, G, g, rows, ...]` of the whole section, as a view."""
        return tensor[cut_of(self.schedule.entries, self.schedule.heads, self.members)]

    def of_keys(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor `[X, G, keys, ...]` of the whole section, as a view."""
        return tensor[cut_of(self.schedule.entries, self.schedule.heads, self.members)[:2]]

    def narrow(self, first: int, last: int, start: int, stop: int) -> Part:
        """Return the entries from `first` up to `last` with the key heads from `start` up to `stop`."""
        entries, groups, members = self.query.shape[:3]
        if (first, last, start, stop) == (0, entries, 0, groups):
            return self
        (entry, _), (head, _), schedule = self.schedule.entries, self.schedule.heads, self.schedule
        heads = (head + start * members, head + stop * members) if members == self.members else schedule.heads
        cut = slice(first, last), slice(start, stop), slice(0, members)
        own = replace(schedule, entries=(entry + first, entry + last), heads=heads)
        return Part(self.section.narrow(cut), own, self.members)


def cut_section(section: Section, by_tiles: bool, backward: bool = False) -> Iterator[Part]:
    """Yield the parts of a section.

    Args:
        section: to be cut.
        by_tiles: weights will be materialised a block at a time; otherwise the flash operator computes them.
        backward: whether its gradients are computed.
    """
    members = section.query.shape[2]
    for schedule in _schedules(section, by_tiles, backward):
        yield Part(section.narrow(cut_of(schedule.entries, schedule.heads, members)), schedule, members)


def _schedules(section: Section, by_tiles: bool, backward: bool) -> tuple[Schedule, ...]:
    program, sizes, frame = section.call.program, section.call.sizes, section.frame
    entries, groups, members = section.query.shape[:3]
    grid = frame.sweep.grid
    if grid is not None:
        count = frame.rows.count // frame.tile
        width = frame.keys.count // count
        is_whole = frame.keys.real is None and frame.rows.real is None
        kind = FULL if is_whole and not grid.tested else MASK
        band = Band(0, frame.tile, 0, ((width, kind),), count, frame.tile, width, first=True)
        return (Schedule((0, entries), (0, groups * members), (band,), covered=True),)
    additive = program.bias is not None and not by_tiles
    by_distance = additive and follows_diagonals(program, frame, masked=frame.sweep.mask is not None)
    kinds = (MASK, *range(len(frame.sweep.intervals)))
    cost = Cost(
        heads=entries * groups * members,
        members=members,
        entries=1 if are_joined((section.query, section.key, section.value)) else entries,
        elements=sizes.D + sizes.value_size,
        threads=torch.get_num_threads(),
        splits=tuple((kind, 512 if mask_period(frame, kind) or far_form_of(frame, kind) else 128) for kind in kinds),
        widest=max(64, MASK_ELEMENTS // (BASE * (groups * members if additive and not by_distance else 1))),
        masks_everything=additive,
        remembers=program.bias is None or not program.tensors,
        backward=backward,
        slabs=_tuned_slabs(section.call, backward),
        masks=0 if by_distance else 1,
    )
    data = contents(section.call, program.bound_tables)
    if data is None:
        return choose_schedules(section, cost)
    name = (program, sizes, frame, cost, data)
    found = _SCHEDULES.get(name)
    if found is None:
        found = choose_schedules(section, cost)
        _SCHEDULES.put(name, found, 1)
    return found


def _tuned_slabs(call: Call, backward: bool) -> Slabs:
    """Return how rows are cut, as far as that was tuned for such calls."""
    name = slabs_name(call.program, backward)
    sizes, lengths = (padded(call.query.shape[-1]), padded(call.value.shape[-1])), (call.sizes.N, call.sizes.M)
    found = find_tuned(name, call.query, sizes, lengths, program=True)
    return found if isinstance(found, Slabs) else Slabs()


def slabs_name(program: Program, backward: bool) -> str:
    """Return what tuned slabs know the forward or the backward pass of a program by."""
    return f"{program.identity}{', backward' if backward else ''}"


def band_pairs(part: Part, band: Band, *, blocks: bool = True, classes: bool = True, keys: bool = True) -> Pairs:
    """Return the coordinates of a band.

    Args:
        part: that the band belongs to.
        band: its rows and keys.
        blocks: all blocks, otherwise the first alone.
        classes: all classes, otherwise the first alone.
        keys: those of the keys as well.
    """
    rows_at, keys_at = part.frame.rows, part.frame.keys
    if not classes:
        rows_at, keys_at = rows_at.of_classes(0, 1), keys_at.of_classes(0, 1)
    rows = rows_at.indices_of_classes(band_rows(band, not blocks))
    return block_pairs(part.heads, rows, keys_at.indices_of_classes(band_keys(band, not blocks)) if keys else None)


def shared_shape(part: Part, band: Band, period: int) -> tuple[bool, bool, tuple[int, ...]]:
    """Say how an expression with this period repeats on a band.

    Returns:
        Whether all blocks are alike, whether all classes are, and the shape `[X, G, S, g, R, W]` without what repeats.
    """
    blocks, classes = is_shared(part.frame, band, period), is_shared_by_classes(part.frame, period)
    entries = part.frame.rows.classes
    shape = (1 if classes else entries, 1, 1 if blocks else band.count, 1, band.rows, band.width)
    return blocks, classes, shape


def band_mask(part: Part, band: Band) -> Tensor | None:
    """Return the mask of a band, broadcastable to `[X, G, S, g, R, W]`; None where every pair is allowed."""
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


def _piece_mask(part: Part, piece: Band, kind: int) -> Tensor:
    formula: Formula | None = condition_of(part.frame, kind)
    if formula is None:
        return torch.full((1, 1, 1, 1, piece.rows, piece.width), kind != NOTHING)
    blocks, classes, shape = shared_shape(part, piece, mask_period(part.frame, kind))
    mask = formula(band_pairs(part, piece, blocks=not blocks, classes=not classes))
    mask = mask.expand(common_shape(mask.shape, shape))
    real = part.frame.rows.are_real(band_rows(piece, shared=blocks))
    return mask if real is None else mask & real[:, None, :, None]


def shrink(part: Part, most: int) -> Iterator[Part]:
    """Yield a part in pieces of at most so many query heads, all entries counted."""
    entries, groups, members = part.query.shape[:3]
    group_step = max(1, min(groups, most // members))
    entry_step = max(1, most // (groups * members)) if group_step == groups else 1
    for first in range(0, entries, entry_step):
        for start in range(0, groups, group_step):
            yield part.narrow(first, min(entries, first + entry_step), start, min(groups, start + group_step))
