"""A pattern as a picture: its pairs where they can be seen, and its tiles coloured by what a kernel does in them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attnc.algebra.tiles import derive_tiles
from attnc.bench.cases import TYPICAL_DOCUMENT, Data, make_data, on_shortened, square
from attnc.blockwise import mask_blocks, reads_data, varies
from attnc.ir.nodes import IndexName
from attnc.ir.program import Attention
from attnc.ir.types import Type
from attnc.ir.walk import tables
from attnc.layout_pictures import PAIRS_SHOWN, LayoutPanel, make_layout_panels
from attnc.pictures import figure_class
from attnc.plan.choose import with_known_sizes
from attnc.plan.kernel_plan import Plan
from attnc.tile_map import TileKind, evaluated_grid, planned_grid

EMPTY_COLOUR, PARTIAL_COLOUR, FULL_COLOUR = (0.955, 0.955, 0.955), (0.99, 0.80, 0.49), (0.48, 0.68, 0.84)
PAIR_COLOURS = ((0.955, 0.955, 0.955), (0.80, 0.40, 0.05), (0.13, 0.40, 0.65))
"""Colours of an allowed pair in an empty (never), a partial and a full tile."""

EVALUATED = 16384
"""Longest sequence whose tiles are found by evaluating a mask that depends on data."""

TILES_ACROSS = 800
"""Most tiles that are drawn side by side; longer sequences are drawn in coarser tiles."""

MOST_STRETCHED = 3
"""Panels whose sides differ by more are stretched to a square."""

GRID_LINES = 40
"""Most tiles across for which tile borders are drawn."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One attention, ready to be drawn.

    Attributes:
        kinds: uint8 grid of `TileKind`, query tiles by key tiles.
        pairs: bool, queries by keys; None where single pairs would not be seen.
        tile: positions that one cell of `kinds` spans.
    """

    title: str
    subtitle: str
    length: int
    keys: int
    tile: int
    kinds: torch.Tensor
    pairs: torch.Tensor | None


def draw(plans: Sequence[Plan], length: int, *, heads: int = 8, head: int = 0, layout: bool = False) -> bytes:
    """Draw one panel for each attention, or one for each of its passes; a PNG.

    Args:
        plans: of the attentions.
        length: queries and keys.
        heads: how many heads there are, for patterns that depend on it.
        head: the head that is drawn.
        layout: whether queries and keys are drawn in the order in which each pass walks them, not in plain order.

    Raises:
        CompileError: matplotlib is missing.
    """
    made = figure_class()
    panels: list[Panel | LayoutPanel] = []
    for plan in plans:
        if layout:
            panels += make_layout_panels(plan, length, heads=heads, head=head)
        else:
            panels.append(make_panel(plan, length, heads=heads, head=head))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = made(figsize=(6.2 * columns, 6.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for position, place in enumerate(axes.flat):
        panel = panels[position] if position < len(panels) else None
        if isinstance(panel, Panel):
            _draw_panel(place, panel)
        elif panel is not None:
            _draw_layout_panel(place, panel)
        else:
            place.set_axis_off()
    _legend(figure, any(panel.pairs is not None for panel in panels))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, bbox_inches="tight", pad_inches=0.15)
    return buffer.getvalue()


def make_panel(plan: Plan, length: int, *, heads: int = 8, head: int = 0) -> Panel:
    """Classify the tiles of one attention in plain order, and evaluate its pairs where they can be seen."""
    shape = square(length, heads=heads)
    plan = with_known_sizes(plan, shape.keys, shape.head_size)
    attention = plan.attention
    _, shape = on_shortened(attention, shape)
    with_data = reads_data(attention)
    data: Data = make_data(attention, shape, seed=0) if with_data else {}
    plan = plan.at(length)
    only = plan.passes[0]
    in_order = len(plan.passes) == 1 and only.layout.is_plain
    tiles = only.tiles if in_order else derive_tiles(attention, summaries=True)
    kernel_tile = min(tiles.query_tile, tiles.key_tile)
    tile = kernel_tile * max(1, -(-length // (kernel_tile * TILES_ACROSS)))
    evaluated = with_data and length <= EVALUATED
    if evaluated:
        blocks = evaluated_grid(attention, shape.sizes(), data, query_tile=tile, key_tile=tile, head=head)
    else:
        blocks = planned_grid(attention, tiles, shape.sizes(), data, query_tile=tile, key_tile=tile, head=head)
    pairs = None
    if length <= PAIRS_SHOWN:
        found = [
            block.allowed[0, min(head, block.allowed.shape[1] - 1)]
            for block in mask_blocks(attention, shape.sizes(), data)
        ]
        pairs = torch.cat(found)
    remarks = [f"{length:,} x {shape.keys:,}, tiles of {kernel_tile} x {kernel_tile}"]
    if tile != kernel_tile:
        remarks.append(f"drawn in tiles of {tile}")
    if varies(attention, IndexName.HEAD):
        remarks.append(f"head {head} of {heads}")
    if with_data:
        remarks.append(_data_words(attention, evaluated))
    return Panel(attention.name, ", ".join(remarks), length, shape.keys, tile, torch.cat(list(blocks)), pairs)


def _data_words(attention: Attention, evaluated: bool) -> str:
    """Say what data the picture shows."""
    read = dict.fromkeys((*tables(attention.mask), *tables(attention.align.shift)))
    words = []
    for name in read:
        tensor = attention.tensor(name)
        if tensor.sorted:
            words.append(f"{name} in runs of {TYPICAL_DOCUMENT}")
        elif tensor.type is Type.INT:
            words.append(f"{name} drawn at random")
        else:
            words.append(f"{name} at random")
    where = "" if evaluated else "\nbefore the data is known, every tile that it might touch counts as partial;"
    return f"{where}\nexample data: {', '.join(words)}"


def _draw_panel(place: Any, panel: Panel) -> None:
    place.imshow(
        _pixels(panel),
        extent=(0, panel.keys, panel.length, 0) if panel.pairs is not None else _extent(panel),
        interpolation="nearest",
        aspect="equal",
    )
    margin = 0.006 * panel.length  # so that a first row or column one tile wide does not vanish behind the frame
    place.set_xlim(-margin, panel.keys + margin)
    place.set_ylim(panel.length + margin, -margin)
    place.spines[:].set_visible(False)
    if 1 < max(panel.kinds.shape) <= GRID_LINES:
        for draw_line, across in zip((place.axhline, place.axvline), panel.kinds.shape, strict=True):
            for number in range(1, across):
                draw_line(number * panel.tile, color="white", linewidth=0.5)
    place.set_xlabel("key position j" if panel.keys == panel.length else "shortened key j")
    place.set_ylabel("query position i")
    counts = torch.bincount(panel.kinds.flatten(), minlength=3).tolist()
    _heading(place, panel.title, panel.subtitle + "\n" + _share(counts))


def _draw_layout_panel(place: Any, panel: LayoutPanel) -> None:
    height, width = panel.queries, panel.keys
    palette, pair_colours = torch.tensor([EMPTY_COLOUR, PARTIAL_COLOUR, FULL_COLOUR]), torch.tensor(PAIR_COLOURS)
    kinds = panel.kinds.long()
    colours = palette[kinds]
    if panel.pairs is not None:
        colours = torch.where(panel.pairs.unsqueeze(-1), pair_colours[kinds], colours)
    alike = 1 / MOST_STRETCHED <= (height or 1) / (width or 1) <= MOST_STRETCHED
    place.imshow(
        colours.numpy(), extent=(0, width, height, 0), interpolation="nearest", aspect="equal" if alike else "auto"
    )
    place.set_xlim(-0.006 * width, 1.006 * width or 1)
    place.set_ylim(1.006 * height or 1, -0.006 * height)
    place.spines[:].set_visible(False)
    for edges, draw_line, size in (
        (panel.query_edges, place.axhline, height),
        (panel.key_edges, place.axvline, width),
    ):
        if len(edges) > 1:
            lines = edges[1:] if len(edges) <= GRID_LINES else ()
        else:
            lines = tuple(range(panel.tile, size, panel.tile)) if size <= GRID_LINES * panel.tile else ()
        for line in lines:
            draw_line(line, color="0.6" if len(edges) > 1 else "white", linewidth=0.5)
    place.set_xlabel(panel.key_axis)
    place.set_ylabel(panel.query_axis)
    _heading(place, panel.title, panel.subtitle + "\n" + _share(list(panel.counts)))


def _heading(place: Any, title: str, lines: str, size: int = 8) -> None:
    """Write small lines above a panel, and its title above those."""
    place.annotate(
        lines, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=size, va="bottom"
    )
    above = 6 + 1.35 * size * len(lines.split("\n"))
    place.annotate(
        title, (0, 1), (0, above), xycoords="axes fraction", textcoords="offset points", fontweight="bold", va="bottom"
    )


def _extent(panel: Panel) -> tuple[int, int, int, int]:
    rows, columns = panel.kinds.shape
    return (0, columns * panel.tile, rows * panel.tile, 0)


def _pixels(panel: Panel) -> Any:
    """Return the picture's colours, one pixel a pair or one a tile."""
    palette = torch.tensor([EMPTY_COLOUR, PARTIAL_COLOUR, FULL_COLOUR])
    kinds = panel.kinds.long()
    if panel.pairs is None:
        return palette[kinds].numpy()
    spread = kinds.repeat_interleave(panel.tile, 0).repeat_interleave(panel.tile, 1)
    spread = spread[: panel.length, : panel.keys]
    colours = torch.where(panel.pairs.unsqueeze(-1), torch.tensor(PAIR_COLOURS)[spread], palette[spread])
    return colours.numpy()


def _share(counts: list[int]) -> str:
    total = max(1, sum(counts))
    names = {TileKind.FULL: "full", TileKind.PARTIAL: "partial", TileKind.EMPTY: "empty"}
    return ", ".join(f"{counts[kind]:,} {name} ({counts[kind] / total:.1%})" for kind, name in names.items()) + " tiles"


def _legend(figure: Any, with_pairs: bool) -> None:
    from matplotlib.patches import Patch

    entries = [
        Patch(facecolor=FULL_COLOUR, label="full tile: no test"),
        Patch(facecolor=PARTIAL_COLOUR, label="partial tile: tested"),
        Patch(facecolor=EMPTY_COLOUR, edgecolor="0.7", label="empty tile: never visited"),
    ]
    if with_pairs:
        entries.append(Patch(facecolor=PAIR_COLOURS[1], label="allowed pair in a partial tile"))
        entries.append(Patch(facecolor=PAIR_COLOURS[2], label="allowed pair in a full tile"))
    figure.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
