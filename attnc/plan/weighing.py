"""Ways to compute a mask, derived and priced: cheaply first, and with more effort where that may change the choice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from attnc.algebra.counting import bounds_read, count_pairs
from attnc.algebra.index_sets import DEFAULT_OPERATIONS
from attnc.algebra.tiles import derive_tiles
from attnc.ir.nodes import Binary, BinaryOp, Expr
from attnc.ir.program import Attention
from attnc.ir.walk import indices, walk
from attnc.plan.cost import estimate_pass, estimate_passes
from attnc.plan.kernel_plan import Choice, Form, Pass
from attnc.plan.split import Part

OPERATIONS = 100_000
"""What a question about a part of a mask may take at first."""

QUICK = 30_000
"""What a question about a whole mask with remainders or quotients may take at first: its parts are often simpler."""

NEGLIGIBLE = 0.05
"""A pass that costs no more than this share of all passes is left as it is."""

MOST_HARD = 2
"""After so many interval lists that a budget has cut short, the best of what was found is taken."""

COUNTED = 1_000_000
"""What counting the pairs of one head may take; a mask that takes more has no known density."""

DENSE = 1.3
"""A plan that computes so many pairs for each allowed one is not worth improving."""

GOOD = 2.5
"""Where passes compute no more pairs for each allowed one, the whole mask is not looked at again with more effort."""


@dataclass(slots=True)
class Weigher:
    """Derives passes and says what they cost.

    Attributes:
        attention: simplified.
        length: queries and keys for which costs are compared.
    """

    attention: Attention
    length: int
    _passes: dict[Part, Pass] = field(default_factory=dict)
    _pairs: dict[Expr, float | None] = field(default_factory=dict)
    _hard: int = 0

    def weigh(self, parts: Iterable[Part], operations: int = OPERATIONS) -> Choice:
        """Derive passes that are new, and price all of them together.

        Args:
            parts: see `make_passes`.
            operations: that one question may take.
        """
        listed = tuple(parts)
        for part in listed:
            if part not in self._passes:
                self._passes[part] = self._derived(part, QUICK if self.is_spent else operations)
        return self._priced(tuple(self._passes[part] for part in listed))

    @property
    def is_spent(self) -> bool:
        """Whether so much was too hard that it is time to choose."""
        return self._hard >= MOST_HARD

    def first(self, parts: tuple[Part, ...]) -> Choice:
        """Weigh the whole mask in plain order, of which much may be too hard."""
        return self.weigh(
            parts, QUICK if any(_is_hard(node) for mask, _ in parts for node in walk(mask)) else DEFAULT_OPERATIONS
        )

    def with_effort(self, choice: Choice) -> Choice:
        """Derive passes again that an exhausted budget has cut short, and price them anew."""
        better = tuple(self._improved(one, NEGLIGIBLE * choice.cost) for one in choice.passes)
        return choice if better == choice.passes else self._priced(better)

    def is_within(self, passes: tuple[Pass, ...], most: float) -> bool:
        """Tell whether passes compute at most so many pairs for each allowed one; False where that is not known."""
        if any(bounds_read(one.tiles) for one in passes):
            return False
        counts = [self._allowed(one.mask) for one in passes]
        allowed = sum(count for count in counts if count is not None)
        computed = sum(estimate_pass(self.attention, one, self.length).computed for one in passes)
        return None not in counts and computed <= most * allowed

    def _improved(self, one: Pass, least: float) -> Pass:
        """Derive a pass again, if it costs at least so much."""
        if self.is_spent or not _is_cut_short(one) or estimate_pass(self.attention, one, self.length).cost < least:
            return one
        return self._derived((one.mask, one.layout), DEFAULT_OPERATIONS)

    def _derived(self, part: Part, operations: int) -> Pass:
        (made,) = make_passes(self.attention, (part,), operations=operations)
        self._hard += operations > QUICK and _is_cut_short(made)
        return made

    def _priced(self, passes: tuple[Pass, ...]) -> Choice:
        return Choice(passes, estimate_passes(self.attention, passes, self.length).cost)

    def _allowed(self, mask: Expr) -> float | None:
        if mask not in self._pairs:
            own = replace(self.attention, mask=mask)
            found = count_pairs(own, self.length, self.length, operations=COUNTED)
            self._pairs[mask] = None if found is None else float(found)
        return self._pairs[mask]


def make_passes(
    attention: Attention, parts: Iterable[Part], *, operations: int = DEFAULT_OPERATIONS
) -> tuple[Pass, ...]:
    """Derive the tiles of each part of a mask in a layout of its own.

    Args:
        attention: simplified.
        parts: disjoint masks that together are the attention's, each with the layout of its pass. The layout's
            positions hold every pair of the mask.
        operations: see `derive_tiles`.
    """
    return tuple(
        Pass(
            Form.SOFTMAX,
            mask,
            derive_tiles(replace(attention, mask=mask), layout=layout, operations=operations, summaries=True),
            layout,
        )
        for mask, layout in parts
    )


def _is_cut_short(one: Pass) -> bool:
    return one.tiles.unfinished and not one.tiles.exact


def _is_hard(node: Expr) -> bool:
    """Tell whether an operator makes questions about a mask hard."""
    return isinstance(node, Binary) and node.op in (BinaryOp.MOD, BinaryOp.FLOORDIV) and bool(indices(node.left))
