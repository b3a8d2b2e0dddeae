"""Where the rows and keys of a pass lie in the tensors: numbers in the order of the pass, and views by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor


class Workspace:
    """Memory that the sections of a call take turns in: it stays in the caches, and needs no new pages each time."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int, torch.dtype], Tensor] = {}

    def like(self, tensor: Tensor, shape: Sequence[int], role: str) -> Tensor:
        """Return memory of a shape for what is taken from a tensor; it is the same for each section.

        Args:
            tensor: from which it is taken.
            shape: of what is taken.
            role: tells what is taken from one tensor for several ends apart, as rows and as keys.
        """
        name, size = (role, tensor.data_ptr(), tensor.dtype), math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = tensor.new_empty(size)
        return buffer[:size].view(shape)


def gather(tensor: Tensor, axis: int, places: Tensor, room: Workspace, role: str) -> Tensor:
    """Return a copy of what lies at some places of `[B, .., length of the axis, ..]`, laid out in memory as there."""
    length = tensor.shape[axis]
    moved = tensor if axis == 1 or tensor.is_contiguous() else tensor.movedim(axis, 1)
    at = axis if moved is tensor else 1
    shape = [*moved.shape[:at], len(places), *moved.shape[at + 1 :]]
    found = room.like(tensor, shape, role)
    if moved.is_contiguous():  # rows of a matrix are copied as a whole, several times faster than along another axis
        inner, outer = math.prod(moved.shape[at + 1 :]), math.prod(moved.shape[:at])
        rows = (torch.arange(outer).unsqueeze(1) * length + places).flatten()
        torch.index_select(moved.view(outer * length, inner), 0, rows, out=found.view(len(rows), inner))
    else:
        torch.index_select(moved, at, places, out=found)
    return found if moved is tensor else found.movedim(1, axis)


@dataclass(frozen=True, slots=True)
class Listed:
    """Rows (or keys) one by one, in any order: those of several tiles, one tile after the other.

    Attributes:
        name: tells the lists of one program and call sizes apart.
        positions: index of each; of what is no key, that past the last one; of what is no row, any one's.
        real: numbers of those that are rows or keys; None if all are.
    """

    name: tuple[object, ...]
    positions: Tensor = field(compare=False)
    real: Tensor | None = field(default=None, compare=False)
    classes: ClassVar[int] = 1
    is_view: ClassVar[bool] = False

    @property
    def count(self) -> int:
        """Rows or keys, and what is neither."""
        return len(self.positions)

    def of_classes(self, start: int, stop: int) -> Listed:
        """Return the same: there is one class."""
        return self

    def indices(self, numbers: Tensor) -> Tensor:
        """Return where these numbers are."""
        return self.positions[numbers]

    def indices_of_classes(self, numbers: Tensor) -> Tensor:
        """Return where numbers `[S, R]` are: `[1, S, R]`."""
        return self.positions[numbers].unsqueeze(0)

    def index(self, number: int) -> int:
        """Return where a number is."""
        return int(self.positions[number])

    def distance(self, numbers: int) -> int | None:
        """Return None: it differs."""
        return None

    def are_real(self, numbers: Tensor) -> Tensor | None:
        """Tell of each of some numbers whether it is a row or key; None where all are."""
        if self.real is None:
            return None
        found = torch.zeros(self.count, dtype=torch.bool)
        found[self.real] = True
        return found[numbers]

    def take(self, tensor: Tensor, axis: int, room: Workspace, role: str) -> Tensor:
        """Return a copy of what lies at these places; of what is no place, that of any other."""
        return gather(tensor, axis, self.positions.clamp(max=tensor.shape[axis] - 1), room, role)

    def put(self, tensor: Tensor, axis: int, taken: Tensor) -> None:
        """Write what was taken, and changed since, back; no two places are one."""
        places = self.positions
        if self.real is not None:
            places, taken = places[self.real], taken.index_select(axis, self.real)
        tensor[(slice(None),) * axis + (places,)] = taken

    def take_new(self, tensor: Tensor, axis: int, room: Workspace, role: str) -> Tensor:
        """Return memory for what is to lie at these places."""
        shape = list(tensor.shape)
        shape[axis] = self.count
        return room.like(tensor, shape, role)

    def take_sums(self, tensor: Tensor, axis: int, room: Workspace, role: str) -> Tensor:
        """Return zeros for sums at these places."""
        return self.take_new(tensor, axis, room, role).zero_()

    def add_sums(self, tensor: Tensor, axis: int, taken: Tensor) -> None:
        """Add sums up where several places are one, in order."""
        places = self.positions
        if self.real is not None:
            places, taken = places[self.real], taken.index_select(axis, self.real)
        tensor.index_add_(axis, places, taken)


