"""What is legal in the IR, checked. Every stage may assume it; a violation is a bug of the stage before."""

from __future__ import annotations

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
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import Attention, Normalize, NormalizeKind, Tensor, TensorKind
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.ir.walk import children, walk

PAIR = frozenset({IndexName.BATCH, IndexName.HEAD, IndexName.QUERY, IndexName.KEY, IndexName.ROW})
ROW = PAIR - {IndexName.KEY}
ENTRY = frozenset({IndexName.BATCH, IndexName.HEAD})
INT_RANGE = range(-(2**63), 2**63)


def verify(attention: Attention, *, parameters: bool = False) -> None:
    """Check that an attention is well-formed.

    Args:
        attention: any, simplified or not.
        parameters: allow parameters without a value, as `check` does.

    Raises:
        InternalError: it is not; the message shows the expression.
    """
    tensors = {tensor.name: tensor for tensor in attention.tensors}
    if len(tensors) != len(attention.tensors):
        raise InternalError(f"{attention.name} declares a tensor twice")
    for tensor in attention.tensors:
        _verify_tensor(tensor, parameters)

    def check(expr: Expr | None, kind: Type, places: frozenset[IndexName], *, score: bool = False) -> None:
        if expr is None:
            return
        verify_expression(expr, tensors, places=places, score=score, parameters=parameters)
        if expr.type is not kind:
            raise InternalError(f"{kind.value} expected: {show(expr)} is {expr.type.with_article()}")

    check(attention.mask, Type.BOOL, PAIR)
    check(attention.score, Type.FLOAT, PAIR, score=True)
    check(attention.weight, Type.FLOAT, PAIR)
    check(attention.scale, Type.FLOAT, ROW)
    check(attention.align.shift, Type.INT, ENTRY)
    check(attention.normalize.sink, Type.FLOAT, ROW)
    check(attention.normalize.bias, Type.FLOAT, PAIR)
    _verify_normalize(attention.normalize)
    for assertion in attention.assertions:
        check(assertion.condition, Type.BOOL, PAIR)


def verify_expression(
    expr: Expr,
    tensors: dict[str, Tensor] | None = None,
    *,
    places: frozenset[IndexName] = frozenset(IndexName),
    score: bool = False,
    parameters: bool = False,
) -> None:
    """Check one expression.

    Args:
        expr: any.
        tensors: what reads may name, with how many indices; None accepts any.
        places: coordinates that may appear.
        score: whether `s` may appear.
        parameters: whether parameters without a value may appear.

    Raises:
        InternalError: it is ill-typed, or something appears that may not.
    """
    for node in walk(expr):
        problem = _problem(node)
        if isinstance(node, Index) and node.name not in places:
            problem = f"{node.name.value} has no meaning here"
        if isinstance(node, Score) and not score:
            problem = "the score has no meaning here"
        if isinstance(node, Parameter) and not parameters:
            problem = "a parameter has no value"
        if isinstance(node, Read) and tensors is not None:
            problem = problem or _read_problem(node, tensors)
        if problem:
            raise InternalError(f"{problem}: {show(node)}, in {show(expr)}")
    _verify_scopes(expr, frozenset(), expr)


def _verify_scopes(expr: Expr, bound: frozenset[str], whole: Expr) -> None:
    if isinstance(expr, Bound) and expr.name not in bound:
        raise InternalError(f"{expr.name} is not bound in {show(whole)}")
    if isinstance(expr, Quantifier):
        if expr.variable in bound:
            raise InternalError(f"{expr.variable} is bound twice in {show(whole)}")
        bound = bound | {expr.variable}
    for child in children(expr):
        _verify_scopes(child, bound, whole)


def _verify_tensor(tensor: Tensor, parameters: bool) -> None:
    for dim in tensor.dims:
        if dim is not None:
            verify_expression(dim, {}, places=frozenset(), parameters=parameters)
            if dim.type is not Type.INT:
                raise InternalError(f"a length must be an int: {show(dim)}")
    if (tensor.initial is None) == (tensor.kind is TensorKind.LEARNED):
        raise InternalError(f"{tensor.name}: a learned tensor and no other has an initial value")
    if tensor.initial is not None:
        places = frozenset({IndexName.HEAD, IndexName.DIM})
        verify_expression(tensor.initial, {}, places=places, parameters=parameters)
        if tensor.initial.type is not tensor.type:
            raise InternalError(f"{tensor.name} is {tensor.type.with_article()}: {show(tensor.initial)}")


