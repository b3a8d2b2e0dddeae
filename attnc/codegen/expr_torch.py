"""Expressions as Python source: torch operations over blocks of pairs, and plain integers for lengths."""

from __future__ import annotations

import json
import keyword
import math
from collections.abc import Iterator
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
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import walk

LINE = 84
"""Characters of the longest expression that stays on one line; longer ones get named parts."""

ATOM, SIGN, PRODUCT, SUM, CONJUNCTION, DISJUNCTION, COMPARISON = 8, 7, 6, 5, 4, 3, 2
"""How tightly Python's operators bind."""

_OPERATORS = {
    BinaryOp.ADD: SUM,
    BinaryOp.SUB: SUM,
    BinaryOp.MUL: PRODUCT,
    BinaryOp.DIV: PRODUCT,
    BinaryOp.FLOORDIV: PRODUCT,
    BinaryOp.MOD: PRODUCT,
}

_TORCH = {
    Function.ABS: "torch.abs",
    Function.MIN: "minimum",
    Function.MAX: "maximum",
    Function.EXP: "torch.exp",
    Function.EXP2: "torch.exp2",
    Function.LOG: "torch.log",
    Function.LOG2: "torch.log2",
    Function.SQRT: "torch.sqrt",
    Function.TANH: "hyperbolic_tangent",
    Function.SIGMOID: "torch.sigmoid",
    Function.ERF: "torch.erf",
    Function.SIN: "torch.sin",
    Function.COS: "torch.cos",
    Function.FLOOR: "floor",
    Function.HASH: "splitmix",
}

_TAKEN = frozenset({"at", "s", "torch", "math", *(text for text in _TORCH.values())})


@dataclass(frozen=True, slots=True)
class Body:
    """Statements of a function's body, the last one a return; unindented."""

    lines: tuple[str, ...]

    def indented(self, depth: int = 1) -> str:
        """Return the body as text, each line indented."""
        return "\n".join(f"{'    ' * depth}{line}" if line else "" for line in self.lines)


@dataclass(frozen=True, slots=True)
class Piece:
    """Source of a sub-expression. A literal is a Python number, anything else a tensor."""

    text: str
    binds: int = ATOM
    literal: bool = False

    def inside(self, binds: int) -> str:
        """Return the text, in parentheses unless it binds at least so tightly."""
        return self.text if self.binds >= binds else f"({self.text})"


@dataclass(slots=True)
class Writer:
    """Collects the statements that name parts of a long expression."""

    prefix: str = "part"
    lines: list[str] = field(default_factory=list)
    bound: dict[str, str] = field(default_factory=dict)
    counter: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))

    def name(self, piece: Piece) -> Piece:
        """Give a piece a name of its own."""
        name = f"{self.prefix}_{next(self.counter)}"
        self.lines.append(f"{name} = {piece.text}")
        return Piece(name)

    def fit(self, pieces: list[Piece]) -> list[Piece]:
        """Name the longest pieces until together they fit on a line."""
        pieces = list(pieces)
        while sum(len(piece.text) + 4 for piece in pieces) > LINE:
            longest = max(range(len(pieces)), key=lambda at: len(pieces[at].text))
            if len(pieces[longest].text) <= len("part_000"):
                break
            pieces[longest] = self.name(pieces[longest])
        return pieces


def torch_body(expr: Expr) -> Body:
    """Write an expression as the body of a function of `at` (and `s`, where it uses the score)."""
    writer = Writer()
    result = _tensor(_write(expr, (), writer), expr.type)
    return Body((*comments(expr), *writer.lines, f"return {result.text}"))


def comments(expr: Expr) -> tuple[str, ...]:
    """Return a comment that names the lines of the pattern that an expression comes from, if it knows them."""
    places: dict[str, set[int]] = {}
    for node in walk(expr):
        if node.span is not None and not isinstance(node, Const | Index | Size):
            places.setdefault(printable(node.span.source.name), set()).add(node.span.line)
    if not places:
        return ()
    texts = [f"{name}:{', '.join(map(str, sorted(lines)))}" for name, lines in sorted(places.items())]
    return (f"# {'; '.join(texts)}",)


def printable(text: str) -> str:
    """Return text that can stand in a comment or docstring: control characters, quotes and backslashes escaped."""
    return "".join(
        c if c.isprintable() and c not in '\\"' else c.encode("unicode_escape").decode() if c not in '\\"' else "\\" + c
        for c in text
    )


def quoted(text: str) -> str:
    """Return a Python string literal in double quotes."""
    return json.dumps(text)


def number(value: bool | int | float) -> str:
    """Return a Python literal."""
    if isinstance(value, float) and not math.isfinite(value):
        return "math.nan" if math.isnan(value) else "math.inf" if value > 0 else "-math.inf"
    return repr(value).replace("e+", "e")  # as formatters write exponents


def _tensor(piece: Piece, type_: Type) -> Piece:
    return Piece(f"at.as_{type_.value}({piece.text})") if piece.literal else piece


