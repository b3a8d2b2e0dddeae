"""The least and the greatest value that an int or a float takes on a tile, as expressions over the tile's bounds.

A table that is read along the positions is known by its extremes over blocks of positions, which are made before any
pass runs (`algebra.summaries`). Everything else is interval arithmetic. Ints may wrap around at 64 bits, which no
interval shows: what must be small for them not to is collected as guards. Extremes of floats are NaN where a value is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from attnc.algebra.coordinates import KEY_REACH, PLAIN, CoordinateMap, Layout, query_reach
from attnc.algebra.summaries import BlockExtreme, summary_name
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
    Read,
    Size,
    SizeName,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import AlignKind, Attention, Tensor
from attnc.ir.types import Type
from attnc.ir.walk import indices, walk

MOST_PLACES = 32
"""An extent of more elements than this takes as long as computing the tile."""

LARGEST_BLOCK = 64
"""Most elements of a table that are summed up together: the positions of a usual tile."""

TAME = 2**40
"""Ints of data up to here cannot wrap around in the arithmetic of usual masks."""

_SAFE = 2**62
_POSITION = 2**31

PAIR = frozenset((IndexName.QUERY, IndexName.KEY, IndexName.ROW))
"""Coordinates that differ between the pairs of a tile."""

_SHIFT = Index(IndexName.SHIFT)
_TILES = {
    IndexName.QUERY: (Index(IndexName.QUERY_LOW), Index(IndexName.QUERY_HIGH)),
    IndexName.KEY: (Index(IndexName.KEY_LOW), Index(IndexName.KEY_HIGH)),
}

Extent = tuple[Expr, Expr]
"""The least and the greatest value, or bounds of them."""


@dataclass(frozen=True, slots=True)
class TileLimits:
    """The largest tile that an extent must hold for."""

    query: int
    key: int


@dataclass(frozen=True, slots=True)
class _Places:
    """Indices that one dimension of a read may have on a tile.

    Attributes:
        indices: of elements, or of blocks of `block` elements.
        inside: none of them lies past the end of the table.
    """

    indices: tuple[Expr, ...]
    block: int
    inside: bool


@dataclass(frozen=True, slots=True)
class TileExtents:
    """Finds extents.

    Attributes:
        tensors: the inputs, by name.
        transposed: as that of an attention.
        summaries: whether extremes of blocks may be read; otherwise tables are known by their elements alone.
        layout: in which the tile lies; not one of grids.
    """

    limits: TileLimits
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    align: AlignKind = AlignKind.END
    transposed: bool = False
    summaries: bool = False
    layout: Layout = PLAIN

    @classmethod
    def of(cls, attention: Attention, limits: TileLimits, layout: Layout, *, summaries: bool) -> TileExtents:
        """Return what finds extents of an attention's expressions."""
        tensors, kind = {one.name: one for one in attention.tensors}, attention.align.kind
        return cls(limits, tensors, kind, attention.transposed, summaries, layout)

    @property
    def most_elements(self) -> int:
        """Elements along one dimension up to which they are read one by one."""
        return 5 if self.summaries else 24

    def extent(self, expr: Expr) -> Extent | None:
        """Return the extent of a number on a tile; None if it is not known."""
        if is_same(expr):
            return expr, expr
        match expr:
            case Index(name=IndexName.QUERY | IndexName.KEY as name):
                order = self._order(name)
                low, high = (order.position(end) for end in _TILES[name])
                return low, high
            case Index(name=IndexName.ROW):
                low, high = (self.layout.query.position(end) for end in _TILES[IndexName.QUERY])
                return Binary(BinaryOp.SUB, low, _SHIFT, Type.INT), Binary(BinaryOp.SUB, high, _SHIFT, Type.INT)
            case Unary(op=UnaryOp.NEG, operand=operand):
                inner = self.extent(operand)
                return None if inner is None else (_negative(inner[1]), _negative(inner[0]))
            case Binary(op=op, left=left, right=right):
                return self._binary(op, left, right, expr.type)
            case Call(function=Function.MIN | Function.MAX | Function.ABS as function, args=args):
                return self._call(function, args, expr.type)
            case Where(then=then, otherwise=otherwise):
                one, two = self.extent(then), self.extent(otherwise)
                return None if one is None or two is None else _union(one, two, expr.type)
            case Cast(operand=operand) if operand.type is Type.BOOL:
                return Const(0, Type.INT), Const(1, Type.INT)
            case Cast(operand=operand, type=Type.FLOAT) if operand.type is Type.INT:
                inner = self.extent(operand)
                return None if inner is None else (Cast(inner[0], Type.FLOAT), Cast(inner[1], Type.FLOAT))
            case Read():
                return self._read(expr)
            case _:
                return None

    def _order(self, name: IndexName) -> CoordinateMap:
        return self.layout.key if name is IndexName.KEY else self.layout.query

    def _binary(self, op: BinaryOp, left: Expr, right: Expr, type_: Type) -> Extent | None:
        one, two = self.extent(left), self.extent(right)
        if one is None or two is None or (type_ is Type.FLOAT and (_has_product(left) or _has_product(right))):
            return None  # a kernel may round a product and a sum at once
        if op is BinaryOp.ADD:
            return Binary(op, one[0], two[0], type_), Binary(op, one[1], two[1], type_)
        if op is BinaryOp.SUB:
            return Binary(op, one[0], two[1], type_), Binary(op, one[1], two[0], type_)
        if isinstance(left, Const) and op is BinaryOp.MUL:
            one, right = two, left
        if not isinstance(right, Const) or type_ is Type.FLOAT:
            return None
        if op is BinaryOp.MUL:
            ends = one if right.value >= 0 else (one[1], one[0])
            return Binary(op, ends[0], right, type_), Binary(op, ends[1], right, type_)
        if right.value <= 0 or op not in (BinaryOp.FLOORDIV, BinaryOp.MOD):
            return None
        low, high = (Binary(BinaryOp.FLOORDIV, end, right, type_) for end in one)
        if op is BinaryOp.FLOORDIV:
            return low, high
        whole = Binary(BinaryOp.EQ, low, high, Type.BOOL)
        least, most = (Binary(op, end, right, type_) for end in one)
        return (
            Where(whole, least, Const(0, type_), type_),
            Where(whole, most, Const(int(right.value) - 1, type_), type_),
        )

    def _call(self, function: Function, args: tuple[Expr, ...], type_: Type) -> Extent | None:
        known = [part for part in map(self.extent, args) if part is not None]
        if len(known) < len(args):
            return None
        if function is Function.ABS:
            low, high = known[0]
            zero = Const(0 if type_ is Type.INT else 0.0, type_)
            least = Call(Function.MAX, (zero, low, _negative(high)), type_)
            return least, Call(Function.MAX, (high, _negative(low)), type_)
        low, high = (Call(function, tuple(part[end] for part in known), type_) for end in (0, 1))
        return low, high

    # -- tables

    def _read(self, expr: Read) -> Extent | None:
        least, greatest = self.elements(expr, greatest=False), self.elements(expr, greatest=True)
        if least is None or greatest is None:
            return None
        return _extreme(Function.MIN, least, expr.type), _extreme(Function.MAX, greatest, expr.type)

    def elements(self, expr: Read, *, greatest: bool) -> tuple[Expr, ...] | None:
        """Return reads of everything that a read may give on a tile, or of the extremes of its blocks; None if many."""
        places = [self._places(expr, axis) for axis in range(len(expr.index))]
        known = [one for one in places if one is not None]
        count = 1
        for one in known:
            count *= len(one.indices)
        if len(known) < len(places) or count > MOST_PLACES:
            return None
        blocks = tuple((axis, one.block) for axis, one in enumerate(known) if one.block > 1)
        table = expr.table
        if blocks:
            inside = all(one.inside for one in known if one.block > 1)
            table = summary_name(table, BlockExtreme(greatest, blocks, padded=not inside).kind)
        return tuple(
            Read(table, index, expr.type, span=expr.span) for index in product(*(one.indices for one in known))
        )

    def _places(self, expr: Read, axis: int) -> _Places | None:
        index, dim = expr.index[axis], self.tensors[expr.table].dims[axis]
        if is_same(index):
            return _Places((index,), 1, inside=True)
        if isinstance(dim, Size) and dim.name in (SizeName.BATCH, SizeName.HEADS):
            return None  # it may have one element that stands for all
        direct = self.direct(index)
        if direct is not None:
            return _Places(tuple(direct(Const(step, Type.INT)) for step in range(self.count(index))), 1, inside=True)
        if not self.summaries:
            return None
        return self._blocks(index, inside=self._is_inside(index, dim))

    def _blocks(self, index: Expr, *, inside: bool) -> _Places | None:
        """Return the blocks in which an index may lie."""
        period = 0
        if isinstance(index, Binary) and index.op is BinaryOp.MOD and isinstance(index.right, Const):
            period, index = int(index.right.value), index.left
        ends, span = self.extent(index), self.span(index)
        if ends is None or span is None or any(isinstance(node, Read) for node in walk(index)):
            return None
        block = min(LARGEST_BLOCK, 1 << max(0, ((span + 1) // 2).bit_length() - 1))
        if period < 0 or (period and period % block):
            return None
        size = Const(block, Type.INT)
        first, last = (Binary(BinaryOp.FLOORDIV, end, size, Type.INT) for end in ends)
        found = [_step(first, last, Const(step, Type.INT)) for step in range(span // block + 2)]
        if period:
            found = [Binary(BinaryOp.MOD, one, Const(period // block, Type.INT), Type.INT) for one in found]
        return _Places(tuple(found), block, inside)

    def _is_inside(self, index: Expr, dim: Expr | None) -> bool:
        """Tell whether every real pair reads an element that exists, or one before the first."""
        match index:
            case Index(name=IndexName.KEY | IndexName.QUERY as name):
                reach = KEY_REACH if (name is IndexName.KEY) is not self.transposed else query_reach(self.align)
                return dim == Size(SizeName.KEYS) and reach.past == KEY_REACH.past
            case Index(name=IndexName.ROW):
                return dim == Size(SizeName.QUERIES)
            case Binary(op=BinaryOp.SUB, left=Index(name=IndexName.KEY), right=right) if self.transposed:
                return dim == Size(SizeName.QUERIES) and right == _SHIFT
            case Binary(op=BinaryOp.MOD, right=Const(value=value)):
                return isinstance(dim, Const) and dim.value >= value
            case _:
                return False

    def count(self, expr: Expr) -> int:
        """Return how many values an int may take on a tile; a large number where that is not known."""
        span = self.span(expr)
        return _POSITION if span is None else span + 1

    def direct(self, expr: Expr) -> _Steps | None:
        """Return the few values that an int takes on a tile, by their number; None if they are many."""
        if self.count(expr) > self.most_elements or any(isinstance(node, Read) for node in walk(expr)):
            return None
        ends = self.extent(expr)
        return None if ends is None else _Steps(*ends)

    def span(self, expr: Expr) -> int | None:
        """Return how far apart two values of an int can be on a tile, at most; None if that is not known."""
        if is_same(expr):
            return 0
        match expr:
            case Index(name=name):
                return self._order(name).reach((self.limits.key if name is IndexName.KEY else self.limits.query) - 1)
            case Unary(op=UnaryOp.NEG, operand=operand):
                return self.span(operand)
            case Binary(op=BinaryOp.ADD | BinaryOp.SUB, left=left, right=right):
                one, two = self.span(left), self.span(right)
                return None if one is None or two is None else one + two
            case Binary(op=op, left=left, right=Const(value=value)):
                inner = self.span(left)
                if inner is None or value <= 0:
                    return None
                match op:
                    case BinaryOp.MUL:
                        return inner * int(value)
                    case BinaryOp.FLOORDIV:
                        return inner // int(value) + 1
                    case BinaryOp.MOD:
                        return int(value) - 1
                return None
            case Call(function=Function.MIN | Function.MAX, args=args):
                spans = [self.span(arg) for arg in args]
                known = [span for span in spans if span is not None]
                return max(known) if len(known) == len(spans) else None
            case _:
                return None

    # -- ints that wrap around

    def guards(self, *exprs: Expr) -> tuple[Extent, ...] | None:
        """Return the extents that must be tame for no int operation to wrap around; None where that is not enough."""
        found: dict[Extent, None] = {}
        for expr in exprs:
            if expr.type is Type.INT and not _is_plain(expr):
                size = self._magnitude(expr, found)
                if size is None or size >= _SAFE:
                    return None
            elif expr.type is Type.FLOAT and not is_same(expr):
                inner = self.guards(*(node.operand for node in walk(expr) if isinstance(node, Cast)))
                if inner is None:
                    return None
                found.update(dict.fromkeys(inner))
        return tuple(found)

    def _magnitude(self, expr: Expr, found: dict[Extent, None]) -> int | None:
        """Return how large an int can be on either side of 0 if the extents that are `found` are tame."""
        match expr:
            case Const(value=value):
                return abs(int(value))
            case Index() | Size() | Bound():
                return _POSITION
            case Unary(op=UnaryOp.NEG, operand=operand):
                return self._magnitude(operand, found)
            case Binary(op=BinaryOp.MOD, right=Const(value=value)) if value > 0:
                inner = self._magnitude(expr.left, found)
                return None if inner is None or inner >= _SAFE else int(value)
            case Binary(op=BinaryOp.ADD | BinaryOp.SUB | BinaryOp.MUL | BinaryOp.FLOORDIV as op):
                one, two = self._magnitude(expr.left, found), self._magnitude(expr.right, found)
                if one is None or two is None:
                    return None
                return one * two if op is BinaryOp.MUL else one if op is BinaryOp.FLOORDIV else one + two
            case Call(function=Function.MIN | Function.MAX | Function.ABS, args=args):
                return self._largest(args, found)
            case Where(then=then, otherwise=otherwise):
                return self._largest((then, otherwise), found)
            case Cast(operand=operand) if operand.type is Type.BOOL:
                return 1
            case _:
                ends = self.extent(expr)
                if ends is not None:
                    found[ends] = None
                return None if ends is None else TAME

    def _largest(self, parts: tuple[Expr, ...], found: dict[Extent, None]) -> int | None:
        sizes = [self._magnitude(part, found) for part in parts]
        known = [size for size in sizes if size is not None]
        return max(known) if len(known) == len(sizes) else None


@dataclass(frozen=True, slots=True)
class _Steps:
    """All ints from `low` on, not past `high`."""

    low: Expr
    high: Expr

    def __call__(self, step: Expr) -> Expr:
        """Return the one with a number; numbers that are too large give the last one."""
        return _step(self.low, self.high, step)


def is_same(expr: Expr) -> bool:
    """Tell whether an expression has one value for all pairs of a tile."""
    return not indices(expr) & PAIR


def _step(low: Expr, high: Expr, step: Expr) -> Expr:
    there = low if step == Const(0, Type.INT) else Binary(BinaryOp.ADD, low, step, Type.INT)
    return low if there == low else Call(Function.MIN, (there, high), Type.INT)


def _is_plain(expr: Expr) -> bool:
    """Tell whether an int is what some table, size or coordinate holds, so that nothing can wrap around."""
    match expr:
        case Call(function=Function.MIN | Function.MAX, args=args):
            return all(map(_is_plain, args))
        case Where(then=then, otherwise=otherwise):
            return _is_plain(then) and _is_plain(otherwise)
        case _:
            return is_same(expr) or isinstance(expr, Read | Index)


def _has_product(expr: Expr) -> bool:
    products = (BinaryOp.MUL, BinaryOp.DIV, BinaryOp.POW)
    return any(isinstance(node, Binary) and node.op in products and node.type is Type.FLOAT for node in walk(expr))


def _union(one: Extent, two: Extent, type_: Type) -> Extent:
    return Call(Function.MIN, (one[0], two[0]), type_), Call(Function.MAX, (one[1], two[1]), type_)


def _negative(expr: Expr) -> Expr:
    return Unary(UnaryOp.NEG, expr, expr.type)


def _extreme(function: Function, parts: tuple[Expr, ...], type_: Type) -> Expr:
    return parts[0] if len(parts) == 1 else Call(function, parts, type_)
