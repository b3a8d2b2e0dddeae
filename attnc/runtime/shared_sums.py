"""Sums that linear forms have in common, each formed once.

The forms of a scheme, such as `a21 + a22`, `a21 + a22 - a11` and `a12 - (a21 + a22 - a11)`, share sums. The pair of
terms that the most forms contain, up to a common factor, becomes a variable of its own, until no two forms share one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Generic, TypeVar

Coefficient = TypeVar("Coefficient", bound=float)

ATTEMPTS = 24
"""Orders of pairs that are equally common which are tried; the fewest additions win."""

FACTOR_ROUNDINGS = 4
"""Roundings that a factor other than 1 and -1 stands for: its own, those of what it is a quotient of, and a product."""

MOST_SHARED = 4000
"""Terms of all forms together beyond which only one order is tried."""


@dataclass(frozen=True, slots=True)
class SharedSums(Generic[Coefficient]):
    """Linear forms over variables `0 .. inputs - 1` and over sums that they share.

    Attributes:
        inputs: how many variables there are.
        shared: `(first, second, factor)`: variable `inputs + position` is `first + factor * second`.
        forms: each form as `(variable, coefficient)`, the variables ascending.
    """

    inputs: int
    shared: tuple[tuple[int, int, Coefficient], ...]
    forms: tuple[tuple[tuple[int, Coefficient], ...], ...]

    @property
    def additions(self) -> int:
        """Additions that all forms take together."""
        return len(self.shared) + sum(max(0, len(form) - 1) for form in self.forms)

    @property
    def depths(self) -> tuple[int, ...]:
        """Roundings on the longest way from a variable to each form: of additions and of factors."""
        depth = [0] * self.inputs
        for first, second, factor in self.shared:
            depth.append(1 + max(depth[first], depth[second] + _roundings(factor)))
        return tuple(
            max((depth[variable] + _roundings(factor) for variable, factor in form), default=0) + max(0, len(form) - 1)
            for form in self.forms
        )


@lru_cache(maxsize=256)
def share_sums(forms: tuple[tuple[Coefficient, ...], ...]) -> SharedSums[Coefficient]:
    """Find common sums of linear forms, given as rows of coefficients of the variables."""
    terms = sum(1 for form in forms for coefficient in form if coefficient)
    tries = [_shared_in_order(forms, seed) for seed in range(ATTEMPTS if terms <= MOST_SHARED else 1)]
    return min(tries, key=lambda found: found.additions)


def _shared_in_order(forms: Sequence[Sequence[Coefficient]], seed: int) -> SharedSums[Coefficient]:
    """Share greedily; pairs that are equally common come in the order of variables (seed 0), or in a random one."""
    rows = [{place: coefficient for place, coefficient in enumerate(form) if coefficient} for form in forms]
    inputs = len(forms[0])
    shared: list[tuple[int, int, Coefficient]] = []
    random = Random(seed)
    counts: Counter[tuple[int, int, Coefficient]] = Counter()
    for row in rows:
        counts.update(_pairs(row))
    while counts:
        most = max(counts.values())
        if most < 2:
            break
        common = sorted(pair for pair, count in counts.items() if count == most)
        pair = common[0] if seed == 0 else random.choice(common)
        first, second, factor = pair
        variable = inputs + len(shared)
        shared.append(pair)
        for row in rows:
            if first in row and second in row and row[second] / row[first] == factor:
                counts.subtract(_pairs(row))
                row[variable] = row.pop(first)
                del row[second]
                counts.update(_pairs(row))
    return SharedSums(inputs, tuple(shared), tuple(tuple(sorted(row.items())) for row in rows))


def _roundings(factor: float) -> int:
    return FACTOR_ROUNDINGS if abs(factor) != 1 else 0


def _pairs(row: dict[int, Coefficient]) -> list[tuple[int, int, Coefficient]]:
    places = sorted(row)
    return [
        (one, two, row[two] / row[one])  # type: ignore[misc]
        for position, one in enumerate(places)
        for two in places[position + 1 :]
    ]
