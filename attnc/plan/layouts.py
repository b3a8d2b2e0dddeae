"""In which orders of positions the pairs of a mask could lie dense: candidates, each proven to hold all pairs."""

from __future__ import annotations

import math
from itertools import combinations

from attnc.algebra.congruences import KEY, QUERY, PairSet
from attnc.algebra.coordinates import IDENTITY, PLAIN, CoordinateMap, Layout, residue, runs
from attnc.ir.nodes import And, Expr, Index, Or
from attnc.plan.grids import grid_layout, mask_divisors

MOST_PERIODS = 24
"""Periods that are tried for one mask; the smallest first."""

LONGEST_PERIOD = 1 << 20
"""Longer periods than sequences are no use."""

SPARSE = 1 / 8
"""Where a layout can hold no more of all pairs, they are taken to be dense in it."""

MOST_DENSE = 0.75
"""Leaving out fewer positions than a quarter is not worth walking them in runs."""


def candidate_layouts(pairs: PairSet, mask: Expr) -> tuple[Layout, ...]:
    """Return layouts other than the plain one whose positions hold every pair of a mask.

    Those that can hold the fewest pairs come first. Residue classes are those of the longest periods. Runs are the
    shortest ones for queries, for keys and for both.
    The last one may be a grid, whose keys are gathered: it is looked for where no other order makes pairs dense.
    """
    periods = _periods(mask)
    found = [
        residue(period, ahead)
        for period in sorted(periods, reverse=True)
        if (ahead := pairs.key_ahead(mask, period)) is not None
    ][:2]
    queries, keys = (_shortest_runs(pairs, mask, index, periods) for index in (QUERY, KEY))
    for layout in (Layout(IDENTITY, keys), Layout(queries, IDENTITY), Layout(queries, keys)):
        if layout not in found and layout != PLAIN:
            found.append(layout)
    found.sort(key=share)
    dense = any(share(layout) <= SPARSE for layout in found) or _has_parts(mask) or pairs.contiguous(mask)
    grid = None if dense else grid_layout(pairs, mask)
    return tuple(found) if grid is None or grid in found else (*found, grid)


def _has_parts(mask: Expr) -> bool:
    """Tell whether a mask is a disjunction, whose parts are looked at by themselves."""
    return isinstance(mask, Or) or (isinstance(mask, And) and any(isinstance(one, Or) for one in mask.operands))


def share(layout: Layout) -> float:
    """Return which share of all pairs a layout can hold: of many pairs in few positions, the tiles are full."""
    if layout.classes > 1:
        return 1 / layout.classes
    return math.prod(one.length / one.period for one in (layout.query, layout.key))


def _shortest_runs(pairs: PairSet, mask: Expr, index: Index, periods: tuple[int, ...]) -> CoordinateMap:
    """Return the map that leaves out most positions; the identity if none leaves out enough."""
    best, share = IDENTITY, MOST_DENSE
    for period in periods:
        found = pairs.stretch(mask, index, period)
        if found is not None and (found[1] - found[0] + 1) / period < share:
            best, share = runs(period, found[0], found[1] - found[0] + 1), (found[1] - found[0] + 1) / period
    return best


def _periods(mask: Expr) -> tuple[int, ...]:
    """Return divisors that a mask mentions, with their common multiples and divisors, in rising order."""
    usual = [period for period in mask_divisors(mask) if 1 < period <= LONGEST_PERIOD][:MOST_PERIODS]
    both = {combined for pair in combinations(usual, 2) for combined in (math.lcm(*pair), math.gcd(*pair))}
    every = math.lcm(*usual) if usual else 1
    return tuple(sorted(p for p in {*usual, *both, every} if 1 < p <= LONGEST_PERIOD)[:MOST_PERIODS])
