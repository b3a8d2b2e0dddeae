"""The value of an expression at one point: the language's arithmetic, exactly, in pure Python.

Every other implementation of the arithmetic (tensor code, kernels, the set analysis) is tested against this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from attnc.diagnostics import InternalError
from attnc.ir.nodes import (
    And,
    Binary,
    BinaryOp,
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

Value = bool | int | float
Table = Value | Sequence["Table"] | Callable[..., Value | None]
"""A scalar, nested sequences (one level per dimension), or a function of the index that gives None outside."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
_WORD = 2**64


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


def evaluate(expr: Expr, env: Environment = EMPTY) -> Value:
    """Evaluate an expression at one point.

    Ints wrap around at 64 bits; floats are float64 and follow IEEE 754 where Python would raise: `1 / 0` is inf,
    `log(0)` is -inf, `sqrt(-1)` is NaN. Reads outside their table give 0 or false.

    Raises:
        InternalError: the environment lacks something that the value depends on, or a `Parameter` was met.
    """
    try:
        return _evaluate(expr, env, env.bound)
    except (KeyError, IndexError) as error:
        raise InternalError(f"no value for {error.args[0]!r} in an evaluation") from error


def _evaluate(expr: Expr, env: Environment, bound: Mapping[str, int]) -> Value:
    match expr:
        case Const(value=value):
            return value
        case Index(name=name, axis=axis):
            return env.dims[axis] if name is IndexName.DIM else env.indices[name]
        case Binary(op=op, left=left, right=right):
            return apply_binary(op, expr.type, _evaluate(left, env, bound), _evaluate(right, env, bound))
        case And(operands=operands):
            return all(_evaluate(operand, env, bound) for operand in operands)
        case Or(operands=operands):
            return any(_evaluate(operand, env, bound) for operand in operands)
        case Size(name=size):
            return env.sizes[size]
        case Bound(name=variable):
            return bound[variable]
        case Unary(op=UnaryOp.NOT, operand=operand):
            return not _evaluate(operand, env, bound)
        case Unary(operand=operand):
            value = -_evaluate(operand, env, bound)
            return value if isinstance(value, float) else wrap(value)
        case Where(condition=condition, then=then, otherwise=otherwise):
            return _evaluate(then if _evaluate(condition, env, bound) else otherwise, env, bound)
        case Read(table=table, index=index):
            return _read(expr, env.tables[table], tuple(int(_evaluate(at, env, bound)) for at in index))
        case Call(function=function, args=args):
            return apply_function(function, tuple(_evaluate(arg, env, bound) for arg in args))
        case Cast(operand=operand):
            return convert(_evaluate(operand, env, bound), expr.type)
        case Quantifier():
            return _quantify(expr, env, bound)
        case Score():
            if env.score is None:
                raise InternalError("no value for the score in an evaluation")
            return env.score
        case Parameter(name=parameter):
            raise InternalError(f"the parameter {parameter} has no value")
        case _:
            assert_never(expr)


def _read(expr: Read, table: Table, index: tuple[int, ...]) -> Value:
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


def _quantify(expr: Quantifier, env: Environment, bound: Mapping[str, int]) -> Value:
    instances = (_evaluate(expr.body, env, {**bound, expr.variable: at}) for at in range(expr.count))
    match expr.kind:
        case QuantifierKind.ANY:
            return any(instances)
        case QuantifierKind.ALL:
            return all(instances)
        case QuantifierKind.SUM:
            if expr.type is Type.INT:
                return wrap(sum(int(value) for value in instances))
            total = 0.0
            for value in instances:  # `sum` may compensate rounding; the language adds one after the other
                total += value
            return total
        case _:
            assert_never(expr.kind)


