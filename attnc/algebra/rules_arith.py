"""Rules over numbers.

Ints wrap around at 64 bits, so sums and products of them may be regrouped freely. For floats a rule keeps the value,
infinities and NaN included; the sign of a zero carries no meaning. Sums and products with constants are regrouped only
so that fewer roundings remain, and never spread over other operands.
"""

from __future__ import annotations

import math
from dataclasses import replace

from attnc.algebra.engine import Rule
from attnc.algebra.terms import UNWRAPPED, constant, is_number, magnitude
from attnc.ir.arithmetic import wrap
from attnc.ir.evaluate import evaluate
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
    Quantifier,
    Size,
    Unary,
    UnaryOp,
)
from attnc.ir.types import Type
from attnc.ir.walk import children

_SUMS = (BinaryOp.ADD, BinaryOp.SUB)
_INT_MIN = -(2**63)
REGROUPED = 2.0**60
"""Float constants below it are regrouped: no sum of theirs overflows, nor turns a finite sum into an infinite one."""


def _fold(node: Expr) -> Expr | None:
    operands = children(node)
    if not operands or not all(isinstance(operand, Const) for operand in operands):
        return None
    value = evaluate(node)
    return None if value != value else Const(value, node.type)


def _constant_last(node: Binary) -> Expr | None:
    """Sums and products have their constant on the right, where the other rules look for it."""
    if node.op not in (BinaryOp.ADD, BinaryOp.MUL) or not isinstance(node.left, Const):
        return None
    return None if isinstance(node.right, Const) else replace(node, left=node.right, right=node.left)


def _neutral_operand(node: Binary) -> Expr | None:
    op, left, right = node.op, node.left, node.right
    if op in _SUMS and is_number(right, 0):
        return left
    if op in (BinaryOp.MUL, BinaryOp.DIV, BinaryOp.POW) and is_number(right, 1):
        return left
    if op is BinaryOp.FLOORDIV and is_number(right, 1) and node.type is Type.INT:
        return left
    return None


def _known_result(node: Binary) -> Expr | None:
    op, left, right = node.op, node.left, node.right
    if op.is_comparison:
        return None
    if op is BinaryOp.POW and (is_number(right, 0) or is_number(left, 1)):
        return constant(1, node.type)
    zero = constant(0, node.type)
    finite = node.type is Type.INT or math.isfinite(max(magnitude(left), magnitude(right)))
    if op is BinaryOp.MUL and (is_number(left, 0) or is_number(right, 0)) and finite:
        return zero
    if op is BinaryOp.SUB and left == right and finite:
        return zero
    if op in (BinaryOp.FLOORDIV, BinaryOp.MOD) and node.type is Type.INT:
        if is_number(left, 0) or is_number(right, 0):
            return zero
        if op is BinaryOp.MOD and (is_number(right, 1) or left == right):
            return zero
    return None


def _signs(node: Binary) -> Expr | None:
    """Turn additions of negated operands into subtractions, and products with -1 into negations."""
    op, left, right = node.op, node.left, node.right
    other = BinaryOp.SUB if op is BinaryOp.ADD else BinaryOp.ADD
    if op in _SUMS and isinstance(right, Unary):
        return replace(node, op=other, right=right.operand)
    if op is BinaryOp.ADD and isinstance(left, Unary):
        return replace(node, op=BinaryOp.SUB, left=right, right=left.operand)
    if op in _SUMS and isinstance(right, Const) and right.type.is_number and right.value < 0:
        if right.value == _INT_MIN:
            return None
        return replace(node, op=other, right=constant(-right.value, right.type))
    if op in (BinaryOp.MUL, BinaryOp.DIV) and is_number(right, -1):
        return Unary(UnaryOp.NEG, left, node.type)
    return None


def _signs_of_zero_minus(node: Binary) -> Expr | None:
    if node.op is BinaryOp.SUB and is_number(node.left, 0):
        return Unary(UnaryOp.NEG, node.right, node.type)
    return None


