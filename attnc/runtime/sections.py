"""A call, cut into sections: for each pass its residue classes, or all positions, in the order of the pass.

A section looks like a call of its own, with rows and keys numbered from 0; its entries are batch entries or, side by
side, residue classes with equal numbers of rows and keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from attnc.runtime.calls import Call
from attnc.runtime.grids import grid_tiles
from attnc.runtime.pairs import Pairs
from attnc.runtime.places import Listed, Places, Workspace
from attnc.runtime.program import Order, Pass

Run = tuple[int, int]
"""From `start` up to, and without, `stop`."""

Item = TypeVar("Item")

Cut = tuple[slice, slice, slice]
"""Entries, key heads, and query heads of each key head."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Rows and keys of a section by number.

    Attributes:
        number: of the pass; the first one is 0.
        low: number that the bounds give the first row; None if that is the shift.
        first_class: the class of the first entry.
        batch, heads: those of the call that it has; a range from 0 where the pass does not tell entries apart.
        tile: of a grid, rows of each tile; 0 elsewhere.
        alike: of a grid, whether the mask is the same for all tiles.
    """

    number: int
    sweep: Pass = field(compare=False)
    rows: Places | Listed
    keys: Places | Listed
    low: int | None = None
    first_class: int = 0
    batch: Run = (0, 0)
    heads: Run = (0, 0)
    tile: int = 0
    alike: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Some classes, batch entries and heads of a pass.

    Attributes:
        query: `[X, G, g, rows, D]` with X entries.
        key, value: `[X, G, keys, D]`, `[X, G, keys, E]`.
        heads: coordinates of its heads.
        source: where it lies in the tensors of the call.
        room: what copies are made in; those of one section are gone when the next one is made.
    """

    call: Call
    frame: Frame
    query: Tensor
    key: Tensor
    value: Tensor
    heads: Pairs
    source: Cut
    room: Workspace

    def of_rows(self, tensor: Tensor) -> Tensor:
        """Return this section of `[B, G, g, N, ...]`: a view, or a copy to be given to `put_rows`."""
        return self.frame.rows.take(tensor[self.source], 3, self.room, "rows")

    def new_rows(self, tensor: Tensor) -> Tensor:
        """Return the same where every element will be written: a view, or memory to be given to `put_rows`."""
        return self.frame.rows.take_new(tensor[self.source], 3, self.room, "rows")

    def of_keys(self, tensor: Tensor) -> Tensor:
        """Return this section of sums `[B, G, M, ...]`: a view, or what is to be given to `put_keys`."""
        return self.frame.keys.take_sums(tensor[self.source[:2]], 2, self.room, "sums")

    def put_rows(self, tensor: Tensor, taken: Tensor) -> None:
        """Write what `of_rows` gave, and changed since, back."""
        self.frame.rows.put(tensor[self.source], 3, taken)

    def put_keys(self, tensor: Tensor, taken: Tensor) -> None:
        """Write what `of_keys` gave, and added to since, back."""
        self.frame.keys.add_sums(tensor[self.source[:2]], 2, taken)

    def narrow(self, cut: Cut) -> Section:
        """Return some entries and heads; `source` still is that of the whole section."""
        frame = self.frame
        if frame.rows.classes > 1:
            start, stop, _ = cut[0].indices(frame.rows.classes)
            rows, keys = (places.of_classes(start, stop) for places in (frame.rows, frame.keys))
            frame = replace(frame, rows=rows, keys=keys, first_class=frame.first_class + start)
        return Section(
            self.call,
            frame,
            self.query[cut],
            self.key[cut[:2]],
            self.value[cut[:2]],
            slice_pairs(self.heads, *cut),
            self.source,
            self.room,
        )


def cut_into_sections(call: Call) -> Iterator[Section]:
    """Yield the sections of a call, pass by pass."""
    room = Workspace()
    for number, sweep in enumerate(call.program.passes):
        if sweep.query.is_plain and sweep.grid is None:
            keys = _places_of_keys(sweep.key, call.sizes.M)
            frame = Frame(number, sweep, Places(call.sizes.N), keys)
            yield _section(call, frame, (0, call.sizes.B), (0, call.sizes.H), room)
            continue
        for batch, heads, shift in _equal_shifts(call):
            for frame, entries in _frames_of_pass(call, number, sweep, batch, heads, shift):
                yield _section(call, frame, entries, heads, room)


def _frames_of_pass(
    call: Call, number: int, sweep: Pass, batch: Run, heads: Run, shift: int
) -> Iterator[tuple[Frame, Run]]:
    """Yield the frames of some entries and heads, whose rows stand at the same positions, each with its entries."""
    queries, keys = call.sizes.N, call.sizes.M
    if sweep.grid is not None:
        for tiles in grid_tiles(call, number, batch, heads, shift):
            frame = Frame(number, sweep, tiles.rows, tiles.keys, tile=tiles.tile, alike=tiles.alike)
            yield frame, batch
        return
    if not sweep.query.is_residue:
        own, low = _places_of_rows(sweep.query, queries, shift)
        yield Frame(number, sweep, own, _places_of_keys(sweep.key, keys), low), batch
        return
    for frame in _class_frames(number, sweep, queries, keys, shift):
        if frame.rows.classes >= batch[1] - batch[0]:
            for entry in range(*batch):
                yield frame, (entry, entry + 1)
            continue
        for one in range(frame.rows.classes):
            rows, key_places = (places.of_classes(one, one + 1) for places in (frame.rows, frame.keys))
            alone = replace(frame, rows=rows, keys=key_places, first_class=frame.first_class + one)
            yield alone, batch


