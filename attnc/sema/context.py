"""What surrounds an expression while it is checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from attnc.ir.nodes import Expr
from attnc.sema.construct import Constructor
from attnc.sema.report import Report
from attnc.sema.scopes import Meaning, Scope
from attnc.source import Span

MAX_LEVEL = 240
"""How deep expressions and the definitions that they use may be nested while they are checked."""


MAX_INLINED = 100_000
"""Expressions that may be checked inside of definitions, over one program: half a second of work."""


@dataclass(slots=True)
class Workshop:
    """What all checks of one program share.

    Attributes:
        level: how many expressions enclose the one that is being checked, through definitions too.
        inlined: how many expressions were checked inside of definitions.
        variables: names that quantifiers took, so that each has its own.
        cycles: definitions that use each other in a circle, once that was told.
    """

    report: Report = field(default_factory=Report)
    level: int = 0
    inlined: int = 0
    variables: set[str] = field(default_factory=set)
    cycles: set[frozenset[str]] = field(default_factory=set)
    constructor: Constructor = field(init=False)

    def __post_init__(self) -> None:
        self.constructor = Constructor(self.report)


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of one expression.

    Attributes:
        scope: where names are looked up.
        place: what the nodes point to where they come from a definition of another file: its use in the user's file;
            None where they stand for themselves.
        score: what `s` means; None outside `score`.
        shortened: whether the attention has a `keys` statement, so that `K` exists.
    """

    workshop: Workshop
    scope: Scope
    place: Span | None = None
    score: Expr | None = None
    shortened: bool = False

    @property
    def report(self) -> Report:
        """Where mistakes are told."""
        return self.workshop.report

    def at(self, span: Span) -> Span:
        """Return what a node written at `span` points to."""
        return self.place or span

    def finish(self, node: Expr, span: Span) -> Expr | None:
        """Finish a node that is written at `span`."""
        return self.workshop.constructor.finish(node, span)

    def within(self, scope: Scope) -> Context:
        """Return the same surroundings with another scope."""
        return replace(self, scope=scope)

    def inside(self, names: dict[str, Meaning]) -> Context:
        """Return the same surroundings with further names."""
        return replace(self, scope=Scope(self.scope, names))

    def respan(self, expr: Expr, span: Span) -> Expr:
        """Return a finished expression that points to `span`, where a name stands for it."""
        return self.workshop.constructor.adopt(replace(expr, span=self.at(span)), expr)
