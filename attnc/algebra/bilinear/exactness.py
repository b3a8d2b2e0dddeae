"""Whether a scheme multiplies matrices, decided in integers, and what is wrong with one that does not.

The three matrices of a scheme mean the tensor `T[a, b, c] = sum over r of left[r][a] * right[r][b] * out[c][r]`, and
the product of matrices means one with a 1 at each `A[i, l] * B[l, j]` of `C[i, j]`. A scheme is exact for every ring if
and only if the two are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from attnc.algebra.bilinear.scheme import Row, Scheme, SchemeError

MOST_TERMS = 1 << 20
"""Products of three numbers that a proof may take: about a third of a second. Strassen's scheme thrice takes 32,768."""

MOST_BITS = 64
"""Bits of a common denominator of one matrix."""

_Sparse = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True, slots=True)
class WrongEntry:
    """The first coefficient that is not what the product needs.

    Attributes:
        left: row and column in `A`; likewise `right` in `B` and `out` in `C`.
        is_needed: whether the product needs this term once; it must not have it otherwise.
        found: the coefficient that the scheme gives it, as `p/q`.
    """

    left: tuple[int, int]
    right: tuple[int, int]
    out: tuple[int, int]
    is_needed: bool
    found: str

    def __str__(self) -> str:
        a, b, c = (f"{name}[{i}, {j}]" for name, (i, j) in zip("ABC", (self.left, self.right, self.out), strict=True))
        return f"the coefficient of {a} * {b} in {c} is {self.found} and must be {int(self.is_needed)}"


def check_exact(scheme: Scheme) -> None:
    """Prove that a scheme multiplies matrices.

    Raises:
        SchemeError: it does not, or the proof would take too long. Files that follow another convention, or hold
            modulo 2 only, are told apart from those that are merely wrong.
    """
    terms = count_terms(scheme)
    if terms > MOST_TERMS:
        raise SchemeError(
            "scheme-too-large",
            f"has {terms} terms to check, more than {MOST_TERMS}",
            help="give the scheme of one level; levels compose by themselves",
        )
    for row in (*scheme.left, *scheme.right, *zip(*scheme.out, strict=True)):
        if not any(row):
            raise SchemeError("scheme-wrong", "has a product that takes no part", help="leave that product out")
    wrong = first_wrong(scheme)
    if wrong is not None:
        raise _diagnosis(scheme, wrong)


def count_terms(scheme: Scheme) -> int:
    """Return how many products of three numbers other than 0 the tensor of a scheme is summed up from."""
    by_product = zip(scheme.left, scheme.right, zip(*scheme.out, strict=True), strict=True)
    return sum(math.prod(sum(map(bool, row)) for row in rows) for rows in by_product)


def first_wrong(scheme: Scheme, *, modulo: int = 0) -> WrongEntry | None:
    """Return the first coefficient that differs from the product's, in the order of `A`, `B`, `C`; None if none does.

    Args:
        scheme: with sizes that fit each other.
        modulo: compare remainders by this number, if no denominator has a factor in common with it; 0: compare numbers.

    Raises:
        SchemeError: the numbers have no common denominator of a reasonable size.
    """
    left, right, out = (_over_integers(rows) for rows in (scheme.left, scheme.right, zip(*scheme.out, strict=True)))
    unit = left[1] * right[1] * out[1]
    by_entry = _by_entry(left[0], scheme.m * scheme.k)
    for a, products in enumerate(by_entry):
        found = _slice(products, right[0], out[0], scheme.m * scheme.n)
        i, inner = divmod(a, scheme.k)
        needed = {(inner * scheme.n + j) * scheme.m * scheme.n + i * scheme.n + j for j in range(scheme.n)}
        for place in sorted(found.keys() | needed):
            difference = found.get(place, 0) - unit * (place in needed)
            if difference % modulo if modulo else difference:
                b, c = divmod(place, scheme.m * scheme.n)
                return WrongEntry(
                    (i, inner),
                    divmod(b, scheme.n),
                    divmod(c, scheme.n),
                    place in needed,
                    _ratio(found.get(place, 0), unit),
                )
    return None