def _verify_normalize(normalize: Normalize) -> None:
    allowed = {
        "sink": normalize.kind is NormalizeKind.SOFTMAX,
        "bias": normalize.kind is NormalizeKind.SIGMOID,
        "power": normalize.kind is NormalizeKind.RELU,
    }
    given = {"sink": normalize.sink, "bias": normalize.bias, "power": normalize.power}
    for name, value in given.items():
        if value is not None and not allowed[name]:
            raise InternalError(f"{normalize.kind.value} has no {name}")
    if normalize.power is not None and not normalize.power.value > 0:
        raise InternalError(f"the power {show(normalize.power)} is not positive")


def _read_problem(node: Read, tensors: dict[str, Tensor]) -> str:
    tensor = tensors.get(node.table)
    if tensor is None:
        return "there is no such tensor"
    if len(node.index) != len(tensor.dims):
        return f"the tensor has {len(tensor.dims)} dimensions"
    return "" if node.type is tensor.type else f"the tensor has {tensor.type.value}s"


def _problem(node: Expr) -> str:
    """Say what is wrong with the types of a node and its operands; empty if nothing is."""
    operands = [child.type for child in children(node)]
    match node:
        case Const(value=value, type=kind):
            return _constant_problem(value, kind)
        case Parameter() | Index() | Size() | Bound() | Score():
            return ""
        case Read():
            return "" if all(kind is Type.INT for kind in operands) else "an index must be an int"
        case Unary(op=op, type=kind):
            wanted = operands == [kind] and (kind is Type.BOOL) == (op is UnaryOp.NOT)
        case Binary(op=op, type=kind):
            wanted = _binary_is_typed(op, kind, operands, node)
        case And() | Or():
            wanted = len(operands) >= 2 and all(kind is Type.BOOL for kind in operands)
        case Where(type=kind):
            wanted = operands == [Type.BOOL, kind, kind]
        case Call(function=function, type=kind):
            wanted = _call_is_typed(function, kind, operands)
        case Cast(type=kind):
            wanted = (operands[0], kind) in (
                (Type.INT, Type.FLOAT),
                (Type.BOOL, Type.INT),
                (Type.FLOAT, Type.INT),
            )
        case Quantifier(kind=quantifier, type=kind, count=count):
            summed = quantifier is QuantifierKind.SUM
            wanted = operands == [kind] and kind.is_number == summed and 0 <= count <= 1024
        case _:
            assert_never(node)
    return "" if wanted else "ill-typed"


def _constant_problem(value: bool | int | float, kind: Type) -> str:
    python = {Type.BOOL: bool, Type.INT: int, Type.FLOAT: float}[kind]
    if type(value) is not python:
        return f"a constant of {type(value).__name__} is typed {kind.value}"
    return "more than 64 bits" if kind is Type.INT and value not in INT_RANGE else ""


def _binary_is_typed(op: BinaryOp, kind: Type, operands: list[Type], node: Binary) -> bool:
    if operands[0] is not operands[1]:
        return False
    if op.is_comparison:
        return kind is Type.BOOL and (operands[0].is_number or op in (BinaryOp.EQ, BinaryOp.NE))
    if op is BinaryOp.DIV:
        return kind is Type.FLOAT and operands[0] is Type.FLOAT
    if op is BinaryOp.POW and kind is Type.INT:
        exponent = node.right
        constant = isinstance(exponent, Const) and exponent.value >= 0
        return operands[0] is Type.INT and (constant or isinstance(exponent, Parameter))
    return kind is operands[0] and kind.is_number


def _call_is_typed(function: Function, kind: Type, operands: list[Type]) -> bool:
    match function:
        case Function.ABS:
            return operands == [kind] and kind.is_number
        case Function.MIN | Function.MAX:
            return len(operands) >= 2 and kind.is_number and all(operand is kind for operand in operands)
        case Function.FLOOR:
            return kind is Type.INT and operands == [Type.FLOAT]
        case Function.HASH:
            return kind is Type.INT and len(operands) >= 1 and all(operand is Type.INT for operand in operands)
        case _:
            return kind is Type.FLOAT and operands == [Type.FLOAT]
