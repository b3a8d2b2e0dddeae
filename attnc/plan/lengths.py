"""From which length on which way to compute a mask is the cheapest.

Classes of a residue layout have few rows where the sequence is short, and a second launch costs as much as it does for
a long one: what pays for thousands of positions need not pay for hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from attnc.ir.program import Attention
from attnc.plan.cost import estimate_passes
from attnc.plan.kernel_plan import Choice

SHORTEST = 128
"""Length from which costs are compared: of shorter sequences a tile or two are all there is."""

STEP = 64
"""A limit is a multiple of it."""

WORTH = 0.9
"""Another way is worth its code where it costs less than this share of what the one for long sequences costs."""

MOST_SHORT = 2
"""So many ways besides that for long sequences a plan has; those for the shortest ones are left out first. The one for
long sequences is not taken up again below another: there, little is to be won."""

MOST_COMPARED = 3
"""So many of the choices that are the cheapest for long sequences are compared for shorter ones, and plain order."""

HOPELESS = 8
"""An order other than the plain one that costs so many times as much for long sequences is not compared."""

Shorter = tuple[int, tuple[Choice, ...]]
"""A limit, and the choices with what they cost there: the one to take first, the others by rising cost."""


def cheapest_by_length(attention: Attention, choices: Sequence[Choice], length: int) -> tuple[Shorter, ...]:
    """Return which choices pay up to which length, by rising limits; empty where the first one pays always.

    Args:
        attention: simplified.
        choices: the one for sequences of `length` first.
        length: the longest that is asked for.
    """
    compared = [choice for choice in choices[:MOST_COMPARED] if choice.cost <= HOPELESS * choices[0].cost]
    plain = (one for one in choices if one not in compared and all(part.layout.is_plain for part in one.passes))
    costs = _Costs(attention, (*compared, *plain))
    found: list[Shorter] = []
    current, above = 0, length
    for here in reversed([SHORTEST << power for power in range((length // SHORTEST).bit_length())]):
        best = costs.best(here)
        if best not in (0, current) and here < above and len(found) < MOST_SHORT:
            limit = _crossover(costs, (best, current), here, above)
            found.append((limit, costs.choices_at(limit, best)))
            current = best
        above = here
    return tuple(reversed(found))


def _crossover(costs: _Costs, pair: tuple[int, int], low: int, high: int) -> int:
    """Return about the longest sequence for which the first of two choices is the cheaper one: so it is at `low`."""
    best, other = pair
    while high - low > STEP:
        middle = (low + high) // 2 // STEP * STEP
        if costs.of(best, middle) < costs.of(other, middle):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class _Costs:
    """What each choice is expected to cost, asked for once a length."""

    attention: Attention
    choices: Sequence[Choice]
    known: dict[tuple[int, int], float] = field(default_factory=dict)

    def of(self, number: int, length: int) -> float:
        if (number, length) not in self.known:
            passes = self.choices[number].passes
            self.known[number, length] = estimate_passes(self.attention, passes, length).cost
        return self.known[number, length]

    def best(self, length: int) -> int:
        """Return the cheapest choice; the first one unless another is clearly cheaper."""
        best = min(range(len(self.choices)), key=lambda number: self.of(number, length))
        return best if self.of(best, length) < WORTH * self.of(0, length) else 0

    def choices_at(self, length: int, first: int) -> tuple[Choice, ...]:
        others = (number for number in range(len(self.choices)) if number != first)
        rest = sorted(others, key=lambda number: self.of(number, length))
        return tuple(replace(self.choices[number], cost=self.of(number, length)) for number in (first, *rest))
