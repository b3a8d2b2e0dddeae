"""The IR as text: expressions in the language's own syntax, whole attentions laid out as an `.attn` file."""

from __future__ import annotations

import math
from typing import assert_never

from attnc.ir.nodes import (
    TRUE,
    And,
    Binary,
    BinaryOp,
    Bound,
    Call,
    Cast,
    Const,
    Expr,
    Index,
    IndexName,
    Or,
    Parameter,
    Quantifier,
    Read,
    Score,
    Size,
    SizeName,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import AlignKind, Attention, Deferred, Normalize, NormalizeKind, Tensor, TensorKind
from attnc.ir.shortening import implied_names, original_keys
from attnc.ir.types import Type

_OR, _AND, _NOT, _COMPARE, _ADD, _MULTIPLY, _SIGN, _POWER, _ATOM = range(1, 10)
"""How tightly each form binds."""

_BINDING = {
    BinaryOp.ADD: _ADD,
    BinaryOp.SUB: _ADD,
    BinaryOp.MUL: _MULTIPLY,
    BinaryOp.DIV: _MULTIPLY,
    BinaryOp.FLOORDIV: _MULTIPLY,
    BinaryOp.MOD: _MULTIPLY,
    BinaryOp.POW: _POWER,
}


def show(expr: Expr) -> str:
    """Print an expression with as few parentheses as possible, so that parsing it again gives the same meaning."""
    return _show(expr)[0]


def _show(expr: Expr) -> tuple[str, int]:
    """Return the text and how tightly its outermost form binds."""
    match expr:
        case Const():
            return _constant(expr)
        case Parameter(name=name) | Bound(name=name):
            return name, _ATOM
        case Index(name=IndexName.DIM, axis=axis):
            return f"d{axis}", _ATOM
        case Index(name=index):
            return index.value, _ATOM
        case Size(name=size):
            return size.value, _ATOM
        case Score():
            return "s", _ATOM
        case Read(table=table, index=index_of):
            return f"{table}[{_list(index_of)}]" if index_of else table, _ATOM
        case Unary(op=UnaryOp.NOT, operand=operand):
            return f"not {_fit(_show(operand), _NOT)}", _NOT
        case Unary(operand=operand):
            return f"-{_fit(_show(operand), _SIGN)}", _SIGN
        case Binary():
            return _binary(expr)
        case And(operands=operands):
            return _joined(operands, " and ", _NOT), _AND
        case Or(operands=operands):
            return _joined(operands, " or ", _AND), _OR
        case Where(condition=condition, then=then, otherwise=otherwise):
            return f"where({_list((condition, then, otherwise))})", _ATOM
        case Call(function=function, args=args):
            return f"{function.value}({_list(args)})", _ATOM
        case Cast(operand=operand, type=kind):
            return f"{kind.value}({_show(operand)[0]})", _ATOM
        case Quantifier(kind=quantifier, variable=variable, count=count, body=body):
            return f"{quantifier.value}({variable} < {count}, {_show(body)[0]})", _ATOM
        case _:
            assert_never(expr)


def _fit(shown: tuple[str, int], binding: int) -> str:
    """Put parentheses around what binds less tightly than its place demands."""
    text, own = shown
    return text if own >= binding else f"({text})"


def _joined(exprs: tuple[Expr, ...], separator: str, binding: int) -> str:
    # a plain loop: comprehensions would take frames of a stack that deep expressions need
    texts = []
    for expr in exprs:
        texts.append(_fit(_show(expr), binding))
    return separator.join(texts)


def _list(exprs: tuple[Expr, ...]) -> str:
    return _joined(exprs, ", ", _OR)


def _constant(constant: Const) -> tuple[str, int]:
    value = constant.value
    if isinstance(value, bool):
        return str(value).lower(), _ATOM
    if isinstance(value, float):
        if math.isnan(value):
            return "inf - inf", _ADD
        text = "inf" if math.isinf(value) else "pi" if abs(value) == math.pi else repr(abs(value))
        return (f"-{text}", _SIGN) if math.copysign(1.0, value) < 0 else (text, _ATOM)
    if value == -(2**63):  # its positive counterpart is not a 64-bit integer
        return f"{value + 1} - 1", _ADD
    return str(value), _SIGN if value < 0 else _ATOM


def _binary(expr: Binary) -> tuple[str, int]:
    left, right = expr.left, expr.right
    if expr.op.is_comparison:
        # a comparison of comparisons needs parentheses on both sides, or it would be a chain
        return f"{_fit(_show(left), _ADD)} {expr.op.value} {_fit(_show(right), _ADD)}", _COMPARE
    if expr.op is BinaryOp.POW:
        return f"{_fit(_show(left), _ATOM)} ** {_fit(_show(right), _SIGN)}", _POWER
    binding = _BINDING[expr.op]
    if expr.op is BinaryOp.DIV:
        left, right = _without_widening(left), _without_widening(right)
    elif _is_widening(right) and not _is_widening(left):
        right = _without_widening(right)
    elif _is_widening(left) and not _is_widening(right):
        left = _without_widening(left)
    return f"{_fit(_show(left), binding)} {expr.op.value} {_fit(_show(right), binding + 1)}", binding


def _is_widening(expr: Expr) -> bool:
    return isinstance(expr, Cast) and expr.type is Type.FLOAT and expr.operand.type is Type.INT


def _without_widening(expr: Expr) -> Expr:
    """Leave out a conversion that the language makes by itself beside a float."""
    return expr.operand if isinstance(expr, Cast) and _is_widening(expr) else expr


def show_attention(attention: Attention) -> str:
    """Print an attention as the declaration that would mean it: parameters, `let`s and `def`s are gone."""
    lines = [f"attention {attention.name} {{"]
    if attention.params:
        values = ", ".join(f"{name} = {show(value)}" for name, value in attention.params)
        lines[0] += f"  # {values}"
    implied = implied_names(attention.shorten) if attention.shorten is not None else frozenset()
    shown = (tensor for tensor in attention.tensors if not tensor.hidden and tensor.name not in implied)
    lines += [f"    {_tensor(tensor)}" for tensor in shown]
    if attention.align.kind is AlignKind.START:
        lines.append("    align start")
    elif attention.align.kind is AlignKind.AT and not _is_at_original_end(attention):
        lines.append(f"    align at({show(attention.align.shift)})")
    lines += [f"    {_deferred(deferred)}" for deferred in attention.deferred]
    if attention.scale is not None:
        lines.append(f"    scale {show(attention.scale)}")
    if attention.mask != TRUE:
        lines.append(f"    mask {show(attention.mask)}")
    if attention.score != Score():
        lines.append(f"    score {show(attention.score)}")
    if attention.weight is not None:
        lines.append(f"    weight {show(attention.weight)}")
    lines.append(f"    normalize {_normalize(attention.normalize)}")
    for assertion in attention.assertions:
        condition = assertion.condition
        lines.append(f"    assert {'nonempty' if condition is None else show(condition)}")
    return "\n".join([*lines, "}"])


def _is_at_original_end(attention: Attention) -> bool:
    """Tell whether the last query stands at the last of the keys before they were shortened, as it does by itself."""
    end = Binary(BinaryOp.SUB, original_keys(), Size(SizeName.QUERIES), Type.INT)
    return attention.shorten is not None and attention.align.shift == end


def _tensor(tensor: Tensor) -> str:
    dims = ", ".join("?" if dim is None else show(dim) for dim in tensor.dims)
    text = f"{tensor.kind.value} {tensor.name}: {tensor.type.value}" + (f"[{dims}]" if dims else "")
    if tensor.sorted:
        text += " sorted"
    if tensor.kind is TensorKind.LEARNED and tensor.initial is not None:
        text += f" = {show(tensor.initial)}"
    return text


def _normalize(normalize: Normalize) -> str:
    match normalize.kind:
        case NormalizeKind.SOFTMAX:
            return "softmax" if normalize.sink is None else f"softmax(sink = {show(normalize.sink)})"
        case NormalizeKind.SIGMOID:
            return "sigmoid" if normalize.bias is None else f"sigmoid(bias = {show(normalize.bias)})"
        case NormalizeKind.RELU:
            return "relu" if normalize.power is None else f"relu(power = {show(normalize.power)})"
        case NormalizeKind.ROWS | NormalizeKind.NONE:
            return str(normalize.kind.value)
        case _:
            assert_never(normalize.kind)


def _deferred(deferred: Deferred) -> str:
    arguments = [
        (f"{name} = " if name else "") + (f'"{value}"' if isinstance(value, str) else show(value))
        for name, value in deferred.arguments
    ]
    return f"{deferred.statement} {deferred.form}" + (f"({', '.join(arguments)})" if arguments else "")
