"""Weights that are a function of the query times a function of the key, and decays: what a scan can carry along.

A factor of a pair is separable where it is `u(i) * v(j) * exp(p(i) + q(j))`. Exponents are kept apart from factors:
each of `p` and `q` may be in the thousands at distant positions while their sum is small, as in `c ** (i - j)`, which
is `exp(log(c) * i - log(c) * j)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from attnc.algebra.simplify import simplify_expression
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import (
    Binary,
    BinaryOp,
    Call,
    Cast,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Score,
    Size,
    SizeName,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import depends_on, substitute, walk

ONE = Const(1.0, Type.FLOAT)
_ANYTHING = (-math.inf, math.inf)
ZERO = Const(0.0, Type.FLOAT)
_LN_2 = Const(0.6931471805599453, Type.FLOAT, name="log(2)")
_TWO = Const(2, Type.INT)
_LEAST_BASE = 1e-30
"""Powers of anything smaller are 0 beside the power 0, which is 1."""


@dataclass(frozen=True, slots=True)
class Separable:
    """`query_factor * key_factor * exp(query_exponent + key_exponent)`; None stands for 1, and for 0 in exponents.

    Attributes:
        query_factor, query_exponent: floats over `b`, `h`, `i` or `r`, sizes, inputs and learned tensors.
        key_factor, key_exponent: the same over `j` in place of `i`.
        decay: the part of a key's exponent that falls with each position, where it is known: the logarithm `c` in
            `exp(c * (i - j))`, free of `i` and `j`; None where exponents are not of this form.
    """

    query_factor: Expr | None = None
    key_factor: Expr | None = None
    query_exponent: Expr | None = None
    key_exponent: Expr | None = None
    decay: Expr | None = None

    @property
    def is_one(self) -> bool:
        """Whether nothing is weighed."""
        parts = (self.query_factor, self.key_factor, self.query_exponent, self.key_exponent)
        return all(part is None for part in parts)


def separate(factor: Expr | None, *, causal: bool) -> Separable | None:
    """Take a factor of a pair apart; None where it does not fall into a function of the query and one of the key.

    Args:
        factor: a float without `Score()`; None for 1.
        causal: whether `j <= i` holds wherever the factor counts, so that `abs(i - j)` is `i - j`.
    """
    if factor is None:
        return Separable()
    found = _Parts()
    if not _take_factor(_distance(factor) if causal else factor, found):
        return None
    return Separable(
        _product(found.query_factors),
        _product(found.key_factors),
        _sum(found.query_exponents),
        _sum(found.key_exponents),
        _decay(found),
    )


def joined(factor: Expr, weights: Separable) -> Expr:
    """Return a factor with all its exponentials in one, whose exponent is small where their own are large.

    `exp(-a * i) * exp(a * j)` is `exp(-a * (i - j))`, and `c ** (i - j)` is `exp(log(c) * (i - j))`, which is less work
    for each pair. What has a single exponential stays as it is, and so does a power whose base may be 0: that has a
    derivative there, and its logarithm has none.
    """
    if weights.query_exponent is None or weights.key_exponent is None:
        return factor
    if _exponentials(factor) < 2 and not (weights.decay is not None and _is_power(factor)):
        return factor
    if weights.decay is not None:
        distance = Binary(BinaryOp.SUB, Index(IndexName.QUERY), Index(IndexName.KEY), Type.INT)
        exponent: Expr = Binary(BinaryOp.MUL, weights.decay, Cast(distance, Type.FLOAT), Type.FLOAT)
    else:
        exponent = Binary(BinaryOp.ADD, weights.query_exponent, weights.key_exponent, Type.FLOAT)
    product: Expr = Call(Function.EXP, (exponent,), Type.FLOAT, span=factor.span)
    for other in (weights.query_factor, weights.key_factor):
        product = product if other is None else Binary(BinaryOp.MUL, other, product, Type.FLOAT, span=factor.span)
    return simplify_expression(product)[0]


def _is_power(expr: Expr) -> bool:
    """Tell whether powers of numbers above 0 are taken of each pair, and no others."""
    powers = [node for node in walk(expr) if isinstance(node, Binary) and node.op is BinaryOp.POW and _is_pair(node)]
    return bool(powers) and all(float_range(node.left)[0] >= _LEAST_BASE for node in powers)


def _exponentials(expr: Expr) -> int:
    """Return how many exponentials and powers an expression multiplies that depend on a position."""
    match expr:
        case Binary(op=BinaryOp.MUL | BinaryOp.DIV, left=left, right=right):
            return _exponentials(left) + _exponentials(right)
        case Unary(op=UnaryOp.NEG, operand=operand):
            return _exponentials(operand)
        case _:
            return int(_has_exponent(expr))


def split_score(score: Expr) -> Expr | None:
    """Return the factor `f` of a score that is `f * s`, with `f` free of `s`; None where it is not of this form."""
    match score:
        case Score():
            return ONE
        case Unary(op=UnaryOp.NEG, operand=operand):
            inner = split_score(operand)
            return None if inner is None else Unary(UnaryOp.NEG, inner, Type.FLOAT)
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            with_score, other = (left, right) if _uses_score(left) else (right, left)
            inner = None if _uses_score(other) else split_score(with_score)
            return None if inner is None else other if inner == ONE else Binary(BinaryOp.MUL, inner, other, Type.FLOAT)
        case Binary(op=BinaryOp.DIV, left=left, right=right) if not _uses_score(right):
            inner = split_score(left)
            return None if inner is None else Binary(BinaryOp.DIV, inner, right, Type.FLOAT)
        case _:
            return None


def float_range(expr: Expr) -> tuple[float, float]:
    """Return between which numbers a constant or a function of the head lies; infinities where that is not known."""
    match expr:
        case Const(value=value) if math.isfinite(value):
            return float(value), float(value)
        case Index(name=IndexName.HEAD | IndexName.BATCH):
            return 0.0, 2.0**30
        case Size():
            return 1.0, 2.0**30
        case Cast(operand=operand) if operand.type is Type.INT:
            return float_range(operand)
        case Unary(op=UnaryOp.NEG, operand=operand):
            low, high = float_range(operand)
            return -high, -low
        case Binary(op=BinaryOp.ADD, left=left, right=right):
            (low, high), (least, most) = float_range(left), float_range(right)
            return low + least, high + most
        case Binary(op=BinaryOp.SUB, left=left, right=right):
            (low, high), (least, most) = float_range(left), float_range(right)
            return low - most, high - least
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            (low, high), (least, most) = float_range(left), float_range(right)
            if not all(map(math.isfinite, (low, high, least, most))):
                return _ANYTHING
            corners = (low * least, low * most, high * least, high * most)
            return min(corners), max(corners)
        case Binary(op=BinaryOp.DIV, left=left, right=Const(value=divisor)) if divisor:
            ends = tuple(end / divisor for end in float_range(left))
            return min(ends), max(ends)
        case Call(function=Function.EXP | Function.EXP2 as function, args=(power,)):
            base = math.e if function is Function.EXP else 2.0
            low, high = (base ** min(max(end, -700.0), 700.0) for end in float_range(power))
            return low, high if high < base**700.0 else math.inf
        case Call(function=Function.SIGMOID):
            return math.ulp(0.0), 1.0
        case _:
            return _ANYTHING


def grows(decay: Expr) -> bool:
    """Tell whether a decay is known to weigh distant pairs more than near ones, in the first heads of any call."""
    if any(not isinstance(node, Const | Index | Size | Unary | Binary | Call | Cast) for node in walk(decay)):
        return False
    return any(_value(decay, head) > 0 for head in range(4))


def _value(expr: Expr, head: int) -> float:
    sizes = dict.fromkeys(SizeName, 1) | {SizeName.HEADS: 4, SizeName.HEAD_SIZE: 64}
    return float(evaluate(expr, Environment(indices={IndexName.HEAD: head, IndexName.BATCH: 0}, sizes=sizes)))


class _Parts:
    """What was found of a factor so far."""

    def __init__(self) -> None:
        self.query_factors: list[Expr] = []
        self.key_factors: list[Expr] = []
        self.query_exponents: list[Expr] = []
        self.key_exponents: list[Expr] = []

    def add_factor(self, expr: Expr) -> None:
        """Put a factor that one side alone decides where it belongs; what no side decides goes to the query."""
        (self.key_factors if depends_on(expr, IndexName.KEY) else self.query_factors).append(expr)

    def add_exponent(self, expr: Expr) -> None:
        """Do the same for a summand of the exponent."""
        (self.key_exponents if depends_on(expr, IndexName.KEY) else self.query_exponents).append(expr)


def _is_pair(expr: Expr) -> bool:
    """Tell whether an expression depends on the query and on the key."""
    return depends_on(expr, IndexName.QUERY) and depends_on(expr, IndexName.KEY)


def _is_free(expr: Expr) -> bool:
    return not depends_on(expr, IndexName.QUERY, IndexName.KEY)


def _take_factor(expr: Expr, found: _Parts) -> bool:
    """Add a factor to what was found; False where it does not separate."""
    if not _is_pair(expr) and not _has_exponent(expr):
        found.add_factor(expr)
        return True
    match expr:
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            return _take_factor(left, found) and _take_factor(right, found)
        case Cast(operand=Binary(op=BinaryOp.MUL, left=left, right=right), type=Type.FLOAT):
            return _take_factor(Cast(left, Type.FLOAT), found) and _take_factor(Cast(right, Type.FLOAT), found)
        case Binary(op=BinaryOp.DIV, left=left, right=right):
            inverse = _inverse(right)
            return inverse is not None and _take_factor(left, found) and _take_factor(inverse, found)
        case Unary(op=UnaryOp.NEG, operand=operand):
            found.query_factors.append(Const(-1.0, Type.FLOAT))
            return _take_factor(operand, found)
        case Call(function=Function.EXP, args=(power,)):
            return _take_exponent(power, ONE, found)
        case Call(function=Function.EXP2, args=(power,)):
            return _take_exponent(power, _LN_2, found)
        case Binary(op=BinaryOp.POW, left=base, right=power) if _is_free(base):
            return _take_power(base, power, found)
        case _ if not _is_pair(expr):
            found.add_factor(expr)
            return True
        case _:
            return False


def _has_exponent(expr: Expr) -> bool:
    """Tell whether a one-sided factor is better kept as an exponent: `exp(-a * j)` overflows where its row does not."""
    match expr:
        case Binary(op=BinaryOp.MUL | BinaryOp.DIV, left=left, right=right):
            return _has_exponent(left) or _has_exponent(right)
        case Unary(op=UnaryOp.NEG, operand=operand):
            return _has_exponent(operand)
        case Call(function=Function.EXP | Function.EXP2) | Binary(op=BinaryOp.POW):
            return not _is_free(expr)
        case _:
            return False


def _inverse(expr: Expr) -> Expr | None:
    """Return `1 / expr` where what depends on both sides can be turned around."""
    match expr:
        case Call(function=Function.EXP | Function.EXP2 as function, args=(power,)):
            return Call(function, (Unary(UnaryOp.NEG, power, Type.FLOAT),), Type.FLOAT)
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            first, second = _inverse(left), _inverse(right)
            return None if first is None or second is None else Binary(BinaryOp.MUL, first, second, Type.FLOAT)
        case Binary(op=BinaryOp.POW, left=base, right=power):
            return Binary(BinaryOp.POW, base, Unary(UnaryOp.NEG, power, power.type), Type.FLOAT)
        case Cast(operand=Binary(op=BinaryOp.POW, type=Type.INT)):
            return None
        case _ if _is_pair(expr):
            return None
        case _:
            return Binary(BinaryOp.DIV, ONE, expr, Type.FLOAT)


def _take_power(base: Expr, power: Expr, found: _Parts) -> bool:
    """`base ** power`: the logarithm of the base's size, and its sign by the parity of the power."""
    least, _ = float_range(base)
    positive = least > 0
    whole = power.operand if isinstance(power, Cast) else power
    if not positive and whole.type is not Type.INT:
        return False  # of a negative base, not a number
    base = Cast(base, Type.FLOAT) if base.type is Type.INT else base
    size = base if positive else Call(Function.ABS, (base,), Type.FLOAT)
    if least < _LEAST_BASE:  # `0 ** 0` is 1, and its logarithm times 0 is not a number
        size = Call(Function.MAX, (size, Const(_LEAST_BASE, Type.FLOAT)), Type.FLOAT)
    if not _take_exponent(power, Call(Function.LOG, (size,), Type.FLOAT), found):
        return False
    if least < 0:
        for term, _ in _summands(whole, True):
            odd = Binary(BinaryOp.NE, Binary(BinaryOp.MOD, term, _TWO, Type.INT), Const(0, Type.INT), Type.BOOL)
            negative = Binary(BinaryOp.LT, base, ZERO, Type.BOOL)
            sign = Where(negative, Const(-1.0, Type.FLOAT), ONE, Type.FLOAT)
            found.add_factor(Where(odd, sign, ONE, Type.FLOAT))
    return True


