"""Numbers that are known only to lie between two exact ones: `clamp(offset[b, j], 0, 7)`, `hash(i) % 5`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import islpy as isl

from attnc.algebra.piecewise import arithmetic, compared
from attnc.algebra.truths import Truth
from attnc.ir.nodes import BinaryOp, Function


@dataclass(frozen=True, slots=True)
class Range:
    """An int between two exact numbers, either of which may be unknown (None)."""

    low: isl.PwAff
    high: isl.PwAff

    def negated(self) -> Range:
        """Return the range of the negative."""
        return Range(
            None if self.high is None else self.high.neg(),
            None if self.low is None else self.low.neg(),
        )

    def joined(self, other: Range) -> Range:
        """Return a range around both."""
        return Range(_both(isl.PwAff.min, self.low, other.low), _both(isl.PwAff.max, self.high, other.high))


UNBOUNDED = Range(None, None)


def combined(op: BinaryOp, left: Range, right: Range) -> Range:
    """Return the range of an arithmetic result."""
    match op:
        case BinaryOp.ADD:
            return Range(_both(isl.PwAff.add, left.low, right.low), _both(isl.PwAff.add, left.high, right.high))
        case BinaryOp.SUB:
            return combined(BinaryOp.ADD, left, right.negated())
        case BinaryOp.MUL | BinaryOp.FLOORDIV | BinaryOp.MOD:
            factor = _positive_constant(right)
            if factor is None:
                return UNBOUNDED
            if op is BinaryOp.MOD:
                return Range(factor.sub(factor), factor.add_constant_val(isl.Val.negone(factor.get_ctx())))
            return Range(
                None if left.low is None else arithmetic(op, left.low, factor),
                None if left.high is None else arithmetic(op, left.high, factor),
            )
        case _:
            return UNBOUNDED


def extreme(function: Function, operands: list[Range]) -> Range:
    """Return the range of a minimum or a maximum."""
    combine = isl.PwAff.min if function is Function.MIN else isl.PwAff.max
    lows, highs = [operand.low for operand in operands], [operand.high for operand in operands]
    if function is Function.MIN:
        return Range(_all(combine, lows), _known(combine, highs))
    return Range(_known(combine, lows), _all(combine, highs))


def compared_ranges(op: BinaryOp, left: Range, right: Range, universe: isl.Set) -> Truth:
    """Return where a comparison must hold and where it may."""
    match op:
        case BinaryOp.LT | BinaryOp.LE:
            return Truth(
                _where(op, left.high, right.low, universe.subtract(universe)),
                _where(op, left.low, right.high, universe),
            )
        case BinaryOp.GT:
            return compared_ranges(BinaryOp.LT, right, left, universe)
        case BinaryOp.GE:
            return compared_ranges(BinaryOp.LE, right, left, universe)
        case BinaryOp.EQ:
            below = compared_ranges(BinaryOp.LE, left, right, universe)
            return below.both(compared_ranges(BinaryOp.LE, right, left, universe))
        case _:
            return compared_ranges(BinaryOp.EQ, left, right, universe).negated()


def _where(op: BinaryOp, left: isl.PwAff | None, right: isl.PwAff | None, unknown: isl.Set) -> isl.Set:
    return unknown if left is None or right is None else compared(op, left, right)


def _positive_constant(number: Range) -> isl.PwAff | None:
    """Return the value of a range that is one positive constant."""
    value = number.low
    if value is None or value is not number.high:
        return None
    constant = value.n_piece() == 1 and value.is_cst() and value.max_val().is_pos()
    return value if constant else None


def _both(
    combine: Callable[[isl.PwAff, isl.PwAff], isl.PwAff], left: isl.PwAff | None, right: isl.PwAff | None
) -> isl.PwAff | None:
    return None if left is None or right is None else combine(left, right).coalesce()


def _all(combine: Callable[[isl.PwAff, isl.PwAff], isl.PwAff], values: list[isl.PwAff | None]) -> isl.PwAff | None:
    known = [value for value in values if value is not None]
    return reduce(combine, known) if len(known) == len(values) else None


def _known(combine: Callable[[isl.PwAff, isl.PwAff], isl.PwAff], values: list[isl.PwAff | None]) -> isl.PwAff | None:
    known = [value for value in values if value is not None]
    return reduce(combine, known) if known else None
