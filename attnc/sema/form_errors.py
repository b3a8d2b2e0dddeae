"""What can be wrong with statements, their named forms, and layers: one factory of a diagnostic for each code."""

from __future__ import annotations

from attnc.diagnostics import Diagnostic, Label
from attnc.ir.types import Type
from attnc.sema.errors import did_you_mean
from attnc.sema.expression_errors import plural
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


def too_many_arguments(span: Span, form: str, most: int, usage: str) -> Diagnostic:
    """More arguments than a form has."""
    return Diagnostic(
        "too-many-arguments",
        f"`{form}` takes {plural(most, 'argument')}",
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


def not_a_string(span: Span, name: str) -> Diagnostic:
    """Something else where the name of a file must stand."""
    return Diagnostic("not-a-string", f"`{name}` must be a string", (Label(span),), help='write it in `"..."`')


def via_misplaced(span: Span) -> Diagnostic:
    """`via` outside a layer's weights."""
    return Diagnostic(
        "via-misplaced",
        "`via` means something only after a layer's weight",
        (Label(span),),
        help="it says how the product with a projection matrix is computed",
    )


# --- layers ---


def unknown_item(span: Span, word: str, suggestion: str | None) -> Diagnostic:
    """A word that begins no item of a layer."""
    return Diagnostic(
        "unknown-item",
        f"a layer has no item `{word}`",
        (Label(span),),
        help=did_you_mean(
            suggestion,
            "its items are `norm`, `heads`, `kv_heads`, `head_size`, `query`, `key`, `value`, `output`, `rotary`, "
            "`attend` and `feedforward`",
        ),
    )


def item_form(span: Span, usage: str) -> Diagnostic:
    """An item of a layer that is not written as it must be."""
    return Diagnostic("item-form", f"this item is written `{usage}`", (Label(span),))


def missing_item(span: Span, layer: str, item: str, usage: str) -> Diagnostic:
    """An item that every layer needs."""
    return Diagnostic("missing-item", f"the layer `{layer}` needs `{item}`", (Label(span),), help=f"write `{usage}`")


def layer_without_width(span: Span, layer: str) -> Diagnostic:
    """A layer without the parameter that says its width."""
    return Diagnostic(
        "layer-without-width",
        f"the layer `{layer}` needs a parameter `width: int`",
        (Label(span, "the number of features of its input and output"),),
        help=f"write `layer {layer}(width: int = 1024)`",
    )


def heads_not_grouped(span: Span, heads: int, kv_heads: int) -> Diagnostic:
    """Key/value heads that do not divide the heads."""
    return Diagnostic(
        "heads-not-grouped",
        "`kv_heads` must divide `heads`",
        (Label(span, f"{heads} heads cannot share {kv_heads}"),),
    )


def not_an_attention(span: Span, name: str, suggestion: str | None) -> Diagnostic:
    """`attend` with something that is not an attention of this file."""
    return Diagnostic(
        "not-an-attention",
        f"`{name}` is not an attention",
        (Label(span, "a layer attends with an attention that is declared above it"),),
        help=did_you_mean(suggestion),
    )