def _take_exponent(power: Expr, times: Expr, found: _Parts) -> bool:
    """Add `times * power` to the exponents; False where it is no sum of one-sided terms."""
    terms = [*_summands(power, True)]
    if any(_is_pair(term) for term, _ in terms) or _is_pair(times):
        return False
    for term, positive in terms:
        wide = Cast(term, Type.FLOAT) if term.type is Type.INT else term
        whole = wide if times == ONE else Binary(BinaryOp.MUL, times, wide, Type.FLOAT)
        found.add_exponent(whole if positive else Unary(UnaryOp.NEG, whole, Type.FLOAT))
    return True


def _summands(expr: Expr, positive: bool) -> Iterator[tuple[Expr, bool]]:
    """Yield the terms of a sum with their signs; products with what is free of both positions are multiplied out."""
    match expr:
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB as op, left=left, right=right):
            yield from _summands(left, positive)
            yield from _summands(right, positive == (op is BinaryOp.ADD))
        case Unary(op=UnaryOp.NEG, operand=operand):
            yield from _summands(operand, not positive)
        case Cast(operand=operand, type=Type.FLOAT) if _is_pair(operand) and operand.type is Type.INT:
            for term, sign in _summands(operand, positive):
                yield Cast(term, Type.FLOAT), sign
        case Binary(op=BinaryOp.MUL, left=left, right=right) if _is_pair(expr) and (_is_free(left) or _is_free(right)):
            free, sum_ = (left, right) if _is_free(left) else (right, left)
            for term, sign in _summands(sum_, positive):
                yield Binary(BinaryOp.MUL, free, term, expr.type), sign
        case Binary(op=BinaryOp.DIV, left=left, right=right) if _is_pair(expr) and _is_free(right):
            for term, sign in _summands(left, positive):
                yield Binary(BinaryOp.DIV, term, right, expr.type), sign
        case _:
            yield expr, positive


