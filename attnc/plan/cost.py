"""What a plan costs at concrete sizes: exact work, and the least memory traffic."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from attnc.algebra.counting import TileCounts


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one call.

    Attributes:
        value_size: length of a value vector.
        element_bytes: bytes of one element of query, key and value.
    """

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    head_size: int
    value_size: int
    element_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Work and traffic of one forward call.

    Attributes:
        flops: useful operations: two products per allowed pair, a multiplication and an addition each.
        flops_computed: the same for every pair of a visited tile.
        bytes: each operand read once and each result written once: the least that any kernel moves.
    """

    flops: int | None
    flops_computed: int
    bytes: int

    @property
    def waste(self) -> Fraction | None:
        """Pairs computed for one allowed pair."""
        return Fraction(self.flops_computed, self.flops) if self.flops else None


def forward_cost(shape: Shape, pairs: Fraction | None, tiles: TileCounts) -> Cost:
    """Return the cost of a forward call.

    Args:
        shape: of the call.
        pairs: allowed pairs of one head, the mean over heads; None where data decides.
        tiles: those that are visited in one head, the mean over heads.
    """
    per_pair = 2 * (shape.head_size + shape.value_size)
    copies = shape.batch * shape.heads
    query_elements = copies * shape.queries * (shape.head_size + shape.value_size)
    key_elements = shape.batch * shape.key_heads * shape.keys * (shape.head_size + shape.value_size)
    return Cost(
        flops=None if pairs is None else int(pairs * copies * per_pair),
        flops_computed=int(tiles.pairs_computed * copies * per_pair),
        bytes=(query_elements + key_elements) * shape.element_bytes,
    )
