"""A scheme and how often it is applied: what it costs, what its error is, and where it breaks even."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.algebra.bilinear.accuracy import Accuracy, accuracy_of
from attnc.algebra.bilinear.prices import ProductCost, Rates, break_even, cost_of
from attnc.algebra.bilinear.scheme import Scheme


@dataclass(frozen=True, slots=True)
class LeveledScheme:
    """A scheme that was proven exact, and how often it is applied.

    Attributes:
        additions: of blocks of the left factor, of the right factor and of the result, in one level.
        depth: roundings that a term goes through in the additions of one level, at most.
    """

    scheme: Scheme
    levels: int
    additions: tuple[int, int, int]
    depth: int

    @property
    def divisors(self) -> tuple[int, int, int]:
        """What rows, inner size and columns are divided by over all levels."""
        scheme = self.scheme
        return scheme.m**self.levels, scheme.k**self.levels, scheme.n**self.levels

    @property
    def accuracy(self) -> Accuracy:
        """What bounds its error."""
        return accuracy_of(self.scheme, self.depth)

    def cost(self, sizes: tuple[int, int, int], element: int) -> ProductCost:
        """Price a product of these sizes; `element` is the bytes of a number."""
        return cost_of(self.scheme, self.additions, sizes, self.levels, element)

    def break_even(self, rates: Rates) -> float:
        """Return the size of square products from which on it is faster than the library's; infinite: never."""
        return break_even(self.scheme, self.additions, self.levels, rates)

    def gain(self, sizes: tuple[int, int, int], rates: Rates) -> float:
        """Return how many times as fast as the library's product it is expected to be."""
        classical = cost_of(self.scheme, self.additions, sizes, 0, rates.element)
        return classical.seconds_on(rates) / self.cost(sizes, rates.element).seconds_on(rates)
