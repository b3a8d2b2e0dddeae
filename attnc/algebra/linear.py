"""isl affine forms as linear combinations of names and floor divisions, normalised for reading and small numbers.

isl writes `i_lo // 32 * 32` as `32 * i_lo - 32 * ((31 * i_lo + 31) // 32)`: right, but ugly, and 32 times larger on the
way than its value. Here coefficients under a division are brought into `(-n/2, n/2]` and the leading one made positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd

import islpy as isl

from attnc.algebra.index_sets import integer
from attnc.ir.nodes import Binary, BinaryOp, Call, Const, Expr, Function, Read
from attnc.ir.types import Type

TAME = 2**61
"""Elements of tables in sums are taken to lie up to here on either side of 0: a few of them add up to no overflow."""

_UNKNOWN = "an existential variable has no closed form"


class NoClosedFormError(Exception):
    """An affine form depends on an existential variable that isl could not express."""


@dataclass(frozen=True, slots=True)
class Floor:
    """`numerator // divisor`."""

    numerator: Linear
    divisor: int


@dataclass(frozen=True, slots=True)
class Linear:
    """`constant + sum of factor * unit`; a unit is a name or a floor division, each at most once."""

    constant: int
    terms: tuple[tuple[str | Floor, int], ...] = ()

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        """Return `self + factor * other`."""
        total = dict(self.terms)
        for unit, amount in other.terms:
            total[unit] = total.get(unit, 0) + factor * amount
        return Linear(
            self.constant + factor * other.constant, tuple((unit, amount) for unit, amount in total.items() if amount)
        )

    def times(self, factor: int) -> Linear:
        """Return `factor * self`."""
        return Linear(0).plus(self, factor)


def linear_form(aff: isl.Aff) -> tuple[Linear, int]:
    """Return an affine form times its denominator, and the denominator.

    Raises:
        NoClosedFormError: it depends on an existential variable without a closed form.
    """
    denominator = integer(aff.get_denominator_val())
    total = Linear(_scaled(aff.get_constant_val(), denominator))
    for unit, factor in _terms(aff, denominator):
        total = total.plus(unit, factor)
    return total, denominator


def _terms(aff: isl.Aff, denominator: int) -> Iterator[tuple[Linear, int]]:
    space = aff.get_domain_space()
    for kind in (isl.dim_type.in_, isl.dim_type.param, isl.dim_type.div):
        for position in range(aff.dim(kind)):
            factor = _scaled(aff.get_coefficient_val(kind, position), denominator)
            if not factor:
                continue
            if kind == isl.dim_type.div:
                yield _division(aff.get_div(position)), factor
            else:
                named = isl.dim_type.set if kind == isl.dim_type.in_ else kind
                yield Linear(0, ((space.get_dim_name(named, position), 1),)), factor


def _scaled(value: isl.Val, denominator: int) -> int:
    return integer(value.mul(isl.Val.int_from_si(value.get_ctx(), denominator)))


def _division(inner: isl.Aff | None) -> Linear:
    if inner is None or inner.is_nan():
        raise NoClosedFormError(_UNKNOWN)
    return floor_of(*linear_form(inner))


def floor_of(numerator: Linear, divisor: int) -> Linear:
    """Return `numerator // divisor`, normalised."""
    whole, rest = Linear(0), Linear(0)
    for unit, factor in numerator.terms:
        reduced = (factor + (divisor - 1) // 2) % divisor - (divisor - 1) // 2
        one = Linear(0, ((unit, 1),))
        whole, rest = whole.plus(one, (factor - reduced) // divisor), rest.plus(one, reduced)
    whole = whole.plus(Linear(numerator.constant // divisor))
    constant = numerator.constant % divisor
    if not rest.terms:
        return whole
    common = gcd(divisor, *(factor for _, factor in rest.terms))
    rest, constant, divisor = _divided(rest, common), constant // common, divisor // common
    if divisor == 1:
        return whole.plus(rest).plus(Linear(constant))
    if rest.terms[0][1] < 0:  # (k - y) // n = -((y - k + n - 1) // n)
        return whole.plus(_floor(rest.times(-1), divisor - 1 - constant, divisor), -1)
    return whole.plus(_floor(rest, constant, divisor))


def _divided(rest: Linear, common: int) -> Linear:
    return Linear(0, tuple((unit, factor // common) for unit, factor in rest.terms))


def _floor(rest: Linear, constant: int, divisor: int) -> Linear:
    """Return a floor division with its constant brought into `[0, divisor)`."""
    unit = Floor(Linear(constant % divisor, rest.terms), divisor)
    return Linear(constant // divisor, ((unit, 1),))


def write(form: Linear, symbol: Callable[[str], Expr]) -> Expr:
    """Write a linear form as IR, positive terms first; data in it is held so small that nothing wraps around."""
    ordered = [term for term in form.terms if term[1] > 0] + [term for term in form.terms if term[1] < 0]
    constant = form.constant
    total: Expr | None = None
    alone = constant == 0 and len(ordered) == 1 and ordered[0][1] == 1
    if constant > 0 and (not ordered or ordered[0][1] < 0):
        total, constant = Const(constant, Type.INT), 0
    for unit, factor in ordered:
        base = symbol(unit) if isinstance(unit, str) else _write_floor(unit, symbol)
        base = base if alone else tame(base)
        size = factor if total is None else abs(factor)
        product = base if size == 1 else Binary(BinaryOp.MUL, base, Const(size, Type.INT), Type.INT)
        if total is None:
            total = product
        else:
            total = Binary(BinaryOp.ADD if factor > 0 else BinaryOp.SUB, total, product, Type.INT)
    if total is None:
        return Const(constant, Type.INT)
    if constant == 0:
        return total
    op = BinaryOp.ADD if constant > 0 else BinaryOp.SUB
    return Binary(op, total, Const(abs(constant), Type.INT), Type.INT)


def tame(expr: Expr) -> Expr:
    """Return what a bound computes with: elements of tables may be any int, where all of interest are far smaller."""
    if not isinstance(expr, Read) or not expr.index:
        return expr
    return Call(
        Function.MIN, (Const(TAME, Type.INT), Call(Function.MAX, (Const(-TAME, Type.INT), expr), Type.INT)), Type.INT
    )


def _write_floor(unit: Floor, symbol: Callable[[str], Expr]) -> Expr:
    return Binary(BinaryOp.FLOORDIV, write(unit.numerator, symbol), Const(unit.divisor, Type.INT), Type.INT)
