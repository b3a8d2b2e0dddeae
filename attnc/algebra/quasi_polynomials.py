"""Quasi-polynomials in one length: a polynomial of degree two for each residue class, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

Quadratic = tuple[Fraction, Fraction, Fraction]
"""Coefficients of `N^2`, `N`, `1`."""

Polynomial = dict[tuple[int, int], Fraction]
"""Coefficients by the exponents of two variables."""

FEW_CLASSES = 3
"""Up to so many residue classes are written one by one."""

FEW_PIECES = 3
"""Up to so many stretches of residues, each with one polynomial, are written."""

LONGEST = 160
"""Characters of a formula beyond which one residue class alone is written."""


def through(points: Sequence[tuple[int, int | Fraction]]) -> Quadratic:
    """Return the polynomial of least degree through one, two or three points."""
    x0, y0 = points[0]
    if len(points) == 1:
        return Fraction(0), Fraction(0), Fraction(y0)
    x1, y1 = points[1]
    first = Fraction(y1 - y0) / (x1 - x0)
    if len(points) == 2:
        return Fraction(0), first, y0 - first * x0
    x2, y2 = points[2]
    bend = (Fraction(y2 - y1) / (x2 - x1) - first) / (x2 - x0)
    return bend, first - bend * (x0 + x1), y0 - first * x0 + bend * x0 * x1


def at(form: Quadratic, length: int) -> Fraction:
    """Return the value at a length."""
    return (form[0] * length + form[1]) * length + form[2]


@dataclass(frozen=True, slots=True)
class QuasiPolynomial:
    """`forms[N % period]` at `N`; None where a residue class is not known."""

    forms: tuple[Quadratic | None, ...]

    @property
    def period(self) -> int:
        """Number of residue classes."""
        return len(self.forms)

    def at(self, length: int) -> Fraction | None:
        """Return the value at a length, or None where its residue class is not known."""
        form = self.forms[length % self.period]
        return None if form is None else at(form, length)

    def reduced(self) -> QuasiPolynomial:
        """Return the same with the least period."""
        for period in range(1, self.period):
            if self.period % period == 0 and self.forms == self.forms[:period] * (self.period // period):
                return QuasiPolynomial(self.forms[:period])
        return self


@dataclass(frozen=True, slots=True)
class Written:
    """A quasi-polynomial as text.

    Attributes:
        text: `1028 N - 526842`, or with `q` and `s`, or several with conditions.
        code: the same as a Python expression in `N`.
        where: what `q` and `s` are; empty where they do not occur.
        residue: of `N` modulo the period, where the text is about one class alone.
    """

    text: str
    code: str
    where: str = ""
    residue: int | None = None


def write(quasi: QuasiPolynomial, length: int, *, whole: bool) -> Written | None:
    """Write a quasi-polynomial as shortly as it can be read; the class of `length` where that is not short.

    `whole` says that the values are whole numbers. None where the class of `length` is not known.
    """
    options = [one for one in _all_classes(quasi, whole) if len(one.text) <= LONGEST]
    if options:
        return min(options, key=lambda one: len(one.text) + len(one.where))
    residue = length % quasi.period
    form = quasi.forms[residue]
    return None if form is None else Written(*_both(_in_length(form), _LENGTH, whole), residue=residue)


def _all_classes(quasi: QuasiPolynomial, whole: bool) -> Iterator[Written]:
    """Yield ways to write all classes at once."""
    period = quasi.period
    forms = [form for form in quasi.forms if form is not None]
    if len(forms) < period:
        return
    if period <= FEW_CLASSES:
        conditions = [f"N % {period} == {residue}" for residue in range(period - 1)]
        yield _choice([_both(_in_length(form), _LENGTH, whole) for form in forms], conditions, conditions, "")
    if period == 1:
        return
    rest = f"s = N % {period}"
    yield from _in_pieces(forms, _Names(("N", "s"), ("N", f"(N % {period})")), rest, whole)
    names = _Names(("q", "s"), (f"(N // {period})", f"(N % {period})"))
    yield from _in_pieces(_by_quotient(forms), names, f"q = N // {period}, {rest}", whole)


@dataclass(frozen=True, slots=True)
class _Names:
    """Two variables, as they are written in text and in code."""

    text: tuple[str, str]
    code: tuple[str, str]


_LENGTH = _Names(("N", ""), ("N", ""))


def _in_length(form: Quadratic) -> Polynomial:
    return {(2 - power, 0): factor for power, factor in enumerate(form)}


def _by_quotient(forms: Sequence[Quadratic]) -> list[Quadratic]:
    """Return for each residue the coefficients in `q = N // p`: with `N = p q + s`."""
    p = len(forms)
    return [(a * p * p, 2 * a * p * s + b * p, (a * s + b) * s + c) for s, (a, b, c) in enumerate(forms)]


def _in_pieces(values: Sequence[Quadratic], names: _Names, where: str, whole: bool) -> Iterator[Written]:
    """Find a few stretches of residues in which each coefficient is a polynomial of the residue."""
    parts: list[tuple[str, str]] = []
    ends: list[int] = []
    start = 0
    while start < len(values):
        if len(parts) == FEW_PIECES:
            return
        polynomial, start = _stretch(values, start)
        parts.append(_both(polynomial, names, whole))
        ends.append(start)
    conditions = [[f"{variable[1]} < {end}" for end in ends[:-1]] for variable in (names.text, names.code)]
    yield _choice(parts, conditions[0], conditions[1], where)


def _stretch(values: Sequence[Quadratic], start: int) -> tuple[Polynomial, int]:
    """Return the polynomial in both variables of the longest stretch from `start` on, and where it ends."""
    known = range(start, min(start + 3, len(values)))
    curves = [through([(s, values[s][power]) for s in known]) for power in range(3)]
    end = start
    while end < len(values) and all(at(curve, end) == values[end][power] for power, curve in enumerate(curves)):
        end += 1
    polynomial = {
        (2 - power, 2 - degree): factor for power, curve in enumerate(curves) for degree, factor in enumerate(curve)
    }
    return polynomial, end


def _choice(
    parts: Sequence[tuple[str, str]], conditions: Sequence[str], code_conditions: Sequence[str], where: str
) -> Written:
    """Join formulas, each but the last under a condition."""
    texts = [f"{text} if {condition}" for (text, _), condition in zip(parts, conditions, strict=False)]
    texts.append(f"{parts[-1][0]} otherwise" if conditions else parts[-1][0])
    code = parts[-1][1]
    for (_, one), condition in zip(reversed(parts[:-1]), reversed(code_conditions), strict=True):
        code = f"({one} if {condition} else {code})"
    return Written(", ".join(texts), code, where)


def _both(polynomial: Polynomial, names: _Names, whole: bool) -> tuple[str, str]:
    """Return a polynomial over one denominator, as text and as code."""
    terms = {powers: factor for powers, factor in sorted(polynomial.items(), reverse=True) if factor}
    below = lcm(1, *(factor.denominator for factor in terms.values()))
    scaled = [(int(factor * below), powers) for powers, factor in terms.items()]
    text = _sum((factor, _monomial(powers, names.text, "^", " "), " ") for factor, powers in scaled)
    code = _sum((factor, _monomial(powers, names.code, "**", " * "), " * ") for factor, powers in scaled)
    if below == 1:
        return text, f"({code})"
    sign = "//" if whole else "/"
    return f"({text}) / {below}" if len(scaled) > 1 else f"{text} / {below}", f"(({code}) {sign} {below})"


def _monomial(powers: tuple[int, int], names: tuple[str, str], sign: str, times: str) -> str:
    factors = [
        name if power == 1 else f"{name}{sign}{power}" for name, power in zip(names, powers, strict=True) if power
    ]
    return times.join(factors)


def _sum(terms: Iterable[tuple[int, str, str]]) -> str:
    total = ""
    for factor, monomial, times in terms:
        size = abs(factor)
        term = str(size) if not monomial else monomial if size == 1 else f"{size}{times}{monomial}"
        total += (f" {'-' if factor < 0 else '+'} " if total else "-" if factor < 0 else "") + term
    return total or "0"
