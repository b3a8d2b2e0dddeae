"""What can be wrong with expressions: one factory of a diagnostic for each code."""

from __future__ import annotations

from attnc.diagnostics import Diagnostic, Label
from attnc.ir.types import Type
from attnc.source import Span


def _is(kind: Type) -> str:
    return f"this is {kind.with_article()}"


def plural(count: int, noun: str) -> str:
    """Return `1 argument`, `2 arguments`, `no arguments`."""
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


# --- types ---


def mask_not_boolean(span: Span, kind: Type) -> Diagnostic:
    """A mask that is a number."""
    return Diagnostic(
        "mask-not-boolean",
        "a mask must be true or false",
        (Label(span, _is(kind)),),
        help="compare it, for example `i - j < window`",
    )


def assertion_not_boolean(span: Span, kind: Type) -> Diagnostic:
    """An assertion that is a number."""
    return Diagnostic(
        "assertion-not-boolean",
        "an assertion must be true or false",
        (Label(span, _is(kind)),),
        help="compare it, for example `i - j < window`",
    )


def not_a_number(span: Span, what: str, kind: Type) -> Diagnostic:
    """A score, scale or weight that is a bool."""
    return Diagnostic(
        "not-a-number",
        f"{what} must be a number",
        (Label(span, _is(kind)),),
        help="`where(condition, a, b)` makes a number of a condition; `mask` takes conditions as they are",
    )


def operand_not_number(span: Span, what: str) -> Diagnostic:
    """Arithmetic on a bool."""
    return Diagnostic(
        "operand-not-number",
        f"{what} needs numbers",
        (Label(span, "this is a bool"),),
        help="`int(...)` turns a bool into 0 or 1; `and`, `or` and `not` combine bools",
    )


def operand_not_boolean(span: Span, what: str, kind: Type) -> Diagnostic:
    """Logic on a number."""
    return Diagnostic(
        "operand-not-boolean",
        f"{what} needs true or false",
        (Label(span, _is(kind)),),
        help="compare it, for example with `!= 0`",
    )


def cannot_compare(span: Span, operator: str, left: Type, right: Type) -> Diagnostic:
    """A comparison of a bool with a number, or an order between bools."""
    if left is right:
        return Diagnostic(
            "cannot-compare",
            f"bools have no order: `{operator}` compares numbers",
            (Label(span, "both sides are bools"),),
            help="use `==`, `!=`, `and`, `or` or `not`",
        )
    return Diagnostic(
        "cannot-compare",
        f"{left.with_article()} cannot be compared with {right.with_article()}",
        (Label(span),),
        help="`int(...)` turns a bool into 0 or 1",
    )


def operands_differ(span: Span, what: str, kind: Type, other: Type, first: Span) -> Diagnostic:
    """Operands of which one is a bool and another a number."""
    return Diagnostic(
        "operands-differ",
        f"{what} needs operands of one type",
        (Label(span, _is(kind)), Label(first, f"and this is {other.with_article()}")),
        help="`int(...)` turns a bool into 0 or 1",
    )


def not_an_int(span: Span, what: str, kind: Type) -> Diagnostic:
    """Something that must be an int and is not."""
    mend = "round it with `floor(...)`" if kind is Type.FLOAT else "`int(...)` turns a bool into 0 or 1"
    return Diagnostic("not-an-int", f"{what} must be an int", (Label(span, _is(kind)),), help=mend)


# --- values and limits ---


def integer_too_large(span: Span, value: int | None) -> Diagnostic:
    """An integer beyond 64 bits, written or computed."""
    shown = "this is" if value is None else "its value is"
    return Diagnostic(
        "integer-too-large",
        "integers have 64 bits",
        (Label(span, f"{shown} beyond them"),),
        help="integers go from -9223372036854775808 to 9223372036854775807",
    )


def number_too_large(span: Span) -> Diagnostic:
    """A float beyond the range of float64."""
    return Diagnostic(
        "number-too-large",
        "this number is beyond the range of floats",
        (Label(span),),
        help="write `inf` for infinity",
    )


