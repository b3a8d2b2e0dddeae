"""What has been proven of a mask."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Counterexample:
    """The least pair (by M, then N, h, i, j) for which a claim fails.

    Attributes:
        key: None where the claim is about a row (`nonempty`).
        scalars: value of each scalar input in it, where the claim reads any.
    """

    queries: int
    keys: int
    head: int
    query: int
    key: int | None
    scalars: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Answer to a claim: proven, refuted with a counterexample, or undecided (None) with the reason."""

    holds: bool | None
    counterexample: Counterexample | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a mask over all `B, H, N, M >= 1` with `N <= M` under `align end`.

    Attributes:
        causal: every allowed pair has `j <= i`.
        nonempty: every query has an allowed key.
        symmetric: for N = M, (i, j) is allowed if and only if (j, i) is.
        contiguous: the keys of each query are one interval.
        everything: every pair is allowed.
        exactly_causal: the allowed pairs are exactly those with `j <= i`.
        always: every pair is allowed for `N > M` as well; never False.
    """

    causal: bool | None = None
    nonempty: bool | None = None
    symmetric: bool | None = None
    contiguous: bool | None = None
    everything: bool | None = None
    exactly_causal: bool | None = None
    always: bool | None = field(default=None, compare=False)
