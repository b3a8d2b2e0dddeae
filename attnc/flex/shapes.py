"""Torch's operators on shapes: views, indexing, reductions. They rename the axis variables of an expression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from attnc.flex.axes import axis, remap
from attnc.flex.errors import unsupported
from attnc.flex.forms import ZERO, add, compare, constant, convert, multiply, opposite, where
from attnc.ir.nodes import BinaryOp, Bound, Expr, Quantifier, QuantifierKind
from attnc.ir.types import Type

Operand = Callable[[Any], Expr]
"""Turns an argument of an operator into its expression."""

MOST_INSTANCES = 1024
"""The language's limit of a bounded quantifier."""

_RESHAPES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "expand", "as_strided_same",
}  # fmt: skip
_REDUCTIONS = {"any": QuantifierKind.ANY, "all": QuantifierKind.ALL, "sum": QuantifierKind.SUM}

STRUCTURAL = {*_RESHAPES, *_REDUCTIONS, "select", "slice", "permute", "transpose", "t", "index", "stack", "isin"}
"""Operators that this module knows."""

_numbers = count()


def structural(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], shape: tuple[int, ...], of: Operand) -> Expr:
    """Return the expression of one of these operators' result.

    Args:
        name: in `STRUCTURAL`.
        args: its positional arguments.
        kwargs: its other arguments.
        shape: of the result.
        of: turns an operand into its expression.
    """
    first = args[0]
    if name in _RESHAPES:
        return _reshape(of(first), tuple(first.shape), shape, expands=name == "expand")
    if name in _REDUCTIONS:
        return _reduce(_REDUCTIONS[name], of(first), tuple(first.shape), args, kwargs)
    match name:
        case "select":
            return _select(of(first), tuple(first.shape), *args[1:])
        case "slice":
            return _slice(of(first), tuple(first.shape), *args[1:])
        case "permute" | "transpose" | "t":
            return _permute(of(first), first.dim(), _order(name, first.dim(), args))
        case "index":
            return _index(of(first), tuple(first.shape), args[1], of)
        case "stack":
            return _stack([of(part) for part in first], first[0].dim(), int(args[1]) if len(args) > 1 else 0)
        case _:
            return _isin(args, kwargs, of)


def _reshape(expr: Expr, old: tuple[int, ...], new: tuple[int, ...], *, expands: bool) -> Expr:
    if expands:
        return expr
    before = [len(old) - at for at, size in enumerate(old) if size != 1]
    after = [len(new) - at for at, size in enumerate(new) if size != 1]
    if [old[len(old) - k] for k in before] != [new[len(new) - k] for k in after]:
        raise unsupported("a change of shape that joins or splits dimensions")
    return remap(expr, {k: axis(to) for k, to in zip(before, after, strict=True) if k != to})


def _select(expr: Expr, shape: tuple[int, ...], dim: int, index: int) -> Expr:
    dims = len(shape)
    dim %= dims
    gone = dims - dim
    at = index + shape[dim] if index < 0 else index
    return remap(expr, {gone: constant(at), **{k: axis(k - 1) for k in range(gone + 1, dims + 1)}})


def _slice(
    expr: Expr, shape: tuple[int, ...], dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> Expr:
    dims = len(shape)
    dim %= dims
    first = slice(start, stop, step).indices(shape[dim])[0]
    k = dims - dim
    return remap(expr, {k: add(multiply(axis(k), constant(step)), constant(first))})


def _order(name: str, dims: int, args: Sequence[Any]) -> list[int]:
    if name == "permute":
        return [at % dims for at in args[1]]
    order = list(range(dims))
    one, other = (0, 1) if name == "t" else (args[1] % dims, args[2] % dims)
    if dims >= 2:
        order[one], order[other] = order[other], order[one]
    return order


def _permute(expr: Expr, dims: int, order: list[int]) -> Expr:
    return remap(expr, {dims - at: axis(dims - to) for to, at in enumerate(order)})


def _index(expr: Expr, shape: tuple[int, ...], index: Sequence[Tensor | None], of: Operand) -> Expr:
    """Index some neighbouring dimensions by tensors, which broadcast against each other."""
    dims = len(shape)
    given = [at for at, place in enumerate(index) if place is not None]
    places = [place for place in index if place is not None]
    if given != list(range(given[0], given[-1] + 1)):
        raise unsupported("an index with `:` between positions")
    if any(place.dtype is torch.bool for place in places):
        raise unsupported("an index by booleans")
    behind = dims - 1 - given[-1]
    width = max(place.dim() for place in places)
    renamed: dict[int, Expr] = {dims - at: axis(dims - at - len(places) + width) for at in range(given[0])}
    for at, place in zip(given, places, strict=True):
        moved = {k: axis(k + behind) for k in range(1, place.dim() + 1)} if behind else {}
        renamed[dims - at] = remap(convert(of(place), Type.INT), moved)
    return remap(expr, renamed)


def _stack(parts: list[Expr], dims: int, dim: int) -> Expr:
    position = dim % (dims + 1)
    new = dims + 1 - position
    shifted = [remap(part, {k: axis(k + 1) for k in range(new, dims + 1)}) for part in parts]
    result = shifted[-1]
    for at in range(len(shifted) - 2, -1, -1):
        result = where(compare(BinaryOp.EQ, axis(new), constant(at)), shifted[at], convert(result, shifted[at].type))
    return result


def _reduce(
    kind: QuantifierKind, expr: Expr, shape: tuple[int, ...], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Expr:
    dims = len(shape)
    given = args[1] if len(args) > 1 else kwargs.get("dim")
    chosen = range(dims) if given is None else [given] if isinstance(given, int) else given
    gone = sorted({at % dims for at in chosen} if dims else ())
    keep = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
    expr = convert(expr, Type.BOOL if kind is not QuantifierKind.SUM else _number(expr.type))
    for at in gone:
        expr = _quantified(kind, expr, dims - at, shape[at])
    if keep:
        return expr
    left = [at for at in range(dims) if at not in gone]
    return remap(expr, {dims - at: axis(len(left) - to) for to, at in enumerate(left)})


def _number(type_: Type) -> Type:
    return Type.INT if type_ is Type.BOOL else type_


def _quantified(kind: QuantifierKind, expr: Expr, k: int, size: int) -> Expr:
    if size == 1:
        return remap(expr, {k: ZERO})
    if size > MOST_INSTANCES:
        raise unsupported(f"a reduction over {size} elements, more than {MOST_INSTANCES}")
    variable = f"t{next(_numbers)}"
    return Quantifier(kind, variable, size, remap(expr, {k: Bound(variable)}), expr.type)


def _isin(args: Sequence[Any], kwargs: Mapping[str, Any], of: Operand) -> Expr:
    elements, tests = args[0], args[1]
    if not isinstance(tests, Tensor):
        expr = compare(BinaryOp.EQ, of(elements), convert(of(tests), of(elements).type))
    elif tests.dim() != 1 or elements.dim() != 0:
        raise unsupported("`isin` but for one position among a list")
    else:
        common = Type.FLOAT if Type.FLOAT in (of(elements).type, of(tests).type) else Type.INT
        same = compare(BinaryOp.EQ, convert(of(elements), common), convert(of(tests), common))
        expr = _quantified(QuantifierKind.ANY, same, 1, tests.shape[0])
    return opposite(expr) if kwargs.get("invert") else expr
