"""Kernels in Gluon, executed by the emulator: outputs and log-sum-exps against float64, and mistakes it notices."""

import pytest
import torch
from gluon_harness import check, data, launched
from gluon_values import EmulatorError

from attnc.runtime.tiles import Tiles

PATTERNS = {
    "full": "attention full { score s }",
    "causal": "attention causal { mask causal }",
    "start": "attention start { align start\n mask causal }",
    "window": "attention window_ { mask causal and i - j < 70 }",
    "near": "attention near { mask abs(i - j) <= 40 }",
    "sinks": "attention sinks_ { mask causal and (i - j < 66 or j < 3) }",
    "chunks": "attention chunks { mask causal and i // 50 == j // 50 }",
    "prefix": "attention prefix_ { mask j <= i or j < 20 }",
    "alibi": "attention alibi_ { mask causal\n score s + alibi }",
    "softcap": "attention capped { mask causal\n score softcap(s, 20.0) }",
    "sink": "attention with_sink { mask causal\n normalize softmax(sink = 0.5 * h) }",
    "scaled": "attention scaled { mask causal\n scale 0.05 * (1 + h) }",
    "scaled_rows": "attention scaled_rows { mask causal\n scale 0.1 + 0.001 * i }",
    "half_empty": "attention half_empty { mask causal and j >= 30 }",
}
SIZES = [(1, 1), (63, 63), (64, 64), (65, 65), (100, 100), (257, 257), (40, 150), (1, 300), (150, 40)]


QUICK = ("full", "causal", "window", "sinks", "alibi", "softcap", "sink", "scaled_rows")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in PATTERNS])
def test_outputs_and_log_sum_exps(name):
    for queries, keys in SIZES:
        several = {"B": 2, "H": 4, "G": 2} if queries == 65 else {"B": 1, "H": 2, "G": 1}
        tensors, out, lse = data(**several, N=queries, M=keys, seed=queries)
        check(PATTERNS[name], tensors, out, lse, seed=keys)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("causal", torch.bfloat16), ("window", torch.float16), ("softcap", torch.float16), ("softcap", torch.bfloat16)],
)
def test_heads_of_128(name, dtype):
    tensors, out, lse = data(H=3, N=257, M=300, D=128, dtype=dtype)
    check(PATTERNS[name], tensors, out, lse, tolerance=4e-3 if dtype == torch.float16 else 3e-2)


@pytest.mark.parametrize(("stages", "keys"), [(1, 64), (2, 128), (3, 32), (4, 64)])
def test_rings_of_any_depth(stages, keys):
    tensors, out, lse = data(N=200, M=390)
    tiles = Tiles(128, keys, warps=4, stages=stages)
    for seed in range(3):
        check(PATTERNS["sinks"], tensors, out.fill_(float("nan")), lse.fill_(float("nan")), tiles=tiles, seed=seed)


def test_documents():
    text = """attention documents {
        input doc: int[B, M] sorted
        mask causal and same(doc)
        learned slope: float[H] = exp2(-8 * (h + 1) / H)
        score s + slope[h] * (j - i)
    }"""
    generator = torch.Generator().manual_seed(1)
    for queries, keys in ((65, 65), (257, 257), (30, 200)):
        doc = (torch.rand(2, keys, generator=generator) < 0.03).long().cumsum(1)
        slope = torch.rand(4, generator=generator)
        tensors, out, lse = data(B=2, H=4, G=1, N=queries, M=keys)
        check(text, tensors, out, lse, {"doc": doc, "slope": slope})


def test_positions_of_each_sequence():
    text = "attention cached { input pos: int[B]\n align at(pos[b])\n mask causal and i - j < 90 }"
    tensors, out, lse = data(B=3, H=2, G=2, N=20, M=200)
    check(text, tensors, out, lse, {"pos": torch.tensor([0, 77, 180])})


def test_tables_of_pairs_and_numbers():
    text = """attention tables {
        input bias: float[H, M]
        input steep: float
        mask causal
        score s + bias[h, j] * steep
    }"""
    tensors, out, lse = data(H=2, N=100, M=130)
    check(text, tensors, out, lse, {"bias": torch.randn(2, 130), "steep": 0.3})


def test_a_factor_of_the_call():
    tensors, out, lse = data(N=100)
    check(PATTERNS["causal"], tensors, out, lse, scale=0.3)
    check(PATTERNS["causal"], tensors, out.fill_(float("nan")), lse.fill_(float("nan")), scale=-0.2)
    check(PATTERNS["scaled"], tensors, out.fill_(float("nan")), lse.fill_(float("nan")), scale=0.3)


