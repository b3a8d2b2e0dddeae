"""Ranking without a device: the space, the loops of compiled kernels, the estimate, and the order."""

from collections import Counter
from dataclasses import replace

import pytest

from attnc.bench.cases import square
from attnc.compiler import plan_source
from attnc.plan.configs import SHARED_MEMORY, TARGETS
from attnc.plan.kernel_plan import Trend
from attnc.plan.tile_space import Kernel, tile_space
from attnc.runtime.aot import KernelReport
from attnc.runtime.tiles import Tiles
from attnc.source import SourceFile
from attnc.tuning.counting import FORWARD, KEYS, QUERIES, TileCounter
from attnc.tuning.disassembly import Loop, matrix_loops
from attnc.tuning.model import Estimate, Work, estimate, other_cycles, programs_at_once
from attnc.tuning.schedule import Rows, imbalance, last_end
from attnc.tuning.static import Candidate, Ranking, Target, configs_of, part_of, rank

WINDOW = SourceFile("w.attn", "attention w { mask causal and i - j < 300 }")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head", [16, 64, 128, 256])
@pytest.mark.parametrize("gradients", [0, 1, 2])
@pytest.mark.parametrize("size", [2, 4])
def test_every_space_has_configurations_that_may_run(target, head, gradients, size):
    kernel = Kernel(size, head, head, 1024, 1024, gradients)
    found = tile_space(target, kernel)
    assert found
    assert len(set(found)) == len(found)
    for config in found:
        walked = config.query if gradients == 2 else config.key
        assert walked * 2 * head * size * max(1, config.stages - 1) <= SHARED_MEMORY[target] * 1024
        assert not (config.descriptors and (target not in ("sm_90", "sm_100") or gradients or size > 2))


def test_residuals_bound_the_space():
    found = tile_space("sm_90", Kernel(2, 64, 64, 32, 64))
    assert {config.query for config in found} == {32}
    assert max(config.key for config in found) == 64


def report(**fields):
    usual = {
        "kernel": "_w_kernel", "identity": "w 0", "target": "sm_90", "dtype": "bfloat16", "head_size": 128,
        "registers": 128, "spills": 0, "tiles": Tiles(128, 64, 8, 3), "shared": 100 << 10, "shared_limit": 227 << 10,
        "matrix_instructions": 16, "shares": 1, "joined": 0, "assembly": "", "binary": b"",
    }  # fmt: skip
    return KernelReport(**usual | fields)


LOOP = Loop(Counter({"HGMMA.64x64x16.F32.BF16": 16, "FMUL": 100, "MUFU.EX2": 10, "FADD": 20}))


def test_programs_at_once_by_what_runs_out_first():
    assert programs_at_once(report()) == 2  # 65536 registers, 256 threads of 128; 228 KiB, 101 each
    assert programs_at_once(report(registers=129)) == 1
    assert programs_at_once(report(shared=20 << 10, registers=32)) == 8
    assert programs_at_once(report(shared=120 << 10)) == 1


def test_other_instructions_cost_what_their_units_take():
    assert other_cycles(LOOP) == 100 + 10 * 8 + 20
    assert LOOP.others == 130


def test_an_estimate_by_hand():
    work = Work(tiles=132_000, programs=132)
    found = estimate(report(), LOOP, work)
    matrix = 2 * 128 * 64 * 128 * 2 / 4096
    other = 200 * 8 / 4
    cycles = 1000 * (matrix + 0.35 * other) + 2000 / 2
    assert found == Estimate(pytest.approx(cycles / 1.75e9), matrix, other, 2, 130)


def test_what_is_out_of_the_question():
    def problem(**fields):
        return estimate(report(**fields), LOOP, Work(1, 1)).problem

    assert problem(spills=8) == "8 bytes spilled"
    assert problem(shared=228 << 10) == "228 KiB of shared memory, of 227"
    assert problem(matrix_instructions=0) == "no matrix instructions"
    assert problem(dtype="float32", spills=8) == ""


