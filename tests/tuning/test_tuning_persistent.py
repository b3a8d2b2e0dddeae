"""Persistent programs: where they are tried, how many there are, and what they are expected to take."""

from collections import Counter
from dataclasses import replace

import pytest
from test_tuning_static import LOOP, report

from attnc.bench.cases import square
from attnc.codegen.kernel_pieces import tiles_text
from attnc.compiler import plan_source
from attnc.plan.configs import TARGETS, TileConfig
from attnc.plan.kernel_plan import Trend
from attnc.plan.tile_space import Kernel, tile_space
from attnc.runtime.tiles import Tiles
from attnc.source import SourceFile
from attnc.tuning import static
from attnc.tuning.counting import FORWARD, TileCounter
from attnc.tuning.model import STARTED, Work, estimate, programs_at_once
from attnc.tuning.schedule import Rows, imbalance, last_dealt_end, last_end

PLAIN = Tiles(128, 64, 8, 3)


@pytest.mark.parametrize("target", TARGETS)
def test_persistent_programs_are_tried_where_it_is_known_how_long_they_take(target):
    for trend in Trend:
        found = tile_space(target, Kernel(2, 64, 64, 128, 128, trend=trend, fuses=True))
        persistent = {config for config in found if config.persistent}
        assert bool(persistent) is (trend is not Trend.MIXED)
        # beside each of the others, as keys are read where there are descriptors
        describes = target in ("sm_90", "sm_100")
        others = {config for config in found if config.descriptors == describes and not config.fused}
        assert {replace(config, persistent=0) for config in persistent} <= others - persistent
    for gradients in (1, 2):
        assert not any(config.persistent for config in tile_space(target, Kernel(2, 64, 64, 128, 128, gradients)))


def test_a_deal_goes_there_and_back():
    assert last_dealt_end([4, 3, 2, 1], 2) == 5
    assert last_dealt_end([4, 3, 2, 1, 1], 2) == 6
    assert last_dealt_end([4, 3, 2], 2) == 5  # the second program, which had the shorter one, gets the third
    assert last_end([4, 3, 2], 2) == 5


def test_a_deal_is_even_where_rows_become_shorter_through_the_whole_launch():
    lengths = tuple(range(64, 0, -1))
    through, by_heads = (Rows(lengths, 64, 16, turn) for turn in (16, 1))
    assert imbalance(through, 132, 0.0, dealt=True) < 1.01
    assert imbalance(by_heads, 132, 0.0, dealt=True) > 1.3
    assert imbalance(by_heads, 132, 0.0) < imbalance(by_heads, 132, 0.0, dealt=True)


def test_heads_take_turns_so_that_a_deal_is_even():
    plan = plan_source(SourceFile("c.attn", "attention c { mask causal }")).plans[0]
    count = TileCounter(plan, "sm_90", square(16384, heads=16, head_size=128), 2)
    turns = [count.work(FORWARD, replace(PLAIN, persistent=number)).rows.turn for number in (0, 1, 2)]
    assert turns == [2, 16, 16]  # the keys of two heads fit into the cache; 33 and 66 might take turns
    by_heads = count.work(FORWARD, replace(PLAIN, persistent=1, order="heads")).rows
    assert by_heads.turn == 1


def test_what_is_saved_is_the_start_of_programs():
    work = Work(tiles=132_000, programs=1320)
    one, two = (estimate(report(tiles=replace(PLAIN, persistent=number)), LOOP, work) for number in (0, 2))
    assert one.seconds - two.seconds == pytest.approx(10 * STARTED / 2 / 1.75e9)
    alone = estimate(report(tiles=replace(PLAIN, persistent=1)), LOOP, work)
    assert alone.seconds > two.seconds  # nobody else computes while it loads


def test_as_many_are_started_as_a_multiprocessor_has_room_for():
    compiled = report(tiles=replace(PLAIN, persistent=1))
    job = static._Job("w", FORWARD, static.Target("sm_90", "bfloat16", square(4096)), compiled.tiles, ("", "heads"))
    plan = plan_source(SourceFile("c.attn", "attention c { mask causal }")).plans[0]
    count = TileCounter(plan, "sm_90", square(4096, heads=32, head_size=128), 2)
    found = list(static._candidates(job, compiled, LOOP, count))
    assert programs_at_once(compiled) == 2
    assert [one.tiles for one in found] == [replace(PLAIN, persistent=2, order=order) for order in ("", "heads")]
    assert found[0].estimate.seconds < found[1].estimate.seconds  # head by head a deal is uneven
    assert not any(one.is_default for one in found)


def test_configurations_are_tried_large_ones_first_and_persistent_ones_after_others():
    plan = plan_source(SourceFile("c.attn", "attention c { mask causal }")).plans[0]
    target = static.Target("sm_80", "bfloat16", square(4096, heads=8, head_size=64))
    tried = [job.tiles for job in static._jobs(plan, target, gradients=False)]
    assert tried[0] is None
    places = [(-tiles.query * tiles.key, tiles.persistent > 0) for tiles in tried[1:]]
    assert places == sorted(places)
    assert Counter(persistent for _, persistent in places) == {False: 45, True: 45}


def test_modules_say_how_many_programs_there_are():
    assert tiles_text(TileConfig(64, 32, 4, 2, persistent=2)) == "Tiles(64, 32, warps=4, stages=2, persistent=2)"
