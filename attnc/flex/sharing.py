"""Parts of an expression that are computed once and used more often: they become `let`s, or `score` lines of their own.

Tracing gives expressions whose parts are shared objects; written out as a tree they can be exponentially large.
"""

from __future__ import annotations

from collections.abc import Callable

from attnc.flex.declare import nodes
from attnc.flex.errors import unsupported
from attnc.ir.nodes import Bound, Expr, Parameter, Quantifier, Score
from attnc.ir.walk import children, with_children

SMALL = 6
"""Nodes below which a part is written out again."""
MOST_NODES = 5000
"""Nodes of an expression as it is written."""

_FIELDS = ("type", "op", "function", "kind", "variable", "count", "table", "name", "axis", "value")


def intern(expr: Expr, known: dict[object, Expr]) -> Expr:
    """Return an equal expression whose equal parts are one object, also with the others that share `known`."""
    done: dict[int, Expr] = {}

    def go(node: Expr) -> Expr:
        found = done.get(id(node))
        if found is None:
            parts = tuple(go(child) for child in children(node))
            payload = tuple(repr(getattr(node, field, None)) for field in _FIELDS)
            found = known.setdefault((type(node), payload, *(id(part) for part in parts)), with_children(node, parts))
            done[id(node)] = found
        return found

    return go(expr)


def share(expressions: list[Expr], fresh: Callable[[str], str]) -> tuple[list[tuple[str, Expr]], list[Expr]]:
    """Name the parts that are used several times.

    Args:
        expressions: of `intern`.
        fresh: makes a name that is not taken.

    Returns:
        Names and their expressions, in an order in which each uses earlier ones alone, and the expressions over them.
    """
    uses: dict[int, int] = {}
    for expr in expressions:
        uses[id(expr)] = uses.get(id(expr), 0) + 1
    for node in {id(node): node for expr in expressions for node in nodes(expr)}.values():
        for child in children(node):
            uses[id(child)] = uses.get(id(child), 0) + 1
    named: list[tuple[str, Expr]] = []
    done: dict[int, Expr] = {}

    def go(node: Expr) -> Expr:
        found = done.get(id(node))
        if found is None:
            found = with_children(node, tuple(go(child) for child in children(node)))
            if uses[id(node)] > 1 and size_of(found, SMALL) >= SMALL and _can_stand_alone(node):
                named.append((fresh("part"), found))
                found = Parameter(named[-1][0], node.type)
            done[id(node)] = found
        return found

    written = [go(expr) for expr in expressions]
    if sum(size_of(expr, MOST_NODES) for expr in written) >= MOST_NODES:
        raise unsupported(f"an expression of more than {MOST_NODES} operators")
    return named, written


def score_lines(score: Expr) -> list[Expr]:
    """Cut a score where all that it does with `s` goes through one part: that part, then the rest over its value."""
    counts: dict[int, int] = {}
    inner = list(nodes(score))
    for node in inner:
        for child in children(node):
            counts[id(child)] = counts.get(id(child), 0) + 1
    for node in inner:
        shared = counts.get(id(node), 0) > 1 and not isinstance(node, Score) and _uses_score(node)
        if shared:
            rest = _replace(score, node, Parameter("s", node.type))
            if not _uses_score(rest):
                return [*score_lines(node), rest]
    return [score]


def size_of(expr: Expr, most: int) -> int:
    """Count the nodes of an expression written out as a tree, up to `most`."""
    total = 0
    waiting = [expr]
    while waiting and total < most:
        node = waiting.pop()
        total += 1
        waiting.extend(children(node))
    return total


def _uses_score(expr: Expr) -> bool:
    return any(isinstance(node, Score) for node in nodes(expr))


def _can_stand_alone(expr: Expr) -> bool:
    """Tell whether an expression means the same outside of its quantifiers, and has no score in it."""
    own = {node.variable for node in nodes(expr) if isinstance(node, Quantifier)}
    return not any(
        isinstance(node, Score) or (isinstance(node, Bound) and node.name not in own) for node in nodes(expr)
    )


def _replace(expr: Expr, old: Expr, new: Expr) -> Expr:
    done: dict[int, Expr] = {id(old): new}

    def go(node: Expr) -> Expr:
        found = done.get(id(node))
        if found is None:
            found = with_children(node, tuple(go(child) for child in children(node)))
            done[id(node)] = found
        return found

    return go(expr)
