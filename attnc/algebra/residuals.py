"""What of a condition remains to be tested where something is known: simplification in a context, by sets.

The result is made of the user's own sub-expressions: a part that the context decides becomes true or false, the rest
stays as it was written.
"""

from __future__ import annotations

from dataclasses import dataclass

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.index_sets import OutOfBudgetError, apart, budget, included
from attnc.algebra.truths import Truth
from attnc.ir.nodes import FALSE, TRUE, And, Expr, Or, Unary, UnaryOp, Where
from attnc.ir.types import Type

MOST_OPERANDS = 48
"""Operands of one `and` or `or` that are held against each other; more are held against the context alone, because the
time grows with the square of their number."""


@dataclass(frozen=True, slots=True)
class Residuals:
    """Simplifies bools in contexts, all through one translator."""

    translator: Translator

    def simplify(self, expr: Expr, known: isl.Set) -> Expr:
        """Return a bool that equals `expr` at every pair of `known`, with what is decided there left out.

        Soundness: an operand of a conjunction matters only where the others may hold, one of a disjunction only where
        the others may fail; operands are simplified one after the other, against what the earlier ones became.
        """
        truth = self._truth(expr)
        if truth is not None:
            if included(known, truth.must):
                return TRUE
            if apart(known, truth.may):
                return FALSE
        match expr:
            case And(operands=operands):
                return self._operands(operands, known, conjunction=True)
            case Or(operands=operands):
                return self._operands(operands, known, conjunction=False)
            case Unary(op=UnaryOp.NOT, operand=operand):
                return _negation(expr, self.simplify(operand, known))
            case Where(type=Type.BOOL):
                return self._choice(expr, known)
            case _:
                return expr

    def _operands(self, operands: tuple[Expr, ...], known: isl.Set, *, conjunction: bool) -> Expr:
        unit, zero = (TRUE, FALSE) if conjunction else (FALSE, TRUE)
        kept = list(operands)
        contexts = [known]  # of each operand, by those before it
        for operand in kept[:-1]:
            few = len(kept) <= MOST_OPERANDS
            contexts.append(self._narrowed(contexts[-1], operand, holds=conjunction) if few else known)
        for position in range(len(kept) - 1, -1, -1):
            context = contexts[position]
            for operand in kept[position + 1 :] if len(kept) <= MOST_OPERANDS else ():
                if operand is not unit:
                    context = self._narrowed(context, operand, holds=conjunction)
            kept[position] = self.simplify(kept[position], context)
            if kept[position] == zero:
                return zero
        remaining = tuple(operand for operand in kept if operand != unit)
        if not remaining:
            return unit
        if len(remaining) == 1:
            return remaining[0]
        return And(remaining) if conjunction else Or(remaining)

    def _choice(self, expr: Where, known: isl.Set) -> Expr:
        condition = self.simplify(expr.condition, known)
        then = self.simplify(expr.then, self._narrowed(known, condition, holds=True))
        otherwise = self.simplify(expr.otherwise, self._narrowed(known, condition, holds=False))
        if condition == TRUE or then == otherwise:
            return then
        if condition == FALSE:
            return otherwise
        return Where(condition, then, otherwise, Type.BOOL, span=expr.span)

    def _narrowed(self, known: isl.Set, expr: Expr, *, holds: bool) -> isl.Set:
        """Return the part of a context in which a bool may hold, or may fail."""
        truth = self._truth(expr)
        if truth is None:
            return known
        try:
            with budget(self.translator.context):
                return known.intersect(truth.may if holds else truth.must.complement()).coalesce()
        except OutOfBudgetError:
            return known

    def _truth(self, expr: Expr) -> Truth | None:
        try:
            with budget(self.translator.context):
                return self.translator.truth(expr)
        except OutOfBudgetError:
            return None


def _negation(expr: Unary, operand: Expr) -> Expr:
    if operand == TRUE:
        return FALSE
    if operand == FALSE:
        return TRUE
    return expr if operand is expr.operand else Unary(UnaryOp.NOT, operand, Type.BOOL, span=expr.span)