def division_by_zero(span: Span, operator: str, name: str | None) -> Diagnostic:
    """A divisor that is the constant 0."""
    return Diagnostic(
        "division-by-zero",
        f"`{operator}` by 0",
        (Label(span, f"`{name}` is 0" if name else "this is 0"),),
        help="a divisor must not be 0" if operator == "/" else "a constant divisor must be positive",
    )


def divisor_not_positive(span: Span, operator: str, value: float) -> Diagnostic:
    """A negative constant after `//` or `%`."""
    return Diagnostic(
        "divisor-not-positive",
        f"`{operator}` by a negative constant",
        (Label(span, f"this is {value}"),),
        help="a constant divisor must be positive",
    )


def nesting_too_deep(span: Span, limit: int) -> Diagnostic:
    """An expression that is too deep once its definitions are written out."""
    return Diagnostic(
        "nesting-too-deep",
        f"with its definitions written out, this expression is more than {limit} deep",
        (Label(span, "this goes deeper"),),
        help="use fewer definitions and `let`s inside each other; a long sum nests once for each of its operators",
    )


def expression_too_large(span: Span, limit: int) -> Diagnostic:
    """An expression that has grown too much by inlining."""
    return Diagnostic(
        "expression-too-large",
        f"with its definitions written out, this expression has more than {limit} parts",
        (Label(span, "it grows beyond them here"),),
        help="a `let` or `def` is written out wherever it is used; one used twice, in another used twice, doubles",
    )


def definitions_too_large(span: Span) -> Diagnostic:
    """Definitions that are written out too often."""
    return Diagnostic(
        "expression-too-large",
        "the definitions of this file, written out where they are used, are too large",
        (Label(span, "this was one use too many"),),
        help="a `let` or `def` is written out wherever it is used; one used twice, in another used twice, doubles",
    )


# --- names in expressions ---


def text_misplaced(span: Span) -> Diagnostic:
    """A string in an expression."""
    return Diagnostic(
        "text-misplaced",
        "a string means nothing here",
        (Label(span),),
        help="strings stand only after `use` and in `bilinear(...)`",
    )


def score_misplaced(span: Span) -> Diagnostic:
    """`s` outside `score`."""
    return Diagnostic(
        "score-misplaced",
        "`s` means something only in `score`",
        (Label(span, "there is no score so far here"),),
        help="`score s + ...` changes the score; a mask or weight cannot depend on it",
    )


def original_keys_misplaced(span: Span) -> Diagnostic:
    """`K` without `keys`."""
    return Diagnostic(
        "original-keys-misplaced",
        "`K` means something only with a `keys` statement",
        (Label(span),),
        help="`M` is the number of keys",
    )


def reserved_for_later(span: Span, what: str) -> Diagnostic:
    """A form of section 12."""
    return Diagnostic(
        "reserved-for-later",
        f"{what} is reserved for a later version of the language",
        (Label(span, "not part of version 1"),),
    )


def table_needs_index(span: Span, name: str, dims: int) -> Diagnostic:
    """A tensor used as if it were a number."""
    index = ", ".join(["..."] * dims)
    return Diagnostic(
        "table-needs-index",
        f"`{name}` is a tensor",
        (Label(span, f"it needs {'an index' if dims == 1 else f'{dims} indices'} here"),),
        help=f"write `{name}[{index}]`",
    )


def not_a_table(span: Span, name: str) -> Diagnostic:
    """An index after something without dimensions."""
    return Diagnostic(
        "not-a-table",
        f"`{name}` has no dimensions",
        (Label(span, "only inputs and learned tensors with dimensions take an index"),),
    )


def table_called(span: Span, name: str) -> Diagnostic:
    """Parentheses where brackets belong."""
    return Diagnostic(
        "not-a-function",
        f"`{name}` is a tensor, not a function",
        (Label(span),),
        help=f"write `{name}[...]`",
    )


