"""Derivatives of scores and weights, as expressions: by the dot product, and by each element of a table that is read.

They share the sub-expressions of what they are derivatives of, `tanh(x)` say, so that a kernel computes those once.
Where a function has a kink they take the values that PyTorch's autograd gives: the sign of 0 is 0, and of two equal
operands of `min` and `max` each gets a half. What is not selected by `where` has no derivative, be it infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import reduce

from attnc.algebra.simplify import simplify_expression
from attnc.ir.nodes import (
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
    Quantifier,
    QuantifierKind,
    Read,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import depends_on, instance, substitute, transform, walk

ZERO, ONE, TWO = (Const(value, Type.FLOAT) for value in (0.0, 1.0, 2.0))
_APART = "apart"
"""Stands for `i - j`."""

_LN_2 = Const(math.log(2.0), Type.FLOAT, name="log(2)")


class Axes(Enum):
    """Which pairs one element of a table is read for, and so what its gradient is summed over."""

    HEAD = "head"
    """All pairs of a head."""
    ROW = "row"
    """The keys of a query."""
    COLUMN = "column"
    """The queries of a key."""
    DIAGONAL = "diagonal"
    """Pairs whose positions are as far apart: a Toeplitz table, be its distances clamped or put into buckets."""
    PAIR = "pair"
    """Any pairs."""


@dataclass(frozen=True, slots=True)
class ReadGradient:
    """What one read of a float table contributes.

    Attributes:
        read: a table, and an index.
        axes: of the pairs that read the same element, as far as the index says.
        slopes: derivative of each of the expressions in question by the element.
    """

    read: Read
    axes: Axes
    slopes: tuple[Expr, ...]


def differentiate(expr: Expr, variable: Expr) -> Expr:
    """Return the derivative of a float expression by a `Score` or a `Read`, simplified."""
    return simplify_expression(_Derivative(variable).of(expr))[0]


def read_gradients(*exprs: Expr) -> tuple[ReadGradient, ...]:
    """Return the derivatives of expressions by every element of a float table that they read, reads in order.

    Sums over a bound variable that appears in an index must be written out, see `write_out_sums`.
    """
    reads = dict.fromkeys(
        node for expr in exprs for node in walk(expr) if isinstance(node, Read) and node.type is Type.FLOAT
    )
    found = (ReadGradient(read, axes_of(read), tuple(differentiate(expr, read) for expr in exprs)) for read in reads)
    return tuple(one for one in found if any(slope != ZERO for slope in one.slopes))


def axes_of(read: Read) -> Axes:
    """Return which pairs read the same element."""
    by_query = any(depends_on(one, IndexName.QUERY) for one in read.index)
    by_key = any(depends_on(one, IndexName.KEY) for one in read.index)
    if by_query and by_key:
        return Axes.DIAGONAL if all(map(_is_of_difference, read.index)) else Axes.PAIR
    return Axes.ROW if by_query else Axes.COLUMN if by_key else Axes.HEAD


def _is_of_difference(index: Expr) -> bool:
    """Tell whether an index says nothing of the positions of a pair but how far they are apart."""
    apart = Binary(BinaryOp.ADD, Index(IndexName.KEY), Bound(_APART), Type.INT)
    moved, _ = simplify_expression(substitute(index, {Index(IndexName.QUERY): apart}))
    return not depends_on(moved, IndexName.QUERY, IndexName.KEY)


def write_out_sums(expr: Expr) -> Expr:
    """Write out sums whose variable is in the index of a float table: each instance reads an element of its own."""

    def written(node: Expr) -> Expr:
        if not isinstance(node, Quantifier) or node.kind is not QuantifierKind.SUM or node.type is not Type.FLOAT:
            return node
        if not any(
            isinstance(one, Read) and one.type is Type.FLOAT and _uses(one, node.variable) for one in walk(node)
        ):
            return node
        terms = [instance(node, value) for value in range(node.count)]
        return reduce(lambda total, term: Binary(BinaryOp.ADD, total, term, Type.FLOAT), terms) if terms else ZERO

    return transform(expr, written)


def _uses(read: Read, variable: str) -> bool:
    return any(node == Bound(variable) for one in read.index for node in walk(one))


@dataclass(frozen=True, slots=True)
class _Derivative:
    """Differentiates by one variable."""

    variable: Expr

    def of(self, expr: Expr) -> Expr:
        """Return the derivative, `ZERO` itself where there is none."""
        if expr == self.variable:
            return ONE
        if expr.type is not Type.FLOAT:
            return ZERO
        match expr:
            case Unary(op=UnaryOp.NEG, operand=operand):
                return _negative(self.of(operand))
            case Binary():
                return self._binary(expr)
            case Where(condition=condition, then=then, otherwise=otherwise):
                return _where(condition, self.of(then), self.of(otherwise))
            case Call(function=Function.MIN | Function.MAX as function, args=args):
                return self._extreme(function, args)
            case Call(function=function, args=(argument,)):
                inner = self.of(argument)
                return ZERO if inner == ZERO else _times(_outer(function, argument, expr), inner)
            case Quantifier(kind=QuantifierKind.SUM, body=body):
                inner = self.of(body)
                if inner == ZERO:
                    return ZERO
                return Quantifier(QuantifierKind.SUM, expr.variable, expr.count, inner, Type.FLOAT)
            case Cast() | _:
                return ZERO

    def _binary(self, expr: Binary) -> Expr:
        left, right = expr.left, expr.right
        first, second = self.of(left), self.of(right)
        if first == ZERO and second == ZERO:
            return ZERO
        match expr.op:
            case BinaryOp.ADD:
                return _plus(first, second)
            case BinaryOp.SUB:
                return _plus(first, _negative(second))
            case BinaryOp.MUL:
                return _plus(_times(first, right), _times(left, second))
            case BinaryOp.DIV:
                return _plus(_over(first, right), _negative(_over(_times(expr, second), right)))
            case BinaryOp.MOD:
                whole = Binary(BinaryOp.FLOORDIV, left, right, Type.FLOAT)
                return _plus(first, _negative(_times(whole, second)))
            case BinaryOp.POW:
                return self._power(expr, first, second)
            case _:
                return ZERO

    def _power(self, expr: Binary, first: Expr, second: Expr) -> Expr:
        """`x ** 0` has derivative 0 everywhere, and so has `0 ** y` by its exponent where that is not negative."""
        base, exponent = expr.left, expr.right
        if isinstance(base, Where) and isinstance(base.then, Const) and isinstance(exponent, Const):
            # `max(x, 0) ** p`, whose derivative at 0 is taken from the side that is constant
            chosen = Binary(BinaryOp.POW, base.otherwise, exponent, Type.FLOAT)
            return _where(base.condition, ZERO, self.of(chosen))
        found: Expr = ZERO
        if first != ZERO:
            less = Binary(BinaryOp.SUB, exponent, ONE, Type.FLOAT)
            slope = _times(exponent, Binary(BinaryOp.POW, base, less, Type.FLOAT))
            constant = Binary(BinaryOp.EQ, exponent, ZERO, Type.BOOL)
            found = _times(_where(constant, ZERO, slope), first)
        if second != ZERO:
            slope = _times(expr, Call(Function.LOG, (base,), Type.FLOAT))
            is_zero = Binary(BinaryOp.EQ, base, ZERO, Type.BOOL)
            rises = Binary(BinaryOp.GE, exponent, ZERO, Type.BOOL)
            flat = _where(rises, ZERO, slope)
            found = _plus(found, _times(_where(is_zero, flat, slope), second))
        return found

    def _extreme(self, function: Function, args: tuple[Expr, ...]) -> Expr:
        """Differentiate `min` or `max` as a chain of those of two operands."""
        value, slope = args[0], self.of(args[0])
        op = BinaryOp.LT if function is Function.MIN else BinaryOp.GT
        for argument in args[1:]:
            other = self.of(argument)
            if slope != ZERO or other != ZERO:
                half = _over(_plus(slope, other), TWO)
                loses = _where(Binary(op, argument, value, Type.BOOL), other, half)
                slope = _where(Binary(op, value, argument, Type.BOOL), slope, loses)
            value = Call(function, (value, argument), value.type)
        return slope


def _outer(function: Function, argument: Expr, value: Expr) -> Expr:
    """Return the derivative of a function at `argument`, where it has a `value`."""
    match function:
        case Function.ABS:
            above, below = (Binary(op, argument, ZERO, Type.BOOL) for op in (BinaryOp.GT, BinaryOp.LT))
            return _where(above, ONE, _where(below, _negative(ONE), ZERO))
        case Function.EXP:
            return value
        case Function.EXP2:
            return _times(value, _LN_2)
        case Function.LOG:
            return _over(ONE, argument)
        case Function.LOG2:
            return _over(ONE, _times(argument, _LN_2))
        case Function.SQRT:
            return _over(ONE, _times(TWO, value))
        case Function.TANH:
            return _plus(ONE, _negative(_times(value, value)))
        case Function.SIGMOID:
            return _times(value, _plus(ONE, _negative(value)))
        case Function.ERF:
            bell = Call(Function.EXP, (_negative(_times(argument, argument)),), Type.FLOAT)
            return _times(Const(2.0 / math.sqrt(math.pi), Type.FLOAT), bell)
        case Function.SIN:
            return Call(Function.COS, (argument,), Type.FLOAT)
        case Function.COS:
            return _negative(Call(Function.SIN, (argument,), Type.FLOAT))
        case _:
            return ZERO


def _plus(left: Expr, right: Expr) -> Expr:
    if left == ZERO:
        return right
    if right == ZERO:
        return left
    if isinstance(right, Unary) and right.op is UnaryOp.NEG:
        return Binary(BinaryOp.SUB, left, right.operand, Type.FLOAT)
    return Binary(BinaryOp.ADD, left, right, Type.FLOAT)


def _negative(expr: Expr) -> Expr:
    return expr if expr == ZERO else Unary(UnaryOp.NEG, expr, Type.FLOAT)


def _times(left: Expr, right: Expr) -> Expr:
    if ZERO in (left, right):
        return ZERO
    if left == ONE:
        return right
    return left if right == ONE else Binary(BinaryOp.MUL, left, right, Type.FLOAT)


def _over(top: Expr, bottom: Expr) -> Expr:
    return top if top == ZERO else Binary(BinaryOp.DIV, top, bottom, Type.FLOAT)


def _where(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    return then if then == otherwise else Where(condition, then, otherwise, Type.FLOAT)
