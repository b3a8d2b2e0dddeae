"""Captured tensors as inputs: how long their dimensions are, and reads that torch would wrap around."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from attnc.flex.axes import axis_number
from attnc.flex.forms import ZERO, add, modulo
from attnc.flex.operators import type_of
from attnc.ir.nodes import (
    Binary,
    BinaryOp,
    Bound,
    Call,
    Cast,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Parameter,
    Quantifier,
    Read,
    Size,
    SizeName,
    Unary,
    Where,
)
from attnc.ir.program import Tensor as Declaration
from attnc.ir.program import TensorKind
from attnc.ir.types import Type
from attnc.ir.walk import children, with_children

_SIZES = {
    IndexName.BATCH: SizeName.BATCH,
    IndexName.HEAD: SizeName.HEADS,
    IndexName.QUERY: SizeName.QUERIES,
    IndexName.KEY: SizeName.KEYS,
}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the calls that captured tensors are for.

    Attributes:
        lengths: sizes of the call, as far as they are given.
        numbers: value of each parameter.
    """

    lengths: Mapping[SizeName, int]
    numbers: Mapping[str, int | float]


def declare(tensors: Mapping[str, Tensor], expressions: Iterable[Expr], known: Known) -> tuple[Declaration, ...]:
    """Declare the inputs that expressions read.

    A dimension that is indexed by `b`, `h`, `q_idx` or `kv_idx` is as long as there are batch entries, heads, queries
    or keys; by both `q_idx` and `kv_idx`, as the longer of the two; by `q_idx // c`, as there are blocks of `c`
    queries (and so for keys). Any other dimension keeps the length that it has. So does one whose length contradicts
    what is known.
    """
    reads: dict[str, list[Read]] = {name: [] for name in tensors}
    for expr in expressions:
        for node in nodes(expr):
            if isinstance(node, Read):
                reads[node.table].append(node)
    return tuple(_declaration(name, tensor, reads[name], known) for name, tensor in tensors.items())


def _declaration(name: str, tensor: Tensor, reads: list[Read], known: Known) -> Declaration:
    dims = []
    for at, size in enumerate(tensor.shape):
        dims.append(_length(size, [read.index[at] for read in reads], known))
    return Declaration(name, TensorKind.INPUT, type_of(tensor.dtype), tuple(dims))


def _length(size: int, places: list[Expr], known: Known) -> Expr:
    found = list(dict.fromkeys(one for place in places if (one := _length_for(place)) is not None))
    plain = [one for one in found if isinstance(one, Size)]
    chosen: list[Expr] = [*plain] or found
    own = Const(size, Type.INT)
    queries, keys = Size(SizeName.QUERIES), Size(SizeName.KEYS)
    if not chosen:
        return own
    if len(chosen) == 1:
        length = chosen[0]
    elif set(chosen) == {queries, keys}:
        length = Call(Function.MAX, (queries, keys), Type.INT)
    else:
        return own
    broadcasts = size == 1 and length in (Size(SizeName.BATCH), Size(SizeName.HEADS))
    return length if broadcasts or _known(length, known) in (None, size) else own


def _length_for(place: Expr) -> Expr | None:
    """Return how long a dimension is that is indexed by this."""
    match place:
        case Index(name=name) if name in _SIZES:
            return Size(_SIZES[name])
        case Binary(op=BinaryOp.FLOORDIV, left=Index(name=IndexName.QUERY | IndexName.KEY as name), right=Const() as c):
            rounded = Binary(BinaryOp.ADD, Size(_SIZES[name]), Const(int(c.value) - 1, Type.INT), Type.INT)
            return Binary(BinaryOp.FLOORDIV, rounded, c, Type.INT)
        case Binary(
            op=BinaryOp.FLOORDIV, left=Index(name=IndexName.QUERY | IndexName.KEY as name), right=Parameter() as c
        ):
            more = Binary(BinaryOp.ADD, Size(_SIZES[name]), c, Type.INT)
            rounded = Binary(BinaryOp.SUB, more, Const(1, Type.INT), Type.INT)
            return Binary(BinaryOp.FLOORDIV, rounded, c, Type.INT)
        case _:
            return None


