"""What the backward pass of a plan computes: derivatives, what each is summed over, what was kept, and the work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from attnc.algebra.gradients import differentiate, read_gradients, write_out_sums
from attnc.ir.nodes import Expr, Score
from attnc.ir.program import Attention
from attnc.ir.show import show
from attnc.plan.row_state import state_of

BACKWARD_PRODUCTS = 5
"""Products of the backward pass: scores again, gradients of weights, and those of query, key and value."""

STATE_SIZE = 4
"""Bytes of a number that is kept of a row: float32."""

KEPT = {
    "lse": "log-sum-exp of each row",
    "peak": "greatest score and sum of each row",
    "total": "sum of each row",
}
"""By what `row_state.state_of` says."""

_NUMBERS = {"lse": 1, "peak": 2, "total": 1, "": 0}


@dataclass(frozen=True, slots=True)
class Slope:
    """One derivative.

    Attributes:
        function: `score`, `weight`, `bias`, `sink` or `scale`.
        by: `s`, or the element of a table.
        read: of which pairs an element is read for; None for `s`.
        slope: the derivative.
    """

    function: str
    by: str
    read: str | None
    slope: Expr

    def as_json(self) -> dict[str, Any]:
        """Return the derivative as text."""
        return {"of": self.function, "by": self.by, "read_by": self.read, "slope": show(self.slope)}


@dataclass(frozen=True, slots=True)
class Gradients:
    """The backward pass, for one batch entry.

    Attributes:
        slopes: derivatives of everything that is learned or given as floats; that of the score by `s` comes first.
        kept: a key of `KEPT`, or nothing: what the forward pass leaves of each row, besides the output.
        kept_bytes: of output and those numbers, over all heads.
        flops: useful operations over all heads: five products of each allowed pair; None where pairs are not known.
    """

    slopes: tuple[Slope, ...]
    kept: str
    kept_bytes: int
    flops: int | float | None

    def as_json(self) -> dict[str, Any]:
        """Return what `explain --json` prints of it."""
        return {
            "slopes": [one.as_json() for one in self.slopes],
            "kept": self.kept or None,
            "kept_bytes": self.kept_bytes,
            "flops": self.flops,
        }


def find_gradients(
    attention: Attention, pairs: int | float | None, length: int, heads: int, head_size: int, element_size: int
) -> Gradients:
    """Return what the backward pass of an attention computes.

    Args:
        attention: the pattern.
        pairs: allowed pairs of one head, or None.
        length: queries and keys.
        heads: query heads.
        head_size: of query, key and value.
        element_size: bytes of an element of the output.
    """
    kept = state_of(attention)
    return Gradients(
        tuple(_slopes(attention)),
        kept,
        heads * length * (head_size * element_size + _NUMBERS[kept] * STATE_SIZE),
        None if pairs is None else pairs * 2 * BACKWARD_PRODUCTS * head_size * heads,
    )


def _slopes(attention: Attention) -> Iterator[Slope]:
    yield Slope("score", "s", None, differentiate(attention.score, Score()))
    normalize = attention.normalize
    functions = {
        "score": attention.score,
        "weight": attention.weight,
        "bias": normalize.bias,
        "sink": normalize.sink,
        "scale": attention.scale,
    }
    for name, function in functions.items():
        for one in () if function is None else read_gradients(write_out_sums(function)):
            yield Slope(name, show(one.read), one.axes.value, one.slopes[0])