def _distance(expr: Expr) -> Expr:
    """Write `abs(i - j)` and `abs(j - i)` as `i - j`, which they are for `j <= i`."""
    query, key = Index(IndexName.QUERY), Index(IndexName.KEY)
    forward, backward = (Binary(BinaryOp.SUB, *pair, Type.INT) for pair in ((query, key), (key, query)))
    replacements: dict[Expr, Expr] = {}
    for inner in (forward, backward):
        replacements[Call(Function.ABS, (inner,), Type.INT)] = forward
        wide = Cast(inner, Type.FLOAT)
        replacements[Call(Function.ABS, (wide,), Type.FLOAT)] = Cast(forward, Type.FLOAT)
    return substitute(expr, replacements)


def _decay(found: _Parts) -> Expr | None:
    """Return `c` where the exponents are `c * i` and `-c * j`."""
    query = [_slope(term, IndexName.QUERY) for term in found.query_exponents]
    key = [_slope(term, IndexName.KEY) for term in found.key_exponents]
    if len(query) != 1 or len(key) != 1 or query[0] is None or key[0] is None:
        return None
    rising, _ = simplify_expression(query[0])
    falling, _ = simplify_expression(Unary(UnaryOp.NEG, key[0], Type.FLOAT))
    return rising if rising == falling else None


