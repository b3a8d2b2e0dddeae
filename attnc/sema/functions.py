"""Typing of the built-in functions. Arguments are finished IR; None where one has no meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attnc.ir.nodes import Binary, BinaryOp, Call, Cast, Const, Expr, Function, Where
from attnc.ir.shortening import stand_in
from attnc.ir.types import Type
from attnc.sema import expression_errors
from attnc.sema.context import Context
from attnc.sema.operators import arithmetic, need_bool, need_number, unify, widen
from attnc.source import Span


@dataclass(frozen=True, slots=True)
class Application:
    """A call whose arguments were checked.

    Attributes:
        span: that of the whole call.
        spans: those of the arguments.
    """

    name: str
    args: list[Expr]
    context: Context
    span: Span
    spans: list[Span]

    def call(self, function: Function, args: list[Expr], kind: Type) -> Expr | None:
        """Finish a call of an IR function."""
        return self.finish(Call(function, tuple(args), kind, span=self.context.at(self.span)))

    def finish(self, node: Expr) -> Expr | None:
        """Finish a node that this call stands for."""
        return self.context.finish(node, self.span)

    def numbers(self) -> bool:
        """Tell whether all arguments are numbers, after complaining of those that are not."""
        checked = [
            need_number(arg, f"`{self.name}`", self.context, span)
            for arg, span in zip(self.args, self.spans, strict=True)
        ]
        return None not in checked

    def floats(self) -> list[Expr] | None:
        """Return the arguments, all numbers, widened to floats."""
        if not self.numbers():
            return None
        wide = [widen(arg, Type.FLOAT, self.context, s) for arg, s in zip(self.args, self.spans, strict=True)]
        return [arg for arg in wide if arg is not None] if None not in wide else None


@dataclass(frozen=True, slots=True)
class Signature:
    """How many arguments a function takes (`most` None: any number), and how it is typed."""

    least: int
    most: int | None
    usage: str
    build: Callable[[Application], Expr | None]


def _elementary(function: Function) -> Callable[[Application], Expr | None]:
    def build(application: Application) -> Expr | None:
        args = application.floats()
        return None if args is None else application.call(function, args, Type.FLOAT)

    return build


def _absolute(application: Application) -> Expr | None:
    return application.call(Function.ABS, application.args, application.args[0].type) if application.numbers() else None


def _extreme(function: Function) -> Callable[[Application], Expr | None]:
    def build(application: Application) -> Expr | None:
        if not application.numbers():
            return None
        args = unify(application.args, f"`{application.name}`", application.context, application.spans)
        return None if args is None else application.call(function, args, args[0].type)

    return build


def _clamp(application: Application) -> Expr | None:
    if not application.numbers():
        return None
    args = unify(application.args, "`clamp`", application.context, application.spans)
    if args is None:
        return None
    raised = application.call(Function.MAX, args[:2], args[0].type)
    return None if raised is None else application.call(Function.MIN, [raised, args[2]], args[0].type)


def _where(application: Application) -> Expr | None:
    context, spans = application.context, application.spans
    condition = need_bool(application.args[0], "the condition of `where`", context, spans[0])
    parts = unify(application.args[1:], "`where`", context, spans[1:])
    if condition is None or parts is None:
        return None
    if isinstance(condition, Const):
        return parts[0] if condition.value else parts[1]
    return application.finish(Where(condition, parts[0], parts[1], parts[0].type, span=context.at(application.span)))


def _floor(application: Application) -> Expr | None:
    if not application.numbers():
        return None
    operand = application.args[0]
    return operand if operand.type is Type.INT else application.call(Function.FLOOR, [operand], Type.INT)


def _to_int(application: Application) -> Expr | None:
    operand = application.args[0]
    if operand.type is Type.INT:
        return operand
    return application.finish(Cast(operand, Type.INT, span=application.context.at(application.span)))


def _to_float(application: Application) -> Expr | None:
    operand: Expr | None = application.args[0]
    if operand is not None and operand.type is Type.BOOL:
        operand = _to_int(application)
    return None if operand is None else widen(operand, Type.FLOAT, application.context, application.span)


def _softcap(application: Application) -> Expr | None:
    """`softcap(x, cap) -> cap * tanh(x / cap)`."""
    args = application.floats()
    if args is None:
        return None
    spans = (application.span, application.spans[0], application.spans[1])
    ratio = arithmetic("/", args[0], args[1], application.context, spans)
    bent = None if ratio is None else application.call(Function.TANH, [ratio], Type.FLOAT)
    if bent is None:
        return None
    return application.finish(
        Binary(BinaryOp.MUL, args[1], bent, Type.FLOAT, span=application.context.at(application.span))
    )


def _hash(application: Application) -> Expr | None:
    if not need_ints(application.args, "an argument of `hash`", application.context, application.spans):
        return None
    return application.call(Function.HASH, application.args, Type.INT)


def _position(application: Application) -> Expr | None:
    """`first(j)` and `last(j)`: `j` itself where keys are not shortened, a stand-in until it is known how they are."""
    if not need_ints(application.args, f"the argument of `{application.name}`", application.context, application.spans):
        return None
    if application.context.shortened:
        key = application.args[0]
        return application.finish(stand_in(application.name, key, application.context.at(application.span)))
    return application.context.respan(application.args[0], application.span)


def need_ints(args: list[Expr], what: str, context: Context, spans: list[Span]) -> bool:
    """Tell whether all expressions are ints, after complaining of those that are not."""
    right = True
    for arg, span in zip(args, spans, strict=True):
        if arg.type is not Type.INT:
            context.report.add(expression_errors.not_an_int(span, what, arg.type))
            right = False
    return right


_FUNCTIONS_OF_ONE_FLOAT = (
    Function.EXP,
    Function.EXP2,
    Function.LOG,
    Function.LOG2,
    Function.SQRT,
    Function.TANH,
    Function.SIGMOID,
    Function.ERF,
    Function.SIN,
    Function.COS,
)

FUNCTIONS: dict[str, Signature] = {
    **{f.value: Signature(1, 1, f"{f.value}(x)", _elementary(f)) for f in _FUNCTIONS_OF_ONE_FLOAT},
    "abs": Signature(1, 1, "abs(x)", _absolute),
    "min": Signature(2, None, "min(a, b, ...)", _extreme(Function.MIN)),
    "max": Signature(2, None, "max(a, b, ...)", _extreme(Function.MAX)),
    "clamp": Signature(3, 3, "clamp(x, lo, hi)", _clamp),
    "where": Signature(3, 3, "where(condition, a, b)", _where),
    "floor": Signature(1, 1, "floor(x)", _floor),
    "int": Signature(1, 1, "int(x)", _to_int),
    "float": Signature(1, 1, "float(x)", _to_float),
    "softcap": Signature(2, 2, "softcap(x, cap)", _softcap),
    "hash": Signature(1, None, "hash(a, ...)", _hash),
    "first": Signature(1, 1, "first(j)", _position),
    "last": Signature(1, 1, "last(j)", _position),
}
"""Every function of the language by name."""

QUANTIFIERS = ("any", "all", "sum")
"""Functions whose first argument declares a variable."""
