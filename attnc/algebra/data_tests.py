"""Tests of whole tiles against block tables: `keep[b, h, j // 64]` decides for 64 keys at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from attnc.ir.nodes import (
    FALSE,
    TRUE,
    And,
    Binary,
    BinaryOp,
    Bound,
    Call,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Or,
    Quantifier,
    QuantifierKind,
    Read,
    Unary,
    UnaryOp,
)
from attnc.ir.types import Type
from attnc.ir.walk import indices, substitute, walk

SMALLEST_BLOCK = 16
"""Blocks of fewer positions than this are no blocks of tiles."""

MOST_READS = 24
"""A tile test that reads more elements than this takes as long as computing the tile."""

_PAIR = frozenset((IndexName.QUERY, IndexName.KEY, IndexName.ROW))
_LOW, _HIGH, _SHIFT = Index(IndexName.QUERY_LOW), Index(IndexName.QUERY_HIGH), Index(IndexName.SHIFT)
_BOUNDS: dict[IndexName, tuple[Expr, Expr]] = {
    IndexName.QUERY: (_LOW, _HIGH),
    IndexName.KEY: (Index(IndexName.KEY_LOW), Index(IndexName.KEY_HIGH)),
    IndexName.ROW: (
        Binary(BinaryOp.SUB, _LOW, _SHIFT, Type.INT),
        Binary(BinaryOp.SUB, _HIGH, _SHIFT, Type.INT),
    ),
}


@dataclass(frozen=True, slots=True)
class TileLimits:
    """The largest tile that a test must hold for."""

    query: int
    key: int


def data_test(condition: Expr, limits: TileLimits) -> Expr | None:
    """Return a condition of a tile without which no pair of it fulfils `condition`; None if block tables say nothing.

    Args:
        condition: a bool over pairs.
        limits: of the tiles.

    Returns:
        A bool over `i_lo`, `i_hi`, `j_lo`, `j_hi`, `shift` and what is the same for all pairs.
    """
    taken = {node.name for node in walk(condition) if isinstance(node, Bound)}
    found = _Blocks(limits, taken).possible(condition)
    if found is None or found == TRUE or not any(isinstance(node, Read) and node.index for node in walk(found)):
        return None
    return found if _reads(found) <= MOST_READS else None


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Widens conditions on pairs to conditions on tiles.

    Attributes:
        taken: names of bound variables.
    """

    limits: TileLimits
    taken: set[str]

    def possible(self, expr: Expr) -> Expr | None:
        """Return when some pair of a tile may fulfil a bool; None where that is not known."""
        match expr:
            case And(operands=operands):
                known = [one for one in map(self.possible, operands) if one is not None]
                return And(tuple(known)) if len(known) > 1 else known[0] if known else None
            case Or(operands=operands):
                every = [one for one in map(self.possible, operands) if one is not None]
                return Or(tuple(every)) if len(every) == len(operands) else None
            case Quantifier(kind=QuantifierKind.ANY | QuantifierKind.ALL, body=body):
                inner = self.possible(body)
                return None if inner is None else Quantifier(expr.kind, expr.variable, expr.count, inner, Type.BOOL)
            case Const():
                return TRUE if expr.value else FALSE
            case Read() | Unary(op=UnaryOp.NOT) | Binary():
                return self._in_some_block(expr)
            case _:
                return None

    def _in_some_block(self, expr: Expr) -> Expr | None:
        """Return that a bool holds in some block of the tile, where it depends on pairs through their blocks alone."""
        blocks = [node for node in dict.fromkeys(walk(expr)) if _is_block(node)]
        rest = substitute(expr, {block: Const(0, Type.INT) for block in blocks})
        if not blocks or indices(rest) & _PAIR:
            return None
        result = expr
        for block in blocks:
            result = self._any_block(result, block)
        return result

    def _any_block(self, expr: Expr, block: Expr) -> Expr:
        assert isinstance(block, Binary)
        assert isinstance(block.left, Index)
        assert isinstance(block.right, Const)
        low, high = _BOUNDS[block.left.name]
        longest = self.limits.key if block.left.name is IndexName.KEY else self.limits.query
        variable = self._fresh()
        first, last = (Binary(BinaryOp.FLOORDIV, edge, block.right, Type.INT) for edge in (low, high))
        there = Binary(BinaryOp.ADD, first, Bound(variable), Type.INT)
        body = substitute(expr, {block: Call(Function.MIN, (there, last), Type.INT)})
        most = (longest - 1) // int(block.right.value) + 2
        return Quantifier(QuantifierKind.ANY, variable, most, body, Type.BOOL)

    def _fresh(self) -> str:
        name = next(name for number in count() if (name := f"block_{number}") not in self.taken)
        self.taken.add(name)
        return name


def _is_block(node: Expr) -> bool:
    return (
        isinstance(node, Binary)
        and node.op is BinaryOp.FLOORDIV
        and isinstance(node.left, Index)
        and node.left.name in _PAIR
        and isinstance(node.right, Const)
        and node.right.value >= SMALLEST_BLOCK
    )


def _reads(expr: Expr) -> int:
    """Count how many elements a test reads, quantifiers multiplied out."""
    match expr:
        case Quantifier(count=times, body=body):
            return times * _reads(body)
        case And(operands=operands) | Or(operands=operands):
            return sum(_reads(operand) for operand in operands)
        case _:
            return sum(isinstance(node, Read) for node in walk(expr))