def _slope(expr: Expr, name: IndexName) -> Expr | None:
    """Return `c` of `c * index`; None where an expression is not of this form."""
    match expr:
        case Index(name=own) if own is name:
            return ONE
        case Cast(operand=operand):
            return _slope(operand, name)
        case Unary(op=UnaryOp.NEG, operand=operand):
            inner = _slope(operand, name)
            return None if inner is None else Unary(UnaryOp.NEG, inner, Type.FLOAT)
        case Binary(op=BinaryOp.MUL, left=left, right=right) if _is_free(left) or _is_free(right):
            free, other = (left, right) if _is_free(left) else (right, left)
            inner = _slope(other, name)
            wide = Cast(free, Type.FLOAT) if free.type is Type.INT else free
            return None if inner is None else wide if inner == ONE else Binary(BinaryOp.MUL, wide, inner, Type.FLOAT)
        case Binary(op=BinaryOp.DIV, left=left, right=right) if _is_free(right):
            inner = _slope(left, name)
            return None if inner is None else Binary(BinaryOp.DIV, inner, right, Type.FLOAT)
        case _:
            return None


def _product(factors: list[Expr]) -> Expr | None:
    product: Expr | None = None
    for factor in factors:
        wide = Cast(factor, Type.FLOAT) if factor.type is Type.INT else factor
        product = wide if product is None else Binary(BinaryOp.MUL, product, wide, Type.FLOAT)
    simple = None if product is None else simplify_expression(product)[0]
    return None if simple == ONE else simple


def _sum(terms: list[Expr]) -> Expr | None:
    total: Expr | None = None
    for term in terms:
        total = term if total is None else Binary(BinaryOp.ADD, total, term, Type.FLOAT)
    simple = None if total is None else simplify_expression(total)[0]
    return None if simple == ZERO else simple


def _uses_score(expr: Expr) -> bool:
    return any(isinstance(node, Score) for node in walk(expr))
