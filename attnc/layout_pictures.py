"""The passes of a plan as pictures: queries and keys in the order in which each pass walks them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace

import torch

from attnc.algebra.coordinates import CLASS, LOCAL_KEY, LOCAL_QUERY, CoordinateMap, Layout, MapKind
from attnc.bench.cases import Data, Shape, make_data, on_shortened, square
from attnc.blockwise import reads_data, varies
from attnc.ir.nodes import IndexName
from attnc.ir.program import Attention
from attnc.ir.show import show
from attnc.plan.choose import with_known_sizes
from attnc.plan.kernel_plan import Pass, Plan
from attnc.reference import TensorEnvironment, evaluate_tensor, pair_environment
from attnc.tile_map import TileKind, TileRows, planned_rows

PAIRS_SHOWN = 2048
"""Longest sequence whose single pairs are drawn."""

MOST_CLASSES, CLASSES_SHOWN = 16, 4
"""Of more classes than the first number, so many are drawn: classes are alike but for their ends."""

PIXELS = 2048
"""Most pixels a side; longer sequences are drawn coarser, and a pixel that anything touches is not empty."""


@dataclass(frozen=True, slots=True)
class LayoutPanel:
    """One pass, ready to be drawn.

    Attributes:
        queries, keys: how many are drawn.
        query_edges, key_edges: where classes begin, in that order; a single 0 without classes.
        query_axis, key_axis: what the axes count.
        tile: positions that a drawn tile spans at most.
        kinds: uint8 of `TileKind`, pixel by pixel.
        pairs: bool, allowed pairs pixel by pixel; None where single pairs would not be seen.
        counts: tiles by kind, those of classes that are not drawn included.
    """

    title: str
    subtitle: str
    queries: int
    keys: int
    query_edges: tuple[int, ...]
    key_edges: tuple[int, ...]
    query_axis: str
    key_axis: str
    tile: int
    kinds: torch.Tensor
    pairs: torch.Tensor | None
    counts: tuple[int, int, int]


def make_layout_panels(plan: Plan, length: int, *, heads: int = 8, head: int = 0) -> list[LayoutPanel]:
    """Return a panel for each pass of the variant that is for this length.

    Args:
        plan: of the attention.
        length: queries and keys.
        heads: how many heads there are.
        head: the head that is drawn.
    """
    shape = square(length, heads=heads)
    plan = with_known_sizes(plan, shape.keys, shape.head_size)
    _, shape = on_shortened(plan.attention, shape)
    data: Data = make_data(plan.attention, shape, seed=0) if reads_data(plan.attention) else {}
    plan = plan.at(length)
    many = len(plan.passes)
    return [
        _make_panel(plan.attention, one, shape, data, head, f", pass {number} of {many}" if many > 1 else "")
        for number, one in enumerate(plan.passes, start=1)
    ]


def _make_panel(attention: Attention, one: Pass, shape: Shape, data: Data, head: int, which: str) -> LayoutPanel:
    own = replace(attention, mask=one.mask)
    kernel_tile = min(one.tiles.query_tile, one.tiles.key_tile)
    classes = min(one.layout.classes, shape.queries)
    shown = CLASSES_SHOWN if classes > MOST_CLASSES else classes
    drawn = -(-shape.keys * shown // one.layout.classes)
    tile = kernel_tile * max(1, -(-drawn * 2 // (kernel_tile * PIXELS)))
    blocks = list(
        planned_rows(own, one.tiles, shape.sizes(), data, query_tile=tile, key_tile=tile, layout=one.layout, head=head)
    )
    counts = _counts(blocks, tile)
    if shown < classes:
        blocks = _first_classes(blocks, shown)
    places = _Places.of([rows for rows, _ in blocks])
    kinds = _paint(blocks, places, tile)
    pairs = None
    if max(places.queries, places.keys) <= PAIRS_SHOWN:
        find = _boxed_pairs if one.layout.is_grid else _pairs
        pairs = find(own, one.layout, shape, data, head, [rows for rows, _ in blocks])
    remarks = [f"{shape.queries:,} positions, {one.layout}, tiles of {kernel_tile} x {kernel_tile}"]
    if tile != kernel_tile:
        remarks.append(f"drawn in tiles of {tile}")
    if shown < classes:
        remarks.append(f"{shown} of {classes} classes drawn")
    if varies(own, IndexName.HEAD):
        remarks.append(f"head {head} of {shape.heads}")
    if data:
        remarks.append("with example data")
    lines = [", ".join(remarks), *textwrap.wrap(f"mask {show(one.mask)}", 88, max_lines=3, placeholder=" ...")]
    return LayoutPanel(
        f"{attention.name}{which}",
        "\n".join(lines),
        places.queries,
        places.keys,
        places.query_edges,
        places.key_edges,
        _axis("query", "i", one.layout.query),
        _axis("key", "j", one.layout.key),
        tile,
        kinds,
        pairs,
        counts,
    )


def _first_classes(blocks: list[tuple[TileRows, torch.Tensor]], count: int) -> list[tuple[TileRows, torch.Tensor]]:
    """Keep the query tiles of the first classes."""
    every = torch.cat([rows.env.indices[IndexName.CLASS].flatten() for rows, _ in blocks])
    last = every.unique()[count - 1]  # type: ignore[no-untyped-call]
    kept = []
    for rows, kinds in blocks:
        chosen = rows.env.indices[IndexName.CLASS].flatten() <= last
        indices = {name: value[chosen] if value.dim() > 1 else value for name, value in rows.env.indices.items()}
        if bool(chosen.any()):
            kept.append((TileRows(replace(rows.env, indices=indices), rows.keys[chosen]), kinds[chosen]))
    return kept


def _axis(what: str, index: str, one: CoordinateMap) -> str:
    match one.kind:
        case MapKind.RESIDUE:
            ahead = f", from class {one.first} on" if one.first else ""
            return f"{what}, class after class of {index} % {one.period}{ahead}"
        case MapKind.RUNS:
            last = one.first + one.length - 1
            chosen = f"{one.first} .. {last}" if one.length > 1 else f"{one.first}"
            return f"{what} positions with {index} % {one.period} in {chosen}, run after run"
        case MapKind.GRID:
            return f"{what}, tile after tile of {' x '.join(str(axis.tile) for axis in one.axes)} points of the grid"
        case MapKind.BOX:
            return f"{what}, point after point of each tile's own box"
        case _:
            return f"{what} position {index}"


@dataclass(frozen=True, slots=True)
class _Places:
    """Where query tiles lie in a picture.

    Attributes:
        top, left: first row of each query tile, first key of its class or box.
    """

    queries: int
    keys: int
    query_edges: tuple[int, ...]
    key_edges: tuple[int, ...]
    top: torch.Tensor
    left: torch.Tensor

    @classmethod
    def of(cls, blocks: list[TileRows]) -> _Places:
        if not blocks:
            nothing = torch.zeros(0, dtype=torch.int64)
            return cls(0, 0, (0,), (0,), nothing, nothing)
        heights = torch.cat([_heights(rows) for rows in blocks])
        keys = torch.cat([rows.keys.flatten() for rows in blocks])
        classes = torch.cat([rows.env.indices[IndexName.CLASS].flatten() for rows in blocks])
        top = heights.cumsum(0) - heights
        begins = torch.ones_like(classes, dtype=torch.bool)
        begins[1:] = classes[1:] != classes[:-1]
        number = begins.cumsum(0) - 1
        widths = torch.zeros(int(number[-1]) + 1, dtype=torch.int64).scatter_reduce(0, number, keys, "amax")
        left = widths.cumsum(0) - widths
        return cls(
            int(heights.sum()),
            int(widths.sum()),
            tuple(top[begins].tolist()),
            tuple(left.tolist()),
            top,
            left[number],
        )


def _heights(rows: TileRows) -> torch.Tensor:
    bounds = rows.env.indices
    return (bounds[IndexName.QUERY_HIGH] - bounds[IndexName.QUERY_LOW] + 1).flatten()


def _paint(blocks: list[tuple[TileRows, torch.Tensor]], places: _Places, tile: int) -> torch.Tensor:
    """Return what happens at each pixel, the most of all that it covers."""
    height, width = min(places.queries, PIXELS), min(places.keys, PIXELS)
    canvas = torch.zeros(height, width, dtype=torch.uint8)
    if not height or not width:
        return canvas
    number = 0
    for rows, kinds in blocks:
        heights, keys = _heights(rows).tolist(), rows.keys.flatten().tolist()
        for line, rise, count in zip(kinds, heights, keys, strict=True):
            top, left = int(places.top[number]), int(places.left[number])
            number += 1
            y0, y1 = _span(top, rise, height, places.queries)
            x0, x1 = _span(left, count, width, places.keys)
            if count == 0:  # a class of queries without keys
                continue
            centres = ((torch.arange(x0, x1) + 0.5) * places.keys / width - left).long().clamp(0, count - 1)
            drawn = line[centres.div(tile, rounding_mode="floor")]
            canvas[y0:y1, x0:x1] = torch.maximum(canvas[y0:y1, x0:x1], drawn)
    return canvas


def _span(start: int, count: int, pixels: int, total: int) -> tuple[int, int]:
    """Return the pixels that a stretch of positions covers, one at least."""
    first = start * pixels // total
    return first, max(first + 1, (start + count) * pixels // total)


def _pairs(
    attention: Attention, layout: Layout, shape: Shape, data: Data, head: int, blocks: list[TileRows]
) -> torch.Tensor:
    """Return the allowed pairs in the order of the pass."""
    queries, keys = [], []
    shift, last = 0, None
    for rows in blocks:
        bounds = {name: value.flatten().tolist() for name, value in rows.env.indices.items()}
        shift = bounds[IndexName.SHIFT][0]
        for number, residue in enumerate(bounds[IndexName.CLASS]):
            low, high = bounds[IndexName.QUERY_LOW][number], bounds[IndexName.QUERY_HIGH][number]
            queries.append(_positions(layout.query, residue, torch.arange(low, high + 1)))
            if residue != last:
                keys.append(_positions(layout.key, residue, torch.arange(int(rows.keys[number]))))
            last = residue
    if not queries:
        return torch.zeros(0, 0, dtype=torch.bool)
    row_order = torch.cat(queries) - shift
    env = pair_environment(attention, shape.sizes(), data, rows=row_order, keys=torch.cat(keys))
    allowed = evaluate_tensor(attention.mask, env).expand(1, shape.heads, len(row_order), -1)
    return allowed[0, head].expand(len(row_order), sum(map(len, keys)))


def _boxed_pairs(
    attention: Attention, layout: Layout, shape: Shape, data: Data, head: int, blocks: list[TileRows]
) -> torch.Tensor:
    """Return the allowed pairs of each tile with its own box of keys, in the order of the pass."""
    lines = []
    for rows in blocks:
        bounds, keys = rows.env.indices, rows.keys.flatten().tolist()
        shift = int(bounds[IndexName.SHIFT].flatten()[0])
        for number, count in enumerate(keys):
            tile = {name: bounds[name].flatten()[number] for name in (IndexName.QUERY_LOW, IndexName.QUERY_HIGH)}
            numbers = torch.arange(int(tile[IndexName.QUERY_LOW]), int(tile[IndexName.QUERY_HIGH]) + 1)
            env = replace(rows.env, indices={**bounds, **tile, LOCAL_QUERY.name: numbers})
            queries = evaluate_tensor(layout.query.position(LOCAL_QUERY), env).expand(len(numbers)) - shift
            real = evaluate_tensor(layout.query.is_real(LOCAL_QUERY), env) & (queries >= 0) & (queries < shape.queries)
            env = replace(env, indices={**env.indices, LOCAL_KEY.name: torch.arange(count)})
            places = evaluate_tensor(layout.key.position(LOCAL_KEY), env).expand(count)
            pairs = pair_environment(attention, shape.sizes(), data, rows=queries, keys=places)
            allowed = evaluate_tensor(attention.mask, pairs).expand(1, shape.heads, len(numbers), count)[0, head]
            allowed = allowed & real.expand(len(numbers)).unsqueeze(1) & (places < shape.keys)
            lines.append(torch.nn.functional.pad(allowed, (0, max(keys) - count)))
    width = max((line.shape[1] for line in lines), default=0)
    padded = [torch.nn.functional.pad(line, (0, width - line.shape[1])) for line in lines]
    return torch.cat(padded) if padded else torch.zeros(0, 0, dtype=torch.bool)


def _positions(one: CoordinateMap, residue: int, numbers: torch.Tensor) -> torch.Tensor:
    env = TensorEnvironment({LOCAL_QUERY.name: numbers, CLASS.name: torch.tensor(residue)})
    return evaluate_tensor(one.position(LOCAL_QUERY), env)


def _counts(blocks: list[tuple[TileRows, torch.Tensor]], tile: int) -> tuple[int, int, int]:
    """Return how many tiles are empty, partial and full."""
    full = sum(int((kinds == TileKind.FULL).sum()) for _, kinds in blocks)
    partial = sum(int((kinds == TileKind.PARTIAL).sum()) for _, kinds in blocks)
    total = sum(int((rows.keys + tile - 1).div(tile, rounding_mode="floor").sum()) for rows, _ in blocks)
    return total - full - partial, partial, full
