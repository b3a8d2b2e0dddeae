"""Write the schemes that attnc carries, as files in `schemes/`.

    python tools/derive_schemes.py

Only the factors of each product are written down here. What each entry of the result takes of the products follows: it
is the solution of linear equations over the rationals, which exists if and only if there is such a scheme. Each file is
proven exact before it is written.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from attnc.algebra.bilinear.exactness import check_exact
from attnc.algebra.bilinear.reading import write_scheme
from attnc.algebra.bilinear.scheme import Scheme, compose, make_scheme

FOLDER = Path(__file__).resolve().parent.parent / "schemes"

STRASSEN = """
(a11 + a22) (b11 + b22)
(a21 + a22) b11
a11 (b12 - b22)
a22 (b21 - b11)
(a11 + a12) b22
(a21 - a11) (b11 + b12)
(a12 - a22) (b21 + b22)
"""
WINOGRAD = """
a11 b11
a12 b21
(a12 - a21 - a22 + a11) b22
a22 (b11 - b12 + b22 - b21)
(a21 + a22) (b12 - b11)
(a21 + a22 - a11) (b22 - b12 + b11)
(a11 - a21) (b22 - b12)
"""
LADERMAN = """
(a11 + a12 + a13 - a21 - a22 - a32 - a33) b22
(a11 - a21) (b22 - b12)
a22 (b12 - b11 + b21 - b22 - b23 - b31 + b33)
(a21 - a11 + a22) (b11 - b12 + b22)
(a21 + a22) (b12 - b11)
a11 b11
(a31 - a11 + a32) (b11 - b13 + b23)
(a31 - a11) (b13 - b23)
(a31 + a32) (b13 - b11)
(a11 + a12 + a13 - a22 - a23 - a31 - a32) b23
a32 (b13 - b11 + b21 - b22 - b23 - b31 + b32)
(a32 - a13 + a33) (b22 + b31 - b32)
(a13 - a33) (b22 - b32)
a13 b31
(a32 + a33) (b32 - b31)
(a22 - a13 + a23) (b23 + b31 - b33)
(a13 - a23) (b23 - b33)
(a22 + a23) (b33 - b31)
a12 b21
a23 b32
a21 b13
a31 b12
a33 b33
"""

_TERM = re.compile(r"([+-]?)\s*([ab])(\d)(\d)")


def main() -> None:
    """Derive every scheme and write its file."""
    for scheme in derive_all():
        check_exact(scheme)
        path = FOLDER / f"{scheme.name}.json"
        path.write_text(write_scheme(scheme), encoding="utf-8")
        print(f"{path.name}: {scheme.title}")


def derive_all() -> tuple[Scheme, ...]:
    """Return the schemes that attnc carries."""
    strassen = from_products(
        STRASSEN,
        2,
        name="strassen",
        source="V. Strassen, Gaussian Elimination is not Optimal, Numerische Mathematik 13 (1969)",
    )
    winograd = from_products(
        WINOGRAD,
        2,
        name="winograd",
        source="S. Winograd, On Multiplication of 2 x 2 Matrices, Linear Algebra and its Applications 4 (1971)",
    )
    laderman = from_products(
        LADERMAN,
        3,
        name="laderman",
        source="J. D. Laderman, A Noncommutative Algorithm for Multiplying 3 x 3 Matrices Using 23 Multiplications, "
        "Bulletin of the American Mathematical Society 82 (1976)",
    )
    twice = compose(strassen, strassen, name="strassen_twice", source="the Kronecker product of strassen with itself")
    return strassen, winograd, laderman, twice


def from_products(text: str, size: int, *, name: str, source: str) -> Scheme:
    """Return the scheme of square matrices with these products. Raises ValueError if they do not suffice."""
    left, right = [], []
    for line in text.strip().splitlines():
        terms = _TERM.findall(line)
        forms = {side: [0] * size**2 for side in "ab"}
        for sign, side, i, j in terms:
            forms[side][(int(i) - 1) * size + int(j) - 1] = -1 if sign == "-" else 1
        left.append(forms["a"])
        right.append(forms["b"])
    return make_scheme((size,) * 3, left, right, _outputs(left, right, size), name=name, source=source)


def _outputs(left: list[list[int]], right: list[list[int]], size: int) -> list[list[Fraction]]:
    """Solve `sum over r of x[r] * left[r][a] * right[r][b] = (C[c] needs A[a] * B[b])` for each entry `c`."""
    entries, rank = size**2, len(left)
    rows = []
    for a in range(entries):
        for b in range(entries):
            (i, inner), (other, j) = divmod(a, size), divmod(b, size)
            needed = [int(inner == other and c == i * size + j) for c in range(entries)]
            rows.append([*(Fraction(left[r][a] * right[r][b]) for r in range(rank)), *map(Fraction, needed)])
    pivots: list[int] = []
    for column in range(rank):
        pivot = next((y for y in range(len(pivots), len(rows)) if rows[y][column]), None)
        if pivot is None:
            raise ValueError(f"product {column + 1} is a sum of others")
        top = len(pivots)
        rows[top], rows[pivot] = rows[pivot], rows[top]
        rows[top] = [entry / rows[top][column] for entry in rows[top]]
        for y, row in enumerate(rows):
            if y != top and row[column]:
                rows[y] = [one - row[column] * two for one, two in zip(row, rows[top], strict=True)]
        pivots.append(column)
    if any(any(row) for row in rows[rank:]):
        raise ValueError("these products do not multiply matrices")
    return [[rows[r][rank + c] for r in range(rank)] for c in range(entries)]


if __name__ == "__main__":
    main()
