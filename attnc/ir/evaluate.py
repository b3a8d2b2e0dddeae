"""The value of an expression at one point, exactly, in pure Python.

Every other implementation of the arithmetic (tensor code, kernels, the set analysis) is tested against this one. An
expression is turned into functions once and then called at each point: plans are priced, and sets checked, at
thousands of points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from attnc.diagnostics import InternalError
from attnc.ir.arithmetic import Value, apply_function, binary, convert, wrap
from attnc.ir.nodes import (
    And,
    Binary,
    Bound,
    Call,
    Cast,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Or,
    Parameter,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    Size,
    SizeName,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type

Table = Value | Sequence["Table"] | Callable[..., Value | None]
"""A scalar, nested sequences (one level per dimension), or a function of the index that gives None outside."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What an expression is evaluated at. Leave out what the expression does not use.

    Attributes:
        indices: value of each coordinate, bounds of tiles included.
        sizes: value of each size.
        tables: value of each input and learned tensor by name; a scalar one may be a plain number. A dimension of size
            1 that broadcasts must have been expanded.
        score: value of `s`.
        dims: value of `Index(DIM, axis)` at position `axis`.
        bound: value of quantifier variables that are free in the expression.
    """

    indices: Mapping[IndexName, int] = field(default_factory=dict)
    sizes: Mapping[SizeName, int] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    score: float | None = None
    dims: Sequence[int] = ()
    bound: Mapping[str, int] = field(default_factory=dict)


EMPTY = Environment()
"""For constant expressions."""


Bindings = Mapping[str, int]
"""Values of quantifier variables."""

Evaluator = Callable[[Environment, Bindings], Value]

MOST_KNOWN = 4096
"""So many expressions are remembered in their executable form."""


def evaluate(expr: Expr, env: Environment = EMPTY) -> Value:
    """Evaluate an expression at one point.

    Ints wrap around at 64 bits; floats are float64 and follow IEEE 754 where Python would raise: `1 / 0` is inf,
    `log(0)` is -inf, `sqrt(-1)` is NaN. Reads outside their table give 0 or false.

    Raises:
        InternalError: the environment lacks something that the value depends on, or a `Parameter` was met.
    """
    _, run = _known.get(id(expr)) or _remember(expr)
    try:
        return run(env, env.bound)
    except (KeyError, IndexError) as error:
        raise InternalError(f"no value for {error.args[0]!r} in an evaluation") from error


_known: dict[int, tuple[Expr, Evaluator]] = {}
"""By identity, since equal expressions may differ in the sign of a zero; each entry keeps its expression alive."""


def _remember(expr: Expr) -> tuple[Expr, Evaluator]:
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[id(expr)] = found = (expr, _evaluator(expr))
    return found


def _evaluator(expr: Expr) -> Evaluator:
    """Return a function that evaluates an expression, and nothing of it before it is called."""
    match expr:
        case Const(value=value):
            return lambda env, bound: value
        case Index(name=IndexName.DIM, axis=axis):
            return lambda env, bound: env.dims[axis]
        case Index(name=name):
            return lambda env, bound: env.indices[name]
        case Size(name=size):
            return lambda env, bound: env.sizes[size]
        case Bound(name=variable):
            return lambda env, bound: bound[variable]
        case Binary():
            return _binary(expr)
        case And(operands=operands):
            return _conjunction(tuple(map(_evaluator, operands)))
        case Or(operands=operands):
            return _disjunction(tuple(map(_evaluator, operands)))
        case Unary():
            return _unary(expr)
        case Where():
            condition, then, otherwise = map(_evaluator, (expr.condition, expr.then, expr.otherwise))
            return lambda env, bound: then(env, bound) if condition(env, bound) else otherwise(env, bound)
        case Read():
            return _read(expr)
        case Call():
            return _call(expr)
        case Cast(operand=operand, type=to):
            convertible = _evaluator(operand)
            return lambda env, bound: convert(convertible(env, bound), to)
        case Quantifier():
            return _quantifier(expr)
        case Score():
            return _score
        case Parameter(name=parameter):
            return _parameter(parameter)
        case _:
            assert_never(expr)


def _binary(expr: Binary) -> Evaluator:
    apply, left, right = binary(expr.op, expr.type), _evaluator(expr.left), _evaluator(expr.right)
    if isinstance(expr.right, Const):
        value = expr.right.value
        return lambda env, bound: apply(left(env, bound), value)
    return lambda env, bound: apply(left(env, bound), right(env, bound))


def _unary(expr: Unary) -> Evaluator:
    operand = _evaluator(expr.operand)
    if expr.op is UnaryOp.NOT:
        return lambda env, bound: not operand(env, bound)
    if expr.type is Type.FLOAT:
        return lambda env, bound: -operand(env, bound)
    return lambda env, bound: wrap(-int(operand(env, bound)))


def _conjunction(operands: tuple[Evaluator, ...]) -> Evaluator:
    def run(env: Environment, bound: Bindings) -> bool:
        for operand in operands:  # noqa: SIM110  a generator for `all` would take as long as the operands
            if not operand(env, bound):
                return False
        return True

    return run


def _disjunction(operands: tuple[Evaluator, ...]) -> Evaluator:
    def run(env: Environment, bound: Bindings) -> bool:
        for operand in operands:  # noqa: SIM110  as above
            if operand(env, bound):
                return True
        return False

    return run


def _call(expr: Call) -> Evaluator:
    function, args = expr.function, tuple(map(_evaluator, expr.args))
    if function in (Function.MIN, Function.MAX) and expr.type is Type.INT:
        choose = min if function is Function.MIN else max
        return lambda env, bound: choose([arg(env, bound) for arg in args])
    return lambda env, bound: apply_function(function, tuple([arg(env, bound) for arg in args]))


def _read(expr: Read) -> Evaluator:
    index = tuple(map(_evaluator, expr.index))

    def run(env: Environment, bound: Bindings) -> Value:
        return _element(expr, env.tables[expr.table], tuple([int(at(env, bound)) for at in index]))

    return run


def _element(expr: Read, table: Table, index: tuple[int, ...]) -> Value:
    found: Table | None = table
    if callable(table):
        found = table(*index)
    else:
        for at in index:
            if not isinstance(found, Sequence):
                raise InternalError(f"{expr.table} has fewer dimensions than its index")
            if not 0 <= at < len(found):
                found = None
                break
            found = found[at]
    if found is None:
        return convert(0, expr.type)
    if not isinstance(found, bool | int | float):
        raise InternalError(f"{expr.table} has more dimensions than its index")
    return float(found) if expr.type is Type.FLOAT else found


def _quantifier(expr: Quantifier) -> Evaluator:
    body, variable, count = _evaluator(expr.body), expr.variable, expr.count

    def values(env: Environment, bound: Bindings) -> Iterator[Value]:
        inner = dict(bound)
        for at in range(count):
            inner[variable] = at
            yield body(env, inner)

    match expr.kind:
        case QuantifierKind.ANY:
            return lambda env, bound: any(values(env, bound))
        case QuantifierKind.ALL:
            return lambda env, bound: all(values(env, bound))
        case QuantifierKind.SUM if expr.type is Type.INT:
            return lambda env, bound: wrap(sum(int(value) for value in values(env, bound)))
        case QuantifierKind.SUM:
            return lambda env, bound: _add(values(env, bound))
        case _:
            assert_never(expr.kind)


def _add(values: Iterable[Value]) -> float:
    total = 0.0
    for value in values:  # `sum` may compensate rounding; the language adds one after the other
        total += value
    return total


def _score(env: Environment, bound: Bindings) -> float:
    if env.score is None:
        raise InternalError("no value for the score in an evaluation")
    return float(env.score)


def _parameter(name: str) -> Evaluator:
    def run(env: Environment, bound: Bindings) -> Value:
        raise InternalError(f"the parameter {name} has no value")

    return run
