"""Pictures: the right tiles in the right colours."""

import io
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attnc import cli
from attnc.algebra.counting import count_tiles
from attnc.compiler import plan_source
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
