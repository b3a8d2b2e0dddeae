"""Expressions of a pattern as small functions of the generated module, each written once."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.codegen.expr_torch import torch_body
from attnc.codegen.layout import Bracket
from attnc.ir.nodes import Expr

Field = tuple[str, str | Bracket]
"""An argument of a call in generated code: its name and its value."""


@dataclass(frozen=True, slots=True)
class FormulaView:
    """A function of the generated module: `def name(parameters) -> Tensor:` and its body, indented."""

    name: str
    parameters: str
    body: str


@dataclass(slots=True)
class Formulas:
    """Writes expressions as functions and hands their names out; equal ones are written once."""

    attention: str
    written: list[FormulaView]
    names: dict[tuple[Expr, bool], str]

    def __init__(self, attention: str) -> None:
        self.attention = attention
        self.written = []
        self.names = {}

    def name(self, what: str, expr: Expr, *, of_score: bool = False) -> str:
        """Return the function of an expression, written as `what` says if it is new."""
        found = self.names.get((expr, of_score))
        if found is not None:
            return found
        name = f"_{self.attention}_{what}"
        parameters = "at: Pairs, s: Tensor" if of_score else "at: Pairs"
        self.written.append(FormulaView(name, parameters, torch_body(expr).indented()))
        self.names[expr, of_score] = name
        return name