def _negation(node: Unary) -> Expr | None:
    if node.op is not UnaryOp.NEG:
        return None
    match node.operand:
        case Unary(operand=operand):
            return operand
        case Binary(op=BinaryOp.SUB, left=left, right=right):
            return replace(node.operand, left=right, right=left)
        case Binary(op=BinaryOp.MUL, right=Const() as factor) if factor.value != _INT_MIN:
            return replace(node.operand, right=constant(-factor.value, factor.type))
        case _:
            return None


def _split_constant(expr: Expr) -> tuple[Expr, bool, int | float] | None:
    """Take `x + c`, `x - c` or `c - x` apart into x, whether it is added, and c."""
    if not isinstance(expr, Binary) or expr.op not in _SUMS:
        return None
    if isinstance(expr.right, Const):
        value = expr.right.value
        return expr.left, True, value if expr.op is BinaryOp.ADD else -value
    if isinstance(expr.left, Const) and expr.op is BinaryOp.SUB:
        return expr.right, False, expr.left.value
    return None


def _sum_of_constants(node: Binary) -> Expr | None:
    """Bring the two constants of a sum together: one rounding in place of two."""
    if node.op not in _SUMS:
        return None
    adding = node.op is BinaryOp.ADD
    if isinstance(node.right, Const):
        inner, outer = _split_constant(node.left), node.right.value if adding else -node.right.value
        sign = True
    elif isinstance(node.left, Const) and not adding:
        inner, outer = _split_constant(node.right), node.left.value
        sign = False
    else:
        return None
    if inner is None:
        return None
    operand, added, value = inner
    total = outer + (value if sign else -value)
    if node.type is Type.FLOAT and not max(abs(outer), abs(value)) < REGROUPED:
        return None
    whole = constant(wrap(int(total)) if node.type is Type.INT else total, node.type)
    positive = added == sign
    if not positive:
        return Binary(BinaryOp.SUB, whole, operand, node.type)
    return Binary(BinaryOp.ADD, operand, whole, node.type)


def _product_of_constants(node: Binary) -> Expr | None:
    inner = node.left
    if node.type is not Type.INT or node.op is not BinaryOp.MUL or not isinstance(inner, Binary):
        return None
    if inner.op is not BinaryOp.MUL or not isinstance(node.right, Const) or not isinstance(inner.right, Const):
        return None
    factor = wrap(int(node.right.value) * int(inner.right.value))
    return Binary(BinaryOp.MUL, inner.left, constant(factor, Type.INT), Type.INT)


def _cancelled_operand(node: Binary) -> Expr | None:
    """Ints only: what is added and taken away again."""
    left, right = node.left, node.right
    if node.type is not Type.INT:
        return None
    if node.op is BinaryOp.SUB and isinstance(left, Binary) and left.op is BinaryOp.ADD:
        if left.right == right:
            return left.left
        return left.right if left.left == right else None
    if node.op is BinaryOp.ADD and isinstance(left, Binary) and left.op is BinaryOp.SUB and left.right == right:
        return left.left
    if node.op is BinaryOp.ADD and isinstance(right, Binary) and right.op is BinaryOp.SUB and right.right == left:
        return right.left
    return None


def _repeated_remainder(node: Binary) -> Expr | None:
    """`x % 4 % 4`, and `x % 4 // 4` for a positive constant."""
    inner, divisor = node.left, node.right
    if node.type is not Type.INT or node.op not in (BinaryOp.FLOORDIV, BinaryOp.MOD):
        return None
    if not isinstance(inner, Binary) or inner.op is not BinaryOp.MOD or inner.right != divisor:
        return None
    if not isinstance(divisor, Const) or divisor.value <= 0:
        return None
    return inner if node.op is BinaryOp.MOD else constant(0, Type.INT)


def _absolute(node: Call) -> Expr | None:
    if node.function is not Function.ABS:
        return None
    match node.args[0]:
        case Call(function=Function.ABS) as inner:
            return inner
        case Unary(operand=operand):
            return replace(node, args=(operand,))
        case _:
            return None


def _flatten_extremes(node: Call) -> Expr | None:
    if node.function not in (Function.MIN, Function.MAX):
        return None
    if not any(isinstance(arg, Call) and arg.function is node.function for arg in node.args):
        return None
    flat: list[Expr] = []
    for arg in node.args:
        flat.extend(arg.args if isinstance(arg, Call) and arg.function is node.function else (arg,))
    return replace(node, args=tuple(flat))


