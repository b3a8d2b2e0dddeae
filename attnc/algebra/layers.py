"""What each position adds to the pairs of a mask, and from where on that is regular.

Going from `n` to `n + 1` positions adds a *layer*: the keys that the new query sees and the older queries that see the
new key. Both are sets of numbers with one parameter. In a residue class of a suitable period, every bound in them is a
straight line in `n`; past the last crossing of two such lines nothing but the length of the pieces changes, so layers
are linear in `n` there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import ceil, floor, gcd, lcm

import islpy as isl

from attnc.algebra.index_sets import OutOfBudgetError
from attnc.algebra.linear import Floor, Linear, NoClosedFormError, linear_form

MOST_LAYERS = 8_000
"""Layers that are counted, of all heads together."""

LONGEST_WHOLE = 4_000
"""All pairs of a longer length are counted block by block."""

MOST_IN_BLOCK = 600
"""Layers that are counted of a block; where that does not do, its pairs are."""

COORDINATES = ("i", "j", "N")


@dataclass(frozen=True, slots=True)
class Line:
    """A bound `x = slope * n + c`, with `c` between two numbers that depend on residues."""

    slope: Fraction
    low: Fraction
    high: Fraction


@dataclass(frozen=True, slots=True)
class Shape:
    """Where layers are regular: outside of `zones`, they are linear in each residue class of `period`.

    Attributes:
        zones: first and last position of each stretch in which two bounds cross, in order, apart from each other.
    """

    period: int
    zones: tuple[tuple[int, int], ...]

    @property
    def start(self) -> int:
        """From here on layers are regular for good."""
        return self.zones[-1][1] + 1

    def effort(self, first: int, end: int) -> int:
        """Return how many layers are looked at to add up those of `first .. end - 1`."""
        irregular = sum(max(0, min(high + 1, end) - max(low, first)) for low, high in self.zones)
        return irregular + 3 * self.period * (len(self.zones) + 1)

    def joined(self, other: Shape) -> Shape:
        """Return where the sums of two kinds of layers are regular."""
        return Shape(lcm(self.period, other.period), _merged([*self.zones, *other.zones]))


def _merged(zones: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(zones):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class _Spread:
    """An affine form without its floors: slopes, and between which constants it lies; `period` makes floors affine."""

    slopes: tuple[Fraction, Fraction, Fraction]
    low: Fraction
    high: Fraction
    period: int


def shape_of(pairs: isl.Set) -> Shape | None:
    """Return where the layers of a set of pairs `[i, j]` without parameters are regular.

    None where isl cannot write the set with explicit divisions.
    """
    try:
        spreads = list(dict.fromkeys(_spreads(pairs)))
    except NoClosedFormError:
        return None
    base = lcm(1, *(one.period for one in spreads))
    period, zones = base, [(Fraction(0), Fraction(0))]
    for across, along in ((1, 0), (0, 1)):  # the keys of a query, the queries of a key
        lines = {Line(Fraction(0), Fraction(0), Fraction(0)), Line(Fraction(1), Fraction(0), Fraction(0))}
        for one in spreads:
            slope, drift = one.slopes[across], one.slopes[along]
            if slope:
                lines.add(Line(-drift / slope, *sorted((-one.low / slope, -one.high / slope))))
                step, move = abs(int(slope * base)), abs(int(drift * base))
                period = lcm(period, base * (step // gcd(step, move)))
            elif drift:
                first, last = sorted((-one.low / drift, -one.high / drift))
                zones.append((first, last))
        zones.extend(_crossings(lines))
    whole = [(max(0, floor(first)), ceil(last)) for first, last in zones if last >= 0]
    return Shape(period, _merged(whole))


def _crossings(lines: Iterable[Line]) -> Iterator[tuple[Fraction, Fraction]]:
    for one, other in combinations(lines, 2):
        if one.slope != other.slope:
            rate = one.slope - other.slope
            first, last = sorted(((other.low - one.high) / rate, (other.high - one.low) / rate))
            yield first, last


def _spreads(pairs: isl.Set) -> Iterator[_Spread]:
    for basic in pairs.compute_divs().get_basic_sets():
        for constraint in basic.get_constraints():
            form, denominator = linear_form(constraint.get_aff())
            yield _spread(form, denominator)


def _spread(form: Linear, divisor: int) -> _Spread:
    """Return `form / divisor` with its floors let go: `floor(v)` lies in `(v - 1, v]`."""
    slopes = [Fraction(0), Fraction(0), Fraction(0)]
    low = high = Fraction(form.constant)
    period = 1
    for unit, factor in form.terms:
        if isinstance(unit, Floor):
            inner = _spread(unit.numerator, unit.divisor)
            period = lcm(period, inner.period)
            slopes = [total + factor * slope for total, slope in zip(slopes, inner.slopes, strict=True)]
            ends = sorted((factor * (inner.low - 1), factor * inner.high))
            low, high = low + ends[0], high + ends[1]
        else:
            slopes[COORDINATES.index(unit)] += factor
    moves = (slopes[0] / divisor, slopes[1] / divisor, slopes[2] / divisor)
    return _Spread(moves, low / divisor, high / divisor, period * divisor)


class Layers:
    """Counts what each length adds, summed over several sets."""

    def __init__(self, sets: Sequence[isl.Set]) -> None:
        self.sets = sets
        self.sides = [side for pairs in sets for side in _sides(pairs)]
        self.known: dict[int, int] = {}
        self.blocks: dict[tuple[int, int], int] = {}

    def at(self, number: int) -> int:
        """Return the pairs that position `number` adds.

        Raises:
            OutOfBudgetError: the isl budget is exhausted, or too many layers were counted.
        """
        if number not in self.known:
            if len(self.known) * len(self.sets) >= MOST_LAYERS:
                raise OutOfBudgetError
            self.known[number] = sum(_count(_fixed(side, number)) for side in self.sides)
        return self.known[number]

    def before(self, shape: Shape) -> int:
        """Return the pairs of length `shape.start`, from few layers where it is long.

        Raises:
            OutOfBudgetError: as above, or the layers are not regular where they should be.
        """
        return add_up(self.at, 0, shape.start, shape)

    def up_to(self, length: int, block: int = 0) -> int:
        """Return the pairs of a length; long ones block by block, if `block` is given.

        Raises:
            OutOfBudgetError: as above.
        """
        if length <= LONGEST_WHOLE or not block:
            return sum(count_square(pairs, length) for pairs in self.sets)
        return sum(self._block(first, min(first + block, length)) for first in range(0, length, block))

    def _block(self, first: int, end: int) -> int:
        """Add the layers `first .. end - 1`."""
        if (first, end) not in self.blocks:
            self.blocks[first, end] = sum(_block_of(pairs, first, end) for pairs in self.sets)
        return self.blocks[first, end]


def add_up(at: Callable[[int], int], first: int, end: int, shape: Shape) -> int:
    """Add layers `first .. end - 1`: those of zones one by one, the rest as arithmetic progressions.

    Raises:
        OutOfBudgetError: they are not regular where they should be.
    """
    total, position = 0, first
    for low, high in shape.zones:
        if high >= position and low < end:
            total += _regular(at, position, max(position, low), shape.period)
            total += sum(at(number) for number in range(max(position, low), min(high + 1, end)))
            position = min(high + 1, end)
    return total + _regular(at, position, end, shape.period)


def _regular(at: Callable[[int], int], first: int, end: int, period: int) -> int:
    if end - first <= 3 * period:
        return sum(at(number) for number in range(first, end))
    total = 0
    for number in range(first, first + period):
        terms = (end - 1 - number) // period + 1
        value, step = at(number), at(number + period) - at(number)
        if at(number + (terms - 1) * period) != value + (terms - 1) * step:
            raise OutOfBudgetError
        total += terms * value + step * (terms * (terms - 1) // 2)
    return total


def _block_of(pairs: isl.Set, first: int, end: int) -> int:
    """Count the pairs whose larger position lies in a block, where divisions by its length are often constant."""
    context, total = pairs.get_ctx(), 0
    for inside, layer, position in (
        (f"{first} <= i < {end} and 0 <= j <= i", "i = n", 0),
        (f"{first} <= j < {end} and 0 <= i < j", "j = n", 1),
    ):
        box = isl.Set.read_from_str(context, f"{{ [i, j] : {inside} }}")
        within = pairs.gist(box).coalesce()
        shape = shape_of(within)
        if shape is None or shape.effort(first, end) > MOST_IN_BLOCK:
            total += _count(pairs.intersect(box))
            continue
        rows = isl.Set.read_from_str(context, f"[n] -> {{ [i, j] : {layer} and {inside} }}")
        side = within.intersect(rows).project_out(isl.dim_type.set, position, 1).coalesce()
        total += add_up(lambda number, side=side: _count(_fixed(side, number)), first, end, shape)  # type: ignore[misc]
    return total


def _sides(pairs: isl.Set) -> list[isl.Set]:
    context = pairs.get_ctx()
    keys = isl.Set.read_from_str(context, "[n] -> { [i, j] : i = n and 0 <= j <= n }")
    queries = isl.Set.read_from_str(context, "[n] -> { [i, j] : j = n and 0 <= i < n }")
    sides = [
        pairs.intersect(keys).project_out(isl.dim_type.set, 0, 1).coalesce(),
        pairs.intersect(queries).project_out(isl.dim_type.set, 1, 1).coalesce(),
    ]
    return [side for side in sides if not side.is_empty()]


def count_square(pairs: isl.Set, length: int) -> int:
    """Return how many pairs of a set, at most with the parameter `N`, lie in `0 <= i, j < length`."""
    square = isl.Set.read_from_str(pairs.get_ctx(), f"[N] -> {{ [i, j] : N = {length} and 0 <= i < N and 0 <= j < N }}")
    inside = pairs.intersect(square)
    return _count(inside.project_out(isl.dim_type.param, 0, inside.dim(isl.dim_type.param)))


def _fixed(points: isl.Set, value: int) -> isl.Set:
    position = points.find_dim_by_name(isl.dim_type.param, "n")
    if position < 0:
        return points
    return points.fix_val(isl.dim_type.param, position, isl.Val.int_from_si(points.get_ctx(), value))


def _count(points: isl.Set) -> int:
    count: str | None = points.count_val().to_str()
    if count is None:  # the budget ran out inside the count
        raise OutOfBudgetError
    return int(count)


def guessed_shape(sets: Sequence[isl.Set]) -> Shape:
    """Guess a period and a start for masks that look at the length: from the numbers in them."""
    period, size = 1, 1
    for pairs in sets:
        try:
            spreads = list(_spreads(pairs))
        except NoClosedFormError:
            continue
        period = lcm(period, *(one.period for one in spreads))
        size = max(size, *(ceil(max(abs(one.low), abs(one.high))) for one in spreads))
        for one in spreads:
            steps = [abs(int(slope * one.period)) for slope in one.slopes]
            period = lcm(period, *(one.period * step // gcd(*steps) for step in steps if step))
    return Shape(period, ((0, 4 * (size + period)),))
