"""Which keys a tile of query rows works on: the result of the set analysis, in our own terms.

A query tile covers the positions `i_lo .. i_hi` (inclusive; rows past the end of the query tensor are not part of it).
Its keys are a list of intervals, walked in order. All bounds are int expressions over `Index(QUERY_LOW)`,
`Index(QUERY_HIGH)`, `Index(SHIFT)`, `Index(HEAD)`, `Index(BATCH)`, sizes, and `Read`s whose index uses `b` and `h`
alone (scalar inputs, per-batch lengths), so one derivation serves every tile size and every length.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from attnc.ir.nodes import TRUE, Expr


class Coverage(Enum):
    """How a tile stands to the mask."""

    FULL = "full"
    """Every real pair of the tile is allowed, and every key of the tile is a real key (`j < M`)."""
    PARTIAL = "partial"
    """Some pair may be allowed; `residual` must be tested."""


@dataclass(frozen=True, slots=True)
class KeyInterval:
    """Key positions `start <= j < stop`, rounded to whole tiles of `T` keys when they are walked.

    The walker keeps `done`, the first key tile that no earlier interval has covered (0 at first). For each interval:

        begin = max(done, ceil(start / T) if start_up else floor(start / T))
        end   = max(begin, ceil(stop / T) if stop_up else floor(stop / T))
        visit the tiles begin .. end - 1, then let done = end

    A `FULL` interval has `start_up` and not `stop_up`: its tiles lie wholly inside. Intervals are given in an order in
    which clipping by `done` never loses a touched tile, whatever `T` and the length of the query tile. No tile reaches
    past `ceil(M / T)`, and a full one not past `floor(M / T)`. A walker that is not bound to tiles may use `T = 1`.

    Attributes:
        residual: what remains to be tested in these tiles, a bool over anything that the mask may use (`TRUE` for a
            full interval). For the real rows of the query tile and every real key (`0 <= j < M`) of every tile that
            the walk above visits in this interval it equals the mask, as long as the query tile has at most
            `TileSets.query_tile` rows and `T` is at most `TileSets.key_tile`.
        ragged: whether a visited tile may reach past the last key, so that `j < M` must be tested besides (false where
            the residual implies it for every real row).
        tile_test: a bool over `i_lo, i_hi, j_lo, j_hi` (and what bounds may use) that is false only for tiles with no
            allowed pair (`j_hi` is clipped to `M - 1`); None if every visited tile is touched or nothing better is
            known.
        label: a word or two for comments in generated code: `window`, `diagonal`, `sinks`...
    """

    coverage: Coverage
    start: Expr
    stop: Expr
    start_up: bool
    stop_up: bool
    residual: Expr = TRUE
    ragged: bool = False
    tile_test: Expr | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class TileSets:
    """The interval list of one mask in one coordinate order.

    Attributes:
        intervals: in the order in which they are walked; empty for a mask that allows nothing.
        exact: every visited tile is touched, and every full tile is in a full interval (for tiles of at least 16 rows
            and 16 keys, the smallest that targets have, and for `N <= M` under `align end`).
        query_tile, key_tile: the largest tile for which residuals hold.
        notes: why it is not exact: `data-dependent: doc`, `operation budget`, ...
        alike: of a grid: whether tiles of queries around which boxes lie alike see alike, key by key.
        unfinished: whether a question about the mask exhausted its budget, so that more operations may give better
            intervals.
    """

    intervals: tuple[KeyInterval, ...]
    exact: bool
    query_tile: int
    key_tile: int
    notes: tuple[str, ...] = ()
    alike: bool = False
    unfinished: bool = False
