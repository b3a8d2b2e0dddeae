"""Proves what a pattern asserts, or finds the least counterexample."""

from __future__ import annotations

from dataclasses import dataclass

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.counterexamples import least_counterexample, words
from attnc.algebra.domains import new_translator, proof_domain
from attnc.algebra.facts import Counterexample, Verdict
from attnc.algebra.index_sets import OutOfBudgetError, budget, new_context
from attnc.algebra.proofs import refutable, rows_with_a_key
from attnc.algebra.stretches import as_map
from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.nodes import Expr, Read
from attnc.ir.program import Assertion, Attention
from attnc.ir.walk import walk

PROOF_OPERATIONS = 2_000_000
"""isl operations that one assertion may take: an undecided one stops the user, so it is worth more than a tile."""

_DECIDED = (
    "`+ - min max abs clamp`, `*` `//` `%` with constants, comparisons and logic over indices, sizes and scalar int "
    "inputs are decided"
)


def check_assertions(attention: Attention) -> None:
    """Prove every assertion of an attention.

    Raises:
        CompileError: one diagnostic for each assertion that is false (`assertion-false`, with the least
            counterexample) or that cannot be decided (`assertion-undecidable`, with the reason).
    """
    problems = []
    for assertion in attention.assertions:
        verdict = prove_assertion(attention, assertion)
        if verdict.holds is not True:
            problems.append(_diagnostic(assertion, verdict))
    if problems:
        raise CompileError(*problems)


def prove_assertion(attention: Attention, assertion: Assertion) -> Verdict:
    """Decide one assertion over all `B, H, N, M >= 1`, with `N <= M` under `align end`."""
    data = [] if assertion.condition is None else _tables_read(assertion.condition)
    if data:
        return Verdict(None, reason=f"it reads the tensor `{data[0]}`, whose values are not known before a call")
    translator = new_translator(attention, new_context())
    try:
        with budget(translator.context, PROOF_OPERATIONS):
            return _Claim(attention, assertion, translator).verdict()
    except OutOfBudgetError:
        return Verdict(None, reason="the proof takes too many steps")


@dataclass(frozen=True, slots=True)
class _Claim:
    attention: Attention
    assertion: Assertion
    translator: Translator

    def verdict(self) -> Verdict:
        possible, certain = self._failures()
        if possible.is_empty():
            return Verdict(True)
        if certain.is_empty() or not refutable(self.translator):
            return Verdict(None, reason=self._reason())
        return Verdict(False, self._counterexample(certain))

    def _failures(self) -> tuple[isl.Set, isl.Set]:
        """Return pairs (rows, for `nonempty`) for which the assertion may fail, and for which it fails."""
        mask = self.translator.truth(self.attention.mask)
        condition = self.assertion.condition
        claim = None if condition is None else self.translator.truth(condition)
        domain = proof_domain(self.translator, self.attention.align.shift)
        must, may = mask.must.intersect(domain), mask.may.intersect(domain)
        if claim is not None:
            return may.subtract(claim.must), must.subtract(claim.may)
        rows = as_map(domain).domain()
        seeing = rows_with_a_key(self.translator, self.attention.mask, domain, must)
        return rows.subtract(seeing), rows.subtract(as_map(may).domain())

    def _counterexample(self, failures: isl.Set) -> Counterexample:
        return least_counterexample(self.translator, failures.coalesce(), has_key=self.assertion.condition is not None)

    def _reason(self) -> str:
        reasons = list(self.translator.reasons)
        data = [reason.removeprefix("data-dependent: ") for reason in reasons if reason.startswith("data-dependent")]
        if data:
            return f"it depends on the values of `{data[0]}`, which are not known before a call"
        if reasons:
            return f"part of it is {reasons[0]}"
        return "it depends on values that are computed from sizes and inputs in a way that is not affine"


def _tables_read(condition: Expr) -> list[str]:
    return [node.table for node in walk(condition) if isinstance(node, Read) and node.index]


def _diagnostic(assertion: Assertion, verdict: Verdict) -> Diagnostic:
    labels = () if assertion.span is None else (Label(assertion.span),)
    if verdict.counterexample is None:
        return Diagnostic(
            "assertion-undecidable", f"this assertion cannot be decided: {verdict.reason}", labels, notes=(_DECIDED,)
        )
    return Diagnostic(
        "assertion-false",
        f"this assertion is false: {words(verdict.counterexample)}",
        labels,
        "change the mask so that it holds, or remove the assertion",
    )
