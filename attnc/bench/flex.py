"""The same pattern for FlexAttention: its mask and score as the Python functions that a user would write.

The functions are generated as text and compiled, so that `torch.compile` sees straight-line tensor code and nothing of
this package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_never

import torch

from attnc.bench.cases import Data, Shape
from attnc.ir.evaluate import Environment, evaluate
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
from attnc.ir.program import Attention
from attnc.ir.types import Type
from attnc.ir.walk import substitute, walk

MOST_INSTANCES = 64
"""Instances of bounded quantifiers that are written out; beyond that a user would not write it for FlexAttention."""

_WORD = 2**64
_NUMBER = re.compile(r"\(?-?([0-9][0-9.e+-]*|float\('[a-z-]*'\))\)?")


class NotExpressible(Exception):  # noqa: N818 - a statement about the pattern rather than a failure
    """The pattern has no form for this peer; the text says why."""


@dataclass(frozen=True, slots=True)
class FlexFunctions:
    """What FlexAttention is given.

    Attributes:
        mask_mod: None where every pair is allowed.
        score_mod: None where the score is the scaled dot product.
        source: the text that both were compiled from.
    """

    mask_mod: Callable[..., Any] | None
    score_mod: Callable[..., Any] | None
    source: str


def flex_functions(
    attention: Attention, shape: Shape, data: Data, device: torch.device, score: Expr | None = None
) -> FlexFunctions:
    """Write a pattern's mask and score as FlexAttention's `mask_mod` and `score_mod`.

    Args:
        attention: after simplification.
        shape: the sizes of the call; they are written into the functions as numbers.
        data: inputs and learned tensors; the functions capture them.
        device: where the captured tensors must be.
        score: in place of the attention's own.

    Raises:
        NotExpressible: a quantifier has too many instances.
    """
    printer = _Printer(attention, shape, data)
    score = attention.score if score is None else score
    lines = ["def mask_mod(b, h, q, kv):", f"    return {printer.condition(attention.mask)}"]
    lines += ["", "def score_mod(score, b, h, q, kv):", f"    return {printer.show(score)}"]
    source = "\n".join(lines) + "\n"
    scope: dict[str, Any] = {"torch": torch, "mix": _mix, "wide": _wide, **printer.captured(device)}
    exec(compile(source, f"<flex {attention.name}>", "exec"), scope)
    return FlexFunctions(
        None if attention.mask == TRUE else scope["mask_mod"],
        None if isinstance(score, Score) else scope["score_mod"],
        source,
    )


@dataclass(frozen=True, slots=True)
class _Printer:
    attention: Attention
    shape: Shape
    data: Data

    def captured(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the tensors by the names that the text uses; dimensions that broadcast are expanded."""
        tensors = {}
        for tensor in self.attention.tensors:
            value = self.data[tensor.name]
            if isinstance(value, torch.Tensor) and tensor.dims:
                tensors[f"t_{tensor.name}"] = value.to(device)
            else:
                tensors[f"t_{tensor.name}"] = torch.as_tensor(value, device=device)
        return tensors

    def condition(self, expr: Expr) -> str:
        text = self.show(expr)
        return f"torch.full_like(q, {text}, dtype=torch.bool)" if text in ("True", "False") else text

    def show(self, expr: Expr) -> str:
        """Print an expression; what needs neither a position nor data is printed as a number."""
        if not any(isinstance(node, Index | Read | Bound | Score | Parameter) for node in walk(expr)):
            return _literal(evaluate(expr, Environment(sizes=self.shape.sizes())))
        match expr:
            case Const() | Size() | Parameter() | Bound():
                raise NotExpressible(f"{type(expr).__name__} outside its scope")
            case Index(name=name):
                return self._index(name)
            case Score():
                return "score"
            case Read():
                return self._read(expr)
            case Unary(op=op, operand=operand):
                return f"({'~' if op is UnaryOp.NOT else '-'}{self.show(operand)})"
            case Binary():
                return self._binary(expr)
            case And(operands=operands):
                return self._joined(operands, "&", "False")
            case Or(operands=operands):
                return self._joined(operands, "|", "True")
            case Where(condition=condition, then=then, otherwise=otherwise):
                test, yes, no = self.show(condition), self.show(then), self.show(otherwise)
                return {"True": yes, "False": no}.get(test, f"torch.where({test}, {yes}, {no})")
            case Call(function=function, args=args):
                return self._call(function, args)
            case Cast(operand=operand, type=to):
                if operand.type is Type.FLOAT:
                    return f"torch.nan_to_num({self.show(operand)}).clamp(-2.0**62, 2.0**62).to(torch.int64)"
                return f"({self.show(operand)}).to({'torch.float32' if to is Type.FLOAT else 'torch.int64'})"
            case Quantifier():
                return self._quantifier(expr)
            case _:
                assert_never(expr)

    def _index(self, name: IndexName) -> str:
        match name:
            case IndexName.BATCH | IndexName.HEAD:
                return str(name.value)
            case IndexName.KEY:
                return "kv"
            case IndexName.ROW:
                return "q"
            case IndexName.QUERY:
                shift = self.show(self.attention.align.shift)
                return "q" if shift == "0" else f"(q + {shift})"
            case _:
                raise NotExpressible(f"the coordinate {name.value}")

    def _read(self, expr: Read) -> str:
        name, table = f"t_{expr.table}", self.data[expr.table]
        if not expr.index:
            return name
        if not isinstance(table, torch.Tensor):
            raise NotExpressible(f"{expr.table} is not a tensor")
        places, tests = [], []
        for at, size, dim in zip(expr.index, table.shape, self.attention.tensor(expr.table).dims, strict=True):
            text = self.show(at)
            broadcasts = size == 1 and isinstance(dim, Size)
            literal = not any(isinstance(node, Index | Read | Bound | Score) for node in walk(at))
            if broadcasts:
                places.append("0")
            elif expr.inside or (literal and 0 <= int(text.strip("()")) < size):
                places.append(text)
            elif literal:
                return "False" if expr.type is Type.BOOL else _literal(0.0 if expr.type is Type.FLOAT else 0)
            else:
                places.append(f"({text}).clamp(0, {max(0, size - 1)})")
                tests.append(f"({text} >= 0) & ({text} < {size})")
        read = f"{name}[{', '.join(places)}]"
        zero = {Type.BOOL: "False", Type.INT: "0", Type.FLOAT: "0.0"}[expr.type]
        return f"torch.where({' & '.join(tests)}, {read}, {zero})" if tests else read

    def _binary(self, expr: Binary) -> str:
        left, right = self.show(expr.left), self.show(expr.right)
        if expr.op in (BinaryOp.FLOORDIV, BinaryOp.MOD) and expr.type is Type.INT and not _is_number(right):
            safe = f"({left} {expr.op.value} torch.where({right} == 0, 1, {right}))"
            return f"torch.where({right} == 0, 0, {safe})"
        return f"({left} {expr.op.value} {right})"

    def _joined(self, operands: tuple[Expr, ...], sign: str, deciding: str) -> str:
        """Join conditions; a constant one decides or disappears, since `True & tensor` is not a mask."""
        texts = [self.show(operand) for operand in operands]
        if deciding in texts:
            return deciding
        texts = [text for text in texts if text not in ("True", "False")]
        return f"({f' {sign} '.join(texts)})" if texts else str(deciding == "False")

    def _call(self, function: Function, args: tuple[Expr, ...]) -> str:
        texts = [self.show(arg) for arg in args]
        match function:
            case Function.MIN | Function.MAX:
                text = next(text for text in texts if not _is_number(text))
                for other in [other for other in texts if other is not text]:
                    bound = "max" if function is Function.MIN else "min"
                    join = "minimum" if function is Function.MIN else "maximum"
                    text = f"({text}).clamp({bound}={other})" if _is_number(other) else f"torch.{join}({text}, {other})"
                return text
            case Function.HASH:
                return _hash(texts)
            case Function.FLOOR:
                return f"torch.nan_to_num(torch.floor({texts[0]})).clamp(-2.0**62, 2.0**62).to(torch.int64)"
            case _:
                return f"torch.{function.value}({texts[0]})"

    def _quantifier(self, expr: Quantifier) -> str:
        if expr.count > MOST_INSTANCES:
            raise NotExpressible(f"{expr.count} instances of a quantifier would have to be written out")
        bodies = tuple(substitute(expr.body, {Bound(expr.variable): Const(at, Type.INT)}) for at in range(expr.count))
        match expr.kind:
            case QuantifierKind.ANY:
                return self._joined(bodies, "|", "True") if bodies else "False"
            case QuantifierKind.ALL:
                return self._joined(bodies, "&", "False") if bodies else "True"
            case QuantifierKind.SUM:
                return f"({' + '.join(self.show(body) for body in bodies)})" if bodies else "0"
            case _:
                assert_never(expr.kind)


def _hash(args: list[str]) -> str:
    """Print LANGUAGE.md's hash in wrapping int64 arithmetic."""
    text = "0"
    for arg in args:
        text = f"mix({text} + {_signed(0x9E3779B97F4A7C15)} + wide({arg}))"
    return f"(({text} >> 1) & {2**63 - 1})"


def _wide(x: torch.Tensor | int) -> torch.Tensor | int:
    return x.to(torch.int64) if isinstance(x, torch.Tensor) else x


def _mix(x: torch.Tensor | int) -> torch.Tensor | int:
    """Apply splitmix64's finaliser. Right shifts of int64 are arithmetic, so what they draw in is masked away."""
    x = x if isinstance(x, torch.Tensor) else _signed(x % _WORD)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = x ^ ((x >> shift) & (2 ** (64 - shift) - 1))
        x = x * _signed(factor) if isinstance(x, torch.Tensor) else _signed(x * factor % _WORD)
    return x


def _signed(value: int) -> int:
    """Return the int64 of the same 64 bits."""
    return value - _WORD if value >= 2**63 else value


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _literal(value: bool | int | float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    return f"({value!r})" if not isinstance(value, bool) and value < 0 else repr(value)
