"""Checking calls: built-in functions, quantifiers, and definitions, which are inlined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from attnc.ir.nodes import Bound, Const, Expr, Quantifier, QuantifierKind
from attnc.ir.types import Type
from attnc.sema import errors, expression_errors, form_errors
from attnc.sema.construct import is_constant
from attnc.sema.context import Context
from attnc.sema.functions import FUNCTIONS, QUANTIFIERS, Application
from attnc.sema.operators import need_bool, need_number, widen
from attnc.sema.report import Use
from attnc.sema.scopes import (
    BuiltinMeaning,
    DefinitionMeaning,
    Meaning,
    OperationMeaning,
    QuantityMeaning,
    Scope,
    TableMeaning,
)
from attnc.sema.types import type_named
from attnc.sema.unknown import report_later, report_unknown_function
from attnc.syntax import tree

Check = Callable[[tree.Expr, Context], Expr | None]
"""`expressions.check`, handed over because the two call each other."""

MAX_COUNT = 1024
"""Instances of one quantifier."""


def check_call(call: tree.Call, context: Context, check: Check) -> Expr | None:
    """Type a call."""
    name = call.function.text
    meaning = context.scope.lookup(name)
    for argument in call.arguments:
        if argument.name is not None:
            context.report.add(expression_errors.named_argument(argument.name.span, name))
            return None
        if argument.via is not None:
            context.report.add(form_errors.via_misplaced(argument.via.span))
            return None
    match meaning:
        case None:
            report_unknown_function(call, context, check)
            return None
        case BuiltinMeaning() if name in QUANTIFIERS:
            return _quantifier(call, context, check)
        case BuiltinMeaning():
            return _builtin(call, context, check)
        case DefinitionMeaning():
            return inline(meaning, call.arguments, call, context, check)
        case TableMeaning():
            context.report.add(expression_errors.table_called(call.span, name))
            return None
        case OperationMeaning():
            context.report.add(errors.not_a_value(call.function.span, name, meaning.span))
            return None
        case QuantityMeaning(expr=None):
            return None
        case _ if report_later(call.function, context):  # `g` is a size until `def g(n)` is seen
            return None
        case _:
            context.report.add(expression_errors.not_a_function(call.function.span, name))
            return None


def _builtin(call: tree.Call, context: Context, check: Check) -> Expr | None:
    name, count = call.function.text, len(call.arguments)
    signature = FUNCTIONS[name]
    args: list[Expr | None] = []
    for position, argument in enumerate(call.arguments):
        # The operand that a constant condition does not select may divide by zero: it never matters.
        unselected = name == "where" and _is_unselected(position, args)
        context.report.unselected += unselected
        args.append(check(argument.value, context))
        context.report.unselected -= unselected
    if count < signature.least or (signature.most is not None and count > signature.most):
        least, most = signature.least, signature.most
        context.report.add(expression_errors.wrong_argument_count(call.span, name, least, most, count, signature.usage))
        return None
    known = [arg for arg in args if arg is not None]
    if len(known) < len(args):
        return None
    spans = [argument.value.span for argument in call.arguments]
    return signature.build(Application(name, known, context, call.span, spans))


def _is_unselected(position: int, args: Sequence[Expr | None]) -> bool:
    condition = args[0] if args else None
    if not isinstance(condition, Const) or condition.type is not Type.BOOL:
        return False
    return position == (2 if condition.value else 1)


def _quantifier(call: tree.Call, context: Context, check: Check) -> Expr | None:
    """Type `any(t < n, E)`, `all(t < n, E)` or `sum(t < n, E)`."""
    name = call.function.text
    head = call.arguments[0].value if call.arguments else None
    match head:
        case tree.Comparison(operands=(tree.Name() as variable, limit), operators=("<",)) if len(call.arguments) == 2:
            pass
        case _:
            context.report.add(expression_errors.quantifier_form(call.span, name))
            return None
    count = _count(name, limit, context, check)
    bound = Bound(_own_name(variable.text, context), span=context.at(variable.span))
    inner = context.inside({variable.text: QuantityMeaning(bound, variable.span, "a quantifier's variable")})
    body_tree = call.arguments[1].value
    body = check(body_tree, inner)
    if name == "sum":
        body = need_number(body, "`sum`", context, body_tree.span)
    else:
        body = need_bool(body, f"`{name}`", context, body_tree.span)
    if body is None or count is None:
        return None
    node = Quantifier(QuantifierKind(name), bound.name, count, body, body.type, span=context.at(call.span))
    return context.finish(node, call.span)


def _count(name: str, limit: tree.Expr, context: Context, check: Check) -> int | None:
    """Return a quantifier's count; 1 stands for one that depends on a parameter without a value."""
    count = check(limit, context)
    if count is None:
        return None
    if count.type is not Type.INT:
        context.report.add(expression_errors.not_an_int(limit.span, f"the count of `{name}`", count.type))
        return None
    if not is_constant(count):
        context.report.add(expression_errors.count_not_constant(limit.span, name, MAX_COUNT))
        return None
    if not isinstance(count, Const):
        return 1
    if not 0 <= count.value <= MAX_COUNT:
        context.report.add(expression_errors.count_out_of_range(limit.span, name, int(count.value), MAX_COUNT))
        return None
    return int(count.value)


def _own_name(wanted: str, context: Context) -> str:
    """Return a name that no other quantifier of this program has."""
    taken, name, number = context.workshop.variables, wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def inline(
    meaning: DefinitionMeaning,
    arguments: tuple[tree.Argument, ...],
    use: tree.Call | tree.Name,
    context: Context,
    check: Check,
) -> Expr | None:
    """Return what a definition says of these arguments.

    The body sees the names around the definition, not those around its use.
    """
    definition = meaning.definition
    name, params = definition.name.text, definition.params
    given = [
        _argument(param, argument.value, context, check) for param, argument in zip(params, arguments, strict=False)
    ]
    if len(arguments) != len(params) or (isinstance(use, tree.Call) and not params):
        context.report.add(
            expression_errors.wrong_definition_arguments(
                use.span, name, tuple(param.name.text for param in params), len(arguments), meaning.span
            )
        )
        return None
    if meaning.broken or None in given:
        return None
    names = {param.name.text: value for param, value in zip(params, given, strict=True) if value is not None}
    foreign = use.span.source is not definition.span.source
    inner = replace(
        context,
        scope=Scope(meaning.scope, names),
        place=context.place or (use.span if foreign else None),
    )
    context.report.uses.append(Use(name, use.span, foreign))
    body = check(definition.body, inner)
    context.report.uses.pop()
    return None if body is None else context.respan(body, use.span)


def _argument(param: tree.Param, given: tree.Expr, context: Context, check: Check) -> Meaning | None:
    """Return what a definition's argument means: a tensor by its name, or a value of the type that it asks for."""
    if isinstance(given, tree.Name):
        meaning = context.scope.lookup(given.text)
        if isinstance(meaning, TableMeaning) and param.type is None:
            return meaning
    value = check(given, context)
    if value is None or param.type is None:
        return None if value is None else QuantityMeaning(value, param.span, "an argument")
    wanted = type_named(param.type.text)
    if wanted is None:
        return None
    if value.type is not wanted and (value.type, wanted) != (Type.INT, Type.FLOAT):
        context.report.add(
            expression_errors.wrong_argument_type(given.span, param.name.text, wanted, value.type, param.span)
        )
        return None
    wide = widen(value, wanted, context, given.span)
    return None if wide is None else QuantityMeaning(wide, param.span, "an argument")