def _merge_extremes(node: Call) -> Expr | None:
    """Keep one constant, last, and each other operand once."""
    if node.function not in (Function.MIN, Function.MAX):
        return None
    numbers = [arg.value for arg in node.args if isinstance(arg, Const)]
    others = list(dict.fromkeys(arg for arg in node.args if not isinstance(arg, Const)))
    limit: list[Expr] = []
    if numbers:
        limit = [constant((min if node.function is Function.MIN else max)(numbers), node.type)]
    args = (*others, *limit)
    if args == node.args:
        return None
    return args[0] if len(args) == 1 else replace(node, args=args)


def _clamp(node: Call) -> Expr | None:
    """`max(min(x, 7), 3)` is `min(max(x, 3), 7)`; an int between limits that cross is the outer one."""
    if node.function not in (Function.MIN, Function.MAX) or len(node.args) != 2:
        return None
    inner, limit = node.args
    if not isinstance(inner, Call) or not isinstance(limit, Const):
        return None
    opposed = Function.MAX if node.function is Function.MIN else Function.MIN
    if inner.function is not opposed or not isinstance(inner.args[-1], Const):
        return None
    bound = inner.args[-1]
    low, high = (limit, bound) if node.function is Function.MAX else (bound, limit)
    if low.value >= high.value:
        return limit if node.type is Type.INT else None
    if node.function is Function.MIN:
        return None
    rest = inner.args[:-1]
    return Call(Function.MIN, (Call(Function.MAX, (_least(rest, node.type), low), node.type), high), node.type)


def _least(args: tuple[Expr, ...], kind: Type) -> Expr:
    return args[0] if len(args) == 1 else Call(Function.MIN, args, kind)


def _round_trip(node: Cast | Call) -> Expr | None:
    """An int below 2**53 survives being a float."""
    if isinstance(node, Call) and node.function is not Function.FLOOR:
        return None
    operand = children(node)[0]
    if node.type is Type.INT and isinstance(operand, Cast) and isinstance(operand.operand, Index | Size | Bound):
        return operand.operand
    return None


def _nested_quotient(node: Binary) -> Expr | None:
    """`x // 4 // 2` for positive constants: rounding down twice is rounding down once."""
    inner = node.left
    if node.type is not Type.INT or node.op is not BinaryOp.FLOORDIV or not isinstance(inner, Binary):
        return None
    if inner.op is not BinaryOp.FLOORDIV or not isinstance(node.right, Const) or not isinstance(inner.right, Const):
        return None
    divisor = int(node.right.value) * int(inner.right.value)
    if min(node.right.value, inner.right.value) <= 0 or divisor >= UNWRAPPED:
        return None
    return replace(inner, right=constant(divisor, Type.INT))


