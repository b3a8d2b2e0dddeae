"""Pictures: the right tiles in the right colours."""

import io
import sys
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attnc import cli
from attnc.algebra.counting import count_tiles
from attnc.bench.cases import square
from attnc.blockwise import mask_blocks
from attnc.compiler import plan_source
from attnc.layout_pictures import make_layout_panels
from attnc.plan.choose import plan_attention
from attnc.show import draw, make_panel
from attnc.source import SourceFile
from attnc.tile_map import TileKind, count_kinds, count_planned, count_whole_ends, evaluated_grid, planned_grid

pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples"


def plans(text):
    return plan_source(SourceFile("p.attn", text)).plans


def test_show_writes_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["show", str(EXAMPLES / "streaming.attn"), "-D", "window=100", "-n", "600"])
    assert result.exit_code == 0, result.output
    from matplotlib.image import imread

    picture = imread("streaming.png")
    assert min(picture.shape[:2]) > 500
    colours = {tuple(round(float(part), 1) for part in pixel[:3]) for row in picture[::7] for pixel in row[::7]}
    assert len(colours) > 4


@pytest.mark.parametrize("length", [1, 100, 1000])
def test_tiles_of_affine_masks_are_those_of_every_pair(length):
    (plan,) = plans("attention a { mask causal and (i - j < 200 or j < 3) }")
    panel = make_panel(plan, length)
    sizes = _shape(length).sizes()
    right = torch.cat(list(evaluated_grid(plan.attention, sizes, query_tile=128, key_tile=128)))
    assert torch.equal(panel.kinds, right)
    assert panel.kinds[-1, -1] == (TileKind.FULL if length == 1 else TileKind.PARTIAL)
    assert panel.pairs is not None
    i, j = torch.arange(length).view(-1, 1), torch.arange(length)
    assert torch.equal(panel.pairs, (j <= i) & ((i - j < 200) | (j < 3)))


def _shape(length):
    from attnc.bench.cases import square

    return square(length)


def test_long_sequences_are_drawn_in_tiles():
    (plan,) = plans("attention a { mask causal and i - j < 5000 }")
    panel = make_panel(plan, 1_000_000)
    assert panel.pairs is None
    assert panel.kinds.shape[0] <= 800
    counts = torch.bincount(panel.kinds.flatten(), minlength=3)
    assert counts[TileKind.EMPTY] > counts[TileKind.FULL] + counts[TileKind.PARTIAL] > 0
    assert bool((panel.kinds.diagonal() == TileKind.PARTIAL).all())


def test_several_attentions_and_data():
    from matplotlib.image import imread

    two = plans("attention a { mask causal }\nattention b { input doc: int[B, M] sorted\n mask same(doc) }")
    assert make_panel(two[1], 2048).kinds.count_nonzero() < 16 * 16
    assert "doc in runs of 512" in make_panel(two[1], 2048).subtitle
    one = imread(io.BytesIO(draw(two[:1], 300)))
    both = imread(io.BytesIO(draw(two, 300)))
    assert both.shape[1] > 1.5 * one.shape[1]