def test_tiles_are_counted_exactly():
    plan = plan_source(WINDOW).plans[0]
    shape = square(1000, heads=4, kv_heads=2, head_size=64)
    work = TileCounter(plan, "sm_90", shape, 2).work(KEYS, Tiles(64, 32, 4, 1))
    pairs = [(i // 64, j // 32) for i in range(1000) for j in range(max(0, i - 299), i + 1)]
    assert work.tiles == 4 * len(set(pairs))
    assert work.programs == 2 * 32  # key heads, tiles of keys
    assert work.products == 4


CAUSAL = SourceFile("c.attn", "attention c { mask causal }")


@pytest.mark.parametrize("part", [FORWARD, QUERIES, KEYS])
def test_rows_of_causal_attention_are_started_from_the_longest_to_the_shortest(part):
    plan = plan_source(CAUSAL).plans[0]
    count = TileCounter(plan, "sm_90", square(4096, heads=8, kv_heads=2, head_size=64), 2)
    tiles = Tiles(64, 64, 4, 2)
    rows, one_by_one = (count.work(part, replace(tiles, order=order)).rows for order in ("", "heads"))
    assert list(rows.lengths) == sorted(rows.lengths, reverse=True)
    assert rows.lengths[0] > 20 * rows.lengths[-1]
    assert (rows.tiles, rows.sequences) == (64, 2 if part == KEYS else 8)
    assert (rows.turn, one_by_one.turn) == (rows.sequences, 1)  # the keys of all heads fit into the cache
    assert sum(rows.in_order()) == sum(one_by_one.in_order())


def test_heads_that_take_turns_leave_short_rows_for_the_end():
    lengths = tuple(range(64, 0, -1))
    turns, heads = (Rows(lengths, 64, 16, turn) for turn in (16, 1))
    assert list(turns.in_order()) == sorted(turns.in_order(), reverse=True)
    assert list(heads.in_order()) == list(lengths) * 16
    assert 1.0 <= imbalance(turns, 132, 0.0) < 1.02
    assert imbalance(heads, 132, 0.0) > imbalance(turns, 132, 0.0) + 0.03
    assert imbalance(Rows(lengths, 64, 1, 1), 132, 0.0) == 1.0  # one round: nothing to balance


def test_few_heads_that_fit_into_the_cache_leave_short_rows_as_well():
    plan = plan_source(CAUSAL).plans[0]
    count = TileCounter(plan, "sm_90", square(16384, heads=16, head_size=128), 2)
    turns, heads = (count.work(FORWARD, Tiles(128, 128, 8, 2, order=order)).rows for order in ("", "heads"))
    assert (turns.turn, heads.turn) == (2, 1)
    assert imbalance(turns, 132, 0.5) < imbalance(heads, 132, 0.5)


def test_the_last_program_ends_where_slots_were_taken_in_order():
    assert last_end([3, 1, 1, 1, 2], 2) == 5
    assert last_end([1], 4) == 1


@pytest.mark.parametrize(
    ("trend", "orders"), [(Trend.LEVEL, {""}), (Trend.RISING, {"", "heads"}), (Trend.MIXED, {"", "turns"})]
)
def test_orders_are_offered_where_rows_are_uneven(trend, orders):
    found = tile_space("sm_90", Kernel(2, 64, 64, 64, 64, trend=trend))
    assert {config.order for config in found} == orders


@pytest.mark.parametrize(
    ("statements", "target", "offered"),
    [
        ("mask causal", "sm_90", True),
        ("", "sm_100", True),  # whole tiles, and the last one
        ("mask causal; normalize sigmoid", "sm_90", True),
        ("mask causal", "sm_80", False),  # no descriptors
        ("mask causal; weight 0.5 + sigmoid(i - j)", "sm_90", False),
        ("mask (i - j) % 64 == 0", "sm_90", False),
    ],
)
def test_fused_loops_are_offered_where_a_kernel_can_have_them(statements, target, offered):
    plan = plan_source(SourceFile("p.attn", f"attention a {{ {statements} }}")).plans[0]
    for part in (FORWARD, QUERIES, KEYS):
        found = configs_of(plan, Target(target, "float16", square(4096, heads=4, head_size=64)), part)
        assert any(config.fused for config in found) is (offered and part == FORWARD)
        assert all(config.descriptors for config in found if config.fused)


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("_w_kernel", "forward"),
        ("_w_up_to_64_rows_kernel", "forward"),
        ("_w_query_gradient_kernel", "query gradient"),
        ("_w_pair_gradient_kernel", "query gradient"),
        ("_w_up_to_64_key_gradient_kernel", "key gradient"),
    ],
)
def test_parts_by_the_names_of_functions(kernel, part):
    assert part_of(kernel, "w") == part


