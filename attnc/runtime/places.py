"""Where the rows and keys of a pass lie in the tensors: numbers in the order of the pass, and views by them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


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

    def take(self, tensor: Tensor, axis: int) -> Tensor:
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
