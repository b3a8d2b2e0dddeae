"""What can be wrong with statements, their named forms, and layers: one factory of a diagnostic for each code."""

from __future__ import annotations

from attnc.diagnostics import Diagnostic, Label
from attnc.ir.types import Type
from attnc.sema.errors import did_you_mean
from attnc.source import Span


def unknown_statement(span: Span, word: str, suggestion: str | None) -> Diagnostic:
    """A word that begins no statement."""
    return Diagnostic(
        "unknown-statement",
        f"there is no statement `{word}`",
        (Label(span),),
        help=did_you_mean(
            suggestion, "statements begin with `input`, `learned`, `let`, `mask`, `score`, `normalize`, ..."
        ),
    )


def missing_let(span: Span, name: str) -> Diagnostic:
    """`x = 1` without `let`."""
    return Diagnostic(
        "missing-let",
        "a name for an expression begins with `let`",
        (Label(span),),
        help=f"write `let {name} = ...`",
    )


def statement_repeated(span: Span, keyword: str, first: Span) -> Diagnostic:
    """A second statement of a kind that occurs once."""
    return Diagnostic(
        "statement-repeated",
        f"`{keyword}` occurs at most once",
        (Label(span, "again here"), Label(first, "first here")),
        help="remove one of them",
    )


def unknown_form(span: Span, keyword: str, name: str, known: tuple[str, ...], suggestion: str | None) -> Diagnostic:
    """A form that a statement does not have."""
    listed = ", ".join(f"`{one}`" for one in known)
    return Diagnostic(
        "unknown-form",
        f"`{keyword}` has no form `{name}`",
        (Label(span),),
        help=did_you_mean(suggestion, f"its forms are {listed}"),
    )


def unknown_argument(span: Span, form: str, name: str, usage: str) -> Diagnostic:
    """A named argument that a form does not have."""
    return Diagnostic(
        "unknown-argument",
        f"`{form}` has no argument `{name}`",
        (Label(span),),
        help=f"write `{usage}`",
    )


def too_many_arguments(span: Span, form: str, usage: str) -> Diagnostic:
    """More arguments than a form has."""
    return Diagnostic(
        "too-many-arguments",
        f"`{form}` has fewer arguments",
        (Label(span, "this one is too many"),),
        help=f"write `{usage}`",
    )


def argument_repeated(span: Span, name: str) -> Diagnostic:
    """An argument that is given twice."""
    return Diagnostic("argument-repeated", f"`{name}` is given twice", (Label(span, "again here"),))


def missing_argument(span: Span, form: str, name: str, usage: str) -> Diagnostic:
    """An argument that a form needs."""
    return Diagnostic(
        "missing-argument",
        f"`{form}` needs `{name}`",
        (Label(span),),
        help=f"write `{usage}`",
    )


def wrong_form_argument(span: Span, name: str, wanted: Type, found: Type) -> Diagnostic:
    """An argument of a form that has the wrong type."""
    return Diagnostic(
        "wrong-argument-type",
        f"`{name}` must be {wanted.with_article()}",
        (Label(span, f"this is {found.with_article()}"),),
        help="round it with `floor(...)`" if (found, wanted) == (Type.FLOAT, Type.INT) else "",
    )


def argument_out_of_range(span: Span, name: str, least: int, above: bool) -> Diagnostic:
    """A constant argument that is too small."""
    return Diagnostic(
        "argument-out-of-range",
        f"`{name}` must be {'more than' if above else 'at least'} {least}",
        (Label(span),),
    )


def permutation_form(span: Span) -> Diagnostic:
    """`permute` without an order that it knows."""
    return Diagnostic(
        "permutation-form",
        "`permute` needs an order",
        (Label(span),),
        help="write `permute(residue(d))` or `permute(tile(width, th, tw))`",
    )


def via_misplaced(span: Span) -> Diagnostic:
    """`via` outside a layer's weights."""
    return Diagnostic(
        "via-misplaced",
        "`via` means something only after a layer's weight",
        (Label(span),),
        help="it says how the product with a projection matrix is computed",
    )
