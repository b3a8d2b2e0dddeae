"""Concrete pairs on which two masks agree or differ: made from a point of a set, or found by trying.

Everything here evaluates the masks themselves, on data that it makes up, so that what it reports is so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from attnc.ir.arithmetic import Value
from attnc.ir.evaluate import Environment, Table, evaluate
from attnc.ir.nodes import Const, Expr, IndexName, Quantifier, SizeName
from attnc.ir.program import AlignKind, Attention, Tensor
from attnc.ir.types import Type
from attnc.ir.walk import children, walk

Claim = tuple[bool, bool]
"""Whether the left mask allows a pair, and whether the right one does."""

Cells = Mapping[str, Mapping[tuple[int, ...], Value]]
"""Elements of tables by name and index; a scalar has an empty index."""

FILLINGS = 24
"""Ways in which data that a point leaves open is filled before the point is given up."""

SEARCH_STEPS = 600_000
"""Nodes that a search evaluates, over all pairs: a second or so."""

SMALL = 4
"""Every pair of every size up to this is tried."""

READ_AS_MANY_CELLS = 12
"""Cells of a witness that are told."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Two attentions over one set of tables.

    Attributes:
        tensors: declarations by name; a name that both use is one table.
    """

    left: Attention
    right: Attention
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Situation:
    """Sizes and a pair: batch entry, head, row of the query tensor, key."""

    sizes: Mapping[SizeName, int]
    batch: int
    head: int
    row: int
    key: int


@dataclass(frozen=True, slots=True)
class Witness:
    """A pair for which a claim is so.

    Attributes:
        positions: `i` on the left and on the right; they differ where the alignments do.
        cells: name, index and value of the elements that decide it.
        least: whether no pair comes before it by M, N, h, i, j.
    """

    situation: Situation
    positions: tuple[int, int]
    cells: tuple[tuple[str, tuple[int, ...], Value], ...]
    least: bool = True


@dataclass(slots=True)
class _Data:
    """Tables made up on demand: pinned elements, and the rest by the number of the filling (0: all zero)."""

    sides: Sides
    sizes: Mapping[SizeName, int]
    pinned: Cells
    filling: int
    read: dict[tuple[str, tuple[int, ...]], Value] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    def tables(self) -> dict[str, Table]:
        env = Environment(sizes=self.sizes)
        for name, tensor in self.sides.tensors.items():
            self.shapes[name] = tuple(None if dim is None else int(evaluate(dim, env)) for dim in tensor.dims)
        return {name: self._table(name) for name in self.shapes}

    def _table(self, name: str) -> Table:
        shape, known = self.shapes[name], self.pinned.get(name, {})

        def element(*index: int) -> Value | None:
            inside = all(at >= 0 and (length is None or at < length) for at, length in zip(index, shape, strict=True))
            if not inside:
                return None
            value = known[index] if index in known else self._filled(name, index)
            self.read[name, index] = value
            return value

        return element

    def _filled(self, name: str, index: tuple[int, ...]) -> Value:
        tensor = self.sides.tensors[name]
        if tensor.sorted:
            return self._between(name, index)
        if not self.filling:
            return {Type.BOOL: False, Type.INT: 0, Type.FLOAT: 0.0}[tensor.type]
        draw = random.Random(f"{self.filling} {name} {index}")
        if tensor.type is Type.BOOL:
            return draw.random() < 0.5
        if tensor.type is Type.INT:
            span = (1, 3, 8, self.sizes[SizeName.KEYS])[self.filling % 4]
            return draw.randint(-1 if self.filling % 3 == 0 else 0, span)
        return draw.choice([0.0, 1.0, -1.0, 0.5, 3.0, draw.uniform(-10, 10), math.nan])

    def _between(self, name: str, index: tuple[int, ...]) -> Value:
        """Keep a row in order: an element is the nearest one before it that is pinned, or else the nearest after."""
        row = {at[-1]: value for at, value in self.pinned.get(name, {}).items() if at[:-1] == index[:-1]}
        before, after = [at for at in row if at < index[-1]], [at for at in row if at > index[-1]]
        if before or after:
            return row[max(before)] if before else row[min(after)]
        steps = index[-1] * (self.filling % 4) // 3
        return float(steps) if self.sides.tensors[name].type is Type.FLOAT else steps


def confirm(sides: Sides, claim: Claim, situation: Situation, pinned: Cells, *, least: bool) -> Witness | None:
    """Return the pair as a witness if the claim is so with this data, whatever has to be filled in; or None."""
    for filling in range(FILLINGS if sides.tensors else 1):
        allowed, witness = _look(sides, situation, pinned, filling, least=least)
        if allowed == claim:
            return witness
    return None


def _look(sides: Sides, situation: Situation, pinned: Cells, filling: int, *, least: bool) -> tuple[Claim, Witness]:
    """Evaluate both masks at one pair."""
    data = _Data(sides, situation.sizes, pinned, filling)
    tables = data.tables()
    results = [_allows(one, situation, tables) for one in (sides.left, sides.right)]
    (left, i_left), (right, i_right) = results
    cells = tuple((name, index, value) for (name, index), value in data.read.items())
    return (left, right), Witness(situation, (i_left, i_right), cells[:READ_AS_MANY_CELLS], least)


def _allows(attention: Attention, situation: Situation, tables: Mapping[str, Table]) -> tuple[bool, int]:
    indices = {IndexName.BATCH: situation.batch, IndexName.HEAD: situation.head}
    env = Environment(indices, situation.sizes, tables)
    shift = int(evaluate(attention.align.shift, env))
    position = situation.row + shift
    here = {
        **indices,
        IndexName.SHIFT: shift,
        IndexName.ROW: situation.row,
        IndexName.QUERY: position,
        IndexName.KEY: situation.key,
    }
    return bool(evaluate(attention.mask, Environment(here, situation.sizes, tables))), position


def search(sides: Sides, claims: frozenset[Claim]) -> dict[Claim, Witness]:
    """Try small sizes wholly, then larger ones here and there; return what was found for each claim."""
    found: dict[Claim, Witness] = {}
    price = 30 + _price(sides.left.mask) + _price(sides.right.mask)
    for number, (situation, filling) in enumerate(_situations(sides)):
        if number * price > SEARCH_STEPS or len(found) == len(claims):
            break
        allowed, witness = _look(sides, situation, {}, filling, least=False)
        if allowed in claims and allowed not in found:
            found[allowed] = witness
    return found


def _price(expr: Expr) -> int:
    inside = sum(_price(child) for child in children(expr))
    return 1 + (expr.count * inside if isinstance(expr, Quantifier) else inside)


def _situations(sides: Sides) -> Iterator[tuple[Situation, int]]:
    """Yield small pairs in the order of their sizes, then random ones about the constants of the masks."""
    ends = AlignKind.END in (sides.left.align.kind, sides.right.align.kind)
    fillings = range(4 if sides.tensors else 1)
    for keys in range(1, SMALL + 1):
        for queries in range(1, (keys if ends else SMALL) + 1):
            sizes = _sizes(queries, keys, heads=2)
            for filling, head, row, key in product(fillings, range(2), range(queries), range(keys)):
                yield Situation(sizes, 0, head, row, key), filling
    draw = random.Random(0)
    marks = sorted({*_constants(sides), 3, 16, 100})
    while True:
        keys = max(1, draw.choice(marks) * draw.choice([1, 2, 2, 3, 5, 8]) + draw.choice([-1, 0, 0, 1, 7]))
        queries = draw.choice([keys, keys, draw.randint(1, keys)])
        heads, group = draw.choice([(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 4)])
        row = draw.randrange(queries)
        near = row + keys - queries + draw.choice([1, -1]) * draw.choice([0, 1, draw.choice(marks), draw.randint(0, 9)])
        key = draw.choice([draw.randrange(keys), min(max(near, 0), keys - 1)])
        sizes = _sizes(queries, keys, heads, group)
        yield Situation(sizes, draw.randrange(2), draw.randrange(heads), row, key), draw.randrange(FILLINGS)


def _constants(sides: Sides) -> set[int]:
    nodes = (node for side in (sides.left, sides.right) for node in walk(side.mask))
    values = (abs(node.value) for node in nodes if isinstance(node, Const) and node.type is Type.INT)
    return {int(value) for value in values if 1 < value < 1 << 20}


def _sizes(queries: int, keys: int, heads: int, group: int = 1) -> dict[SizeName, int]:
    return {
        SizeName.QUERIES: queries,
        SizeName.KEYS: keys,
        SizeName.HEADS: heads,
        SizeName.BATCH: 2,
        SizeName.GROUP: group,
        SizeName.HEAD_SIZE: 64,
    }
