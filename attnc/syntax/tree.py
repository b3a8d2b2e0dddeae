"""The syntax tree: what a file says, before any name or type is looked up.

Nodes are frozen; equality ignores where they stand. Parentheses leave no trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import assert_never

from attnc.source import SourceFile, Span


@dataclass(frozen=True, slots=True)
class Name:
    """A name where it is declared or used."""

    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Number:
    """`12`, `0.5`, `1e-3`. `value` is an int only if `written` has neither point nor exponent."""

    value: int | float
    written: str = field(compare=False)
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Literal:
    """`true`, `false`, `inf` or `pi`."""

    word: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A string, without its quotes."""

    value: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a call or form: `EXPR`, `name = EXPR`, or (in layers) `WEIGHT via FORM`."""

    value: Expr
    name: Name | None = None
    via: Form | None = None
    span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Call:
    """`f(a, b)`. A quantifier, `any(t < n, E)`, is a call whose first argument is a comparison."""

    function: Name
    arguments: tuple[Argument, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Subscript:
    """`table[a, b]`."""

    table: Name
    index: tuple[Expr, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Unary:
    """`-x`, `+x` or `not x`; `operator` is as written."""

    operator: str
    operand: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic: `+ - * / // % **`."""

    operator: str
    left: Expr
    right: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a < b <= c`: one operator less than operands."""

    operands: tuple[Expr, ...]
    operators: tuple[str, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Logic:
    """`a and b and c`, or the same with `or`: two or more operands of one chain."""

    operator: str
    operands: tuple[Expr, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Conditional:
    """`then if condition else otherwise`."""

    condition: Expr
    then: Expr
    otherwise: Expr
    span: Span = field(compare=False, repr=False)


Expr = Name | Number | Literal | Text | Call | Subscript | Unary | Binary | Comparison | Logic | Conditional
"""Any expression."""


@dataclass(frozen=True, slots=True)
class Form:
    """One of a statement's named forms: `softmax(sink = 0)`, `end`. `arguments` is None without parentheses."""

    name: Name
    arguments: tuple[Argument, ...] | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of an attention or layer, `name: type = default`; of a `def`, `name` or `name: type`."""

    name: Name
    type: Name | None
    default: Expr | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AnyLength:
    """The dimension `?`."""

    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TensorType:
    """`float` or `float[H, 2 * w]`; `dims` is empty for a scalar."""

    element: Name
    dims: tuple[Expr | AnyLength, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Input:
    """`input name: TYPE [sorted]`."""

    name: Name
    type: TensorType
    sorted: bool
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Learned:
    """`learned name: TYPE = EXPR`; a missing initial value is an error of meaning, not of syntax."""

    name: Name
    type: TensorType
    initial: Expr | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Let:
    """`let name = EXPR`."""

    name: Name
    value: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """`mask EXPR`, `score EXPR`, `scale EXPR` or `weight EXPR`."""

    keyword: Name
    value: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FormRule:
    """`normalize`, `feature`, `prepare`, `keys`, `decompose` or `align`, with its form."""

    keyword: Name
    form: Form
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Assert:
    """`assert EXPR`; `assert nonempty` is one with the name `nonempty`."""

    condition: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Item:
    """`word EXPR [via FORM]`: an item of a layer, or a statement whose word is misspelt."""

    word: Name
    value: Expr
    via: Form | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Assignment:
    """`word name = EXPR` (`rotary theta = 10000` in a layer) or `word = EXPR`, which only means something in error."""

    word: Name
    name: Name | None
    value: Expr
    span: Span = field(compare=False, repr=False)


Statement = Input | Learned | Let | Rule | FormRule | Assert | Item | Assignment
"""Anything that may stand between the braces of an attention or a layer."""


@dataclass(frozen=True, slots=True)
class Use:
    """`use "other.attn"`."""

    path: Text
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Def:
    """`def name(args) = EXPR`."""

    name: Name
    params: tuple[Param, ...]
    body: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Attention:
    """`attention name(params) { ... }`."""

    name: Name
    params: tuple[Param, ...]
    statements: tuple[Statement, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Layer:
    """`layer name(params) { ... }`."""

    name: Name
    params: tuple[Param, ...]
    statements: tuple[Statement, ...]
    span: Span = field(compare=False, repr=False)


Declaration = Use | Def | Attention | Layer
"""Anything that may stand at the top of a file."""


@dataclass(frozen=True, slots=True)
class Comment:
    """A `#` comment, from its `#` to the end of its line."""

    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class File:
    """A whole file."""

    source: SourceFile = field(compare=False)
    declarations: tuple[Declaration, ...]
    comments: tuple[Comment, ...] = field(default=(), compare=False)


def operands(expr: Expr) -> tuple[Expr, ...]:
    """Return the direct operands of an expression, in source order (a conditional's condition first)."""
    match expr:
        case Name() | Number() | Literal() | Text():
            return ()
        case Call(arguments=arguments):
            return tuple(part for argument in arguments for part in _of_argument(argument))
        case Subscript(index=index):
            return index
        case Unary(operand=operand):
            return (operand,)
        case Binary(left=left, right=right):
            return (left, right)
        case Comparison(operands=parts) | Logic(operands=parts):
            return parts
        case Conditional(condition=condition, then=then, otherwise=otherwise):
            return (condition, then, otherwise)
        case _:
            assert_never(expr)


def expressions(file: File) -> Iterator[Expr]:
    """Yield every outermost expression of a file."""
    for declaration in file.declarations:
        match declaration:
            case Use():
                pass
            case Def(body=body):
                yield body
            case Attention(params=params, statements=statements) | Layer(params=params, statements=statements):
                yield from (param.default for param in params if param.default is not None)
                for statement in statements:
                    yield from _of_statement(statement)
            case _:
                assert_never(declaration)


def _of_statement(statement: Statement) -> Iterator[Expr]:
    match statement:
        case Input(type=kind):
            yield from (dim for dim in kind.dims if not isinstance(dim, AnyLength))
        case Learned(type=kind, initial=initial):
            yield from (dim for dim in kind.dims if not isinstance(dim, AnyLength))
            if initial is not None:
                yield initial
        case Let(value=value) | Rule(value=value) | Assignment(value=value) | Assert(condition=value):
            yield value
        case Item(value=value, via=via):
            yield value
            yield from _of_form(via)
        case FormRule(form=form):
            yield from _of_form(form)
        case _:
            assert_never(statement)


def _of_form(form: Form | None) -> Iterator[Expr]:
    for argument in (form.arguments or ()) if form is not None else ():
        yield from _of_argument(argument)


def _of_argument(argument: Argument) -> Iterator[Expr]:
    yield argument.value
    yield from _of_form(argument.via)
