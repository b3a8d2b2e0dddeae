"""How far a product by a scheme may be from the exact one.

Write `|X|` for the greatest absolute value of a matrix, `u` for the unit roundoff and `gamma(t) = t u / (1 - t u)`. An
entry of the result is a sum of `out * left * right * A * B`, and each of these terms has met at most

    t = K / k^L  +  L (left depth + right depth + out depth)

roundings when `L` levels leave inner products of `K / k^L` terms to the library: a depth is the longest way of
roundings through the additions of one side, sums that are shared included. So it holds, without terms left out,

    |computed - exact|  <=  gamma(t) * E^L * K / k^L * |A| |B|,
    E = max over c, sum over r of |out[c][r]| * (sum over a of |left[r][a]|) * (sum over b of |right[r][b]|)

Without levels this is the library's usual bound, `gamma(K) K |A| |B|`. It is the
bound of Bini and Lotti (1980) and of Higham (Accuracy and Stability of Numerical Algorithms, chapter 23) for all
schemes, as in Ballard, Benson, Druinsky, Lipshitz and Schwartz (Improving the Numerical Stability of Fast Matrix
Multiplication, 2016). Strassen's scheme has `E = 12`, Winograd's 18.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from attnc.algebra.bilinear.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What bounds the error of a scheme.

    Attributes:
        inner: the scheme's `k`.
        growth: `E`.
        depth: roundings of one level.
    """

    inner: int
    growth: Fraction
    depth: int

    def bound(
        self, inner: int, levels: int, unit: float, *, factor_unit: float = 0.0, output_unit: float = 0.0
    ) -> float:
        """Return a bound on `|computed - exact| / (|A| |B|)`.

        Args:
            inner: columns of `A`; what the levels do not divide is multiplied by the library.
            levels: how often the scheme is applied; 0: the library's product.
            unit: unit roundoff of the sums, half the distance from 1 to the next number.
            factor_unit: that of a smaller type which factors and products of blocks are rounded to; 0: they are not.
            output_unit: that of a smaller type which the result is rounded to; 0: it is not.
        """
        base = self.inner**levels
        whole = inner // base if levels else inner
        rest = inner - whole * base
        terms = max(whole + levels * self.depth, rest) + 1
        size = float(self.growth**levels) * whole + rest if levels else float(inner)
        error = max(_relative(terms, unit, factor_unit) * size, _relative(inner, unit, factor_unit) * inner)
        return error + output_unit * (inner + error)

    def factor(self, levels: int) -> float:
        """Return how many times the bound of the library's product it is, for a large inner size."""
        return float((self.growth / self.inner**2) ** levels)


def accuracy_of(scheme: Scheme, depth: int) -> Accuracy:
    """Return what bounds the error of a scheme whose level puts a term through `depth` roundings."""
    lefts, rights = ([sum(map(abs, row)) for row in rows] for rows in (scheme.left, scheme.right))
    products = [one * two for one, two in zip(lefts, rights, strict=True)]
    growth = max(sum(abs(entry) * size for entry, size in zip(row, products, strict=True)) for row in scheme.out)
    return Accuracy(scheme.k, Fraction(growth), depth)


def _relative(terms: int, unit: float, factor_unit: float) -> float:
    """Return the error of a term after `terms` roundings, and three more to a smaller type."""
    gamma = terms * unit / (1 - terms * unit) if terms * unit < 1 else float("inf")
    return float((1 + gamma) * (1 + factor_unit) ** 3 - 1)
