"""The order in which a bilinear scheme is carried out on blocks, with as few additions and buffers as it needs.

Sums of blocks are formed right before the first product that needs them, results are added up as soon as they are
there, and a buffer is used again once nothing reads it any more.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from attnc.runtime.shared_sums import SharedSums, share_sums

BlockRows = tuple[tuple[float, ...], ...]

SchemeSide = Literal["left", "right", "product", "out"]


@dataclass(frozen=True, slots=True)
class BlockSum:
    """`target = first * first_factor + second * second_factor`, where `second` may be None.

    Attributes:
        side: which blocks and buffers are meant. On the sides `left` and `right`, a number from 0 on is a block, and
            `-1 - slot` a buffer. Elsewhere `first` and `second` are buffers of products by slot, or, where `first` is
            None, what `target` holds already.
        target: a buffer's slot; a block of the result on the side `out`.
    """

    side: SchemeSide
    target: int
    first: int | None
    second: int | None
    first_factor: float = 1.0
    second_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class BlockProduct:
    """`product buffer target = left @ right`, with operands as in `BlockSum`."""

    target: int
    left: int
    right: int


BlockStep = BlockSum | BlockProduct


@dataclass(frozen=True, slots=True)
class SchemeSteps:
    """What one level of a scheme does, in order.

    Attributes:
        additions: of blocks, of the three sides.
        depths: roundings that a sum of blocks of each side goes through at most.
        buffers: how many blocks of each of the sides `left`, `right` and `product` are kept at once.
    """

    steps: tuple[BlockStep, ...]
    additions: tuple[int, int, int]
    depths: tuple[int, int, int]
    buffers: tuple[int, int, int]


@dataclass(slots=True)
class _Slots:
    """Buffers of one kind by number; the least free one is taken."""

    free: list[int] = field(default_factory=list)
    count: int = 0

    def take(self) -> int:
        if self.free:
            self.free.sort()
            return self.free.pop(0)
        self.count += 1
        return self.count - 1

    def give_back(self, slot: int) -> None:
        self.free.append(slot)


@dataclass(slots=True)
class _Operands:
    """Sums of blocks on one side, formed on demand.

    Attributes:
        places: where a variable of `sums` is, once it is there: a block, or `-1 - slot`.
        waiting: how many readers each shared sum still has.
    """

    side: SchemeSide
    sums: SharedSums[float]
    slots: _Slots = field(default_factory=_Slots)
    places: dict[int, int] = field(default_factory=dict)
    waiting: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.places.update({block: block for block in range(self.sums.inputs)})
        for first, second, _ in self.sums.shared:
            self.waiting.update((first, second))
        for form in self.sums.forms:
            self.waiting.update(variable for variable, _ in form)

    def leading(self, product: int) -> float:
        """Return the coefficient that a form is divided by."""
        return self.sums.forms[product][0][1]

    def form(self, product: int, steps: list[BlockStep]) -> int:
        """Have a form, divided by its first coefficient, at some place; `release` ends its use."""
        terms = self.sums.forms[product]
        (first, leading), *others = terms
        place = self._variable(first, steps)
        for variable, coefficient in others:
            second = self._variable(variable, steps)
            place = self._add(place, second, coefficient / leading, (first, variable), steps)
            first = -1  # a sum of this form's own: nobody else reads it
        return place

    def release(self, product: int, place: int) -> None:
        """Say that a form, which was at this place, is not read any more."""
        terms = self.sums.forms[product]
        if len(terms) > 1:
            self.slots.give_back(-1 - place)
        else:
            self._read(terms[0][0])

    def _variable(self, variable: int, steps: list[BlockStep]) -> int:
        if variable not in self.places:
            first, second, factor = self.sums.shared[variable - self.sums.inputs]
            places = self._variable(first, steps), self._variable(second, steps)
            self.places[variable] = self._add(*places, factor, (first, second), steps)
        return self.places[variable]

    def _add(self, first: int, second: int, factor: float, read: tuple[int, int], steps: list[BlockStep]) -> int:
        for variable, place in zip(read, (first, second), strict=True):
            if variable >= 0:
                self._read(variable)
            else:
                self.slots.give_back(-1 - place)
        target = self.slots.take()
        steps.append(BlockSum(self.side, target, first, second, 1.0, factor))
        return -1 - target

    def _read(self, variable: int) -> None:
        self.waiting[variable] -= 1
        if variable >= self.sums.inputs and self.waiting[variable] == 0:
            self.slots.give_back(-1 - self.places[variable])


@dataclass(slots=True)
class _Results:
    """Products and shared sums of them, added to the result as soon as they are there.

    Attributes:
        held: for each block of the result, the first term that it has met, until there is a second one.
        started: blocks of the result that hold a sum.
    """

    sums: SharedSums[float]
    slots: _Slots = field(default_factory=_Slots)
    places: dict[int, int] = field(default_factory=dict)
    waiting: Counter[int] = field(default_factory=Counter)
    held: dict[int, tuple[int, float]] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        for first, second, _ in self.sums.shared:
            self.waiting.update((first, second))
        for form in self.sums.forms:
            self.waiting.update(variable for variable, _ in form)

    def take(self, product: int, slot: int) -> Iterator[BlockStep]:
        """Add a product, which is in this buffer, wherever it belongs."""
        self.places[product] = slot
        ready = deque([product])
        while ready:
            variable = ready.popleft()
            yield from self._add_to_blocks(variable)
            for position, (first, second, factor) in enumerate(self.sums.shared):
                if variable in (first, second) and first in self.places and second in self.places:
                    places = self.places[first], self.places[second]
                    self._read(first)
                    self._read(second)
                    target = self.slots.take()
                    yield BlockSum("product", target, *places, 1.0, factor)
                    self.places[self.sums.inputs + position] = target
                    ready.append(self.sums.inputs + position)

    def _add_to_blocks(self, variable: int) -> Iterator[BlockStep]:
        place = self.places[variable]
        for block, form in enumerate(self.sums.forms):
            for term, coefficient in form:
                if term != variable:
                    continue
                if block in self.started:
                    yield BlockSum("out", block, None, place, 1.0, coefficient)
                    self._read(variable)
                elif block in self.held:
                    other, factor = self.held.pop(block)
                    terms = sorted(((self.places[other], factor), (place, coefficient)), key=lambda one: one[1] != 1)
                    (first, first_factor), (second, second_factor) = terms
                    yield BlockSum("out", block, first, second, first_factor, second_factor)
                    self.started.add(block)
                    self._read(other)
                    self._read(variable)
                elif len(form) == 1:
                    yield BlockSum("out", block, place, None, coefficient)
                    self._read(variable)
                else:
                    self.held[block] = (variable, coefficient)

    def _read(self, variable: int) -> None:
        self.waiting[variable] -= 1
        if self.waiting[variable] == 0:
            self.slots.give_back(self.places[variable])


def plan_steps(left: BlockRows, right: BlockRows, out: BlockRows) -> SchemeSteps:
    """Order what one level of a scheme does.

    Args:
        left: a row of coefficients over blocks for each product, as `right`; each has one other than 0.
        right: likewise.
        out: a row of coefficients over products for each block of the result.
    """
    lefts, rights = _Operands("left", share_sums(left)), _Operands("right", share_sums(right))
    factors = [lefts.leading(product) * rights.leading(product) for product in range(len(left))]
    scaled = tuple(tuple(entry * factor for entry, factor in zip(row, factors, strict=True)) for row in out)
    results = _Results(share_sums(scaled))
    steps: list[BlockStep] = []
    for product in range(len(left)):
        first, second = lefts.form(product, steps), rights.form(product, steps)
        slot = results.slots.take()
        steps.append(BlockProduct(slot, first, second))
        lefts.release(product, first)
        rights.release(product, second)
        steps.extend(results.take(product, slot))
    sums = (lefts.sums, rights.sums, results.sums)
    return SchemeSteps(
        steps=tuple(steps),
        additions=(sums[0].additions, sums[1].additions, sums[2].additions),
        depths=(max(sums[0].depths), max(sums[1].depths), max(sums[2].depths)),
        buffers=(lefts.slots.count, rights.slots.count, results.slots.count),
    )
