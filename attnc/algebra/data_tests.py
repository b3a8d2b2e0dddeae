"""Tests of whole tiles by data: `keep[b, h, j // 64]` decides for 64 keys at once, minima and maxima for other tables.

A condition of pairs is widened to one of tiles: it may hold somewhere in the tile. What is read a few times in a tile,
as entries of a block table are, is tried one by one; the rest is compared by extents (`algebra.extents`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from attnc.algebra.affine import is_uniform
from attnc.algebra.extents import TAME, TileExtents, is_same
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
    IndexName,
    Or,
    Quantifier,
    QuantifierKind,
    Read,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import children, indices, transform, walk

MOST_READS = 24
"""A tile test that reads more elements for each tile than this takes as long as computing the tile."""

MOST_ROW_READS = 64
"""Most elements that a tile test reads for a whole row of tiles."""

_OPPOSITE = {
    BinaryOp.LT: BinaryOp.GE,
    BinaryOp.LE: BinaryOp.GT,
    BinaryOp.GT: BinaryOp.LE,
    BinaryOp.GE: BinaryOp.LT,
    BinaryOp.EQ: BinaryOp.NE,
    BinaryOp.NE: BinaryOp.EQ,
}

Covered = Callable[[Expr], bool]
"""Whether bounds of runs say all that there is to say of a comparison."""


def data_test(condition: Expr, extents: TileExtents, covered: Covered) -> Expr | None:
    """Return a condition of a tile without which no pair of it fulfils `condition`; None if data says nothing.

    Args:
        condition: a bool over pairs.
        extents: of the attention's expressions.
        covered: tells what needs no test.

    Returns:
        A bool over `i_lo`, `i_hi`, `j_lo`, `j_hi`, `shift` and what is the same for all pairs.
    """
    widening = _Widening(extents, _bound_names(condition), covered)
    if not widening.is_wanted(condition):
        return None
    found = widening.possible(condition)
    return found if _is_worth_it(found) else None


def whole_test(condition: Expr, extents: TileExtents) -> Expr | None:
    """Return a condition of a tile with which all its pairs fulfil `condition`; None if data says nothing."""
    found = _Widening(extents, _bound_names(condition), None).possible(condition, negated=True)
    return Unary(UnaryOp.NOT, found, Type.BOOL) if _is_worth_it(found) else None


def reads_pairs(expr: Expr) -> bool:
    """Tell whether data that differs between pairs, or a hash of them, decides."""
    return any(_is_data(node) for node in walk(expr))


def _is_worth_it(test: Expr) -> bool:
    here, once = _reads(test)
    return reads_pairs(test) and here <= MOST_READS and once <= MOST_ROW_READS


def _bound_names(condition: Expr) -> set[str]:
    return {node.name for node in walk(condition) if isinstance(node, Bound)}


def _is_data(node: Expr) -> bool:
    is_table = isinstance(node, Read) and bool(node.index)
    is_hash = isinstance(node, Call) and node.function is Function.HASH
    return (is_table or is_hash) and not is_uniform(node)


@dataclass(frozen=True, slots=True)
class _Widening:
    """Widens conditions on pairs to conditions on tiles; `TRUE` where nothing is known.

    Attributes:
        taken: names of bound variables.
        covered: what needs no test; None keeps every part of the condition.
    """

    extents: TileExtents
    taken: set[str]
    covered: Covered | None
    fresh: count[int] = field(default_factory=count)

    def possible(self, expr: Expr, *, negated: bool = False) -> Expr:
        """Return when some pair of a tile may fulfil a bool, or its negation."""
        match expr:
            case Const(value=value):
                return TRUE if bool(value) is not negated else FALSE
            case Unary(op=UnaryOp.NOT, operand=operand):
                return self.possible(operand, negated=not negated)
            case And(operands=operands) | Or(operands=operands):
                return self._connective(operands, negated=negated, conjunction=isinstance(expr, And) is not negated)
            case Where(condition=condition, then=then, otherwise=otherwise):
                opposite = Unary(UnaryOp.NOT, condition, Type.BOOL)
                arms = (self._both(condition, then, negated), self._both(opposite, otherwise, negated))
                return _either(arms)
            case Quantifier(kind=QuantifierKind.ANY | QuantifierKind.ALL):
                return self._quantified(expr, negated)
            case Binary(op=op, left=left, right=right) if left.type is Type.BOOL:
                same = Or((And((left, right)), And((_not(left), _not(right)))))
                return self.possible(same, negated=negated is not (op is BinaryOp.NE))
            case Read() | Binary():
                return self._leaf(expr, negated)
            case _:
                return TRUE

    def _quantified(self, expr: Quantifier, negated: bool) -> Expr:
        by_any = (expr.kind is QuantifierKind.ANY) is not negated
        if expr.count == 0:
            return FALSE if by_any else TRUE
        inner = self.possible(expr.body, negated=negated)
        if inner in (TRUE, FALSE):
            return inner
        kind = QuantifierKind.ANY if by_any else QuantifierKind.ALL
        return Quantifier(kind, expr.variable, expr.count, inner, Type.BOOL)

    def _both(self, condition: Expr, arm: Expr, negated: bool) -> Expr:
        return _all_of((self.possible(condition), self.possible(arm, negated=negated)))

    def _connective(self, operands: tuple[Expr, ...], *, negated: bool, conjunction: bool) -> Expr:
        if not conjunction:
            return _either(tuple(self.possible(operand, negated=negated) for operand in operands))
        wanted = operands if self.covered is None else tuple(filter(self.is_wanted, operands))
        return _all_of(tuple(self.possible(operand, negated=negated) for operand in wanted))

    def is_wanted(self, operand: Expr) -> bool:
        """Tell whether a bool says more than bounds of intervals do."""
        assert self.covered is not None
        if isinstance(operand, Binary) and self.covered(operand):
            return False
        if isinstance(operand, And | Or):
            return any(map(self.is_wanted, operand.operands))
        if isinstance(operand, Unary):
            return self.is_wanted(operand.operand)
        return reads_pairs(operand)

    # -- comparisons and reads of bools

    def _leaf(self, expr: Expr, negated: bool) -> Expr:
        """Widen what has no logic in it: values that are few on a tile are tried one by one."""
        if is_same(expr):
            return _not(expr) if negated else expr
        variables: dict[Expr, tuple[str, int]] = {}

        def tried(node: Expr) -> Expr:
            if isinstance(node, Read):
                return Read(node.table, tuple(map(one_by_one, node.index)), node.type, span=node.span)
            if isinstance(node, Call) and node.function is Function.HASH:
                return Call(Function.HASH, tuple(map(one_by_one, node.args)), node.type, span=node.span)
            return node

        def one_by_one(index: Expr) -> Expr:
            steps = None if is_same(index) else self.extents.direct(index)
            if steps is None:
                return index
            if index not in variables:
                variables[index] = self._fresh(), self.extents.count(index)
            return steps(Bound(variables[index][0]))

        single = transform(expr, tried)
        if isinstance(single, Read):
            found = self._bool(single, negated)
        else:
            assert isinstance(single, Binary)
            found = self._compare(_OPPOSITE[single.op] if negated else single.op, single, negated)
        for name, times in variables.values():
            if found not in (TRUE, FALSE):
                found = Quantifier(QuantifierKind.ANY, name, times, found, Type.BOOL)
        return found

    def _fresh(self) -> str:
        name = next(name for number in self.fresh if (name := f"block_{number}") not in self.taken)
        self.taken.add(name)
        return name

    def _bool(self, read: Read, negated: bool) -> Expr:
        if is_same(read):
            return _not(read) if negated else read
        parts = self.extents.elements(read, greatest=not negated)
        if parts is None:
            return TRUE
        return _either(tuple(_not(part) if negated else part for part in parts))

    def _compare(self, op: BinaryOp, expr: Binary, negated: bool) -> Expr:
        if is_same(expr):
            return _not(expr) if negated else expr
        one, two = self.extents.extent(expr.left), self.extents.extent(expr.right)
        guards = self.extents.guards(expr.left, expr.right)
        if one is None or two is None or guards is None:
            return TRUE
        # A NaN makes every comparison false: what is negated holds wherever one may be.
        excluded = {
            BinaryOp.LT: (_pair(BinaryOp.GE, one[0], two[1]),),
            BinaryOp.LE: (_pair(BinaryOp.GT, one[0], two[1]),),
            BinaryOp.GT: (_pair(BinaryOp.LE, one[1], two[0]),),
            BinaryOp.GE: (_pair(BinaryOp.LT, one[1], two[0]),),
            BinaryOp.EQ: (_pair(BinaryOp.GT, one[0], two[1]), _pair(BinaryOp.LT, one[1], two[0])),
        }
        if op is BinaryOp.NE:
            found = _either((_pair(BinaryOp.NE, one[0], two[1]), _pair(BinaryOp.NE, one[1], two[0])))
        else:
            found = _all_of(tuple(_negation(part) for part in excluded[op]))
        wild = [
            part
            for low, high in guards
            for part in (
                _pair(BinaryOp.LT, low, Const(-TAME, Type.INT)),
                _pair(BinaryOp.GT, high, Const(TAME, Type.INT)),
            )
        ]
        return _either((found, *wild))


def _pair(op: BinaryOp, left: Expr, right: Expr) -> Binary:
    return Binary(op, left, right, Type.BOOL)


def _negation(pair: Binary) -> Expr:
    if pair.left.type is Type.FLOAT:
        return _not(pair)
    return Binary(_OPPOSITE[pair.op], pair.left, pair.right, Type.BOOL)


def _not(expr: Expr) -> Expr:
    return Unary(UnaryOp.NOT, expr, Type.BOOL)


def _all_of(parts: tuple[Expr, ...]) -> Expr:
    if FALSE in parts:
        return FALSE
    known = tuple(dict.fromkeys(part for part in parts if part != TRUE))
    return And(known) if len(known) > 1 else known[0] if known else TRUE


def _either(parts: tuple[Expr, ...]) -> Expr:
    if TRUE in parts:
        return TRUE
    known = tuple(dict.fromkeys(part for part in parts if part != FALSE))
    return Or(known) if len(known) > 1 else known[0] if known else FALSE


def _reads(expr: Expr) -> tuple[int, int]:
    """Count what a test reads or hashes for each tile, and for a row of tiles; quantifiers multiplied out."""
    seen: dict[Expr, tuple[int, int]] = {}

    def go(node: Expr, times: dict[str, int]) -> None:
        if isinstance(node, Quantifier):
            go(node.body, {**times, node.variable: node.count})
            return
        if _is_test_data(node):
            repeated = 1
            for name in {inner.name for inner in walk(node) if isinstance(inner, Bound)}:
                repeated *= times.get(name, 1)
            by_key = bool(indices(node) & {IndexName.KEY_LOW, IndexName.KEY_HIGH})
            seen[node] = (repeated, 0) if by_key else (0, repeated)
        for child in children(node):
            go(child, times)

    go(expr, {})
    return sum(here for here, _ in seen.values()), sum(once for _, once in seen.values())


def _is_test_data(node: Expr) -> bool:
    return (isinstance(node, Read) and bool(node.index)) or (isinstance(node, Call) and node.function is Function.HASH)
