"""IR from Python expressions, without the front end: `attention("j <= i and i - j < w", w=4)`."""

import ast
from fractions import Fraction

from attnc.ir.nodes import (
    FALSE,
    TRUE,
    And,
    Binary,
    BinaryOp,
    Bound,
    Call,
    Cast,
    Const,
    Function,
    Index,
    IndexName,
    Or,
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
from attnc.ir.program import Align, AlignKind, Assertion, Attention, Normalize, NormalizeKind, Tensor, TensorKind
from attnc.ir.types import Type

BINARY = {
    ast.Add: BinaryOp.ADD,
    ast.Sub: BinaryOp.SUB,
    ast.Mult: BinaryOp.MUL,
    ast.FloorDiv: BinaryOp.FLOORDIV,
    ast.Mod: BinaryOp.MOD,
}
COMPARE = {
    ast.Lt: BinaryOp.LT,
    ast.LtE: BinaryOp.LE,
    ast.Gt: BinaryOp.GT,
    ast.GtE: BinaryOp.GE,
    ast.Eq: BinaryOp.EQ,
    ast.NotEq: BinaryOp.NE,
}
FUNCTIONS = {"abs": Function.ABS, "min": Function.MIN, "max": Function.MAX, "hash": Function.HASH}


def expression(text, tables=None, **constants):
    """Build an expression. `tables` maps names to types or to tensors."""
    types = {name: getattr(table, "type", table) for name, table in (tables or {}).items()}

    def read(name, index):
        return Read(name, tuple(index), types[name])

    def name_of(node, bound):
        name = node.id
        if name in bound:
            return Bound(name)
        if name in constants:
            return Const(constants[name], Type.INT)
        if name in types:
            return read(name, ())
        if name in SizeName._value2member_map_:
            return Size(SizeName(name))
        return Index(IndexName(name))

    def call(node, bound):
        name = node.func.id
        if name in ("any", "all", "sum"):
            variable, count = node.args[0].left.id, node.args[0].comparators[0]
            body = go(node.args[1], bound | {variable})
            kind = QuantifierKind(name)
            size = constants[count.id] if isinstance(count, ast.Name) else count.value
            return Quantifier(kind, variable, size, body, body.type if name == "sum" else Type.BOOL)
        args = tuple(go(arg, bound) for arg in node.args)
        if name == "int":
            return Cast(args[0], Type.INT)
        if name == "float":
            return Cast(args[0], Type.FLOAT)
        return Call(FUNCTIONS[name], args, Type.INT)

    def go(node, bound):
        match node:
            case ast.Constant(value=bool(value)):
                return TRUE if value else FALSE
            case ast.Constant(value=int(value)):
                return Const(value, Type.INT)
            case ast.Constant(value=float(value)):
                return Const(value, Type.FLOAT)
            case ast.Name():
                return name_of(node, bound)
            case ast.BinOp():
                left, right = go(node.left, bound), go(node.right, bound)
                return Binary(BINARY[type(node.op)], left, right, left.type)
            case ast.UnaryOp(op=ast.USub()):
                operand = go(node.operand, bound)
                return Unary(UnaryOp.NEG, operand, operand.type)
            case ast.UnaryOp(op=ast.Not()):
                return Unary(UnaryOp.NOT, go(node.operand, bound), Type.BOOL)
            case ast.Compare():
                operands = [go(operand, bound) for operand in (node.left, *node.comparators)]
                parts = tuple(
                    Binary(COMPARE[type(op)], left, right, Type.BOOL)
                    for op, left, right in zip(node.ops, operands, operands[1:], strict=False)
                )
                return parts[0] if len(parts) == 1 else And(parts)
            case ast.BoolOp(op=ast.And()):
                return And(tuple(go(value, bound) for value in node.values))
            case ast.BoolOp(op=ast.Or()):
                return Or(tuple(go(value, bound) for value in node.values))
            case ast.IfExp():
                then, other = go(node.body, bound), go(node.orelse, bound)
                return Where(go(node.test, bound), then, other, then.type)
            case ast.Call():
                return call(node, bound)
            case ast.Subscript():
                index = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                return read(node.value.id, [go(item, bound) for item in index])
        raise AssertionError(ast.dump(node))

    return go(ast.parse(text, mode="eval").body, frozenset())


def scalar(name, type=Type.INT):
    return Tensor(name, TensorKind.INPUT, type)


def table(name, dims, type=Type.INT, **options):
    """An input whose dimensions are given as texts (None for any length)."""
    return Tensor(
        name, TensorKind.INPUT, type, tuple(None if dim is None else expression(dim) for dim in dims), **options
    )


def attention(mask="True", *, align="end", shift="0", tensors=(), asserts=(), score=None, name="example", **constants):
    """Build an attention from the text of its mask; `shift` is used with `align="at"`."""
    tables = {tensor.name: tensor for tensor in tensors}
    shifts = {"end": "M - N", "start": "0", "at": shift}
    return Attention(
        name,
        (),
        tuple(tensors),
        expression(mask, tables, **constants),
        Score() if score is None else expression(score, tables, **constants),
        None,
        None,
        Normalize(NormalizeKind.SOFTMAX),
        Align(AlignKind(align), expression(shifts[align], tables, **constants)),
        tuple(Assertion(None if text == "nonempty" else expression(text, tables, **constants)) for text in asserts),
    )


def mean(values):
    values = list(values)
    return Fraction(sum(values), len(values))
