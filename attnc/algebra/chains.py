"""Chains of matrix products in attention: every order of taking them, and what each costs.

A product of matrices is one number whatever the order, and its cost is not. In attention a factor may be one for all
heads or differ between them, and one matrix, that of the pairs, is never stored and has only the allowed ones of its
elements computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

Count = int | float | Fraction


@dataclass(frozen=True, slots=True)
class Factor:
    """One matrix of a chain.

    Attributes:
        copies: how many different ones there are: 1 where all heads share it.
        pairs: of the matrix of queries by keys, how many of its elements count; None for what is stored whole.
    """

    name: str
    rows: int
    columns: int
    copies: int = 1
    pairs: Count | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Product:
    """Two neighbours of a chain, multiplied.

    Attributes:
        pairs: how many elements of the result count, where it is the matrix of queries by keys.
    """

    left: Factor | Product
    right: Factor | Product
    pairs: Count | None = None

    @property
    def rows(self) -> int:
        """Rows of the result."""
        return self.left.rows

    @property
    def columns(self) -> int:
        """Columns of the result."""
        return self.right.columns

    @property
    def copies(self) -> int:
        """How many different results there are; heads that share a factor are a divisor of all."""
        return max(self.left.copies, self.right.copies)

    def __str__(self) -> str:
        left, right = (f"({side})" if isinstance(side, Product) else str(side) for side in (self.left, self.right))
        return f"{left} {right}"


def orders(factors: tuple[Factor, ...], pairs: Count | None = None) -> Iterator[Factor | Product]:
    """Yield a chain with its products taken in every order, from the right to the left.

    Args:
        factors: at least one, in the order of the product.
        pairs: how many elements of the whole product count, where it is the matrix of queries by keys.
    """
    if len(factors) == 1:
        yield factors[0]
    for cut in range(1, len(factors)):
        for left in orders(factors[:cut]):
            for right in orders(factors[cut:]):
                yield Product(left, right, pairs)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a chain costs: operations, a multiply-add being two, and elements that are read and written."""

    flops: Count
    elements: Count


def cost(chain: Factor | Product) -> Cost:
    """Return what the products of a chain cost in the order in which they are taken."""
    if isinstance(chain, Factor):
        return Cost(0, 0)
    left, right = cost(chain.left), cost(chain.right)
    flops = 2 * chain.copies * _multiplications(chain)
    moved = sum(_stored(one) for one in (chain.left, chain.right, chain))
    return Cost(left.flops + right.flops + flops, left.elements + right.elements + moved)


def _multiplications(product: Product) -> Count:
    """Return the multiplications of one copy."""
    left, right = product.left, product.right
    if product.pairs is not None:
        return product.pairs * left.columns
    if left.pairs is not None:
        return left.pairs * right.columns
    if right.pairs is not None:
        return left.rows * right.pairs
    return left.rows * left.columns * right.columns


def _stored(matrix: Factor | Product) -> int:
    return 0 if matrix.pairs is not None else matrix.copies * matrix.rows * matrix.columns
