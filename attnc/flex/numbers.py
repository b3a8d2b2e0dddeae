"""Numbers that functions close over: which constants of a trace are a variable of the author's, by its name.

A number is changed, the functions are traced again, and the traces are compared. Where all that differs is constants
that were the number and now are the new one (or the same with the other sign), it is a parameter of the pattern. A
number that Python computes with, or branches on, stays the constant that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CellType, FunctionType
from typing import Any

from attnc.flex.forms import convert, negative
from attnc.ir.nodes import Cast, Const, Expr, Index, Parameter, Size, Unary, UnaryOp
from attnc.ir.types import Type
from attnc.ir.walk import children, with_children

Number = int | float
Traced = tuple[Expr, ...]
"""What a trace of all functions gives."""

_FIELDS = ("type", "op", "function", "kind", "count", "table", "axis")


@dataclass(frozen=True, slots=True)
class Variable:
    """A number in the closure of a function."""

    name: str
    cell: CellType
    value: Number


class _Different(Exception):  # noqa: N818 - an answer
    """Two traces differ by more than one number."""


def variables(*functions: Any) -> list[Variable]:
    """Return the numbers in closures, each cell once, those of outer functions first."""
    found: dict[int, Variable] = {}
    waiting, seen = list(functions), set[int]()
    while waiting:
        value = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, list | tuple):
            waiting.extend(value)
        for name, cell, inside in _cells(value):
            if type(inside) in (int, float):
                found.setdefault(id(cell), Variable(name, cell, inside))
            else:
                waiting.append(inside)
    return list(found.values())


def _cells(function: Any) -> Iterator[tuple[str, CellType, Any]]:
    if not isinstance(function, FunctionType):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell, cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            continue


def changed(value: Any, cell: CellType, number: Number, depth: int = 8) -> Any:
    """Return a function with another number in one cell of its closure, or of the closures in it; others stay."""
    if depth == 0:
        return value
    if isinstance(value, list | tuple):
        parts = [changed(part, cell, number, depth - 1) for part in value]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else type(value)(parts)
    if not isinstance(value, FunctionType) or not value.__closure__:
        return value
    cells = {id(one): inside for _, one, inside in _cells(value)}
    closure = []
    for one in value.__closure__:
        inside = cells.get(id(one))
        new = number if one is cell else changed(inside, cell, number, depth - 1)
        closure.append(one if new is inside else CellType(new))
    if all(a is b for a, b in zip(closure, value.__closure__, strict=True)):
        return value
    made = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(closure))
    made.__kwdefaults__ = value.__kwdefaults__
    return made


def name_numbers(
    traced: Traced, found: list[Variable], again: Callable[[Variable, Number], Traced], take: Callable[[str], str]
) -> tuple[Traced, dict[str, Number]]:
    """Replace constants by parameters where they are a variable.

    Args:
        traced: expressions of the functions as they are.
        found: the variables.
        again: traces the functions with another number in a variable; may raise anything.
        take: makes the name of a parameter.

    Returns:
        The expressions over parameters, and the value of each.
    """
    numbers: dict[str, Number] = {}
    for variable in found:
        new = variable.value + (1 if isinstance(variable.value, int) else 0.5)
        try:
            other = again(variable, new)
            swap = _Swap(variable.value, new, Parameter(variable.name, _type(variable.value)), numbers)
            if not any(swap.differs(one, two) for one, two in zip(traced, other, strict=True)):
                continue
            swap.parameter = Parameter(take(variable.name), _type(variable.value))
            swap.done.clear()
            traced = tuple(swap.go(one, two) for one, two in zip(traced, other, strict=True))
        except Exception:
            continue
        numbers[swap.parameter.name] = variable.value
    return traced, numbers


def _type(value: Number) -> Type:
    return Type.INT if isinstance(value, int) else Type.FLOAT


@dataclass(slots=True)
class _Swap:
    old: Number
    new: Number
    parameter: Parameter
    numbers: Mapping[str, Number]
    done: dict[tuple[int, int], Expr] = field(default_factory=dict)

    def differs(self, one: Expr, two: Expr) -> bool:
        """Tell whether two traces differ at all; raise where they do in another way than by the number."""
        return self.go(one, two) is not one

    def go(self, one: Expr, two: Expr) -> Expr:
        """Return the first expression with the parameter where the second has the new number."""
        found = self.done.get((id(one), id(two)))
        if found is None:
            found = self._compared(one, two)
            self.done[id(one), id(two)] = found
        return found

    def _compared(self, one: Expr, two: Expr) -> Expr:
        named = self._value(one)
        if named is not None:  # an earlier variable; the other trace has its number
            if isinstance(two, Const) and two.value == named:
                return one
            if isinstance(one, Parameter) or not isinstance(one, Unary):
                raise _Different
        if isinstance(one, Const) and isinstance(two, Const):
            return self._constant(one, two)
        first, second = children(one), children(two)
        same = type(one) is type(two) and len(first) == len(second)
        if isinstance(one, Index | Size) and isinstance(two, Index | Size):
            same = same and one.name is two.name
        if not same or any(getattr(one, field, None) != getattr(two, field, None) for field in _FIELDS):
            raise _Different
        return with_children(one, tuple(self.go(a, b) for a, b in zip(first, second, strict=True)))

    def _value(self, expr: Expr) -> Number | None:
        """Return the value of a parameter, or of one that is converted or negated; None for anything else."""
        match expr:
            case Parameter(name=name):
                return self.numbers[name]
            case Cast(operand=operand):
                return self._value(operand)
            case Unary(op=UnaryOp.NEG, operand=operand):
                inner = self._value(operand)
                return None if inner is None else -inner
            case _:
                return None

    def _constant(self, one: Const, two: Const) -> Expr:
        if one.type is two.type and repr(one.value) == repr(two.value):
            return one
        number = convert(self.parameter, one.type)
        if one.type is two.type and (one.value, two.value) == (self.old, self.new):
            return number
        if one.type is two.type and (one.value, two.value) == (-self.old, -self.new):
            return negative(number)
        raise _Different
