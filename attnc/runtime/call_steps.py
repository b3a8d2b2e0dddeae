"""What a call on a device comes to, as a straight line: memory to allocate, torch operations, launches of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor

Given = Sequence[Tensor | None]
"""All tensors that a computation reads."""


NOWHERE = -1
"""In the place of the number of a tensor: None is there."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands for a tensor of the call, by its number."""

    number: int


@dataclass(frozen=True, slots=True)
class MemoryStep:
    """Memory for a tensor, with zeros in it if it is `zeroed`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    zeroed: bool
    result: int

    def run(self, values: list[Any]) -> None:
        """Allocate it."""
        made = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        values[self.result] = made.zero_() if self.zeroed else made

    def touched(self) -> tuple[int, ...]:
        """Return the numbers of the tensors that it reads or makes."""
        return (self.result,)


@dataclass(frozen=True, slots=True)
class TorchStep:
    """A torch operation.

    Attributes:
        function: of torch.
        arguments, named: what it is called with, a `Slot` for each tensor.
        results: where its results go; `NOWHERE` for one that is no tensor.
        many: whether it returns several.
        changes: whether it changes a tensor that it is given.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: tuple[int, ...]
    many: bool
    changes: bool

    def run(self, values: list[Any]) -> None:
        """Do it."""
        arguments = [values[one.number] if type(one) is Slot else _filled(one, values) for one in self.arguments]
        if self.named:
            named = {name: _filled(one, values) for name, one in self.named.items()}
            found = self.function(*arguments, **named)
        else:
            found = self.function(*arguments)
        if self.many:
            for number, tensor in zip(self.results, found, strict=True):
                if number != NOWHERE:
                    values[number] = tensor
        else:
            values[self.results[0]] = found

    def read(self) -> tuple[int, ...]:
        """Return the numbers of the tensors that it reads."""
        return tuple(_slots((self.arguments, tuple(self.named.values()))))

    def touched(self) -> tuple[int, ...]:
        """Return the numbers of the tensors that it reads or makes."""
        return (*self.read(), *[number for number in self.results if number != NOWHERE])


@dataclass(frozen=True, slots=True)
class KernelStep:
    """A launch of a kernel.

    Attributes:
        kernel: takes the arguments.
        arguments: of the kernel, None in the places of tensors.
        tensors: where tensors go, and which.
        names: of the arguments, where the kernel wants those.
        prepare: is called before, if it is there.
    """

    kernel: Callable[..., Any]
    arguments: tuple[Any, ...]
    tensors: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    prepare: Callable[[], None] | None

    def run(self, values: list[Any]) -> None:
        """Launch it."""
        arguments = list(self.arguments)
        for place, number in self.tensors:
            arguments[place] = values[number]
        if self.prepare is not None:
            self.prepare()
        if self.names:
            self.kernel(**dict(zip(self.names, arguments, strict=True)))
        else:
            self.kernel(*arguments)

    def touched(self) -> tuple[int, ...]:
        """Return the numbers of the tensors that it reads or writes."""
        return tuple(number for _, number in self.tensors)


Step = MemoryStep | TorchStep | KernelStep


@dataclass(frozen=True, slots=True)
class CallPlan:
    """What a call comes to; it holds no tensor.

    Attributes:
        steps: in their order, each with the tensors that nothing needs after it.
        room: how many tensors there are besides those that are given.
        results: which of them are returned.
    """

    steps: tuple[tuple[Step, tuple[int, ...]], ...]
    room: int
    results: tuple[int, ...]

    def run(self, given: Given) -> list[Tensor]:
        """Do it with other tensors."""
        values: list[Any] = [*given, *[None] * self.room]
        for step, unneeded in self.steps:
            step.run(values)
            for number in unneeded:
                values[number] = None
        return [values[number] for number in self.results]


def make_plan(steps: Sequence[Step], given: int, tensors: int, results: Sequence[int]) -> CallPlan:
    """Make a plan of steps.

    Args:
        steps: in their order.
        given: how many tensors are given; they have the first numbers.
        tensors: how many there are.
        results: numbers of those that are returned.
    """
    steps = _needed(steps, results)
    last = {number: position for position, step in enumerate(steps) for number in step.touched()}
    unneeded: list[list[int]] = [[] for _ in steps]
    for number, position in last.items():
        if number >= given and number not in results:
            unneeded[position].append(number)
    return CallPlan(tuple(zip(steps, map(tuple, unneeded), strict=True)), tensors - given, tuple(results))


def _needed(steps: Sequence[Step], results: Sequence[int]) -> list[Step]:
    """Leave out what makes tensors that nothing reads, and what returned the tensor that it was given."""
    found: list[Step] = []
    needed = set(results)
    for step in reversed(steps):
        match step:
            case MemoryStep():
                is_needed = step.result in needed
            case TorchStep(changes=False):
                is_needed = not needed.isdisjoint(step.results) and not set(step.results) <= set(step.read())
            case TorchStep() | KernelStep():
                is_needed = True
            case _:
                assert_never(step)
        if is_needed:
            needed.update(step.touched())
            found.append(step)
    return found[::-1]


def _filled(argument: Any, values: Sequence[Any]) -> Any:
    """Return an argument with tensors in the places of their numbers."""
    if isinstance(argument, Slot):
        return values[argument.number]
    if isinstance(argument, list):
        return [_filled(one, values) for one in argument]
    return argument


def _slots(argument: Any) -> list[int]:
    """Return the numbers of the tensors in an argument."""
    if isinstance(argument, Slot):
        return [argument.number]
    return [number for one in argument for number in _slots(one)] if isinstance(argument, list | tuple) else []
