"""What a bilinear scheme is, and schemes made of others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product

Row = tuple[Fraction, ...]


class SchemeError(ValueError):
    """A scheme that cannot be used.

    Attributes:
        code: kebab-case name of the mistake.
        message: one sentence that goes on after the scheme's name, without a full stop.
        help: how to mend it; empty if there is nothing to say.
        notes: further facts.
    """

    def __init__(self, code: str, message: str, *, help: str = "", notes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.help = help
        self.notes = notes


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to multiply an `m x k` by a `k x n` matrix `A B = C` with `rank` products of sums.

        product[r] = (sum over a of left[r][a] * A[a]) * (sum over b of right[r][b] * B[b])
        C[c]       =  sum over r of out[c][r] * product[r]

    Entries are numbered along rows: `A[i, l]` is `A[i * k + l]`. Entries may be matrices themselves, since no product
    is turned round. That the three matrices mean the product is what `exactness` proves; this class does not ask.

    Attributes:
        left: `rank` rows of `m * k` numbers.
        right: `rank` rows of `k * n` numbers.
        out: `m * n` rows of `rank` numbers.
        source: who found it, or how it was derived.
    """

    m: int
    k: int
    n: int
    left: tuple[Row, ...]
    right: tuple[Row, ...]
    out: tuple[Row, ...]
    name: str = field(default="", compare=False)
    source: str = field(default="", compare=False)

    @property
    def rank(self) -> int:
        """How many products it takes."""
        return len(self.left)

    @property
    def title(self) -> str:
        """`<m, k, n; rank>`, as such schemes are called."""
        return f"<{self.m}, {self.k}, {self.n}; {self.rank}>"

    @property
    def saving(self) -> Fraction:
        """Products of one level as a part of those of the classical product."""
        return Fraction(self.rank, self.m * self.k * self.n)


def make_scheme(
    shape: tuple[int, int, int],
    left: Iterable[Iterable[int | Fraction]],
    right: Iterable[Iterable[int | Fraction]],
    out: Iterable[Iterable[int | Fraction]],
    *,
    name: str = "",
    source: str = "",
) -> Scheme:
    """Make a scheme of numbers. Raises ValueError if the matrices do not have the sizes of the shape."""
    m, k, n = shape
    scheme = Scheme(m, k, n, _exact(left), _exact(right), _exact(out), name=name, source=source)
    rank = scheme.rank
    sizes = ((scheme.left, rank, m * k), (scheme.right, rank, k * n), (scheme.out, m * n, rank))
    for matrix, rows, columns in sizes:
        if len(matrix) != rows or any(len(row) != columns for row in matrix):
            raise ValueError(f"a matrix of a scheme {scheme.title} must have {rows} rows of {columns} numbers")
    return scheme


def _exact(rows: Iterable[Iterable[int | Fraction]]) -> tuple[Row, ...]:
    return tuple(tuple(Fraction(entry) for entry in row) for row in rows)


def classical(m: int, k: int, n: int) -> Scheme:
    """Return the product by definition: `m k n` products, none of sums."""
    terms = tuple(product(range(m), range(k), range(n)))
    left = ((int(a == i * k + inner) for a in range(m * k)) for i, inner, _ in terms)
    right = ((int(b == inner * n + j) for b in range(k * n)) for _, inner, j in terms)
    out = ((int(c == i * n + j) for i, _, j in terms) for c in range(m * n))
    return make_scheme((m, k, n), left, right, out, name="classical", source="the definition of the product")


def compose(outer: Scheme, inner: Scheme, *, name: str = "", source: str = "") -> Scheme:
    """Return the scheme that applies `outer` to blocks and `inner` to the products of blocks (Kronecker product).

    <m1, k1, n1; R1> and <m2, k2, n2; R2> -> <m1 m2, k1 k2, n1 n2; R1 R2>
    """
    m, k, n = outer.m * inner.m, outer.k * inner.k, outer.n * inner.n
    left = _rows(outer.left, inner.left, (outer.k, inner.m, inner.k))
    right = _rows(outer.right, inner.right, (outer.n, inner.k, inner.n))
    by_product = _rows(_transposed(outer.out), _transposed(inner.out), (outer.n, inner.m, inner.n))
    return Scheme(m, k, n, left, right, _transposed(by_product), name=name, source=source)


def _rows(outer: Iterable[Row], inner: Iterable[Row], sizes: tuple[int, int, int]) -> tuple[Row, ...]:
    """Multiply each form over blocks with each over the entries of a block.

    Args:
        outer: forms over matrices of blocks.
        inner: forms over blocks.
        sizes: blocks in a row of blocks; rows and columns of a block.
    """
    across, height, width = sizes
    inner = tuple(inner)
    return tuple(_row(one, two, across, height, width) for one in outer for two in inner)


def _row(outer: Row, inner: Row, across: int, height: int, width: int) -> Row:
    down = len(outer) // across
    places = product(range(down), range(height), range(across), range(width))
    return tuple(outer[i * across + j] * inner[y * width + x] for i, y, j, x in places)


def _transposed(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(zip(*rows, strict=True))


def left_gradient(scheme: Scheme) -> Scheme:
    """Return the scheme of `G @ B.T`, the gradient of `A`: the trace of `A B G.T` is symmetric in the three.

    <m, k, n; R> -> <m, n, k; R>
    """
    right = tuple(_swapped(row, scheme.k, scheme.n) for row in scheme.right)
    m, k, n = scheme.m, scheme.n, scheme.k
    return Scheme(m, k, n, _transposed(scheme.out), right, _transposed(scheme.left), **_gradient_names(scheme, "left"))


def right_gradient(scheme: Scheme) -> Scheme:
    """Return the scheme of `A.T @ G`, the gradient of `B`.

    <m, k, n; R> -> <k, m, n; R>
    """
    left = tuple(_swapped(row, scheme.m, scheme.k) for row in scheme.left)
    m, k, n = scheme.k, scheme.m, scheme.n
    return Scheme(m, k, n, left, _transposed(scheme.out), _transposed(scheme.right), **_gradient_names(scheme, "right"))


def _gradient_names(scheme: Scheme, side: str) -> dict[str, str]:
    return {"name": f"{scheme.name}, gradient of the {side} factor", "source": "the symmetry of the trace of a product"}


def _swapped(row: Row, height: int, width: int) -> Row:
    """Number the entries of a matrix along its columns, that is, those of its transpose along rows."""
    return tuple(row[y * width + x] for x in range(width) for y in range(height))