def _known(length: Expr, known: Known) -> int | None:
    match length:
        case Size(name=name):
            return known.lengths.get(name)
        case Parameter(name=name):
            return int(known.numbers[name])
        case Const(value=value):
            return int(value)
        case Binary(op=op, left=left, right=right):
            one, two = _known(left, known), _known(right, known)
            if one is None or two is None:
                return None
            return one + two if op is BinaryOp.ADD else one - two if op is BinaryOp.SUB else one // two
        case Call(args=args):
            values = [_known(arg, known) for arg in args]
            given = [value for value in values if value is not None]
            return max(given) if len(given) == len(values) else None
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Wrapping:
    """Rewrites reads so that an index below 0 counts from the end, as in torch.

    Attributes:
        declarations: of all inputs, by name.
        tensors: the captured tensors by name; integers that index must be known not to be negative.
        numbers: value of each parameter.
    """

    declarations: Mapping[str, Declaration]
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, int | float]

    def rewrite(self, expr: Expr) -> Expr:
        """Return the expression with every read mended; shared parts stay shared."""
        done: dict[int, Expr] = {}

        def go(node: Expr) -> Expr:
            found = done.get(id(node))
            if found is None:
                found = with_children(node, tuple(go(child) for child in children(node)))
                if isinstance(found, Read):
                    found = self._read(found)
                done[id(node)] = found
            return found

        return go(expr)

    def _read(self, read: Read) -> Read:
        dims = self.declarations[read.table].dims
        shape = self.tensors[read.table].shape
        places = []
        for place, dim, size in zip(read.index, dims, shape, strict=True):
            length = Const(size, Type.INT) if dim is None else dim
            if isinstance(place, Const):
                places.append(place if place.value >= 0 else add(length, place))
            elif size == 1 and isinstance(dim, Const):
                places.append(ZERO)
            else:
                places.append(place if self._is_natural(place) else modulo(place, length))
        return Read(read.table, tuple(places), read.type)

    def _is_natural(self, expr: Expr) -> bool:
        """Tell whether an int is known to be 0 at least; what a table holds now is taken to be what it will hold."""
        return self._range(expr)[0] >= 0

    def _range(self, expr: Expr) -> tuple[float, float]:
        """Return the least and the greatest value that an int is known to have."""
        match expr:
            case Const(value=value):
                return value, value
            case Parameter(name=name):
                return self.numbers[name], self.numbers[name]
            case Index() | Size() | Bound():
                return 0, math.inf
            case Read(table=table):
                values = self.tensors[table]
                return (int(values.min()), int(values.max())) if values.numel() else (0, 0)
            case Binary(op=op, left=left, right=right):
                return _combined(op, self._range(left), self._range(right))
            case Unary(operand=operand):
                low, high = self._range(operand)
                return -high, -low
            case Call(function=Function.ABS, args=args):
                low, high = self._range(args[0])
                return max(0, low, -high), max(high, -low)
            case Call(function=Function.MIN | Function.MAX as function, args=args):
                choose = min if function is Function.MIN else max
                lows, highs = zip(*(self._range(arg) for arg in args), strict=True)
                return choose(lows), choose(highs)
            case Where(then=then, otherwise=otherwise):
                one, two = self._range(then), self._range(otherwise)
                return min(one[0], two[0]), max(one[1], two[1])
            case Cast(operand=operand) if operand.type is Type.BOOL:
                return 0, 1
            case Quantifier(body=body, count=count):
                low, high = self._range(body)
                return min(0, low * count if count else 0), max(0, high * count if count else 0)
            case _:
                return -math.inf, math.inf


def _combined(op: BinaryOp, one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
    match op:
        case BinaryOp.ADD:
            return one[0] + two[0], one[1] + two[1]
        case BinaryOp.SUB:
            return one[0] - two[1], one[1] - two[0]
        case BinaryOp.MUL if one[0] >= 0 and two[0] >= 0:
            return one[0] * two[0], math.inf
        case BinaryOp.FLOORDIV | BinaryOp.POW if one[0] >= 0 and two[0] >= 0:
            return 0, math.inf
        case BinaryOp.MOD if two[0] >= 0:
            return 0, max(two[1] - 1, 0)
        case _:
            return -math.inf, math.inf


def nodes(expr: Expr) -> Iterable[Expr]:
    """Yield every distinct node of an expression whose parts are shared, parents first."""
    seen: set[int] = set()
    waiting = [expr]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        waiting.extend(reversed(children(node)))


def has_axis(expr: Expr) -> bool:
    """Tell whether an expression depends on an axis of a tensor."""
    return any(axis_number(node) is not None for node in nodes(expr))