def test_strides():
    (query, key, value), _, lse = data(H=4, G=2, N=70, M=90)
    query = query.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    both = torch.cat([key, value], 3)
    out = torch.full((1, 70, 4, 64), float("nan"), dtype=query.dtype).permute(0, 2, 1, 3)
    check(PATTERNS["causal"], [query, both[..., :64], both[..., 64:]], out, lse)


def test_no_log_sum_exp():
    tensors, out, _ = data(N=70)
    launched(PATTERNS["causal"], tensors, out, None)
    again, whole, lse = data(N=70)
    launched(PATTERNS["causal"], again, whole, lse)
    assert torch.equal(out, whole)


@pytest.mark.parametrize("name", ["causal", "sinks", "scaled_rows"])
@pytest.mark.parametrize(
    "bad", [float("nan"), *(pytest.param(float(one), marks=pytest.mark.slow) for one in ("inf", "-inf"))]
)
def test_masked_values_do_not_matter(name, bad):
    """Masked pairs have no effect, whatever their values and keys are."""
    tensors, out, lse = data(H=2, N=150, M=150)
    tensors[2][:, :, 100, 3] = bad
    tensors[2][:, :, 5, 60] = bad
    check(PATTERNS[name], tensors, out, lse)


def test_masked_keys_do_not_matter():
    tensors, out, lse = data(N=150, M=150)
    tensors[1][:, :, 120:] = float("nan")
    check(PATTERNS["causal"], tensors, out, lse)
    assert out[:, :, :120].isfinite().all()


MISTAKES = {
    "scores are taken before they are there": ("wait(1, deps=[dots])", "wait(2, deps=[dots])"),
    "sums are scaled before they are there": ("acc, p = warpgroup_mma_wait(0,", "acc, p = warpgroup_mma_wait(1,"),
    "keys are free too early": (
        "            dots = start_scores(q, keys, key_ready, turn + 1, scores)\n",
        "            dots = start_scores(q, keys, key_ready, turn + 1, scores)\n"
        "            free_buffer(key_free, turn + 1)\n",
    ),
    "values are never free": ("            free_buffer(value_free, turn)\n", ""),
    "the query is not waited for": ("    mbarrier.wait(query_ready.index(number), 0)\n", ""),
    "a fence is missing": ("(query.dtype))\n    fence_async_shared()\n", "(query.dtype))\n"),
    "one group frees for two": ("(key_free.index(stage), count=2)", "(key_free.index(stage), count=1)"),
    "nobody waits for copies": ("    tma.store_wait(0)\n", ""),
    "a layout is another": ("gl.DotOperandLayout(0, sums, 2)", "gl.DotOperandLayout(0, sums, 4)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(mistake):
    before, after = MISTAKES[mistake]

    def change(source):
        assert before in source
        return source.replace(before, after)

    assert noticed(change=change)


LIBRARY_MISTAKES = {
    "keys are not waited for": ("    mbarrier.wait(key_ready.index(stage), turn // stages & 1)\n", ""),
    "values are not waited for": ("    mbarrier.wait(value_ready.index(stage), turn // stages & 1)\n", ""),
    "the phase of keys is the other": (
        "mbarrier.wait(key_ready.index(stage), turn // stages & 1)",
        "mbarrier.wait(key_ready.index(stage), (turn // stages & 1) ^ 1)",
    ),
    "the phase of copies is the other": ("phase = (turn // stages & 1) ^ 1", "phase = turn // stages & 1"),
    "copies do not wait": ("        mbarrier.wait(key_free.index(stage), phase)\n", ""),
    "bytes are not expected": ("        mbarrier.expect(value_ready.index(stage), value_desc.block_type.nbytes)\n", ""),
}


@pytest.mark.parametrize("mistake", LIBRARY_MISTAKES)
def test_mistakes_of_the_library_are_noticed(mistake, monkeypatch):
    import gluon_machine

    before, after = LIBRARY_MISTAKES[mistake]
    assert before in gluon_machine.LIBRARY
    monkeypatch.setattr(gluon_machine, "LIBRARY", gluon_machine.LIBRARY.replace(before, after))
    assert noticed()


def noticed(**options):
    """Tell whether the emulator raises, in each of some orders of partitions, where it does not as it is."""
    found = []
    for seed in range(3):
        tensors, out, lse = data(N=128, M=700)
        tiles = Tiles(128, 64, warps=4, stages=2)
        try:
            launched(PATTERNS["causal"], tensors, out, lse, seed=seed, tiles=tiles, **options)
        except EmulatorError:
            found.append(seed)
    return len(found) == 3


def test_nothing_is_noticed_without_mistakes():
    assert not noticed()
