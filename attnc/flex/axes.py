"""Axis variables: they tell the elements of a traced tensor apart, and go when it is indexed or reduced.

Axes are counted from the right, as broadcasting does: an expression broadcasts by being left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnc.flex.forms import ZERO
from attnc.ir.nodes import Bound, Expr, Read
from attnc.ir.types import Type
from attnc.ir.walk import children as operands_of
from attnc.ir.walk import with_children

_PREFIX = "axis "


def axis(number: int) -> Bound:
    """Return the variable of an axis; 1 is the last."""
    return Bound(f"{_PREFIX}{number}")


def axis_number(expr: Expr) -> int | None:
    """Return the number of an axis variable; None for anything else."""
    if isinstance(expr, Bound) and expr.name.startswith(_PREFIX):
        return int(expr.name.removeprefix(_PREFIX))
    return None


def read_of(name: str, shape: Sequence[int], type_: Type) -> Read:
    """Return a table as an expression over its axes; an axis of length 1 has no variable."""
    dims = len(shape)
    return Read(name, tuple(ZERO if size == 1 else axis(dims - at) for at, size in enumerate(shape)), type_)


def remap(expr: Expr, places: Mapping[int, Expr]) -> Expr:
    """Replace axis variables by other expressions; shared parts stay shared."""
    done: dict[int, Expr] = {}

    def go(node: Expr) -> Expr:
        number = axis_number(node)
        if number is not None:
            return places.get(number, node)
        found = done.get(id(node))
        if found is None:
            found = with_children(node, tuple(go(child) for child in operands_of(node)))
            done[id(node)] = found
        return found

    return go(expr) if places else expr