def _class_frames(number: int, sweep: Pass, queries: int, keys: int, shift: int) -> Iterator[Frame]:
    """Yield the residue classes that have rows: neighbours with equally many rows and keys together.

    The class of the queries at positions `i` is `(i - query.first) % period`, and its keys are at
    `(class + key.first) % period` and so on. From one row to the next, numbers change in five places at most.
    """
    period = sweep.query.period
    ahead = sweep.key.first - sweep.query.first
    most = min(period, queries)
    places = (queries, -shift, sweep.query.first - shift, -shift - ahead, keys - shift - ahead)
    edges = sorted({0, most, *(place % period for place in places if place % period < most)})
    for first, stop in pairwise(edges):
        position = first + shift
        key = (position + ahead) % period
        yield Frame(
            number,
            sweep,
            Places(-((first - queries) // period), first, period, classes=stop - first),
            Places(max(0, -((key - keys) // period)), key, period, classes=stop - first),
            position // period,
            (position - sweep.query.first) % period,
        )


def _places_of_rows(order: Order, queries: int, shift: int) -> tuple[Places, int]:
    """Return where the rows of runs are, and the number of the first one."""
    low, high = _number_from(order, shift), _number_from(order, shift + queries)
    return _places_of_runs(order, low, high - low, shift), low


def _places_of_keys(order: Order, keys: int) -> Places:
    if order.is_plain:
        return Places(keys)
    return _places_of_runs(order, 0, _number_from(order, keys), 0)


def _places_of_runs(order: Order, low: int, count: int, shift: int) -> Places:
    whole, inside = divmod(low, order.length)
    return Places(count, whole * order.period + order.first - shift, order.period, order.length, inside)


def _number_from(order: Order, position: int) -> int:
    """Return the number of the first position of a run that is not before `position`."""
    whole, inside = divmod(position, order.period)
    return whole * order.length + min(max(inside - order.first, 0), order.length)


def _equal_shifts(call: Call) -> Iterator[tuple[Run, Run, int]]:
    """Yield ranges of batch entries and heads whose rows stand at the same positions."""
    shift = call.heads.shift
    assert shift is not None
    if shift.numel() == 1:
        yield (0, call.sizes.B), (0, call.sizes.H), int(shift)
        return
    by_head = shift.shape[1] > 1 or shift.shape[3] > 1
    groups, members = (call.sizes.kv_heads, call.sizes.g) if by_head else (1, 1)
    shifts = shift.expand(-1, groups, 1, members, 1, 1).flatten(1).tolist()
    for batch, heads in equal_places(shifts, call.sizes.B, call.sizes.H, call.sizes.g):
        of_batch = shifts[min(batch[0], len(shifts) - 1)]
        yield batch, heads, of_batch[min(heads[0], len(of_batch) - 1)]


def equal_places(items: list[list[Item]], entries: int, heads: int, members: int) -> Iterator[tuple[Run, Run]]:
    """Yield ranges of entries and heads whose items are equal: neighbours together, heads by whole groups if they can.

    Args:
        items: by entry and head; a single one stands for all.
        entries: how many there are.
        heads: how many there are.
        entries, heads: how many there are.
        members: heads of a group.
    """
    for first, last in _stretches(items):
        batch = (0, entries) if len(items) == 1 else (first, last)
        line = items[first]
        if len(line) == 1:
            yield batch, (0, heads)
            continue
        groups = [line[start : start + members] for start in range(0, heads, members)]
        if any(group.count(group[0]) != len(group) for group in groups):
            for entry in range(heads):
                yield batch, (entry, entry + 1)
            continue
        for start, stop in _stretches(groups):
            yield batch, (start * members, stop * members)


def _stretches(items: Sequence[object]) -> Iterator[Run]:
    start = 0
    for at in range(1, len(items) + 1):
        if at == len(items) or items[at] != items[start]:
            yield start, at
            start = at


def cut_of(entries: Run, heads: Run, members: int) -> Cut:
    """Return a range of entries and heads as slices; heads are whole groups or a single one."""
    start, stop = heads
    if (stop - start) % members or start % members:
        group, member = divmod(start, members)
        return slice(*entries), slice(group, group + 1), slice(member, member + 1)
    return slice(*entries), slice(start // members, stop // members), slice(0, members)


def _section(call: Call, frame: Frame, batch: Run, heads: Run, room: Workspace) -> Section:
    cut = cut_of(batch, heads, call.sizes.g)
    named = batch if frame.sweep.by_batch else (0, batch[1] - batch[0])
    return Section(
        call,
        replace(frame, batch=named, heads=heads),
        frame.rows.take(call.query[cut], 3, room, "query"),
        frame.keys.take(call.key[cut[:2]], 2, room, "key"),
        frame.keys.take(call.value[cut[:2]], 2, room, "value"),
        slice_pairs(call.heads, *cut),
        cut,
        room,
    )


def slice_pairs(at: Pairs, batch: slice, groups: slice, members: slice) -> Pairs:
    """Return the coordinates of some heads."""

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
