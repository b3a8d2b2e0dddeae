"""What an expression may depend on, where not everything means something."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir.nodes import Expr, Index, IndexName, Read, Score, Size, SizeName
from attnc.ir.walk import children
from attnc.sema import expression_errors
from attnc.sema.context import Context
from attnc.source import Span


@dataclass(frozen=True, slots=True)
class Restriction:
    """What may appear in one kind of expression.

    Attributes:
        where: the kind, for messages: "a dimension".
        tables: inputs and learned tensors that may be read; None: all.
        may: all that it may use, for messages.
    """

    where: str
    indices: frozenset[IndexName]
    sizes: frozenset[SizeName]
    tables: frozenset[str] | None
    may: str


PER_QUERY = Restriction(
    "this",
    indices=frozenset({IndexName.BATCH, IndexName.HEAD, IndexName.QUERY, IndexName.ROW}),
    sizes=frozenset(SizeName),
    tables=None,
    may="`b`, `h`, `i`, sizes, inputs and learned tensors: one value serves all keys of a query",
)
"""What is one number for each query."""


def obeys(expr: Expr, span: Span, restriction: Restriction, context: Context) -> bool:
    """Tell whether an expression uses only what it may, after complaining of the first thing that it may not.

    The complaint points into `span`, the text of the expression: where a `let` or a definition brings in what is not
    allowed, at its name.
    """
    pending: list[tuple[Expr, Span]] = [(expr, span)]
    while pending:
        node, inner = pending.pop()
        inner = node.span if node.span is not None and _lies_in(node.span, span) else inner
        offender = _offender(node, restriction)
        if offender is not None:
            context.report.add(expression_errors.not_available(inner, restriction.where, offender, restriction.may))
            return False
        pending.extend((child, inner) for child in reversed(children(node)))
    return True


def _offender(node: Expr, restriction: Restriction) -> str | None:
    match node:
        case Index(name=IndexName.DIM, axis=axis) if IndexName.DIM not in restriction.indices:
            return f"d{axis}"
        case Index(name=index) if index not in restriction.indices:
            return index.value
        case Size(name=size) if size not in restriction.sizes:
            return size.value
        case Read(table=table) if restriction.tables is not None and table not in restriction.tables:
            return table
        case Score():
            return "s"
        case _:
            return None


def _lies_in(inner: Span, outer: Span) -> bool:
    return inner.source is outer.source and outer.start <= inner.start and inner.end <= outer.end