def _multiple_of_divisor(node: Binary) -> Expr | None:
    """`x * 6 // 3` and `x * 6 % 3` for positive constants, where the product cannot wrap around."""
    product, divisor = node.left, node.right
    if node.type is not Type.INT or node.op not in (BinaryOp.FLOORDIV, BinaryOp.MOD) or not isinstance(product, Binary):
        return None
    if product.op is not BinaryOp.MUL or not isinstance(product.right, Const) or not isinstance(divisor, Const):
        return None
    if divisor.value <= 0 or product.right.value % divisor.value or magnitude(product) >= UNWRAPPED:
        return None
    if node.op is BinaryOp.MOD:
        return constant(0, Type.INT)
    return replace(product, right=constant(int(product.right.value) // int(divisor.value), Type.INT))


def _shift_comparison(node: Binary) -> Expr | None:
    """Move a constant to the constant on the other side, where nothing can wrap around."""
    if not node.op.is_comparison or node.left.type is not Type.INT:
        return None
    for subject, limit, mirrored in ((node.left, node.right, False), (node.right, node.left, True)):
        parts = _split_constant(subject)
        if parts is None or not isinstance(limit, Const):
            continue
        operand, added, value = parts
        if magnitude(operand) + abs(value) + abs(limit.value) >= UNWRAPPED:
            return None
        moved = constant(limit.value - value if added else value - limit.value, Type.INT)
        if mirrored == added:  # `5 < x + 3` and `3 - x < 5` leave the constant on the left
            return replace(node, left=moved, right=operand)
        return replace(node, left=operand, right=moved)
    return None


def _compare_difference(node: Binary) -> Expr | None:
    """`i - j >= 0`, where nothing can wrap around."""
    if not node.op.is_comparison or node.left.type is not Type.INT:
        return None
    for difference, zero, mirrored in ((node.left, node.right, False), (node.right, node.left, True)):
        if not isinstance(difference, Binary) or difference.op is not BinaryOp.SUB or not is_number(zero, 0):
            continue
        if magnitude(difference.left) + magnitude(difference.right) >= UNWRAPPED:
            return None
        ends = (difference.right, difference.left) if mirrored else (difference.left, difference.right)
        return replace(node, left=ends[0], right=ends[1])
    return None


NUMERIC = (Unary, Binary, Call, Cast, Quantifier)

ARITH_RULES = (
    # 2 + 3 -> 5
    Rule("fold-constants", "2 + 3 -> 5", NUMERIC, _fold),
    # 2 * x -> x * 2
    Rule("constant-last", "2 * x -> x * 2", (Binary,), _constant_last),
    # x + 0 -> x;  x * 1 -> x;  x // 1 -> x
    Rule("neutral-operand", "x + 0 -> x", (Binary,), _neutral_operand),
    # x * 0 -> 0 and x - x -> 0 (floats only where x is surely finite);  x % 1 -> 0;  x ** 0 -> 1
    Rule("known-result", "x - x -> 0", (Binary,), _known_result),
    # x + -y -> x - y;  x - -3 -> x + 3;  x * -1 -> -x
    Rule("signs", "x + -y -> x - y", (Binary,), _signs),
    # 0 - x -> -x
    Rule("subtract-from-zero", "0 - x -> -x", (Binary,), _signs_of_zero_minus),
    # --x -> x;  -(x - y) -> y - x
    Rule("negation", "-(x - y) -> y - x", (Unary,), _negation),
    # x + 2 - 3 -> x - 1
    Rule("sum-of-constants", "x + 2 - 3 -> x - 1", (Binary,), _sum_of_constants),
    # x * 2 * 3 -> x * 6
    Rule("product-of-constants", "x * 2 * 3 -> x * 6", (Binary,), _product_of_constants),
    # x + y - y -> x
    Rule("cancelled-operand", "x + y - y -> x", (Binary,), _cancelled_operand),
    # x % 4 % 4 -> x % 4
    Rule("repeated-remainder", "x % 4 % 4 -> x % 4", (Binary,), _repeated_remainder),
    # x // 4 // 2 -> x // 8
    Rule("nested-quotient", "x // 4 // 2 -> x // 8", (Binary,), _nested_quotient),
    # x * 6 // 3 -> x * 2;  x * 6 % 3 -> 0
    Rule("multiple-of-divisor", "x * 6 // 3 -> x * 2", (Binary,), _multiple_of_divisor),
    # x + 3 < 5 -> x < 2
    Rule("shift-comparison", "x + 3 < 5 -> x < 2", (Binary,), _shift_comparison),
    # x - y >= 0 -> x >= y
    Rule("compare-difference", "x - y >= 0 -> x >= y", (Binary,), _compare_difference),
    # abs(-x) -> abs(x)
    Rule("absolute", "abs(-x) -> abs(x)", (Call,), _absolute),
    # min(min(x, y), z) -> min(x, y, z)
    Rule("flatten-extremes", "min(min(x, y), z) -> min(x, y, z)", (Call,), _flatten_extremes),
    # min(x, 3, 5) -> min(x, 3)
    Rule("merge-extremes", "min(x, 3, 5) -> min(x, 3)", (Call,), _merge_extremes),
    # max(min(x, 7), 3) -> min(max(x, 3), 7)
    Rule("clamp", "max(min(x, 7), 3) -> min(max(x, 3), 7)", (Call,), _clamp),
    # int(float(i)) -> i
    Rule("round-trip", "int(float(i)) -> i", (Cast, Call), _round_trip),
)
"""In the order in which they are tried."""
