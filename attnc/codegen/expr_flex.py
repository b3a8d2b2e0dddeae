"""Expressions as the body of a `mask_mod` or `score_mod` of FlexAttention: torch operations on scalar tensors.

What depends on sizes and constants alone is plain Python, computed when the function is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from attnc.codegen.expr_torch import (
    ATOM,
    COMPARISON,
    CONJUNCTION,
    DISJUNCTION,
    LINE,
    PRODUCT,
    SIGN,
    SUM,
    Body,
    Piece,
    Writer,
    number,
)
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
    Read,
    Score,
    Size,
    SizeName,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import Tensor
from attnc.ir.types import Type

_BINDS = {
    BinaryOp.ADD: SUM,
    BinaryOp.SUB: SUM,
    BinaryOp.MUL: PRODUCT,
    BinaryOp.DIV: PRODUCT,
    BinaryOp.FLOORDIV: PRODUCT,
    BinaryOp.MOD: PRODUCT,
}

_OF_TENSORS = {
    Function.ABS: "torch.abs",
    Function.EXP: "torch.exp",
    Function.EXP2: "torch.exp2",
    Function.LOG: "torch.log",
    Function.LOG2: "torch.log2",
    Function.SQRT: "torch.sqrt",
    Function.TANH: "torch.tanh",
    Function.SIGMOID: "torch.sigmoid",
    Function.ERF: "torch.erf",
    Function.SIN: "torch.sin",
    Function.COS: "torch.cos",
    Function.FLOOR: "floor",
    Function.HASH: "hash_of",
}

_POSITIONS = {
    (IndexName.BATCH, SizeName.BATCH),
    (IndexName.HEAD, SizeName.HEADS),
    (IndexName.ROW, SizeName.QUERIES),
    (IndexName.KEY, SizeName.KEYS),
}
"""Coordinates that are always inside a dimension of that length."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What an expression may name.

    Attributes:
        tables: declaration of each tensor.
        locals: the variable of each tensor.
        shifted: whether `i` is a variable of its own; otherwise it is `q_idx`.
    """

    tables: Mapping[str, Tensor]
    locals: Mapping[str, str]
    shifted: bool


def flex_body(expr: Expr, scope: Scope) -> Body:
    """Write an expression as statements, the last one a return."""
    writer = Writer()
    piece = _Printer(scope, writer).write(expr)
    text = piece.text
    if piece.literal and expr.type is Type.BOOL:  # a mask is a tensor, whatever it depends on
        text = {"True": "kv_idx >= 0", "False": "kv_idx < 0"}.get(
            text, f"(kv_idx >= 0) & {piece.inside(CONJUNCTION + 1)}"
        )
    elif piece.literal:
        text = f"torch.full_like(q_idx, {text}, dtype=torch.float32)"
    return Body((*writer.lines, f"return {text}"))


def laid_out(*parts: tuple[str, ...]) -> tuple[str, ...]:
    """Join statements; a local function has an empty line before it, unless it comes first or after a comment."""
    lines: list[str] = []
    for line in (line for part in parts for line in part):
        if line.startswith("def ") and lines and not lines[-1].startswith(("#", " ")) and lines[-1]:
            lines.append("")
        elif not line and not (lines and lines[-1]):
            continue
        lines.append(line)
    return tuple(lines)


def host_text(expr: Expr, scope: Scope) -> str:
    """Write an expression over sizes and constants as plain Python."""
    return _Printer(scope, Writer()).write(expr).text


def flex_text(expr: Expr, scope: Scope) -> str:
    """Write a short expression on one line."""
    writer = Writer()
    piece = _Printer(scope, writer).write(expr)
    if writer.lines:
        raise InternalError("an alignment is too long for a line")
    return piece.inside(SUM + 1)


@dataclass(frozen=True, slots=True)
class _Printer:
    """Writes pieces; a literal is a Python number that is known before the function is called."""

    scope: Scope
    writer: Writer

    def write(self, expr: Expr) -> Piece:
        match expr:
            case Const(value=value):
                text = number(value)
                return Piece(text, SIGN if text.startswith("-") else ATOM, literal=True)
            case Size(name=size):
                return Piece(size.value, literal=True)
            case Bound(name=bound):
                return Piece(self.writer.bound[bound], literal=True)
            case Index(name=name):
                return self._index(name)
            case Score():
                return Piece("score")
            case Read():
                return self._read(expr)
            case Unary(op=op, operand=operand):
                inner = self.write(operand)
                if op is UnaryOp.NOT and inner.literal:
                    return Piece(f"(not {inner.text})", literal=True)
                sign = "-" if op is UnaryOp.NEG else "~"
                return Piece(sign + inner.inside(SIGN), SIGN, literal=inner.literal)
            case Binary():
                return self._binary(expr)
            case And(operands=operands):
                return self._chain("&", "and", CONJUNCTION, operands)
            case Or(operands=operands):
                return self._chain("|", "or", DISJUNCTION, operands)
            case Where(condition=condition, then=then, otherwise=otherwise):
                return self._where(condition, then, otherwise)
            case Call(function=function, args=args):
                return self._call(function, args)
            case Cast(operand=operand, type=to):
                return self._cast(operand, to)
            case Quantifier():
                return self._quantifier(expr)
            case Parameter(name=parameter):
                raise InternalError(f"parameter {parameter} has no value")
            case _:
                assert_never(expr)

    def _index(self, name: IndexName) -> Piece:
        match name:
            case IndexName.BATCH | IndexName.HEAD:
                return Piece(name.value)
            case IndexName.KEY:
                return Piece("kv_idx")
            case IndexName.ROW:
                return Piece("q_idx")
            case IndexName.QUERY:
                return Piece("i" if self.scope.shifted else "q_idx")
            case _:
                raise InternalError(f"{name.value} in an expression of the user's")

    def _read(self, expr: Read) -> Piece:
        table = self.scope.locals[expr.table]
        if not expr.index:
            return Piece(table)
        dims = self.scope.tables[expr.table].dims
        inside = all(self._fits(place, dim) for place, dim in zip(expr.index, dims, strict=True))
        places = [piece.text for piece in self.writer.fit([self.write(place) for place in expr.index])]
        if inside:
            return Piece(f"{table}[{', '.join(places)}]")
        return Piece(f"read({', '.join([table, *places])})")

    def _fits(self, place: Expr, dim: Expr | None) -> bool:
        """Tell whether an index is inside at every pair that FlexAttention may ask for, allowed or not."""
        if not (isinstance(place, Index) and isinstance(dim, Size)):
            return False
        row = place.name is IndexName.QUERY and not self.scope.shifted
        return (IndexName.ROW if row else place.name, dim.name) in _POSITIONS

    def _binary(self, expr: Binary) -> Piece:
        op = expr.op
        left, right = self._operand(expr.left, expr.right), self.write(expr.right)
        if left.literal or _is_widened(expr.left) != _is_widened(expr.right):
            right = self._operand(expr.right, expr.left)
        left, right = self.writer.fit([left, right])
        literal = left.literal and right.literal
        if op.is_comparison:
            text = f"{left.inside(COMPARISON + 1)} {op.value} {right.inside(COMPARISON + 1)}"
            return Piece(f"({text})", literal=True) if literal else Piece(text, COMPARISON)
        if op in (BinaryOp.FLOORDIV, BinaryOp.MOD) and expr.type is Type.INT and not _is_positive(expr.right):
            if literal:
                divided = f"{left.inside(PRODUCT)} {op.value} {right.inside(PRODUCT + 1)}"
                return Piece(f"({divided} if {right.text} else 0)", literal=True)
            if right.literal:
                divided = f"{left.inside(PRODUCT)} {op.value} {right.inside(PRODUCT + 1)}"
                return Piece(f"({divided} if {right.text} else 0 * q_idx)")
            name = "floor_divide" if op is BinaryOp.FLOORDIV else "floor_modulo"
            return Piece(f"{name}({left.text}, {right.text})")
        if op is BinaryOp.POW:
            if literal:
                return Piece(f"({left.inside(ATOM)} ** {right.inside(ATOM)})", literal=True)
            return Piece(f"torch.pow({left.text}, {right.text})")
        binds = _BINDS[op]
        return Piece(f"{left.inside(binds)} {op.value} {right.inside(binds + 1)}", binds, literal=literal)

    def _operand(self, expr: Expr, other: Expr) -> Piece:
        """Write an operand; beside a float, torch widens an int by itself."""
        if isinstance(expr, Cast) and _is_widened(expr) and not _is_widened(other):
            piece = self.write(expr.operand)
            return piece if not piece.literal else self.write(expr)
        return self.write(expr)

    def _chain(self, sign: str, word: str, binds: int, operands: tuple[Expr, ...]) -> Piece:
        pieces = [self.write(operand) for operand in operands]
        literals = [piece.inside(COMPARISON) for piece in pieces if piece.literal]
        tensors = [piece for piece in pieces if not piece.literal]
        if literals:
            tensors.append(Piece(f"({f' {word} '.join(literals)})" if len(literals) > 1 else literals[0], literal=True))
        while len(tensors) > 1:
            taken = 2
            while taken < len(tensors) and sum(len(piece.text) + 5 for piece in tensors[: taken + 1]) <= LINE:
                taken += 1
            fitted = self.writer.fit(tensors[:taken])
            tensors = [Piece(f" {sign} ".join(piece.inside(binds) for piece in fitted), binds), *tensors[taken:]]
        return tensors[0]

    def _where(self, condition: Expr, then: Expr, otherwise: Expr) -> Piece:
        test, yes, no = (self.write(part) for part in (condition, then, otherwise))
        if test.literal:
            text = f"({yes.text} if {test.text} else {no.text})"
            return Piece(text, literal=yes.literal and no.literal)
        pieces = self.writer.fit([test, yes, no])
        return Piece(f"torch.where({', '.join(piece.text for piece in pieces)})")

    def _call(self, function: Function, args: tuple[Expr, ...]) -> Piece:
        if function is Function.MIN and len(args) == 2 and isinstance(args[0], Call):
            inner = args[0]
            if inner.function is Function.MAX and len(inner.args) == 2:
                clamped = [self.write(part) for part in (*inner.args, args[1])]
                if [piece.literal for piece in clamped] == [False, True, True]:
                    value, low, high = self.writer.fit(clamped)
                    return Piece(f"{value.inside(ATOM)}.clamp({low.text}, {high.text})")
        pieces = self.writer.fit([self.write(arg) for arg in args])
        texts = [piece.text for piece in pieces]
        literal = all(piece.literal for piece in pieces)
        if function in (Function.MIN, Function.MAX):
            if literal:
                return Piece(f"{function.value}({', '.join(texts)})", literal=True)
            return _extreme(function, pieces)
        if not literal or function is Function.HASH:
            return Piece(f"{_OF_TENSORS[function]}({', '.join(texts)})")
        if function is Function.ABS:
            return Piece(f"abs({texts[0]})", literal=True)
        if function is Function.SIGMOID:
            return Piece(f"(1 / (1 + math.exp(-({texts[0]}))))", literal=True)
        return Piece(f"math.{function.value}({texts[0]})", literal=True)

    def _cast(self, operand: Expr, to: Type) -> Piece:
        piece = self.write(operand)
        if piece.literal:
            return Piece(f"{to.value}({piece.text})", literal=True)
        if operand.type is Type.FLOAT:
            return Piece(f"truncate({piece.text})")
        return Piece(f"{piece.inside(ATOM)}.to(torch.{'float32' if to is Type.FLOAT else 'int64'})")

    def _quantifier(self, expr: Quantifier) -> Piece:
        """Write the body as a local function of the quantifier's variable, a Python number."""
        writer = self.writer
        function = f"{writer.prefix}_{next(writer.counter)}"
        variable = f"{function}_{expr.variable}"
        inner = Writer(f"{function}_part", [], {**writer.bound, expr.variable: variable})
        piece = _Printer(self.scope, inner).write(expr.body)
        writer.lines.append(f"def {function}({variable}: int) -> {'Any' if piece.literal else 'Tensor'}:")
        writer.lines.extend(f"    {line}" for line in inner.lines)
        writer.lines.extend([f"    return {piece.text}", ""])
        return Piece(f"{expr.kind.value}_of({expr.count}, {function})", literal=piece.literal or expr.count == 0)