@dataclass(frozen=True, slots=True)
class Places:
    """Rows (or keys) by number: n of class x lies at `first + x + (n + low) // length * step + (n + low) % length`.

    Attributes:
        count: rows or keys of each class.
        first: index of the first one, `low` being 0.
        step: from one run to the next.
        length: rows or keys that lie side by side.
        low: how far into its run the first one stands.
        classes: neighbouring classes, one index apart.
    """

    count: int
    first: int = 0
    step: int = 1
    length: int = 1
    low: int = 0
    classes: int = 1
    real: ClassVar[None] = None

    @property
    def is_view(self) -> bool:
        """Whether strides express these places."""
        return self.length == 1

    def of_classes(self, start: int, stop: int) -> Places:
        """Return the places of some of the classes."""
        return replace(self, first=self.first + start, classes=stop - start)

    def indices(self, numbers: Tensor) -> Tensor:
        """Return where the first class has these numbers."""
        if self.length == 1:
            return numbers if self.step == 1 and self.first == 0 else self.first + numbers * self.step
        numbers = numbers + self.low
        return self.first + numbers // self.length * self.step + numbers % self.length

    def indices_of_classes(self, numbers: Tensor) -> Tensor:
        """Return where the classes have numbers `[S, R]`: `[classes, S, R]`."""
        found = self.indices(numbers)
        if self.classes == 1:
            return found.unsqueeze(0)
        return found + torch.arange(self.classes).view(-1, 1, 1)

    def index(self, number: int) -> int:
        """Return where the first class has a number."""
        whole, inside = divmod(number + self.low, self.length)
        return self.first + whole * self.step + inside

    def distance(self, numbers: int) -> int | None:
        """Return how much further it is to any number that is larger by so many; None where that differs."""
        return numbers // self.length * self.step if numbers % self.length == 0 else None

    def are_real(self, numbers: Tensor) -> None:
        """Return None: every number is a row or key."""

    def take(self, tensor: Tensor, axis: int, room: Workspace, role: str) -> Tensor:
        """Return what lies at these places of `[B, .., length of the axis, ..]`, as a view where `is_view`.

        With several classes the tensor has one batch entry, and the result has the classes in its place.
        """
        if self.count == 0:
            shape = list(tensor.shape)
            shape[0], shape[axis] = max(self.classes, shape[0]), 0
            return tensor.new_empty(shape)
        if self.length > 1:
            return tensor.index_select(axis, self.indices(torch.arange(self.count)))
        span = (self.count - 1) * self.step + self.classes
        if self.classes > 1:
            taken = tensor[0].narrow(axis - 1, self.first, span)
            return taken.unfold(axis - 1, self.classes, self.step).movedim(-1, 0)
        if span != tensor.shape[axis]:
            tensor = tensor.narrow(axis, self.first, span)
        return tensor if self.step == 1 else tensor[(slice(None),) * axis + (slice(None, None, self.step),)]

    def put(self, tensor: Tensor, axis: int, taken: Tensor) -> None:
        """Write what was taken, and changed since, back to where it came from; views need nothing."""
        if self.length > 1 and self.count:
            tensor.index_copy_(axis, self.indices(torch.arange(self.count)), taken)

    def take_new(self, tensor: Tensor, axis: int, room: Workspace, role: str) -> Tensor:
        """Return what lies at these places, to be written over: a view, or a copy to be given to `put`."""
        return self.take(tensor, axis, room, role)

    def take_sums(self, tensor: Tensor, axis: int, room: Workspace, role: str) -> Tensor:
        """Return what lies at these places, to be added to: a view, or a copy to be given to `add_sums`."""
        return self.take(tensor, axis, room, role)

    def add_sums(self, tensor: Tensor, axis: int, taken: Tensor) -> None:
        """Write what was taken, and added to since, back; views need nothing."""
        self.put(tensor, axis, taken)
