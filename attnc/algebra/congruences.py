"""Which remainders the allowed pairs of a mask leave: what tells in which order of positions they are dense."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.domains import new_translator, whole_domain
from attnc.algebra.index_sets import OutOfBudgetError, allowance, attempt, new_context
from attnc.algebra.residuals import Residuals
from attnc.algebra.stretches import row_contiguous
from attnc.ir.nodes import And, Binary, BinaryOp, Const, Expr, Index, IndexName, Or, Unary, UnaryOp
from attnc.ir.program import Attention
from attnc.ir.types import Type

PAIRS_OPERATIONS = 150_000
"""isl operations that finding the pairs of one mask may take: each mask is asked for once."""

OPERATIONS = 60_000
"""Those that one question about its pairs may take."""

QUERY, KEY = Index(IndexName.QUERY), Index(IndexName.KEY)


@dataclass(frozen=True, slots=True)
class PairSet:
    """The pairs that a mask may allow, over all sizes."""

    translator: Translator
    domain: isl.Set
    _found: dict[Expr, isl.Set | None] = field(default_factory=dict)

    @classmethod
    def of(cls, attention: Attention) -> PairSet:
        """Make the questioner of one attention; its masks are given to each question."""
        translator = new_translator(attention, new_context())
        return cls(translator, whole_domain(translator))

    def pairs(self, mask: Expr) -> isl.Set | None:
        """Return the pairs that a mask may allow; None where that is too hard."""
        if mask not in self._found:
            context, truth = self.translator.context, self.translator.truth
            pairs = attempt(context, lambda: truth(mask).may.intersect(self.domain).coalesce(), PAIRS_OPERATIONS)
            self._found[mask] = pairs
        return self._found[mask]

    def key_ahead(self, mask: Expr, period: int) -> int | None:
        """Return `(j - i) % period` where it is the same for all pairs, and None where it is not."""
        difference = Binary(BinaryOp.SUB, KEY, QUERY, Type.INT)
        found = self._remainders(mask, difference, period)
        return None if found is None or found[0] != found[1] else found[0]

    def stretch(self, mask: Expr, index: Index, period: int) -> tuple[int, int] | None:
        """Return the least and the greatest remainder of `i` or `j`; None if there are no pairs, or it is too hard."""
        return self._remainders(mask, index, period)

    def nothing(self, mask: Expr) -> bool:
        """Tell whether a mask is proven to allow no pair."""
        pairs = self.pairs(mask)
        return pairs is not None and bool(pairs.is_empty())

    def contiguous(self, mask: Expr) -> bool:
        """Tell whether the keys of each query are proven to be one stretch."""
        pairs = self.pairs(mask)
        return pairs is not None and bool(attempt(self.translator.context, lambda: row_contiguous(pairs), OPERATIONS))

    def without(self, mask: Expr, others: tuple[Expr, ...]) -> Expr:
        """Return a mask less what other masks allow, written with as few of their conditions as are needed."""
        if not others:
            return mask
        other = others[0] if len(others) == 1 else Or(others)
        known = self.pairs(mask)
        negated: Expr = Unary(UnaryOp.NOT, other, Type.BOOL)
        if known is not None:
            negated = Residuals(self.translator).simplify(negated, known)
        return And((mask, negated))

    def disjoint_cover(self, whole: Expr, parts: tuple[Expr, ...]) -> bool | None:
        """Tell whether masks share no pair and together are `whole`; None where data or the budget prevents a proof."""
        context = self.translator.context
        try:
            with allowance(context):
                truths = [self.translator.truth(part) for part in (whole, *parts)]
        except OutOfBudgetError:
            return None
        if not all(truth.exact for truth in truths):
            return None
        everything, *sets = [truth.must for truth in truths]

        def disjoint() -> bool:
            domain = self.domain
            pairs = combinations([one.intersect(domain) for one in sets], 2)
            return all(bool(left.is_disjoint(right)) for left, right in pairs)

        def complete() -> bool:
            union = reduce(isl.Set.union, sets).intersect(self.domain).coalesce()
            return bool(union.is_equal(everything.intersect(self.domain)))

        found = [attempt(context, disjoint), attempt(context, complete)]
        return None if None in found else all(found)

    def _remainders(self, mask: Expr, value: Expr, period: int) -> tuple[int, int] | None:
        remainder = Binary(BinaryOp.MOD, value, Const(period, Type.INT), Type.INT)
        pairs, number = self.pairs(mask), self.translator.number(remainder)
        if pairs is None or number is None:
            return None

        def extremes() -> tuple[int, int] | None:
            inside = number.intersect_domain(pairs)
            least, greatest = inside.min_val(), inside.max_val()
            return (int(least.to_str()), int(greatest.to_str())) if least.is_int() and greatest.is_int() else None

        return attempt(self.translator.context, extremes)