def _extreme(function: Function, pieces: list[Piece]) -> Piece:
    tensors = [piece for piece in pieces if not piece.literal]
    join, bound = ("minimum", "max") if function is Function.MIN else ("maximum", "min")
    result = tensors[0]
    for other in tensors[1:]:
        result = Piece(f"torch.{join}({result.text}, {other.text})")
    for other in (piece for piece in pieces if piece.literal):
        result = Piece(f"{result.inside(ATOM)}.clamp({bound}={other.text})")
    return result


def _is_widened(expr: Expr) -> bool:
    return isinstance(expr, Cast) and expr.type is Type.FLOAT and expr.operand.type is Type.INT


def _is_positive(expr: Expr) -> bool:
    return _least(expr) > 0


def _least(expr: Expr) -> float:
    """Return the least value that an int over sizes and constants is known to have."""
    match expr:
        case Const(value=value):
            return value
        case Size():
            return 1
        case Binary(op=BinaryOp.ADD, left=left, right=right):
            return _least(left) + _least(right)
        case Binary(op=BinaryOp.FLOORDIV, left=left, right=Const(value=value)) if value > 0:
            return _least(left) // value
        case Call(function=Function.MAX, args=args):
            return max(_least(arg) for arg in args)
        case Call(function=Function.MIN, args=args):
            return min(_least(arg) for arg in args)
        case _:
            return -math.inf
