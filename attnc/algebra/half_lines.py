"""Comparisons of one int with constants, as sets of ints: which of several imply each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnc.algebra.terms import MIRRORED, truth
from attnc.ir.nodes import Binary, BinaryOp, Const, Expr
from attnc.ir.types import Type

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
FEW = 64
"""Comparisons of the same int beyond which they are left alone: pairs are compared with each other."""


@dataclass(frozen=True, slots=True)
class _IntSet:
    """The ints from `low` to `high`, or, if `inverted`, all others. An inverted set is of one int."""

    low: int
    high: int
    inverted: bool = False

    @property
    def complement(self) -> list[_IntSet]:
        if self.inverted:
            return [_IntSet(self.low, self.high)]
        below, above = _IntSet(INT_MIN, self.low - 1), _IntSet(self.high + 1, INT_MAX)
        return [part for part in (below, above) if part.low <= part.high]

    def disjoint(self, other: _IntSet) -> bool:
        if self.inverted and other.inverted:
            return False
        if other.inverted:
            return other.disjoint(self)
        if self.inverted:
            return self.low <= other.low and other.high <= self.high
        return max(self.low, other.low) > min(self.high, other.high)

    def within(self, other: _IntSet) -> bool:
        return all(self.disjoint(part) for part in other.complement)


def merge_bounds(operands: Sequence[Expr], every: bool) -> list[Expr] | None:
    """Drop comparisons that others decide.

    Args:
        operands: of a conjunction (`every`) or a disjunction.
        every: which of the two.

    Returns:
        the operands that remain, a single constant where they decide everything, None where nothing changes.
    """
    groups: dict[Expr, list[tuple[int, _IntSet]]] = {}
    for position, operand in enumerate(operands):
        found = _as_set(operand)
        if found is not None:
            groups.setdefault(found[0], []).append((position, found[1]))
    dropped: set[int] = set()
    for group in groups.values():
        if not 1 < len(group) <= FEW:
            continue
        for place, (position, own) in enumerate(group):
            for other_position, other in group[place + 1 :]:
                if _decided(own, other, every):
                    return [truth(not every)]
                if {position, other_position} & dropped:
                    continue
                # of a conjunction the smaller set remains, of a disjunction the larger one
                if own.within(other):
                    dropped.add(other_position if every else position)
                elif other.within(own):
                    dropped.add(position if every else other_position)
    if not dropped:
        return None
    return [operand for position, operand in enumerate(operands) if position not in dropped]


def _decided(left: _IntSet, right: _IntSet, every: bool) -> bool:
    if every:
        return left.disjoint(right)
    return all(part.within(right) for part in left.complement)


def _as_set(expr: Expr) -> tuple[Expr, _IntSet] | None:
    """Take a comparison of an int that is not constant with one that is apart."""
    if not isinstance(expr, Binary) or not expr.op.is_comparison or expr.left.type is not Type.INT:
        return None
    op, subject, limit = expr.op, expr.left, expr.right
    if isinstance(subject, Const):
        op, subject, limit = MIRRORED[op], limit, subject
    if not isinstance(limit, Const) or isinstance(subject, Const):
        return None
    value = int(limit.value)
    low, high = {
        BinaryOp.LT: (INT_MIN, value - 1),
        BinaryOp.LE: (INT_MIN, value),
        BinaryOp.GT: (value + 1, INT_MAX),
        BinaryOp.GE: (value, INT_MAX),
        BinaryOp.EQ: (value, value),
        BinaryOp.NE: (value, value),
    }[op]
    return (subject, _IntSet(low, high, op is BinaryOp.NE)) if low <= high else None
