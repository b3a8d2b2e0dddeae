"""The record of what the rule engine did."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir.nodes import Expr


@dataclass(frozen=True, slots=True)
class Step:
    """One application of a rewriting rule, for `explain`."""

    rule: str
    before: Expr
    after: Expr