def test_a_missing_matplotlib_is_one_diagnostic(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    target = tmp_path / "x.png"
    result = CliRunner().invoke(cli.app, ["show", str(EXAMPLES / "gpt.attn"), "-o", str(target)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error[missing-extra]: ")
    assert not target.exists()


@pytest.mark.parametrize(
    "text",
    [
        "attention a { mask causal and (i - j < 200 or j < 3) }",
        "attention a { mask (i - j) % 300 == 0 or i < 5 }",
        "attention a { mask j < M // 2 }",
        "attention a { align start\n mask abs(i - j) < 100 * (h + 1) }",
    ],
)
@pytest.mark.parametrize("length", [1, 128, 900])
def test_tiles_are_counted_the_same_by_walking_and_by_tensors(text, length):
    (plan,) = plans(text)
    tiles, sizes = plan.passes[0].tiles, _shape(length).sizes()
    for head in (0, 3):
        grid = planned_grid(plan.attention, tiles, sizes, query_tile=64, key_tile=128, head=head)
        assert count_kinds(grid) == count_planned(plan.attention, tiles, sizes, query_tile=64, key_tile=128, head=head)
    counted = count_tiles(tiles, length, length, 0, 64, 128, 8)
    by_head = [count_planned(plan.attention, tiles, sizes, query_tile=64, key_tile=128, head=head) for head in range(8)]
    ends = sum(
        count_whole_ends(plan.attention, sizes, query_tile=64, key_tile=128, head=head) for head in range(8)
    )  # which a walk tests, and so calls partial
    assert counted.full * 8 + ends == sum(one.full for one in by_head)
    assert counted.partial * 8 - ends == sum(one.partial for one in by_head)


@cache
def layout_plan(text):
    return plan_attention(plans(text)[0].attention)


@pytest.mark.parametrize(
    "text",
    [
        "attention a { mask causal and (i - j < 100 or (i - j) % 100 == 0) }",
        "attention a { mask causal and (i // 128 == j // 128 or j % 128 >= 120) }",
        "attention a { mask abs(i - j) < 300 and (i - j) % 7 == 3 }",
        "attention a { align start\n mask i % 64 < 4 and j <= i }",
        "attention a { mask abs(i - j) < 50 * (h + 1) and (i - j) % 8 == 0 }",
    ],
)
@pytest.mark.parametrize("length", [1, 700, 2048])
def test_passes_are_drawn_in_their_own_order(text, length):
    plan = layout_plan(text).at(length)
    panels = make_layout_panels(plan, length, heads=4, head=2)
    assert len(panels) == len(plan.passes)
    for one, panel in zip(plan.passes, panels, strict=True):
        queries, keys = walked(one.layout, length)
        if len(queries) > 16:
            queries, keys = queries[:4], keys[:4]
            assert "4 of 100 classes drawn" in panel.subtitle or length < 100
        i, j = (torch.tensor(list(chain(*order)), dtype=torch.long) for order in (queries, keys))
        assert (panel.queries, panel.keys) == (len(i), len(j))
        assert panel.pairs is not None
        pairs = replace(plan.attention, mask=one.mask)
        allowed = next(iter(mask_blocks(pairs, square(length, heads=4).sizes(), rows_at_once=length))).allowed
        assert torch.equal(panel.pairs, allowed[0, min(2, allowed.shape[1] - 1)][i][:, j])
        assert not bool((panel.pairs & (panel.kinds == TileKind.EMPTY)).any())
        top = 0
        for rows, columns in zip(queries, keys, strict=True):
            left = sum(map(len, keys[: keys.index(columns)]))
            block = panel.pairs[top : top + len(rows), left : left + len(columns)]
            colours = panel.kinds[top : top + len(rows), left : left + len(columns)]
            for some, drawn in zip(block.split(128), colours.split(128), strict=True):
                for pairs_, kinds in zip(some.split(128, 1), drawn.split(128, 1), strict=True):
                    right = int(pairs_.any()) + int(pairs_.all()) if pairs_.numel() else 0
                    assert bool((kinds == right).all())
            top += len(rows)


def walked(layout, length):
    """Return the positions of queries and of keys, class after class."""
    orders = []
    for one in (layout.query, layout.key):
        classes = range(layout.classes) if one.kind.value == "residue" else (0,)
        keep = {
            "identity": lambda p, c: True,
            "residue": lambda p, c, one=one: p % one.period == (c + one.first) % one.period,
            "runs": lambda p, c, one=one: one.first <= p % one.period < one.first + one.length,
        }[one.kind.value]
        orders.append([[p for p in range(length) if keep(p, c)] for c in classes])
    queries, keys = orders
    there = [number for number, order in enumerate(queries) if order]
    return [queries[number] for number in there], [keys[number] for number in there]


def test_long_passes_are_drawn_in_tiles(tmp_path):
    from matplotlib.image import imread

    plan = layout_plan("attention a { mask causal and (i - j < 128 or (i - j) % 128 == 0) }")
    plain, strided = make_layout_panels(plan, 1_000_000)
    assert plain.pairs is None
    assert max(plain.kinds.shape) <= 2048
    assert bool((plain.kinds.diagonal() == TileKind.PARTIAL).all())
    assert (strided.queries, strided.keys) == (4 * 7813, 4 * 7813)
    counts = torch.bincount(strided.kinds.flatten(), minlength=3).tolist()
    assert counts[TileKind.FULL] > 0.1 * strided.kinds.numel()
    picture = imread(io.BytesIO(draw([plan], 8192, layout=True)))
    assert picture.shape[1] > 1.5 * picture.shape[0]


def test_show_draws_layouts_on_request(tmp_path):
    target = tmp_path / "p.png"
    result = CliRunner().invoke(
        cli.app, ["show", str(EXAMPLES / "dilated.attn"), "-n", "512", "--layout", "-o", str(target)]
    )
    assert result.exit_code == 0, result.output
    assert target.read_bytes().startswith(b"\x89PNG")
