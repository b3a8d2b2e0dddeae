"""The plan of one attention: what will run, free of any target's syntax."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from attnc.algebra.coordinates import PLAIN, Layout
from attnc.algebra.counting import bounds_read
from attnc.algebra.derivation import Step
from attnc.algebra.facts import Facts
from attnc.algebra.key_intervals import TileSets
from attnc.algebra.summaries import summary_source
from attnc.ir.nodes import Expr
from attnc.ir.program import Attention


class Form(Enum):
    """How a pass computes."""

    SOFTMAX = "softmax"
    """Tiles of weights; the name stands for all six normalisers, quadratic in the touched tiles."""
    LINEAR = "linear"
    CHUNKED = "chunked"
    LIBRARY = "library"
    """One call of `scaled_dot_product_attention`."""


class Library(Enum):
    """Which library call a pass is."""

    FULL = "full"
    CAUSAL = "causal"


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
        library: set where `form` is LIBRARY; such a pass still has its tiles, for counting.
        most_keys: about how many keys a tile of rows visits, however long the sequence is; None where it has more in a
            longer one, or that is not known.
    """

    form: Form
    mask: Expr
    tiles: TileSets
    layout: Layout = PLAIN
    library: Library | None = None
    most_keys: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to compute a mask that was weighed.

    Attributes:
        cost: expected at the length in hand, in pairs of one head.
    """

    passes: tuple[Pass, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that code generation needs of one attention.

    Attributes:
        attention: after simplification.
        passes: disjoint, and together the whole mask; merged by log-sum-exp where there are several.
        derivation: what simplification did, in order.
        choices: the ways that were weighed, the cheapest first; empty where there was nothing to choose.
        proven_disjoint: whether sets prove that several passes are disjoint and complete; else they are by
            construction alone (each part is written as what earlier parts leave over).
        long_rows: positions from 0 on whose rows, in passes in plain order, have many more keys than the others.
    """

    attention: Attention
    scoring: Scoring
    passes: tuple[Pass, ...]
    facts: Facts
    derivation: tuple[Step, ...] = ()
    choices: tuple[Choice, ...] = ()
    proven_disjoint: bool = False
    long_rows: int = 0

    @property
    def summaries(self) -> tuple[str, ...]:
        """Names of the summaries of ids that bounds read, each once: they are made before the passes run."""
        names = (name for one in self.passes for name in bounds_read(one.tiles))
        return tuple(dict.fromkeys(name for name in names if summary_source(name) is not None))