def _write(expr: Expr, selected: tuple[str, ...], writer: Writer) -> Piece:
    """Write one node. `selected` names the conditions under which a `where` selects it."""
    match expr:
        case Const(value=value):
            text = number(value)
            return Piece(text, SIGN if text.startswith("-") else ATOM, literal=True)
        case Index(name=IndexName.DIM, axis=axis):
            return Piece(f"at.d[{axis}]")
        case Index(name=name):
            return Piece(f"at.{name.value}")
        case Size(name=name):
            return Piece(f"at.{name.value}")
        case Bound(name=name):
            return Piece(writer.bound[name])
        case Score():
            return _guard(Piece("s"), selected)
        case Read():
            return _write_read(expr, selected, writer)
        case Unary(op=op, operand=operand):
            inner = _tensor(_write(operand, selected, writer), operand.type)
            return Piece(("-" if op is UnaryOp.NEG else "~") + inner.inside(SIGN), SIGN)
        case Binary():
            return _write_binary(expr, selected, writer)
        case And(operands=operands):
            return _write_chain(" & ", CONJUNCTION, operands, selected, writer)
        case Or(operands=operands):
            return _write_chain(" | ", DISJUNCTION, operands, selected, writer)
        case Where():
            return _write_where(expr, selected, writer)
        case Call():
            return _write_call(expr, selected, writer)
        case Cast(operand=operand, type=type_):
            return _write_cast(operand, type_, selected, writer)
        case Quantifier():
            return _write_quantifier(expr, selected, writer)
        case Parameter(name=name):
            raise InternalError(f"parameter {name} has no value")
        case _:
            assert_never(expr)


def _guard(piece: Piece, selected: tuple[str, ...]) -> Piece:
    for condition in reversed(selected):
        piece = Piece(f"only({condition}, {piece.text})")
    return piece


def _write_read(expr: Read, selected: tuple[str, ...], writer: Writer) -> Piece:
    index = writer.fit([_write(part, (), writer) for part in expr.index])
    piece = Piece(f"at.read({', '.join([quoted(expr.table), *(part.text for part in index)])})")
    return _guard(piece, selected) if expr.type is Type.FLOAT else piece


def _write_binary(expr: Binary, selected: tuple[str, ...], writer: Writer) -> Piece:
    left, right = _write(expr.left, selected, writer), _write(expr.right, selected, writer)
    if left.literal and right.literal:
        left = _tensor(left, expr.left.type)
    left, right = writer.fit([left, right])
    op = expr.op
    if op.is_comparison:
        return Piece(f"{left.inside(COMPARISON + 1)} {op.value} {right.inside(COMPARISON + 1)}", COMPARISON)
    if op in (BinaryOp.FLOORDIV, BinaryOp.MOD):
        if expr.type is Type.FLOAT:
            return _write_float_quotient(op, _tensor(left, Type.FLOAT), right)
        if not _is_positive(expr.right):
            name = "floor_divide" if op is BinaryOp.FLOORDIV else "floor_modulo"
            return Piece(f"{name}({left.text}, {_tensor(right, Type.INT).text})")
    if op is BinaryOp.POW:
        return Piece(f"torch.pow({left.text}, {right.text})")
    binds = _OPERATORS[op]
    return Piece(f"{left.inside(binds)} {op.value} {right.inside(binds + 1)}", binds)


def _write_float_quotient(op: BinaryOp, left: Piece, right: Piece) -> Piece:
    """Write `//` or `%` of floats as the forms that torch can differentiate: its operators cannot all."""
    if op is BinaryOp.FLOORDIV:
        return Piece(f'torch.div({left.text}, {right.text}, rounding_mode="floor")')
    return Piece(f"torch.remainder({left.text}, {right.text})")


def _is_positive(expr: Expr) -> bool:
    return isinstance(expr, Const) and expr.value > 0


def _write_chain(
    operator: str, binds: int, operands: tuple[Expr, ...], selected: tuple[str, ...], writer: Writer
) -> Piece:
    pieces = [_tensor(_write(operand, selected, writer), Type.BOOL) for operand in operands]
    while len(pieces) > 1:
        taken = 2
        while taken < len(pieces) and sum(len(piece.text) + 5 for piece in pieces[: taken + 1]) <= LINE:
            taken += 1
        fitted = writer.fit(pieces[:taken])
        joined = Piece(operator.join(piece.inside(binds) for piece in fitted), binds)
        pieces = [joined, *pieces[taken:]]
    return pieces[0]


def _write_where(expr: Where, selected: tuple[str, ...], writer: Writer) -> Piece:
    condition = _tensor(_write(expr.condition, selected, writer), Type.BOOL)
    if _has_gradient(expr.then) or _has_gradient(expr.otherwise):
        condition = writer.name(condition)
    then = _write(expr.then, (*selected, condition.text) if expr.type is Type.FLOAT else (), writer)
    otherwise = _write(expr.otherwise, (*selected, f"~{condition.text}") if expr.type is Type.FLOAT else (), writer)
    if then.literal and otherwise.literal:
        then = _tensor(then, expr.type)
    parts = writer.fit([condition, then, otherwise])
    return Piece(f"torch.where({', '.join(part.text for part in parts)})")


