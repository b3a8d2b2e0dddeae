"""What names mean, and where they are visible (LANGUAGE.md section 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from attnc.ir.nodes import Expr, IndexName, SizeName
from attnc.ir.program import Tensor
from attnc.source import Span
from attnc.syntax import tree


@dataclass(frozen=True, slots=True)
class IndexMeaning:
    """A coordinate. `axis` is that of `d0`, `d1`, ..."""

    name: IndexName
    axis: int = 0


@dataclass(frozen=True, slots=True)
class SizeMeaning:
    """A size."""

    name: SizeName


@dataclass(frozen=True, slots=True)
class ScoreMeaning:
    """`s`, the score so far."""


@dataclass(frozen=True, slots=True)
class OriginalKeysMeaning:
    """`K`, the number of keys before `keys` shortened them."""


@dataclass(frozen=True, slots=True)
class BuiltinMeaning:
    """A function or quantifier of the language."""

    name: str


@dataclass(frozen=True, slots=True)
class QuantityMeaning:
    """A parameter, `let`, scalar input, quantifier variable, or argument; `expr` is None after a mistake in it."""

    expr: Expr | None
    span: Span | None = None
    what: str = "a value"


@dataclass(frozen=True, slots=True)
class TableMeaning:
    """An input or learned tensor with dimensions."""

    tensor: Tensor
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class DefinitionMeaning:
    """A `def`, with the scope in which its body is read. `broken`: mistakes in its body have been told."""

    definition: tree.Def
    scope: Scope
    broken: bool = False

    @property
    def span(self) -> Span:
        """Where it is declared."""
        return self.definition.name.span


@dataclass(frozen=True, slots=True)
class OperationMeaning:
    """An attention or a layer, with the scope in which it is read."""

    declaration: tree.Attention | tree.Layer
    scope: Scope

    @property
    def span(self) -> Span:
        """Where it is declared."""
        return self.declaration.name.span


Meaning = (
    IndexMeaning
    | SizeMeaning
    | ScoreMeaning
    | OriginalKeysMeaning
    | BuiltinMeaning
    | QuantityMeaning
    | TableMeaning
    | DefinitionMeaning
    | OperationMeaning
)


def declared_at(meaning: Meaning) -> Span | None:
    """Return where the user declared it; None for what the language declares."""
    match meaning:
        case QuantityMeaning(span=span) | TableMeaning(span=span):
            return span
        case DefinitionMeaning() | OperationMeaning():
            return meaning.span
        case _:
            return None


@dataclass(slots=True)
class Scope:
    """Names of one level, inside those of `parent`.

    Attributes:
        later: names that this level declares somewhere, with their places: for telling "not yet" from "never".
        incomplete: something that should have declared names here could not be read, so unknown names are no surprise.
        references: for a file, the names that each of its definitions mentions.
        current: for a file, the definition whose body is being checked on its own.
        horizon: how many of `names` are visible; None: all, those still to come included.
    """

    parent: Scope | None = None
    names: dict[str, Meaning] = field(default_factory=dict)
    later: dict[str, Span] = field(default_factory=dict)
    incomplete: bool = False
    references: dict[str, frozenset[str]] = field(default_factory=dict)
    current: str | None = None
    horizon: int | None = None
    _order: dict[str, int] = field(default_factory=dict)

    def declare(self, name: str, meaning: Meaning) -> None:
        """Make a name mean something from here on."""
        self._order.setdefault(name, len(self._order))
        self.names[name] = meaning

    def as_of_now(self) -> Scope:
        """Return a view of this scope and those around it that does not see what is declared later."""
        if self.parent is None or self.horizon is not None:
            return self
        return replace(self, parent=self.parent.as_of_now(), horizon=len(self._order))

    def own(self, name: str) -> Meaning | None:
        """Return what a name means by this level alone."""
        meaning = self.names.get(name)
        if meaning is None or (self.horizon is not None and self._order.get(name, -1) >= self.horizon):
            return None
        return meaning

    def lookup(self, name: str) -> Meaning | None:
        """Return what a name means in an expression here, from the inside out.

        An attention or layer hides nothing: it is found only where the name means nothing else.
        """
        operation = None
        for scope in self.outwards():
            meaning = scope.own(name)
            if isinstance(meaning, OperationMeaning):
                operation = operation or meaning
            elif meaning is not None:
                return meaning
        return operation

    def operation(self, name: str) -> OperationMeaning | None:
        """Return the attention or layer of that name that is visible here."""
        found = (scope.own(name) for scope in self.outwards())
        return next((meaning for meaning in found if isinstance(meaning, OperationMeaning)), None)

    def outwards(self) -> Iterator[Scope]:
        """Yield this scope and those around it."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def declared_later(self, name: str) -> Span | None:
        """Return where a name that is not visible yet will be declared."""
        for scope in self.outwards():
            if name in scope.later and scope.own(name) is None:
                return scope.later[name]
        return None

    def recursion_through(self, name: str) -> tuple[str, ...]:
        """Return the chain of definitions by which the current one would use itself through `name`; empty if none."""
        scope = next((scope for scope in self.outwards() if scope.current is not None), None)
        if scope is None or scope.current is None:
            return ()
        chains: list[tuple[str, ...]] = [(scope.current, name)]
        seen = {name}
        for chain in chains:  # grows while it is read: a breadth-first search
            if chain[-1] == scope.current:
                return chain
            for following in sorted(scope.references.get(chain[-1], frozenset()) - seen):
                seen.add(following)
                chains.append((*chain, following))
        return ()

    @property
    def may_lack_names(self) -> bool:
        """Whether this scope or one around it is incomplete."""
        return any(scope.incomplete for scope in self.outwards())

    def visible(self) -> list[str]:
        """Return all names that mean something here."""
        return list(dict.fromkeys(name for scope in self.outwards() for name in scope.names if scope.own(name)))


_SHORTEST_MISSPELT = 3
"""Shorter names are like too many others."""


def nearest(name: str, candidates: list[str] | tuple[str, ...]) -> str | None:
    """Return the candidate that is most like a misspelt name, if one is like it at all."""
    by_case = {candidate.lower(): candidate for candidate in reversed(candidates)}
    if name.lower() in by_case:
        return by_case[name.lower()]
    if len(name) < _SHORTEST_MISSPELT:
        return None
    close = get_close_matches(name.lower(), list(by_case), n=1, cutoff=0.6)
    return by_case[close[0]] if close else None