AMD = """
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
.LBB0_3:
\tv_exp_f32_e32 v1, v2
.LBB0_4:
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\tv_exp_f32_e32 v1, v2
\ts_cbranch_scc1 .LBB0_4
\ts_cbranch_scc1 .LBB0_3
\tv_exp_f32_e32 v1, v2
.LBB0_5:
\tv_exp_f32_e32 v1, v2
\ts_cbranch_scc1 .LBB0_5
"""


def test_innermost_loops_with_matrix_instructions():
    (loop,) = matrix_loops(report(target="gfx942", assembly=AMD))
    assert loop.mix == {"v_mfma_f32_32x32x8_bf16": 1, "v_exp_f32_e32": 1, "s_cbranch_scc1": 1}


BRANCHES = """
.LBB0_1:
\tv_exp_f32_e32 v1, v2
\ts_cbranch_scc1 .LBB0_2
\tv_cndmask_b32_e32 v1, v2, v3
\ts_cbranch_scc0 .LBB0_3
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\ts_branch .LBB0_4
.LBB0_2:
\tv_add_f32_e32 v1, v2, v3
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\ts_branch .LBB0_4
.LBB0_3:
\tv_log_f32_e32 v1, v2
.LBB0_4:
\ts_cbranch_scc1 .LBB0_1
"""


def test_a_loop_counts_what_a_tile_without_a_mask_takes():
    """One way tests a mask, one does not, and one skips the product."""
    (loop,) = matrix_loops(report(target="gfx942", assembly=BRANCHES))
    assert loop.mix == {
        "v_exp_f32_e32": 1, "s_cbranch_scc1": 2, "v_add_f32_e32": 1, "v_mfma_f32_32x32x8_bf16": 1, "s_branch": 1,
    }  # fmt: skip


def candidate(tiles, seconds, problem="", is_default=False):
    return Candidate("w", "w 0", tiles, 128, 0, 0, Estimate(seconds, 1, 1, 1, 1, problem), is_default)


def test_the_best_works_and_beats_the_default_by_more_than_the_doubt():
    default = candidate(Tiles(64, 64, 4, 2), 2.0, is_default=True)
    spilled = candidate(Tiles(128, 128, 4, 2), float("inf"), "8 bytes spilled")
    same = candidate(Tiles(32, 32, 4, 2), 1.8)
    faster = candidate(Tiles(128, 64, 4, 2), 1.5)
    assert Ranking("w", "w 0", (spilled, same, default), 0).best == default
    assert Ranking("w", "w 0", (spilled, same, default, faster), 0).best == faster
    assert Ranking("w", "w 0", (spilled,), 0).best is None


@pytest.mark.parametrize("gpu", ["sm_90", pytest.param("gfx942", marks=pytest.mark.slow)])
def test_kernels_are_compiled_and_ranked(gpu):
    compiled = plan_source(WINDOW)
    plan = compiled.plans[0]
    target = Target(gpu, "float16", square(4096, heads=4, head_size=64))
    seen = []
    found = rank(
        compiled,
        plan,
        target,
        gradients=False,
        budget=4.0,
        advance=lambda what, done, total: seen.append((done, total)),
    )
    (ranking,) = found
    assert ranking.kernel == "w"
    assert seen[-1][0] == seen[-1][1] == 1 + len(configs_of(plan, target, "forward"))
    assert [one for one in ranking.candidates if one.is_default]
    assert len(ranking.candidates) > 1
    assert all(one.estimate.others > 50 for one in ranking.candidates if one.works)
    seconds = [one.estimate.seconds for one in ranking.candidates]
    assert seconds == sorted(seconds)
