"""Expressions over whole slabs of pairs at once: the vectorised twin of `ir.evaluate`.

Index tensors broadcast against each other, so a slab can be any set of pairs. Where a gradient flows, an operand that
is not selected (by `where`, or by `active`) gets exactly 0, even where its own derivative is infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import assert_never

import torch
from torch import Tensor

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

INT_MIN, INT_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorEnvironment:
    """What a slab of pairs is evaluated at. Leave out what the expression does not use.

    Attributes:
        indices: int64 tensors that broadcast against each other.
        sizes: value of each size.
        tables: tensors of inputs and learned tensors, 0-d for scalars; broadcast dimensions already expanded.
        score: value of `s`.
        dims: value of `Index(DIM, axis)` at position `axis`.
        bound: value of quantifier variables.
        dtype: of floats.
        active: pairs through which gradients flow; None for all.
    """

    indices: Mapping[IndexName, Tensor] = field(default_factory=dict)
    sizes: Mapping[SizeName, int] = field(default_factory=dict)
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    score: Tensor | None = None
    dims: Sequence[Tensor] = ()
    bound: Mapping[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"
    active: Tensor | None = None


def evaluate_tensor(expr: Expr, env: TensorEnvironment) -> Tensor:
    """Evaluate an expression; the result broadcasts to the slab and has bool, int64 or the environment's dtype.

    Raises:
        InternalError: a `Parameter` or a missing score was met.
    """
    match expr:
        case Const(value=value):
            return torch.tensor(value, dtype=_torch_type(expr.type, env), device=env.device)
        case Parameter(name=parameter):
            raise InternalError(f"the parameter {parameter} has no value")
        case Index(name=name, axis=axis):
            return env.dims[axis] if name is IndexName.DIM else env.indices[name]
        case Size(name=size):
            return torch.tensor(env.sizes[size], device=env.device)
        case Bound(name=variable):
            return env.bound[variable]
        case Score():
            if env.score is None:
                raise InternalError("no value for the score in an evaluation")
            return _gate(env.score, env)
        case Read():
            return _gate(_read(expr, env), env)
        case Unary(op=op, operand=operand):
            inner = evaluate_tensor(operand, env)
            return ~inner if op is UnaryOp.NOT else -inner
        case Binary(op=operator, left=left, right=right):
            return _binary(operator, expr.type, evaluate_tensor(left, env), evaluate_tensor(right, env))
        case And(operands=operands):
            decided = evaluate_tensor(operands[0], env)
            for operand in operands[1:]:
                decided = torch.logical_and(decided, evaluate_tensor(operand, env))
            return decided
        case Or(operands=operands):
            decided = evaluate_tensor(operands[0], env)
            for operand in operands[1:]:
                decided = torch.logical_or(decided, evaluate_tensor(operand, env))
            return decided
        case Where():
            return _select(expr, env)
        case Call(function=function, args=args):
            return _call(function, [evaluate_tensor(arg, env) for arg in args])
        case Cast(operand=operand):
            return _convert(evaluate_tensor(operand, env), expr.type, env)
        case Quantifier():
            return _quantify(expr, env)
        case _:
            assert_never(expr)


def _torch_type(kind: Type, env: TensorEnvironment) -> torch.dtype:
    return {Type.BOOL: torch.bool, Type.INT: torch.int64, Type.FLOAT: env.dtype}[kind]


def _gate(value: Tensor, env: TensorEnvironment) -> Tensor:
    """Let gradients through where the environment is active, and make them exactly 0 elsewhere."""
    if env.active is None or not value.requires_grad:
        return value
    return torch.where(env.active, value, value.detach())


def _select(expr: Where, env: TensorEnvironment) -> Tensor:
    condition = evaluate_tensor(expr.condition, env)
    active = env.active
    then = evaluate_tensor(expr.then, replace(env, active=condition if active is None else active & condition))
    kept = ~condition if active is None else active & ~condition
    return torch.where(condition, then, evaluate_tensor(expr.otherwise, replace(env, active=kept)))


def _read(expr: Read, env: TensorEnvironment) -> Tensor:
    table = env.tables[expr.table].to(_torch_type(expr.type, env))
    if len(expr.index) != table.dim():
        raise InternalError(f"{expr.table} has {table.dim()} dimensions and an index of {len(expr.index)}")
    if not expr.index:
        return table
    index = [evaluate_tensor(at, env) for at in expr.index]
    inside = [(at >= 0) & (at < length) for at, length in zip(index, table.shape, strict=True)]
    inside_all = reduce(torch.logical_and, inside)
    zero = torch.zeros((), dtype=table.dtype, device=table.device)
    if table.numel() == 0:
        return zero.expand(inside_all.shape)
    return torch.where(inside_all, table[tuple(torch.where(inside_all, at, 0) for at in index)], zero)


def _quantify(expr: Quantifier, env: TensorEnvironment) -> Tensor:
    neutral = expr.kind is QuantifierKind.ALL  # false as a number is 0, the empty sum
    result = torch.tensor(neutral, dtype=_torch_type(expr.type, env), device=env.device)
    for at in range(expr.count):
        bound = {**env.bound, expr.variable: torch.tensor(at, device=env.device)}
        instance = evaluate_tensor(expr.body, replace(env, bound=bound))
        match expr.kind:
            case QuantifierKind.ANY:
                result = result | instance
            case QuantifierKind.ALL:
                result = result & instance
            case QuantifierKind.SUM:
                result = result + instance
            case _:
                assert_never(expr.kind)
    return result


def _binary(op: BinaryOp, result: Type, left: Tensor, right: Tensor) -> Tensor:
    match op:
        case BinaryOp.ADD:
            return left + right
        case BinaryOp.SUB:
            return left - right
        case BinaryOp.MUL:
            return left * right
        case BinaryOp.DIV:
            return left / right
        case BinaryOp.FLOORDIV if result is Type.INT:
            # the processor traps on a division by 0 and on the most negative number by -1
            quotient = torch.div(left, _safe_divisor(right), rounding_mode="floor")
            return torch.where(right == 0, 0, torch.where(right == -1, -left, quotient))
        case BinaryOp.MOD if result is Type.INT:
            return torch.where((right == 0) | (right == -1), 0, torch.remainder(left, _safe_divisor(right)))
        case BinaryOp.FLOORDIV:
            return torch.div(left, right, rounding_mode="floor")
        case BinaryOp.MOD:
            return torch.remainder(left, right)
        case BinaryOp.POW:
            return torch.pow(left, right)
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
        case _:
            assert_never(op)


def _safe_divisor(right: Tensor) -> Tensor:
    return torch.where((right == 0) | (right == -1), 1, right)


def _call(function: Function, args: list[Tensor]) -> Tensor:
    match function:
        case Function.ABS:
            return args[0].abs()
        case Function.MIN:
            return reduce(torch.minimum, args)
        case Function.MAX:
            return reduce(torch.maximum, args)
        case Function.EXP:
            return torch.exp(args[0])
        case Function.EXP2:
            return torch.exp2(args[0])
        case Function.LOG:
            return torch.log(args[0])
        case Function.LOG2:
            return torch.log2(args[0])
        case Function.SQRT:
            return torch.sqrt(args[0])
        case Function.TANH:
            return torch.tanh(args[0])
        case Function.SIGMOID:
            return torch.sigmoid(args[0])
        case Function.ERF:
            return torch.erf(args[0])
        case Function.SIN:
            return torch.sin(args[0])
        case Function.COS:
            return torch.cos(args[0])
        case Function.FLOOR:
            return _saturate(torch.floor(args[0]))
        case Function.HASH:
            return _hash(args)
        case _:
            assert_never(function)


def _convert(value: Tensor, to: Type, env: TensorEnvironment) -> Tensor:
    if to is Type.INT and value.dtype.is_floating_point:
        return _saturate(torch.trunc(value))
    return value.to(_torch_type(to, env))


def _saturate(whole: Tensor) -> Tensor:
    """Convert whole floats to int64: too large ones to the nearest end of the range, NaN to 0."""
    whole = whole.detach()
    high, low = whole >= 2.0**63, whole < -(2.0**63)
    small = torch.where(high | low | whole.isnan(), 0.0, whole).to(torch.int64)
    return torch.where(high, INT_MAX, torch.where(low, INT_MIN, small))


def _hash(args: list[Tensor]) -> Tensor:
    """Chain splitmix64's finaliser in int64, whose products and sums wrap around as the unsigned ones do."""
    state = torch.zeros((), dtype=torch.int64, device=args[0].device)
    for arg in args:
        state = state + arg + _signed(0x9E3779B97F4A7C15)
        state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
        state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
        state = state ^ _shift_right(state, 31)
    return _shift_right(state, 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Shift as if unsigned: zeros come in from the left."""
    return torch.bitwise_and(value >> bits, 2 ** (64 - bits) - 1)
