"""What a `keys` statement means for the rest of its attention: which original positions each key covers.

`first(j)` and `last(j)` may be written above the statement. They are stand-ins until the whole attention was checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnc.ir.nodes import Binary, BinaryOp, Call, Cast, Const, Expr, Function, Index, IndexName, Read, Size, SizeName
from attnc.ir.program import ORIGINAL_KEYS, AlignKind, Attention, Deferred, Tensor, TensorKind, map_expressions
from attnc.ir.types import Type
from attnc.ir.walk import substitute, transform
from attnc.source import Span

FUNCTIONS = ("first", "last")
KEY_FILTER, VALUE_FILTER = "key_filter", "value_filter"
KEY_PROJECTION, VALUE_PROJECTION = "key_projection", "value_projection"
"""Learned tensors that `keys conv`, `keys conv2d` and `keys project` declare."""


def stand_in(function: str, key: Expr, span: Span | None) -> Expr:
    """Return what stands for `first(key)` or `last(key)`."""
    return Read(f"{function}()", (key,), Type.INT, inside=True, span=span)


def original_keys(span: Span | None = None) -> Expr:
    """Return `K`."""
    return Read(ORIGINAL_KEYS, (), Type.INT, inside=True, span=span)


def end_shift() -> Expr:
    """Return `K - N`, which puts the last query at the last original key."""
    return Binary(BinaryOp.SUB, original_keys(), Size(SizeName.QUERIES), Type.INT)


def ends_at_last_key(attention: Attention) -> bool:
    """Tell whether the last query stands at the last key, before keys are shortened."""
    return attention.align.kind is AlignKind.END or attention.align.shift == end_shift()


def resolve(expr: Expr, keys: Deferred) -> Expr:
    """Write `first` and `last` out as the `keys` statement has them."""

    def written(node: Expr) -> Expr:
        if isinstance(node, Read) and node.table in {f"{name}()" for name in FUNCTIONS}:
            first, last = covered(keys, node.index[0])
            return first if node.table == "first()" else last
        return node

    return transform(expr, written)


def covered(keys: Deferred, key: Expr) -> tuple[Expr, Expr]:
    """Return the first and the last original position that a key covers (LANGUAGE.md section 8)."""
    arguments = dict(keys.arguments)
    span = key.span
    match keys.form:
        case "mean_pool" | "conv":
            window = _argument(arguments, "window" if keys.form == "mean_pool" else "kernel")
            first = _times(key, _argument(arguments, "stride"), span)
            return first, _plus(first, _less_one(window, span), span)
        case "conv2d":
            width, kernel, stride = (_argument(arguments, name) for name in ("width", "kernel", "stride"))
            columns = _plus(_over(_minus(width, kernel, span), stride, span), Const(1, Type.INT), span)
            row, column = _over(key, columns, span), _modulo(key, columns, span)
            corner = _plus(_times(_times(row, stride, span), width, span), _times(column, stride, span), span)
            reach = _less_one(kernel, span)
            return corner, _plus(corner, _plus(_times(reach, width, span), reach, span), span)
        case _:
            return Const(0, Type.INT, span=span), _less_one(original_keys(span), span)


def shortened_count(keys: Deferred, length: int) -> int:
    """Return how many keys `length` original ones become."""

    def windows(positions: int, window: int) -> int:
        return max(0, (positions - window) // int(keys.number("stride")) + 1)

    match keys.form:
        case "project":
            return int(keys.number("rank"))
        case "conv2d":
            width, kernel = int(keys.number("width")), int(keys.number("kernel"))
            return windows(length // width, kernel) * windows(width, kernel)
        case "conv":
            return windows(length, int(keys.number("kernel")))
        case _:
            return windows(length, int(keys.number("window")))


def least_length(keys: Deferred, count: int) -> int:
    """Return the least number of original keys that become at least so many."""
    if keys.form == "project":
        return int(keys.number("length"))
    if keys.form == "conv2d":
        width = int(keys.number("width"))
        rows = next(rows for rows in range(1, 2 + width * count * 64) if shortened_count(keys, rows * width) >= count)
        return rows * width
    window = int(keys.number("window" if keys.form == "mean_pool" else "kernel"))
    return (count - 1) * int(keys.number("stride")) + window


def with_sizes(attention: Attention, sizes: Mapping[str, int]) -> Attention:
    """Return an attention with constants in the place of hidden scalars, which are no longer among its tensors."""
    given: dict[Expr, Expr] = {Read(name, (), Type.INT): Const(value, Type.INT) for name, value in sizes.items()}
    found = map_expressions(attention, lambda expr: substitute(expr, given))
    return replace(found, tensors=tuple(one for one in found.tensors if one.name not in sizes or not one.hidden))


def implied_tensors(keys: Deferred) -> tuple[Tensor, ...]:
    """Return the tensors that a `keys` statement declares: `K`, and what it learns.

    Filters begin as averages, and projections as numbers of either sign with which projected keys are about as long as
    the keys.
    """
    arguments = dict(keys.arguments)
    hidden = Tensor(ORIGINAL_KEYS, TensorKind.INPUT, Type.INT, hidden=True, span=keys.span)
    match keys.form:
        case "conv" | "conv2d":
            kernel = _argument(arguments, "kernel")
            places = kernel if keys.form == "conv" else _times(kernel, kernel, keys.span)
            dims = (Size(SizeName.HEAD_SIZE), *((kernel,) if keys.form == "conv" else (kernel, kernel)))
            average = Binary(BinaryOp.DIV, Const(1.0, Type.FLOAT), Cast(places, Type.FLOAT), Type.FLOAT)
            names: tuple[str, ...] = (KEY_FILTER, VALUE_FILTER)
            initial: tuple[Expr, ...] = (average, average)
        case "project":
            dims = (_argument(arguments, "rank"), _argument(arguments, "length"))
            names = (KEY_PROJECTION, VALUE_PROJECTION)
            initial = (_random(0, dims[1]), _random(1, dims[1]))
        case _:
            return (hidden,)
    learned = (
        Tensor(name, TensorKind.LEARNED, Type.FLOAT, dims, False, value, span=keys.span)
        for name, value in zip(names, initial, strict=True)
    )
    return (hidden, *learned)


def implied_names(keys: Deferred) -> frozenset[str]:
    """Return the names of what a `keys` statement learns."""
    return frozenset(tensor.name for tensor in implied_tensors(keys) if not tensor.hidden)


def _random(stream: int, length: Expr) -> Expr:
    """Return numbers of variance `1 / length`, evenly spread and hashed from their places."""
    places = tuple(Index(IndexName.DIM, axis) for axis in (0, 1))
    hashed = Call(Function.HASH, (Const(stream, Type.INT), *places), Type.INT)
    even = Binary(BinaryOp.DIV, Cast(hashed, Type.FLOAT), Const(2.0**62, Type.FLOAT), Type.FLOAT)
    centred = Binary(BinaryOp.SUB, even, Const(1.0, Type.FLOAT), Type.FLOAT)
    variance = Binary(BinaryOp.DIV, Const(3.0, Type.FLOAT), Cast(length, Type.FLOAT), Type.FLOAT)
    return Binary(BinaryOp.MUL, centred, Call(Function.SQRT, (variance,), Type.FLOAT), Type.FLOAT)


def _argument(arguments: dict[str, Expr | str], name: str) -> Expr:
    value = arguments[name]
    assert not isinstance(value, str)
    return value


def _int(op: BinaryOp, left: Expr, right: Expr, span: Span | None) -> Expr:
    if isinstance(left, Const) and isinstance(right, Const):
        first, second = int(left.value), int(right.value)
        folded = {
            BinaryOp.ADD: lambda: first + second,
            BinaryOp.SUB: lambda: first - second,
            BinaryOp.MUL: lambda: first * second,
            BinaryOp.FLOORDIV: lambda: first // second,
            BinaryOp.MOD: lambda: first % second,
        }[op]()
        return Const(folded, Type.INT, span=span)
    return Binary(op, left, right, Type.INT, span=span)


def _plus(left: Expr, right: Expr, span: Span | None) -> Expr:
    return _int(BinaryOp.ADD, left, right, span)


def _minus(left: Expr, right: Expr, span: Span | None) -> Expr:
    return _int(BinaryOp.SUB, left, right, span)


def _less_one(expr: Expr, span: Span | None) -> Expr:
    return _minus(expr, Const(1, Type.INT), span)


def _times(left: Expr, right: Expr, span: Span | None) -> Expr:
    return _int(BinaryOp.MUL, left, right, span)


def _over(left: Expr, right: Expr, span: Span | None) -> Expr:
    return _int(BinaryOp.FLOORDIV, left, right, span)


def _modulo(left: Expr, right: Expr, span: Span | None) -> Expr:
    return _int(BinaryOp.MOD, left, right, span)
