"""What a condition allows at least and at most."""

from __future__ import annotations

from dataclasses import dataclass

import islpy as isl


@dataclass(frozen=True, slots=True)
class Truth:
    """Where a bool holds at least (`must`) and at most (`may`)."""

    must: isl.Set
    may: isl.Set

    @property
    def exact(self) -> bool:
        """Whether both are the same set."""
        return self.must is self.may

    def negated(self) -> Truth:
        """Return the truth of `not` of it."""
        if self.exact:
            return exactly(self.must.complement())
        return Truth(self.may.complement(), self.must.complement())

    def both(self, other: Truth) -> Truth:
        """Return the truth of the conjunction."""
        if self.exact and other.exact:
            return exactly(self.must.intersect(other.must).coalesce())
        return Truth(self.must.intersect(other.must).coalesce(), self.may.intersect(other.may).coalesce())

    def either(self, other: Truth) -> Truth:
        """Return the truth of the disjunction."""
        if self.exact and other.exact:
            return exactly(self.must.union(other.must).coalesce())
        return Truth(self.must.union(other.must).coalesce(), self.may.union(other.may).coalesce())


def exactly(points: isl.Set) -> Truth:
    """Return the truth of what holds in exactly these points."""
    return Truth(points, points)
