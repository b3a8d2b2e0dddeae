"""Proofs about masks over every size, head and pair, by integer sets."""

from __future__ import annotations

from collections.abc import Callable

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.domains import new_translator, proof_domain, whole_domain
from attnc.algebra.facts import Facts
from attnc.algebra.index_sets import OutOfBudgetError, allowance, attempt, new_context
from attnc.algebra.stretches import as_map, row_contiguous
from attnc.ir.nodes import Cast, Expr, Index, IndexName, Read
from attnc.ir.program import Attention
from attnc.ir.shortening import covered
from attnc.ir.types import Type
from attnc.ir.walk import substitute

_KEY = Index(IndexName.KEY)


def prove_facts(attention: Attention) -> Facts:
    """Decide what can be decided of a mask, over all `B, H, N, M >= 1` with `N <= M` under `align end`.

    A fact is None where data decides it, or where the operation budget is exhausted.
    """
    translator = new_translator(attention, new_context())
    try:
        with allowance(translator.context):
            return _facts(attention, translator)
    except OutOfBudgetError:
        return Facts()


def _facts(attention: Attention, translator: Translator) -> Facts:
    truth = translator.truth(attention.mask)
    domain = proof_domain(translator, attention.align.shift)
    must, may = truth.must.intersect(domain), truth.may.intersect(domain)
    must = may if truth.exact else must
    facts = _FactProver(translator, domain, must, may, rows_with_a_key(translator, attention.mask, domain, must))
    whole = whole_domain(translator)
    always = attempt(translator.context, lambda: bool(whole.is_subset(truth.must)))
    return Facts(
        causal=facts.causal(),
        nonempty=facts.nonempty(),
        symmetric=facts.symmetric(),
        contiguous=facts.contiguous(),
        everything=facts.everything(),
        always=True if always else None,
        exactly_causal=facts.exactly_causal(),
    )


def rows_with_a_key(translator: Translator, mask: Expr, domain: isl.Set, must: isl.Set) -> isl.Set:
    """Return rows that have an allowed key for certain.

    Besides the pairs that are certain one by one, a row sees itself where the mask with `j = i` holds: that
    `doc[b, i] == doc[b, i]` needs no data.
    """
    certain = as_map(must).domain()
    itself = substitute(mask, {Index(IndexName.KEY): Index(IndexName.QUERY)})
    diagonal = attempt(translator.context, lambda: translator.truth(itself).must.intersect(translator.diagonal()))
    if diagonal is None:
        return certain
    return certain.union(as_map(diagonal.intersect(domain)).domain()).coalesce()


def refutable(translator: Translator) -> bool:
    """Tell whether each opaque value can be any int, so that a counterexample is a real one."""
    return all(_free_int(expr) for expr in translator.opaques.values())


def _free_int(expr: Expr) -> bool:
    value = expr.operand if isinstance(expr, Cast) else expr
    return isinstance(value, Read) and value.type is not Type.FLOAT


class _FactProver:
    """Decides each fact from the least and the most that a mask allows."""

    def __init__(self, translator: Translator, domain: isl.Set, must: isl.Set, may: isl.Set, seeing: isl.Set) -> None:
        self.translator, self.domain, self.must, self.may, self.seeing = translator, domain, must, may, seeing
        self.exact = must is may
        self.lower = _lower(translator)

    def causal(self) -> bool | None:
        return self._decide(lambda: self.may.is_subset(self.lower), lambda: not self.must.is_subset(self.lower))

    def nonempty(self) -> bool | None:
        rows = self.domain.project_out(isl.dim_type.set, 1, 1)
        return self._decide(lambda: rows.is_subset(self.seeing), lambda: not rows.is_subset(as_map(self.may).domain()))

    def everything(self) -> bool | None:
        return self._decide(lambda: self.domain.is_subset(self.must), lambda: not self.domain.is_subset(self.may))

    def exactly_causal(self) -> bool | None:
        causal = self.domain.intersect(self.lower)
        return self._decide(
            lambda: causal.is_subset(self.must) and self.may.is_subset(self.lower),
            lambda: not causal.is_subset(self.may) or not self.must.is_subset(self.lower),
        )

    def contiguous(self) -> bool | None:
        if not self.exact:
            return None
        return self._decide(lambda: row_contiguous(self.may), lambda: not row_contiguous(self.may))

    def symmetric(self) -> bool | None:
        square = self._square()
        must, may = self.must.intersect(square), self.may.intersect(square)
        swapped_must, swapped_may = _swapped(must), _swapped(may)
        if self.exact:
            return self._decide(lambda: may.is_equal(swapped_may), lambda: not may.is_equal(swapped_may))
        return self._decide(lambda: False, lambda: not must.is_subset(swapped_may) or not swapped_must.is_subset(may))

    def _square(self) -> isl.Set:
        """Return the pairs of equally many queries and keys that are still pairs with i and j exchanged."""
        as_many = self.translator.queries().eq_set(self.translator.parameter("M"))
        return self.domain.intersect(_swapped(self.domain)).intersect(as_many)

    def _decide(self, proven: Callable[[], bool], refuted: Callable[[], bool]) -> bool | None:
        if attempt(self.translator.context, lambda: bool(proven())):
            return True
        if refutable(self.translator) and attempt(self.translator.context, lambda: bool(refuted())):
            return False
        return None


def _lower(translator: Translator) -> isl.Set:
    """Return the pairs whose key covers no position behind the query; none where that is not known."""
    last = translator.key() if translator.keys is None else translator.number(covered(translator.keys, _KEY)[1])
    if last is None:
        return isl.Set.empty(translator.universe().get_space())
    return last.le_set(translator.row())


def _swapped(pairs: isl.Set) -> isl.Set:
    swap = isl.Map.read_from_str(pairs.get_ctx(), "{ [i, j] -> [j, i] }")
    return pairs.apply(swap)
