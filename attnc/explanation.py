"""What a plan means in numbers: pairs, tiles, work and traffic at concrete sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from attnc.algebra.count_formulas import TOO_MANY_STEPS, NoFormula, PairsFormula, pairs_formula
from attnc.algebra.counting import bounds_differ_by_head, bounds_read, count_tiles
from attnc.algebra.counting import count_pairs as count_pairs_by_sets
from attnc.algebra.facts import Facts
from attnc.algebra.key_intervals import TileSets
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import IndexName, SizeName
from attnc.ir.program import Attention
from attnc.ir.types import Type
from attnc.ir.walk import depends_on, tables
from attnc.plan.kernel_plan import Pass, Plan

MOST_EVALUATED = 1 << 32
"""Pairs, over heads, that are evaluated one by one where sets cannot count them; some ten seconds of work."""

MOST_WALKED = 1 << 14
"""Steps of a walk over tiles in plain Python; more of them are walked by tensors."""

MOST_TILES = 1 << 28
"""Steps beyond which tiles are not counted."""

ELEMENT_SIZE = 2
"""Bytes of an element of query, key, value and output: float16 or bfloat16."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Published peaks of a device: what no program exceeds.

    Attributes:
        flops: dense bfloat16 operations a second.
        bandwidth: bytes a second.
    """

    name: str
    flops: float
    bandwidth: float


MACHINES = (
    Machine("NVIDIA A100 SXM", 312e12, 2.04e12),
    Machine("NVIDIA H100 SXM", 989e12, 3.35e12),
    Machine("NVIDIA H200 SXM", 989e12, 4.8e12),
)


@dataclass(frozen=True, slots=True)
class PassCost:
    """What one pass computes.

    Attributes:
        pairs_computed: pairs in visited tiles, one head, padding included; None where data decides.
    """

    layout: str
    form: str
    library: str | None
    pairs_computed: int | float | None


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of one head, the mean over heads where they differ; None where data decides.

    Attributes:
        full: all real pairs are allowed; those that reach past the last key, which a kernel tests, included.
        partial: visited, and not full.
    """

    query: int
    key: int
    full: int | float | None
    partial: int | float | None
    empty: int | float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan in numbers, for one batch entry.

    Attributes:
        pairs: allowed pairs of one head, the mean over heads where they differ; None where data decides.
        density: their share of all pairs.
        flops: useful operations of the forward pass over all heads: two products of each allowed pair.
        bytes: least traffic of the forward pass over all heads: each argument read once, the output written once.
        notes: why something is None or a bound.
        formula: `pairs` as a function of the length, where the mask is affine and it could be found.
    """

    plan: Plan
    length: int
    heads: int
    head_size: int
    pairs: int | float | None
    density: float | None
    tiles: Tiles
    passes: tuple[PassCost, ...]
    flops: int | float | None
    bytes: int
    notes: tuple[str, ...] = ()
    formula: PairsFormula | None = None

    @property
    def waste(self) -> float | None:
        """Pairs computed for each allowed pair, or None."""
        computed = [one.pairs_computed for one in self.passes if one.pairs_computed is not None]
        if not self.pairs or len(computed) < len(self.passes):
            return None
        return sum(computed) / self.pairs

    def seconds_on(self, machine: Machine) -> float | None:
        """Return the least time of a forward pass: the roofline over the pairs computed, never a measurement."""
        computed = [one.pairs_computed for one in self.passes]
        if any(pairs is None for pairs in computed):
            return None
        work = 4.0 * self.head_size * self.heads * sum(pairs for pairs in computed if pairs is not None)
        return max(work / machine.flops, self.bytes / machine.bandwidth)

    def as_json(self) -> dict[str, Any]:
        """Return what `explain --json` prints for this attention."""
        plan = self.plan
        return {
            "name": plan.attention.name,
            "facts": facts_as_json(plan.facts),
            "pairs": self.pairs,
            "pairs_formula": None if self.formula is None else _formula_as_json(self.formula),
            "density": self.density,
            "tiles": {
                "query": self.tiles.query,
                "key": self.tiles.key,
                "full": self.tiles.full,
                "partial": self.tiles.partial,
                "empty": self.tiles.empty,
            },
            "passes": [
                {"layout": one.layout, "form": one.form, "pairs_computed": one.pairs_computed} for one in self.passes
            ],
            "rules": [step.rule for step in plan.derivation],
            "flops": self.flops,
            "bytes": self.bytes,
        }


def _formula_as_json(formula: PairsFormula) -> dict[str, Any]:
    return {
        "text": f"{formula.text} with {formula.where}" if formula.where else formula.text,
        "range": formula.range_text(),
        "python": formula.code,
        "least": formula.least,
        "period": formula.period,
        "residue": formula.residue,
        "derived": formula.derived,
    }


def facts_as_json(facts: Facts) -> dict[str, bool | None]:
    """Return the facts that the interface promises."""
    return {
        "causal": facts.causal,
        "nonempty": facts.nonempty,
        "symmetric": facts.symmetric,
        "contiguous": facts.contiguous,
    }


def explain_plan(plan: Plan, *, length: int, heads: int, head_size: int) -> Explanation:
    """Count what a plan does for `length` queries and keys."""
    attention = plan.attention
    pairs, notes = _pairs(attention, length, heads, head_size)
    formula = pairs_formula(attention, length, heads, head_size=head_size)
    if isinstance(formula, NoFormula) and formula.reason == TOO_MANY_STEPS:
        notes.append(f"no formula for the allowed pairs: {formula.reason}")
    passes = []
    counted: list[Tiles] = []
    for one in plan.passes:
        tiles, note = _tiles(attention, one.tiles, length, heads, head_size)
        notes += [note] if note and note not in notes else []
        counted.append(tiles)
        passes.append(_pass_cost(one, tiles))
    number = None if pairs is None else _number(pairs)
    return Explanation(
        plan,
        length,
        heads,
        head_size,
        number,
        None if pairs is None else float(pairs / (length * length)),
        counted[0],
        tuple(passes),
        None if pairs is None else _number(pairs * 4 * head_size * heads),
        _traffic(attention, length, heads, head_size),
        tuple(dict.fromkeys((*notes, *(note for one in plan.passes for note in one.tiles.notes)))),
        formula if isinstance(formula, PairsFormula) else None,
    )


def _pairs(attention: Attention, length: int, heads: int, head_size: int) -> tuple[Fraction | None, list[str]]:
    if tables(attention.mask) or tables(attention.align.shift):
        return None, ["the data of a call decides how many pairs are allowed"]
    found = count_pairs_by_sets(attention, length, length, heads, head_size=head_size)
    if found is not None:
        return found, []
    from attnc.blockwise import count_pairs, varies

    evaluated = length * length * (heads if varies(attention, IndexName.HEAD) else 1)
    if evaluated > MOST_EVALUATED:
        return None, ["too many pairs to count: sets cannot, and evaluating each would take minutes; try a smaller -n"]
    return count_pairs(attention, _sizes(length, heads, head_size)), []


def _tiles(attention: Attention, tiles: TileSets, length: int, heads: int, head_size: int) -> tuple[Tiles, str]:
    query_tile, key_tile = tiles.query_tile, tiles.key_tile
    if bounds_read(tiles) or tables(attention.align.shift):
        return Tiles(query_tile, key_tile, None, None, None), "the data of a call decides which tiles are visited"
    across = -(-length // key_tile)
    tested = any(interval.tile_test is not None for interval in tiles.intervals)
    looked_at = across * across if tested else across
    if looked_at > MOST_TILES:
        return Tiles(query_tile, key_tile, None, None, None), "too many tiles to count: try a smaller -n"
    note = "" if tiles.exact else "visited tiles are an upper bound: a tile may turn out empty when it is computed"
    if looked_at > MOST_WALKED:
        return _tiles_by_tensors(attention, tiles, length, heads, head_size), note
    indices = {IndexName.BATCH: 0, IndexName.HEAD: 0}
    shift = int(evaluate(attention.align.shift, Environment(indices, _sizes(length, heads, head_size))))
    counts = count_tiles(tiles, length, length, shift, query_tile, key_tile, heads, head_size=head_size)
    ends = _whole_ends(attention, tiles, length, heads, head_size)
    full, partial = counts.full + ends, counts.partial - ends
    return Tiles(query_tile, key_tile, _number(full), _number(partial), _number(counts.empty)), note


def _whole_ends(attention: Attention, tiles: TileSets, length: int, heads: int, head_size: int) -> Fraction:
    """Return how many ragged tiles at the end of the keys allow all their real pairs, the mean over heads."""
    if length % tiles.key_tile == 0 or tables(attention.mask):
        return Fraction(0)
    from attnc.tile_map import count_whole_ends

    chosen = range(heads) if depends_on(attention.mask, IndexName.HEAD) else range(1)
    shape, sizes = (tiles.query_tile, tiles.key_tile), _sizes(length, heads, head_size)
    found = [count_whole_ends(attention, sizes, query_tile=shape[0], key_tile=shape[1], head=head) for head in chosen]
    return Fraction(sum(found), len(found))


def _tiles_by_tensors(attention: Attention, tiles: TileSets, length: int, heads: int, head_size: int) -> Tiles:
    from attnc.tile_map import count_planned

    sizes = _sizes(length, heads, head_size)
    shape = (tiles.query_tile, tiles.key_tile)
    chosen = range(heads) if bounds_differ_by_head(tiles) else range(1)
    counts = [
        count_planned(attention, tiles, sizes, query_tile=shape[0], key_tile=shape[1], head=head) for head in chosen
    ]
    sums = (sum(getattr(one, kind) for one in counts) for kind in ("full", "partial", "empty"))
    return Tiles(*shape, *(_number(Fraction(total, len(counts))) for total in sums))


def _pass_cost(one: Pass, tiles: Tiles) -> PassCost:
    computed = None
    if tiles.full is not None and tiles.partial is not None:
        computed = _number(Fraction(tiles.full + tiles.partial) * tiles.query * tiles.key)
    library = None if one.library is None else one.library.value
    return PassCost(str(one.layout), one.form.value, library, computed)


def _traffic(attention: Attention, length: int, heads: int, head_size: int) -> int:
    """Return the bytes of query, key, value and output, and of the inputs and learned tensors whose size is known."""
    env = Environment(sizes=_sizes(length, heads, head_size))
    total = 4 * heads * length * head_size * ELEMENT_SIZE
    for tensor in attention.tensors:
        if None in tensor.dims:
            continue
        element = {Type.BOOL: 1, Type.INT: 8, Type.FLOAT: ELEMENT_SIZE}[tensor.type]
        total += math.prod(int(evaluate(dim, env)) for dim in tensor.dims if dim is not None) * element
    return total


def _sizes(length: int, heads: int, head_size: int) -> Mapping[SizeName, int]:
    return {
        SizeName.BATCH: 1,
        SizeName.HEADS: heads,
        SizeName.QUERIES: length,
        SizeName.KEYS: length,
        SizeName.HEAD_SIZE: head_size,
        SizeName.GROUP: 1,
    }


def _number(value: Fraction) -> int | float:
    """Return an int where the number is whole: JSON readers tell them apart."""
    return int(value) if value.denominator == 1 else float(value)
