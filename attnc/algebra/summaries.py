"""What a tile needs to know of ids such as `doc[b, i] == doc[b, j]`: bounds of runs, from one pass over the ids.

With `P[j]` the greatest id up to `j` and `S[j]` the least from `j` on, `S[j] <= id[j] <= P[j]`, and both never
decrease. For the rows `low .. high` of a tile, a key whose id is that of some row has `P[j] >= S[low]` and
`S[j] <= P[high]`: these keys are one stretch. And where `S[low] == P[high]`, all rows have that id, and so have the
keys with `S[j] >= P[high]` and `P[j] <= S[low]`: they are full. Four tables hold where these stretches begin and end
for each position. For ids that never decrease, `S`, `P` and the ids are one, and the stretches are exact; for others
they are right, and longer than they need be.

Other data is known by its extremes: the least and the greatest element of each block of positions (`BlockExtreme`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from attnc.algebra.coordinates import KEY_REACH, Layout, Reach
from attnc.ir.nodes import TRUE, And, Binary, BinaryOp, Const, Expr, Index, IndexName, Read, Size, SizeName, Where
from attnc.ir.program import Attention, Tensor, TensorKind
from attnc.ir.types import Type
from attnc.ir.walk import indices

START, STOP, FULL_START, FULL_STOP = "start", "stop", "full_start", "full_stop"
SUMMARIES = (START, STOP, FULL_START, FULL_STOP)
"""First and past the last key that a tile touches, of its first and its last row; and the same of full keys."""

_KEYS = Size(SizeName.KEYS)
_PAIR = frozenset((Index(IndexName.QUERY), Index(IndexName.KEY)))


def summary_name(table: str, kind: str) -> str:
    """Return what a summary is called; no name of the user's has a point in it."""
    return f"{table}.{kind}"


def summary_source(name: str) -> tuple[str, str] | None:
    """Return the table and the kind of a summary; None for the user's own tables."""
    table, point, kind = name.partition(".")
    return (table, kind) if point else None


@dataclass(frozen=True, slots=True)
class BlockExtreme:
    """The least or the greatest elements of blocks of a table; of bools, whether all or any are true.

    Attributes:
        greatest: otherwise the least.
        blocks: the dimensions that are cut into blocks, and how many elements each block has.
        padded: the last block reads on past the end of the table, where 0 stands.
    """

    greatest: bool
    blocks: tuple[tuple[int, int], ...]
    padded: bool = False

    @property
    def kind(self) -> str:
        """What names of summaries end with, and the runtime is told: `least_1x64`, `greatest0_2x64_3x64`."""
        word = ("greatest" if self.greatest else "least") + ("0" if self.padded else "")
        return "_".join([word, *(f"{axis}x{length}" for axis, length in self.blocks)])

    @classmethod
    def of(cls, kind: str) -> BlockExtreme | None:
        """Return what a kind of summary says; None for bounds of runs."""
        if kind in SUMMARIES:
            return None
        word, *blocks = kind.split("_")
        cut = tuple((int(axis), int(length)) for axis, length in (block.split("x") for block in blocks))
        return cls(word.startswith("greatest"), cut, word.endswith("0"))


def summary_tensor(attention: Attention, name: str) -> Tensor:
    """Return the declaration of the user's tensor or of a summary."""
    source = summary_source(name)
    if source is None:
        return attention.tensor(name)
    table, extreme = attention.tensor(source[0]), BlockExtreme.of(source[1])
    if extreme is None:
        return replace(table, name=name, kind=TensorKind.INPUT, type=Type.INT)
    cut = dict(extreme.blocks)
    dims = tuple(None if axis in cut else dim for axis, dim in enumerate(table.dims))
    return replace(table, name=name, kind=TensorKind.INPUT, dims=dims)


@dataclass(frozen=True, slots=True)
class RunBounds:
    """The keys that have an id of some row of the tile, and those that have the only id of all its rows."""

    start: Expr
    stop: Expr
    full_start: Expr
    full_stop: Expr


@dataclass(frozen=True, slots=True)
class Summaries:
    """Finds equal ids in a mask, and what is known of the keys that have them.

    Attributes:
        tables: integer inputs whose last dimension is `M` and is promised never to decrease.
        allowed: whether summaries may be read at all.
    """

    tables: frozenset[str] = field(default_factory=frozenset)
    allowed: bool = False

    @classmethod
    def of(cls, attention: Attention) -> Summaries:
        """Return the tables of an attention that have summaries."""
        return cls(frozenset(t.name for t in attention.tensors if t.sorted and t.dims and t.dims[-1] == _KEYS), True)

    def run_bounds(self, expr: Binary, layout: Layout, reach: Reach) -> RunBounds | None:
        """Return the bounds of the runs that `id[.., i] == id[.., j]` compares; None for anything else.

        Args:
            expr: a comparison.
            layout: in which the tile lies.
            reach: of the positions of its rows.
        """
        left, right = expr.left, expr.right
        if not isinstance(left, Read) or not isinstance(right, Read) or left.table != right.table:
            return None
        if left.table not in self.tables or left.index[:-1] != right.index[:-1]:
            return None
        if frozenset((left.index[-1], right.index[-1])) != _PAIR:
            return None
        if any(not indices(one) <= {IndexName.BATCH, IndexName.HEAD} for one in left.index[:-1]):
            return None
        low, high = (layout.query.position(Index(name)) for name in (IndexName.QUERY_LOW, IndexName.QUERY_HIGH))
        inside = _inside(low, high, reach)

        def at(kind: str, row: Expr, outside: Expr) -> Expr:
            read = Read(summary_name(left.table, kind), (*left.index[:-1], row), Type.INT, inside=left.inside)
            return Where(inside, read, outside, Type.INT)

        return RunBounds(
            at(START, low, _int(0)),
            at(STOP, high, _KEYS),
            at(FULL_START, high, _KEYS),
            at(FULL_STOP, low, _int(0)),
        )


def _inside(low: Expr, high: Expr, reach: Reach) -> Expr:
    """Tell when the tile's rows are positions of the table; others have the id 0, wherever that may occur."""
    tests = [] if reach.first == KEY_REACH.first else [_binary(BinaryOp.LE, _int(0), low)]
    tests += [] if reach.past == KEY_REACH.past else [_binary(BinaryOp.LT, high, _KEYS)]
    if not tests:
        return TRUE
    return tests[0] if len(tests) == 1 else And(tuple(tests))


def summarize(ids: Sequence[int]) -> dict[str, list[int]]:
    """Return the summaries of one sequence of ids, by their kinds."""
    greatest = list(accumulate(ids, max))
    least = list(accumulate(reversed(ids), min))[::-1]
    return {
        START: [bisect_left(greatest, one) for one in least],
        STOP: [bisect_right(least, one) for one in greatest],
        FULL_START: [bisect_left(least, one) for one in greatest],
        FULL_STOP: [bisect_right(greatest, one) for one in least],
    }


def _int(value: int) -> Expr:
    return Const(value, Type.INT)


def _binary(op: BinaryOp, left: Expr, right: Expr) -> Expr:
    return Binary(op, left, right, Type.BOOL)