def _has_gradient(expr: Expr) -> bool:
    return any(isinstance(node, Score) or (isinstance(node, Read) and node.type is Type.FLOAT) for node in walk(expr))


def _write_call(expr: Call, selected: tuple[str, ...], writer: Writer) -> Piece:
    pieces = [_write(arg, selected, writer) for arg in expr.args]
    if all(piece.literal for piece in pieces):
        pieces[0] = _tensor(pieces[0], expr.args[0].type)
    pieces = writer.fit(pieces)
    return Piece(f"{_TORCH[expr.function]}({', '.join(piece.text for piece in pieces)})")


def _write_cast(operand: Expr, type_: Type, selected: tuple[str, ...], writer: Writer) -> Piece:
    piece = _write(operand, selected, writer)
    if operand.type is Type.FLOAT and type_ is Type.INT:
        return Piece(f"truncate({_tensor(piece, Type.FLOAT).text})")
    return Piece(f"at.as_{type_.value}({piece.text})")


def _write_quantifier(expr: Quantifier, selected: tuple[str, ...], writer: Writer) -> Piece:
    """Write the body as a local function of the quantifier's variable."""
    variable = expr.variable
    while variable in _TAKEN or keyword.iskeyword(variable) or variable.startswith("part_"):
        variable += "_"
    function = f"{writer.prefix}_{next(writer.counter)}"
    inner = Writer(f"{function}_part", [], {**writer.bound, expr.variable: variable})
    result = _tensor(_write(expr.body, selected, inner), expr.body.type)
    if writer.lines and writer.lines[-1]:
        writer.lines.append("")
    writer.lines.append(f"def {function}({variable}: Tensor) -> Tensor:")
    writer.lines.extend(f"    {line}" if line else "" for line in inner.lines)
    writer.lines.extend([f"    return {result.text}", ""])
    match expr.kind:
        case QuantifierKind.SUM:
            zero = "at.as_int(0)" if expr.type is Type.INT else "at.as_float(0)"
            return Piece(f"at.sum_of({expr.count}, {function}, {zero})")
        case QuantifierKind.ANY | QuantifierKind.ALL:
            return Piece(f"at.{expr.kind.value}_of({expr.count}, {function})")
        case _:
            assert_never(expr.kind)


def length_text(expr: Expr) -> str:
    """Write an int expression over sizes and constants as plain Python over `size`."""
    return _write_length(expr).text


def _write_length(expr: Expr) -> Piece:
    match expr:
        case Const(value=value):
            return Piece(number(value), SIGN if value < 0 else ATOM)
        case Size(name=name):
            return Piece(f"size.{name.value}")
        case Read(table=table, index=()):  # a hidden size
            return Piece(f"size.{table}")
        case Unary(op=UnaryOp.NEG, operand=operand):
            return Piece("-" + _write_length(operand).inside(SIGN), SIGN)
        case Binary(op=op, left=left, right=right):
            one, two = _write_length(left), _write_length(right)
            if op.is_comparison:
                return Piece(f"{one.inside(SUM)} {op.value} {two.inside(SUM)}", COMPARISON)
            if op in (BinaryOp.FLOORDIV, BinaryOp.MOD) and not _is_positive(right):
                tail = f"{one.inside(PRODUCT)} {op.value} {two.inside(PRODUCT + 1)} if {two.inside(SUM)} else 0"
                return Piece(f"({tail})")
            if op is BinaryOp.POW:
                return Piece(f"pow({one.text}, {two.text})")
            binds = _OPERATORS[op]
            return Piece(f"{one.inside(binds)} {op.value} {two.inside(binds + 1)}", binds)
        case Call(function=Function.ABS | Function.MIN | Function.MAX as function, args=args):
            return Piece(f"{function.value}({', '.join(_write_length(arg).text for arg in args)})")
        case Where(condition=condition, then=then, otherwise=otherwise):
            texts = [_write_length(part).inside(SUM) for part in (then, condition, otherwise)]
            return Piece(f"({texts[0]} if {texts[1]} else {texts[2]})")
        case And(operands=operands) | Or(operands=operands):
            word = " and " if isinstance(expr, And) else " or "
            return Piece(f"({word.join(_write_length(part).inside(COMPARISON) for part in operands)})")
        case Unary(operand=operand):
            return Piece(f"(not {_write_length(operand).inside(COMPARISON)})")
        case Cast(operand=operand, type=Type.INT):
            return Piece(f"int({_write_length(operand).text})")
        case _:
            raise InternalError(f"a length cannot be computed from {type(expr).__name__}")
