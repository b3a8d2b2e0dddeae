"""Telling what may have been meant by a name that means nothing."""

from __future__ import annotations

from collections.abc import Callable

from attnc.ir.nodes import Expr
from attnc.sema import errors
from attnc.sema.context import Context
from attnc.sema.functions import FUNCTIONS, QUANTIFIERS
from attnc.sema.scopes import BuiltinMeaning, DefinitionMeaning, OperationMeaning, Scope, nearest
from attnc.syntax import tree


def report_unknown(name: tree.Name, context: Context) -> None:
    """Tell that a name has no meaning here: a later or recursive declaration, or a misspelling."""
    if context.scope.may_lack_names or report_later(name, context):
        return
    context.report.add(errors.unknown_name(name.span, name.text, nearest(name.text, _values(context.scope))))


def report_unknown_function(
    call: tree.Call, context: Context, check: Callable[[tree.Expr, Context], Expr | None]
) -> None:
    """Tell that a function does not exist, and what is wrong with its arguments."""
    name = call.function
    if not context.scope.may_lack_names and not report_later(name, context):
        context.report.add(errors.unknown_function(name.span, name.text, nearest(name.text, _functions(context.scope))))
    for argument in call.arguments:
        check(argument.value, context)


def report_later(name: tree.Name, context: Context) -> bool:
    """Tell whether a scope declares a name further down, after complaining of that, or of the circle it closes."""
    later = context.scope.declared_later(name.text)
    if later is None:
        return False
    cycle = context.scope.recursion_through(name.text)
    if cycle and frozenset(cycle) in context.workshop.cycles:
        return True
    if cycle:
        context.workshop.cycles.add(frozenset(cycle))
        context.report.add(errors.recursive_definition(name.span, cycle, later))
    else:
        context.report.add(errors.used_before_declaration(name.span, name.text, later))
    return True


def _values(scope: Scope) -> list[str]:
    found = []
    for name in scope.visible():
        match scope.lookup(name):
            case BuiltinMeaning() | OperationMeaning():
                continue
            case _:
                found.append(name)
    return found


def _functions(scope: Scope) -> list[str]:
    definitions = [name for name in scope.visible() if isinstance(scope.lookup(name), DefinitionMeaning)]
    return [*definitions, *FUNCTIONS, *QUANTIFIERS]