def wrong_index_count(span: Span, name: str, dims: int, given: int, declared: Span | None) -> Diagnostic:
    """An index with too many or too few parts."""
    return Diagnostic(
        "wrong-index-count",
        f"`{name}` has {plural(dims, 'dimension')}",
        (Label(span, f"this gives {plural(given, 'index') if given == 1 else f'{given} indices'}"),)
        + ((Label(declared, "declared here"),) if declared is not None else ()),
    )


# --- functions ---


def function_needs_arguments(span: Span, name: str) -> Diagnostic:
    """A function's name without parentheses."""
    return Diagnostic(
        "function-needs-arguments",
        f"`{name}` is a function",
        (Label(span, "it needs arguments here"),),
        help=f"write `{name}(...)`",
    )


def not_a_function(span: Span, name: str) -> Diagnostic:
    """Parentheses after something that takes no arguments."""
    return Diagnostic(
        "not-a-function",
        f"`{name}` is not a function",
        (Label(span, "it takes no arguments"),),
        help=f"write `{name}`, or `{name} * (...)` for a product",
    )


def wrong_argument_count(span: Span, name: str, least: int, most: int | None, given: int, usage: str) -> Diagnostic:
    """A built-in function with too many or too few arguments."""
    wanted = f"{least} or more arguments" if most is None else plural(least, "argument")
    return Diagnostic(
        "wrong-argument-count",
        f"`{name}` takes {wanted}",
        (Label(span, f"this gives {plural(given, 'argument')}"),),
        help=f"write `{usage}`",
    )


def wrong_definition_arguments(
    span: Span, name: str, params: tuple[str, ...], given: int, declared: Span
) -> Diagnostic:
    """A definition with too many or too few arguments."""
    usage = f"{name}({', '.join(params)})" if params else name
    return Diagnostic(
        "wrong-argument-count",
        f"`{name}` takes {plural(len(params), 'argument')}",
        (Label(span, f"this gives {plural(given, 'argument')}"), Label(declared, "declared here")),
        help=f"write `{usage}`",
    )


def wrong_argument_type(span: Span, name: str, wanted: Type, found: Type, declared: Span) -> Diagnostic:
    """An argument that is not of the type that a definition asks for."""
    return Diagnostic(
        "wrong-argument-type",
        f"`{name}` must be {wanted.with_article()}",
        (Label(span, _is(found)), Label(declared, "declared here")),
        help="round it with `floor(...)`" if (found, wanted) == (Type.FLOAT, Type.INT) else "",
    )


def named_argument(span: Span, function: str) -> Diagnostic:
    """`f(x = 1)` where arguments go by their position."""
    return Diagnostic(
        "named-argument",
        f"arguments of `{function}` have no names",
        (Label(span, "give the value alone"),),
        help="to compare, write `==`",
    )


def quantifier_form(span: Span, name: str) -> Diagnostic:
    """`any`, `all` or `sum` without its variable and range."""
    return Diagnostic(
        "quantifier-form",
        f"`{name}` needs a variable with its range, and an expression",
        (Label(span),),
        help=f"write `{name}(t < 8, ...)`, where `t` goes from 0 to 7",
    )


def count_not_constant(span: Span, name: str, limit: int) -> Diagnostic:
    """A quantifier whose range is known only at run time."""
    return Diagnostic(
        "count-not-constant",
        f"the count of `{name}` must be a constant",
        (Label(span, "this is known only when the module is called"),),
        help=f"use a number or a parameter, up to {limit}, and mask the rest inside the expression",
    )


def count_out_of_range(span: Span, name: str, value: int, limit: int) -> Diagnostic:
    """A quantifier whose range is too long or negative."""
    return Diagnostic(
        "count-out-of-range",
        f"the count of `{name}` must be from 0 to {limit}",
        (Label(span, f"this is {value}"),),
    )


def not_available(span: Span, where: str, offender: str, may: str) -> Diagnostic:
    """Something that varies more than the expression may."""
    return Diagnostic(
        "not-available-here",
        f"{where} cannot depend on `{offender}`",
        (Label(span, f"this depends on `{offender}`" if span.text != offender else ""),),
        help=f"it may use {may}",
    )