def _over_integers(rows: Iterator[Row] | tuple[Row, ...]) -> tuple[_Sparse, int]:
    """Return the numbers other than 0 of each row over a common denominator, and that denominator."""
    rows = tuple(rows)
    unit = 1
    for row in rows:
        for entry in row:
            unit = math.lcm(unit, entry.denominator)
            if unit.bit_length() > MOST_BITS:
                raise SchemeError("scheme-too-large", f"has a common denominator of more than {MOST_BITS} bits")
    sparse = (tuple((place, int(entry * unit)) for place, entry in enumerate(row) if entry) for row in rows)
    return tuple(sparse), unit


def _by_entry(left: _Sparse, entries: int) -> list[list[tuple[int, int]]]:
    """Return the products that each entry of `A` takes part in, with its coefficient there."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(entries)]
    for r, row in enumerate(left):
        for a, coefficient in row:
            found[a].append((r, coefficient))
    return found


def _slice(products: list[tuple[int, int]], right: _Sparse, out: _Sparse, outputs: int) -> dict[int, int]:
    """Return the tensor's coefficients for one entry of `A`, by `b * outputs + c`."""
    found: dict[int, int] = {}
    for r, u in products:
        for b, v in right[r]:
            base, uv = b * outputs, u * v
            for c, w in out[r]:
                found[base + c] = found.get(base + c, 0) + uv * w
    return found


def _ratio(numerator: int, denominator: int) -> str:
    common = math.gcd(numerator, denominator)
    p, q = numerator // common, denominator // common
    return str(p) if q == 1 else f"{p}/{q}"


def _diagnosis(scheme: Scheme, wrong: WrongEntry) -> SchemeError:
    """Say why a scheme is not exact: another order of entries, modulo 2 only, or simply wrong."""
    for turned in product((False, True), repeat=3):
        other = _turned(scheme, turned) if any(turned) else scheme
        names = [name for name, is_turned in zip("UVW", turned, strict=True) if is_turned]
        if names and first_wrong(other) is None:
            return _transposed_convention(names)
    for turned in product((False, True), repeat=3):
        other = _turned(scheme, turned) if any(turned) else scheme
        if _is_odd(scheme) and first_wrong(other, modulo=2) is None:
            return _modulo_two([name for name, is_turned in zip("UVW", turned, strict=True) if is_turned], wrong)
    return SchemeError(
        "scheme-wrong",
        "does not multiply matrices",
        notes=(str(wrong),),
        help="entries count along rows: row i * k + l of U is A[i, l], likewise V and B, W and C",
    )


def _transposed_convention(names: list[str]) -> SchemeError:
    if names == ["W"]:
        message = "computes the transposed product, as AlphaTensor's files do"
        mend = "reorder the rows of W: row i * n + j belongs to C[i, j], and here it is row j * m + i"
    else:
        message = f"counts the entries of {' and '.join(names)} down columns"
        mend = f"reorder the rows of {' and '.join(names)}: entries count along rows"
    return SchemeError("scheme-transposed", message, help=mend)


def _modulo_two(names: list[str], wrong: WrongEntry) -> SchemeError:
    also = f" (with the entries of {' and '.join(names)} counted down columns)" if names else ""
    return SchemeError(
        "scheme-modulo-two",
        f"is exact modulo 2 only{also}",
        notes=(f"over the rationals {wrong}",),
        help="a scheme of characteristic 2 multiplies no matrices of floats; use one over the integers or rationals",
    )


def _is_odd(scheme: Scheme) -> bool:
    rows = (*scheme.left, *scheme.right, *scheme.out)
    return all(entry.denominator % 2 for row in rows for entry in row)


def _turned(scheme: Scheme, turned: tuple[bool, ...]) -> Scheme:
    """Return the scheme with the entries of `A`, `B` or `C` counted down columns instead of along rows."""
    left, right, out = scheme.left, scheme.right, scheme.out
    if turned[0]:
        left = tuple(_reordered(row, scheme.m, scheme.k) for row in left)
    if turned[1]:
        right = tuple(_reordered(row, scheme.k, scheme.n) for row in right)
    if turned[2]:
        out = tuple(out[j * scheme.m + i] for i in range(scheme.m) for j in range(scheme.n))
    return replace(scheme, left=left, right=right, out=out)


def _reordered(row: Row, height: int, width: int) -> Row:
    return tuple(row[x * height + y] for y in range(height) for x in range(width))
