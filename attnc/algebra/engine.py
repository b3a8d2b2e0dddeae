"""Applying rewriting rules bottom-up to a fixpoint, and recording every application."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from attnc.algebra.derivation import Step
from attnc.ir.nodes import Expr
from attnc.ir.walk import children, with_children

BUDGET = 100_000
"""Applications of rules to one expression, after which what is left stays as it is."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rewriting of a node whose operands are already in normal form.

    A rule looks at the node and what is below it, never at what is around it, and every rule leads toward the same
    normal form; so a second run finds nothing to do.

    Attributes:
        name: kebab-case, what `explain` prints.
        meaning: before -> after, in the language's own notation.
        kinds: node classes that it may apply to.
        rewrite: the new expression, or None where the rule does not apply.
    """

    name: str
    meaning: str
    kinds: tuple[type, ...]
    rewrite: Callable[[Any], Expr | None] = field(repr=False)


RuleTable = Mapping[type, tuple[Rule, ...]]
"""Rules by the class of node, in the order in which they are tried."""


def tabulate(rules: Iterable[Rule]) -> RuleTable:
    """Sort rules by the class of node that they apply to."""
    table: dict[type, tuple[Rule, ...]] = {}
    for rule in rules:
        for kind in rule.kinds:
            table[kind] = (*table.get(kind, ()), rule)
    return table


@dataclass(slots=True)
class _Run:
    """One run: what is left of the budget, the steps so far, and results by identity of the node."""

    table: RuleTable
    budget: int
    steps: list[Step] = field(default_factory=list)
    done: dict[int, tuple[Expr, Expr]] = field(default_factory=dict)


def rewrite(expr: Expr, table: RuleTable, *, budget: int = BUDGET) -> tuple[Expr, tuple[Step, ...]]:
    """Rewrite an expression until no rule applies anywhere in it, or the budget is spent.

    Every step is sound by itself, so the result always means the same as `expr`. An expression too deep for Python's
    stack is returned as it is.
    """
    run = _Run(table, budget)
    try:
        return _normalize(expr, run), tuple(run.steps)
    except RecursionError:
        return expr, ()


def _normalize(expr: Expr, run: _Run) -> Expr:
    known = run.done.get(id(expr))
    if known is not None:
        return known[1]
    node = expr
    while True:
        operands = []
        for child in children(node):  # a plain loop: a comprehension would take a frame of the stack
            operands.append(_normalize(child, run))
        node = with_children(node, tuple(operands))
        result = _apply_first(node, run)
        if result is None:
            break
        node = result
        known = run.done.get(id(node))
        if known is not None:
            node = known[1]
            break
    # the nodes are kept beside their results, so that no identity is used again during this run
    run.done[id(expr)] = (expr, node)
    run.done[id(node)] = (node, node)
    return node


def _apply_first(node: Expr, run: _Run) -> Expr | None:
    if run.budget <= 0:
        return None
    for rule in run.table.get(type(node), ()):
        result = rule.rewrite(node)
        if result is not None:
            if result.span is None and node.span is not None:
                result = replace(result, span=node.span)
            run.budget -= 1
            run.steps.append(Step(rule.name, node, result))
            return result
    return None