def apply_binary(op: BinaryOp, result: Type, left: Value, right: Value) -> Value:
    """Apply an operator to two values of one type. `result` is the type of the result."""
    match op:
        case BinaryOp.ADD:
            value = left + right
        case BinaryOp.SUB:
            value = left - right
        case BinaryOp.MUL:
            value = left * right
        case BinaryOp.LT:
            return left < right
        case BinaryOp.LE:
            return left <= right
        case BinaryOp.GT:
            return left > right
        case BinaryOp.GE:
            return left >= right
        case BinaryOp.EQ:
            return left == right
        case BinaryOp.NE:
            return left != right
        case BinaryOp.DIV:
            return _divide(float(left), float(right))
        case BinaryOp.FLOORDIV if result is Type.INT:
            value = left // right if right else 0
        case BinaryOp.MOD if result is Type.INT:
            value = left % right if right else 0
        case BinaryOp.FLOORDIV:
            return left // right if right else _divide(float(left), float(right))
        case BinaryOp.MOD:
            return left % right if right else math.nan
        case BinaryOp.POW if result is Type.INT:
            value = pow(int(left), int(right), _WORD)
        case BinaryOp.POW:
            return _power(float(left), float(right))
        case _:
            assert_never(op)
    return float(value) if result is Type.FLOAT else wrap(int(value))


def apply_function(function: Function, args: tuple[Value, ...]) -> Value:
    """Apply a built-in function. `min` and `max` of floats give NaN where an operand is NaN."""
    match function:
        case Function.ABS:
            value = abs(args[0])
            return value if isinstance(value, float) else wrap(value)
        case Function.MIN:
            return math.nan if any(arg != arg for arg in args) else min(args)
        case Function.MAX:
            return math.nan if any(arg != arg for arg in args) else max(args)
        case Function.FLOOR:
            return _saturate(float(args[0]), math.floor)
        case Function.HASH:
            return _hash(tuple(int(arg) for arg in args))
        case _:
            return _elementary(function, float(args[0]))


def _elementary(function: Function, x: float) -> float:
    """A function of one float, with IEEE results in place of Python's exceptions."""
    match function:
        case Function.EXP | Function.EXP2:
            try:
                return math.exp(x) if function is Function.EXP else math.exp2(x)
            except OverflowError:
                return math.inf
        case Function.LOG | Function.LOG2:
            if not x > 0:
                return -math.inf if x == 0 else math.nan
            return math.log(x) if function is Function.LOG else math.log2(x)
        case Function.SQRT:
            return math.sqrt(x) if x >= 0 else math.nan
        case Function.TANH:
            return math.tanh(x)
        case Function.SIGMOID:
            tail = math.exp(-abs(x))
            return (1.0 if x >= 0 else tail) / (1.0 + tail) if x == x else x
        case Function.ERF:
            return math.erf(x)
        case Function.SIN:
            return math.nan if math.isinf(x) else math.sin(x)
        case Function.COS:
            return math.nan if math.isinf(x) else math.cos(x)
        case _:
            raise InternalError(f"{function.value} is not a function of one float")


def convert(value: Value, to: Type) -> Value:
    """Convert to another type: float -> int truncates, saturates and gives 0 for NaN; bool -> int gives 0 or 1."""
    match to:
        case Type.BOOL:
            return bool(value)
        case Type.INT:
            return _saturate(value, math.trunc) if isinstance(value, float) else int(value)
        case Type.FLOAT:
            return float(value)
        case _:
            assert_never(to)


def wrap(value: int) -> int:
    """Reduce an integer to 64 bits, two's complement."""
    return value if INT_MIN <= value <= INT_MAX else (value - INT_MIN) % _WORD + INT_MIN


def _saturate(value: float, rounding: Callable[[float], int]) -> int:
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return INT_MAX if value > 0 else INT_MIN
    return max(INT_MIN, min(INT_MAX, rounding(value)))


def _divide(left: float, right: float) -> float:
    if right:
        return left / right
    if left == 0 or left != left:
        return math.nan
    return math.copysign(math.inf, left) * math.copysign(1.0, right)


def _power(base: float, exponent: float) -> float:
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf
    except ValueError:
        if base:
            return math.nan  # a negative base and an exponent that is not whole
        return math.copysign(math.inf, base) if exponent % 2 == 1 else math.inf


def _hash(args: tuple[int, ...]) -> int:
    """Chain splitmix64's finaliser (Steele, Lea and Flood, 2014) over the arguments; non-negative."""
    state = 0
    for arg in args:
        state = (state + arg + 0x9E3779B97F4A7C15) % _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB % _WORD
        state ^= state >> 31
    return state // 2
