"""Checking what an attention or layer declares: parameters, inputs and learned tensors."""

from __future__ import annotations

import keyword
import numbers
from collections.abc import Mapping

from attnc.ir.arithmetic import INT_MAX, INT_MIN
from attnc.ir.nodes import Const, Expr, Index, IndexName, Parameter, Read, Size, SizeName
from attnc.ir.program import ORIGINAL_KEYS, Tensor, TensorKind
from attnc.ir.types import Type
from attnc.sema import errors, expression_errors
from attnc.sema.construct import is_constant, leaves
from attnc.sema.context import Context
from attnc.sema.expressions import check
from attnc.sema.operators import widen
from attnc.sema.restrict import Restriction, obeys
from attnc.sema.scopes import IndexMeaning, Meaning, QuantityMeaning, Scope, TableMeaning, declared_at, nearest
from attnc.sema.types import TYPE_NAMES, type_named
from attnc.syntax import tree

ParameterValue = bool | int | float
_Dimension = Expr | tree.AnyLength | None
"""A checked dimension; None after a mistake."""

_ARGUMENTS = frozenset(
    {
        "query", "key", "value", "scale", "return_lse", "precision", "device", "dropout_p", "seed", "state",
        "return_state", "rows",
    }
)  # fmt: skip
"""What the generated functions call their own arguments."""

_SIZES = frozenset(size.value for size in SizeName)

_DIMENSION = Restriction(
    "a dimension",
    indices=frozenset(),
    sizes=frozenset(SizeName),
    tables=frozenset({ORIGINAL_KEYS}),
    may="sizes, parameters and constants",
)
_LEARNED_DIMENSION = Restriction(
    "a dimension of a learned tensor",
    indices=frozenset(),
    sizes=frozenset({SizeName.HEADS, SizeName.HEAD_SIZE}),
    tables=frozenset(),
    may="`H`, `D`, parameters and constants: the module is built before any tensor is seen",
)
_INITIAL = Restriction(
    "an initial value",
    indices=frozenset({IndexName.HEAD, IndexName.DIM}),
    sizes=frozenset({SizeName.HEADS, SizeName.HEAD_SIZE}),
    tables=frozenset(),
    may="`h` for an `H` dimension, `d0`, `d1`, ... for the others, `H`, `D` and parameters",
)


def declare(name: tree.Name, meaning: Meaning, context: Context) -> bool:
    """Make a name mean something in the innermost scope, unless it does already."""
    scope = context.scope
    if name.text in scope.names:
        context.report.add(errors.declared_twice(name.span, name.text, declared_at(scope.names[name.text])))
        return False
    scope.declare(name.text, meaning)
    return True


def check_type(name: tree.Name, context: Context) -> Type | None:
    """Return the type of that name."""
    found = type_named(name.text)
    if found is None:
        context.report.add(errors.unknown_type(name.span, name.text, nearest(name.text, TYPE_NAMES)))
    return found


def declare_params(
    params: tuple[tree.Param, ...],
    owner: tree.Name,
    context: Context,
    values: Mapping[str, ParameterValue],
    required: bool,
) -> tuple[tuple[str, Const], ...]:
    """Declare the parameters of an attention or layer, and return the values of those that have one."""
    known = []
    for param in params:
        expr = _parameter(param, owner, context, values, required)
        declare(param.name, QuantityMeaning(expr, param.name.span, "a parameter"), context)
        if isinstance(expr, Const):
            known.append((param.name.text, expr))
    return tuple(known)


def _parameter(
    param: tree.Param, owner: tree.Name, context: Context, values: Mapping[str, ParameterValue], required: bool
) -> Expr | None:
    name = param.name.text
    if param.type is None:
        return None
    kind = check_type(param.type, context)
    default = None
    if param.default is not None:
        default = check_constant(param.default, f"the default of `{name}`", context)
        if default is not None and kind is not None:
            default = _convert_default(default, kind, param, context)
    if kind is None:
        return None
    if name in values:
        return _given(values[name], kind, param, context)
    if param.default is not None:
        match default:
            case Const(value=value):
                return Const(value, kind, name=name, span=param.name.span)
            case None:
                return None
            case _:  # it depends on a parameter without a value
                return Parameter(name, kind, span=param.name.span)
    if required:
        context.report.add(errors.missing_parameter(param.name.span, name, owner.text, kind))
        return None
    return Parameter(name, kind, span=param.name.span)


def _convert_default(default: Expr, kind: Type, param: tree.Param, context: Context) -> Expr | None:
    assert param.default is not None
    if default.type is not kind and (default.type, kind) != (Type.INT, Type.FLOAT):
        context.report.add(
            errors.wrong_default_type(param.default.span, param.name.text, kind, default.type, param.span)
        )
        return None
    return widen(default, kind, context, param.default.span)


def _given(value: ParameterValue, kind: Type, param: tree.Param, context: Context) -> Expr | None:
    """Check a value that was given on the command line or in Python."""
    name, span = param.name.text, param.name.span
    value = _plain(value)
    match kind:
        case Type.BOOL:
            fits = isinstance(value, bool)
        case Type.INT:
            fits = isinstance(value, int) and not isinstance(value, bool)
        case Type.FLOAT:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits:
        context.report.add(errors.wrong_parameter_type(span, name, kind, value))
        return None
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        context.report.add(errors.parameter_too_large(span, name))
        return None
    return Const(float(value) if kind is Type.FLOAT else value, kind, name=name, span=span)


