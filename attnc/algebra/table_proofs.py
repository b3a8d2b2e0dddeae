"""Proves that reads stay inside their tables at every allowed pair."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.domains import new_translator, opaque_facts, proof_domain
from attnc.algebra.index_sets import OutOfBudgetError, allowance, attempt, empty, new_context
from attnc.diagnostics import Diagnostic, Label, Severity
from attnc.ir.nodes import And, Bound, Expr, Or, Quantifier, Read, Where
from attnc.ir.program import Attention, Tensor
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.ir.walk import children, walk, with_children


def mark_reads(attention: Attention) -> tuple[Attention, tuple[Diagnostic, ...]]:
    """Set `inside` on every read that is proven inside its table wherever it matters.

    The proof ranges over all sizes, with `N <= M` under `align end`, and over the pairs that the mask may allow and
    the branches that lead to the read.

    Returns:
        The attention with its reads marked, and a warning `index-may-leave-table` for each other read.
    """
    translator = new_translator(attention, new_context())
    try:
        with allowance(translator.context):
            return _marked(attention, translator)
    except OutOfBudgetError:
        return attention, ()


def _marked(attention: Attention, translator: Translator) -> tuple[Attention, tuple[Diagnostic, ...]]:
    domain = proof_domain(translator, attention.align.shift)
    allowed = attempt(translator.context, lambda: translator.truth(attention.mask).may.intersect(domain)) or domain
    marker = _Marker(attention, translator)
    normalize = attention.normalize
    marked = replace(
        attention,
        mask=marker.mark(attention.mask, allowed),
        score=marker.mark(attention.score, allowed),
        scale=marker.optional(attention.scale, domain),
        weight=marker.optional(attention.weight, allowed),
        normalize=replace(
            normalize, sink=marker.optional(normalize.sink, domain), bias=marker.optional(normalize.bias, allowed)
        ),
        align=replace(attention.align, shift=marker.mark(attention.align.shift, domain)),
    )
    return marked, tuple(marker.warnings)


@dataclass(slots=True)
class _Marker:
    attention: Attention
    translator: Translator
    warnings: list[Diagnostic] = field(default_factory=list)

    def optional(self, expr: Expr | None, known: isl.Set) -> Expr | None:
        return None if expr is None else self.mark(expr, known)

    def mark(self, expr: Expr, known: isl.Set) -> Expr:
        """Mark the reads of an expression whose value matters in `known` only."""
        if not _reads(expr):
            return expr
        match expr:
            case Read(index=index) if index:
                inner = tuple(self.mark(part, known) for part in index)
                return self._read(replace(expr, index=inner), known)
            case And(operands=operands) | Or(operands=operands):
                return with_children(
                    expr,
                    tuple(
                        self.mark(operand, self._others(operands, position, expr, known))
                        if _reads(operand)
                        else operand
                        for position, operand in enumerate(operands)
                    ),
                )
            case Where(condition=condition, then=then, otherwise=otherwise):
                holding, failing = self._narrowed(condition, known, True), self._narrowed(condition, known, False)
                return with_children(
                    expr, (self.mark(condition, known), self.mark(then, holding), self.mark(otherwise, failing))
                )
            case Quantifier(variable=variable, count=count, body=body):
                return with_children(expr, (self.mark(body, self._bounded(variable, count, known)),))
            case _:
                return with_children(expr, tuple(self.mark(child, known) for child in children(expr)))

    def _others(self, operands: tuple[Expr, ...], position: int, expr: Expr, known: isl.Set) -> isl.Set:
        """Return where an operand matters: where no other decides the result."""
        for other, operand in enumerate(operands):
            if other != position:
                known = self._narrowed(operand, known, isinstance(expr, And))
        return known

    def _narrowed(self, condition: Expr, known: isl.Set, holds: bool) -> isl.Set:
        def narrowed() -> isl.Set:
            truth = self.translator.truth(condition)
            return known.intersect(truth.may if holds else truth.must.complement()).coalesce()

        return attempt(self.translator.context, narrowed) or known

    def _bounded(self, variable: str, count: int, known: isl.Set) -> isl.Set:
        value = self.translator.number(Bound(variable))
        if value is None:
            return known
        zero, stop = self.translator.constant(0), self.translator.constant(count)
        return known.intersect(value.ge_set(zero)).intersect(value.lt_set(stop))

    def _read(self, read: Read, known: isl.Set) -> Read:
        table = self.attention.tensor(read.table)
        if empty(known):
            return replace(read, inside=True)
        outside = [
            axis
            for axis, (index, size) in enumerate(zip(read.index, table.dims, strict=True))
            if not self._inside(index, size, known)
        ]
        if not outside:
            return replace(read, inside=True)
        self.warnings.append(_warning(read, table, outside[0]))
        return read

    def _inside(self, index: Expr, size: Expr | None, known: isl.Set) -> bool:
        if size is None:
            return False

        def inside() -> bool:
            at, stop = self.translator.range(index), self.translator.number(size)
            if at.low is None or at.high is None or stop is None:
                return False
            good = at.low.ge_set(self.translator.constant(0)).intersect(at.high.lt_set(stop))
            return bool(known.intersect(opaque_facts(self.translator)).is_subset(good))

        return bool(attempt(self.translator.context, inside))


def _reads(expr: Expr) -> bool:
    return any(isinstance(node, Read) for node in walk(expr))


def _warning(read: Read, table: Tensor, axis: int) -> Diagnostic:
    labels = [] if read.span is None else [Label(read.span)]
    if table.span is not None and labels:
        labels.append(Label(table.span, "declared here"))
    size = table.dims[axis]
    length = "has any length" if size is None else f"has length `{show(size)}`"
    outside = {Type.BOOL: "false", Type.INT: "0", Type.FLOAT: "0"}[table.type]
    return Diagnostic(
        "index-may-leave-table",
        f"the index `{show(read.index[axis])}` may leave dimension {axis} of `{table.name}`, which {length}",
        tuple(labels),
        f"bound the index, for example with `clamp`; a read outside the table gives {outside}",
        severity=Severity.WARNING,
    )
