"""In which order a kernel numbers the rows of a head, as far as its launcher must know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Plain order, residue classes, or runs of rows.

    Attributes:
        period: rows repeat after so many.
        length: positions in each run; 0 for classes of rows that lie a period apart, each with its own programs.
    """

    period: int = 1
    length: int = 0

    def classes(self, queries: int) -> int:
        """Return how many parts of a head have programs of their own."""
        return 1 if self.length else min(self.period, queries)

    def most(self, queries: int) -> int:
        """Return the largest number of rows of a part, wherever positions begin."""
        if self.length:
            return queries // self.period * self.length + min(queries % self.period, self.length)
        return -(-queries // self.period)


@dataclass(frozen=True, slots=True)
class GridRows:
    """Tiles of a grid, row of tiles after row of tiles.

    Attributes:
        stride: positions of one step along the outermost axis.
        tile: steps of a tile along it.
        rows: numbers that a tile takes; no program has some of one and some of another.
        across: tiles in a row of tiles.
    """

    stride: int
    tile: int
    rows: int
    across: int

    def classes(self, queries: int) -> int:
        """Return that all rows are numbered together."""
        return 1

    def most(self, queries: int) -> int:
        """Return the largest number of rows, wherever positions begin; with points that are no rows."""
        steps = (queries + self.stride - 2) // self.stride
        return ((steps + self.tile - 1) // self.tile + 1) * self.across * self.rows


PLAIN_ROWS = RowOrder()
