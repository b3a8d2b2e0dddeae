"""The plan of one attention: what will run, free of any target's syntax."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from attnc.algebra.coordinates import PLAIN, Layout
from attnc.algebra.counting import bounds_read
from attnc.algebra.derivation import Step
from attnc.algebra.facts import Facts
from attnc.algebra.key_intervals import TileSets
from attnc.algebra.separable import Separable
from attnc.algebra.summaries import summary_source
from attnc.algebra.windows import Dense, Window
from attnc.ir.nodes import Expr
from attnc.ir.program import Attention


class Form(Enum):
    """How a pass computes."""

    SOFTMAX = "softmax"
    """Tiles of weights; the name stands for all six normalisers, quadratic in the touched tiles."""
    LINEAR = "linear"
    CHUNKED = "chunked"
    LIBRARY = "library"
    """One call of `scaled_dot_product_attention`; of one pass of several, on a CPU, which gives its sums."""


class Library(Enum):
    """Which library call a pass is."""

    FULL = "full"
    CAUSAL = "causal"


class Trend(Enum):
    """How the number of keys that rows visit changes from the first row of a sequence to the last."""

    RISING = "rising"
    FALLING = "falling"
    LEVEL = "level"
    MIXED = "mixed"
    """It rises and falls, or data decides it."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How the dot product of a pair becomes its score.

    Attributes:
        score: float over `Score()`, natural units, what the user wrote after simplification, without `dropped` terms.
        score_log2: softmax only: the same in base 2, over a `Score()` that stands for `scale * log2(e) * dot`.
        dropped: sum of the terms that depend on the query alone and were left out under softmax without a sink; to be
            added to a returned log-sum-exp. None if there are none.
    """

    score: Expr
    score_log2: Expr | None
    dropped: Expr | None


@dataclass(frozen=True, slots=True)
class Pass:
    """One sweep over tiles of pairs.

    Attributes:
        mask: the pairs that it answers for: those of all passes are disjoint, and together the attention's mask. No
            pair of it lies outside the layout's positions.
        tiles: in the layout's coordinates; residuals are about positions.
        library: set where `form` is LIBRARY; such a pass still has its tiles, for counting, and for other calls.
        first: position from which on a library's pass has pairs; 0 unless it is one of several.
        most_keys: about how many keys a tile of rows visits, however long the sequence is; None where it has more in a
            longer one, or that is not known.
        trend: of the number of keys along the rows.
    """

    form: Form
    mask: Expr
    tiles: TileSets
    layout: Layout = PLAIN
    library: Library | None = None
    first: int = 0
    most_keys: int | None = None
    trend: Trend = Trend.MIXED


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to compute a mask that was weighed.

    Attributes:
        cost: expected at the length in hand, in pairs of one head.
    """

    passes: tuple[Pass, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class LinearForm:
    """How an attention is computed in time that is linear in its length.

    Attributes:
        form: LINEAR, one product of keys and values for all queries, or CHUNKED, which carries it along the sequence.
        weights: the factors and exponents of a pair, apart for queries and keys.
        chunk: positions that are taken together; 0 for LINEAR.
        asked: whether the pattern asks for it, whatever the length.
    """

    form: Form
    weights: Separable
    chunk: int = 0
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Short:
    """What computes short sequences, where the passes that suit long ones do not pay.

    Attributes:
        limit: most queries and most keys of a call that it is for.
        passes, choices, proven_disjoint, long_rows: as those of a plan; weighed at `limit`.
    """

    limit: int
    passes: tuple[Pass, ...]
    choices: tuple[Choice, ...]
    proven_disjoint: bool = False
    long_rows: int = 0


@dataclass(frozen=True, slots=True)
class LibraryPart:
    """A pass that a library may compute on a GPU, where tuning found that to be faster.

    Attributes:
        number: of the pass, from 0.
        pairs: what it has for as many keys as queries.
        long_rows: as that of a plan, of the other passes.
    """

    number: int
    pairs: Dense
    long_rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that code generation needs of one attention.

    Attributes:
        attention: after simplification.
        passes: disjoint, and together the whole mask; merged by log-sum-exp where there are several. They are right
            for every length; those of `short` take the place of these up to their limits.
        derivation: what simplification did, in order.
        choices: the ways that were weighed, the cheapest first; empty where there was nothing to choose.
        proven_disjoint: whether sets prove that several passes are disjoint and complete; else they are by
            construction alone (each part is written as what earlier parts leave over).
        long_rows: positions from 0 on whose rows, in passes in plain order, have many more keys than the others.
        weighed_at: queries and keys for which `choices` were compared.
        short: what shorter sequences are computed by instead, by rising limits; empty where `passes` suit all.
        declared: the attention before its queries and keys are prepared, mapped to features or shortened, simplified;
            None where `attention` is all that there is.
        linear: the form that takes the place of the passes where it is cheaper; None where there is none.
        quadratic_because: why there is none, of an attention with a feature map; empty otherwise.
        window: that the mask is for as many keys as queries, where a library could compute the attention with it.
        part: the pass of `passes` that a library could compute; None where there is none.
        resumed: whether other pairs of all rows have been summed before the first pass.
    """

    attention: Attention
    scoring: Scoring
    passes: tuple[Pass, ...]
    facts: Facts
    derivation: tuple[Step, ...] = ()
    choices: tuple[Choice, ...] = ()
    proven_disjoint: bool = False
    long_rows: int = 0
    weighed_at: int = 0
    short: tuple[Short, ...] = ()
    window: Window | None = None
    part: LibraryPart | None = None
    resumed: bool = False
    declared: Attention | None = None
    linear: LinearForm | None = None
    quadratic_because: str = ""

    @property
    def operation(self) -> Attention:
        """The attention as callers see it."""
        return self.attention if self.declared is None else self.declared

    @property
    def variants(self) -> tuple[Plan, ...]:
        """The plans by length, each alone: those of `short` in order, then the one that has no limit."""
        shorter = (
            replace(
                self,
                passes=one.passes,
                choices=one.choices,
                proven_disjoint=one.proven_disjoint,
                long_rows=one.long_rows,
                weighed_at=one.limit,
                short=(),
                part=None,
            )
            for one in self.short
        )
        return (*shorter, replace(self, short=()))

    @property
    def limits(self) -> tuple[int | None, ...]:
        """The longest sequences that each of `variants` is for; None for no limit."""
        return (*(one.limit for one in self.short), None)

    @property
    def ranges(self) -> tuple[str, ...]:
        """Which calls each of `variants` is for, in words: `up to 704 queries and keys`, `beyond that`."""
        return (*(f"up to {one.limit:,} queries and keys" for one in self.short), "beyond that" if self.short else "")

    @property
    def beside_part(self) -> Plan | None:
        """The plan of what is left where a library computes `part`; None without one."""
        if self.part is None:
            return None
        others = self.passes[: self.part.number] + self.passes[self.part.number + 1 :]
        return replace(
            self, passes=others, choices=(), long_rows=self.part.long_rows, short=(), part=None, resumed=True
        )

    def at(self, length: int) -> Plan:
        """Return the variant that computes calls whose queries or keys, whichever are more, are so many."""
        pairs = zip(self.variants, self.limits, strict=True)
        return next(variant for variant, limit in pairs if limit is None or length <= limit)

    @property
    def summaries(self) -> tuple[str, ...]:
        """Names of the summaries of ids that the bounds of any variant read, each once: they are made before passes."""
        every = (self.passes, *(one.passes for one in self.short))
        names = (name for passes in every for one in passes for name in bounds_read(one.tiles))
        return tuple(dict.fromkeys(name for name in names if summary_source(name) is not None))