def _plain(value: ParameterValue) -> ParameterValue:
    """Turn the numbers of other libraries (numpy's, enumerations) into Python's own."""
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def check_constant(expr: tree.Expr, what: str, context: Context) -> Expr | None:
    """Check an expression that must be a constant: a `Const`, or an expression over parameters without values."""
    value = check(expr, context)
    if value is None:
        return None
    if not is_constant(value):
        context.report.add(errors.not_constant(expr.span, what))
        return None
    return value


def declare_input(statement: tree.Input, context: Context) -> Tensor | None:
    """Declare an input."""
    name = statement.name.text
    _check_argument_name(statement.name, "an input", context)
    kind = check_type(statement.type.element, context)
    dims = [_dimension(dim, _DIMENSION, context) for dim in statement.type.dims]
    if statement.sorted and (not dims or (kind is not None and kind is not Type.INT)):
        context.report.add(errors.cannot_be_sorted(statement.span, name))
        kind = None
    if kind is None or None in dims:
        declare(statement.name, QuantityMeaning(None, statement.name.span), context)
        return None
    tensor = Tensor(name, TensorKind.INPUT, kind, _shape(dims), statement.sorted, span=statement.span)
    _declare_tensor(statement.name, tensor, context)
    return tensor


def declare_learned(statement: tree.Learned, context: Context) -> Tensor | None:
    """Declare a learned tensor."""
    name = statement.name.text
    _check_argument_name(statement.name, "a learned tensor", context)
    kind = check_type(statement.type.element, context)
    if kind is not None and kind is not Type.FLOAT:
        context.report.add(errors.learned_not_float(statement.type.element.span, name, kind))
        kind = None
    dims = [_learned_dimension(dim, context) for dim in statement.type.dims]
    initial = None
    if statement.initial is None:
        context.report.add(errors.learned_without_value(statement.span, name))
    else:
        initial = _initial_value(statement.initial, dims, context)
    if kind is None or None in dims or initial is None:
        # Whoever reads it is not told more than that: the mistake is here.
        declare(statement.name, QuantityMeaning(None, statement.name.span), context)
        return None
    tensor = Tensor(name, TensorKind.LEARNED, kind, _shape(dims), False, initial, span=statement.span)
    _declare_tensor(statement.name, tensor, context)
    return tensor


def _declare_tensor(name: tree.Name, tensor: Tensor, context: Context) -> None:
    if tensor.dims:
        declare(name, TableMeaning(tensor, name.span), context)
    else:
        declare(
            name, QuantityMeaning(Read(tensor.name, (), tensor.type, span=name.span), name.span, "a scalar"), context
        )


def _check_argument_name(name: tree.Name, what: str, context: Context) -> None:
    text = name.text
    if keyword.iskeyword(text):
        context.report.add(errors.name_not_allowed(name.span, text, what, "is a keyword of Python"))
    elif text in _ARGUMENTS:
        context.report.add(errors.name_not_allowed(name.span, text, what, "is an argument of the generated functions"))
    elif text in _SIZES:
        context.report.add(errors.name_not_allowed(name.span, text, what, "is a size"))


def _shape(dims: list[_Dimension]) -> tuple[Expr | None, ...]:
    """Return dimensions as the IR has them, where none of them is a mistake."""
    return tuple(None if isinstance(dim, tree.AnyLength) else dim for dim in dims)


def _learned_dimension(dim: tree.Expr | tree.AnyLength, context: Context) -> _Dimension:
    if isinstance(dim, tree.AnyLength):
        context.report.add(errors.learned_any_length(dim.span))
        return None
    return _dimension(dim, _LEARNED_DIMENSION, context)


def _dimension(dim: tree.Expr | tree.AnyLength, restriction: Restriction, context: Context) -> _Dimension:
    if isinstance(dim, tree.AnyLength):
        return dim
    value = check(dim, context)
    if value is None:
        return None
    if value.type is not Type.INT:
        context.report.add(expression_errors.not_an_int(dim.span, "a dimension", value.type))
        return None
    if isinstance(value, Const) and value.value < 0:
        context.report.add(errors.negative_dimension(dim.span, int(value.value)))
        return None
    return value if obeys(value, dim.span, restriction, context) else None


def _initial_value(initial: tree.Expr, dims: list[_Dimension], context: Context) -> Expr | None:
    axes: dict[str, Meaning] = {f"d{axis}": IndexMeaning(IndexName.DIM, axis) for axis in range(len(dims))}
    value = check(initial, context.within(Scope(context.scope, axes)))
    if value is None or not obeys(value, initial.span, _INITIAL, context):
        return None
    if not value.type.is_number:
        context.report.add(errors.initial_not_number(initial.span, value.type))
        return None
    uses_head = any(isinstance(leaf, Index) and leaf.name is IndexName.HEAD for leaf in leaves(value))
    heads = sum(isinstance(dim, Size) and dim.name is SizeName.HEADS for dim in dims)
    if uses_head and heads != 1 and None not in dims:
        context.report.add(errors.no_head_dimension(initial.span, heads))
        return None
    return widen(value, Type.FLOAT, context, initial.span)
