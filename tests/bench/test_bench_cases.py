"""Example data and measuring."""

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnc.bench import cases
from attnc.bench.cases import Shape, Style, make_data, make_tensors, square
from attnc.bench.contender import Case
from attnc.bench.measure import Timing, measure, peak_memory
from attnc.bench.names import Mode
from attnc.bench.report import table
from attnc.bench.run import Comparison, Result
from attnc.bench.work import least_bytes, useful_flops
from attnc.checking import check_source
from attnc.compiler import plan_source
from attnc.explanation import explain_plan
from attnc.files import read_pattern
from attnc.source import SourceFile

CPU = torch.device("cpu")
PATTERNS = sorted((Path(cases.__file__).parent / "patterns").glob("*.attn"))
DENSITY = {
    "causal": 0.500, "window": 0.0308, "sinks_window": 0.0312, "longformer": 0.0619, "dilated": 0.0077,
    "dilated_wide": 0.0073, "strided": 0.0193, "residue": 0.0079, "fixed": 0.0386, "neighborhood": 0.0057,
}  # fmt: skip


def attention(text):
    return check_source(SourceFile("p.attn", text)).program.attentions[0]


def test_every_pattern_of_the_suite_is_there_at_its_density():
    assert {path.stem for path in PATTERNS} == {*DENSITY, "documents"}
    for path in PATTERNS:
        (plan,) = plan_source(read_pattern(path)).plans
        if path.stem in DENSITY:
            density = explain_plan(plan, length=8192, heads=8, head_size=64).density
            assert density == pytest.approx(DENSITY[path.stem], rel=0.02)


def test_tensors_have_the_sizes_and_strides_asked_for():
    shape = Shape(2, 4, 2, 5, 7, 8, 3)
    for strided in (False, True):
        query, key, value = make_tensors(shape, seed=1, dtype=torch.float32, strided=strided)
        assert (query.shape, key.shape, value.shape) == ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 3))
        assert query.is_contiguous() is not strided
    again = make_tensors(shape, seed=1, dtype=torch.float32, strided=True)
    assert torch.equal(again[0], query)


def test_data_follows_the_declarations():
    made = attention(
        "attention a { input doc: int[B, M] sorted\n input length: int[B]\n input beta: float\n input on: bool[M, M]\n"
        " input idx: int[B, N]\n learned bias: float[H, 9] = 0.5\n learned slope: float[H] = h + D\n"
        " mask same(doc) and j < length[b] and on[i, j]\n score s * beta + bias[h, idx[b, r]] + slope[h] }"
    )
    shape = Shape(3, 2, 2, 40, 50, 8, 8)
    for seed in range(20):
        wild = make_data(made, shape, seed=seed, style=Style.WILD)
        assert bool((wild["doc"].diff(dim=-1) >= 0).all())
        assert wild["length"].shape in ((3,), (1,))
        assert isinstance(wild["beta"], float)
    lengths = torch.cat([make_data(made, shape, seed=seed, style=Style.WILD)["length"] for seed in range(40)])
    assert lengths.min() < 5
    assert lengths.max() >= 50
    tame = make_data(made, shape, seed=0)
    assert 25 <= int(tame["length"].min()) <= int(tame["length"].max()) <= 50
    assert 0 <= int(tame["idx"].min()) <= int(tame["idx"].max()) < 9
    assert torch.equal(tame["slope"], torch.tensor([8.0, 9.0]))
    assert bool((tame["bias"] == 0.5).all())
    again = make_data(made, shape, seed=0)
    assert all(torch.equal(torch.as_tensor(again[name]), torch.as_tensor(tame[name])) for name in tame)


def test_typical_documents_are_of_512():
    data = make_data(attention("attention a { input doc: int[B, M] sorted\n mask same(doc) }"), square(2048), seed=0)
    assert data["doc"][0].bincount().tolist() == [512] * 4


def test_measure_tells_slow_from_fast_and_takes_enough_samples():
    calls = {"fast": 0, "slow": 0}

    def work(name, seconds):
        calls[name] += 1
        time.sleep(seconds)

    found = measure(
        {"fast": lambda: work("fast", 0.002), "slow": lambda: work("slow", 0.02)}, CPU, seconds=0.01, least=5, most=9
    )
    assert all(isinstance(timing, Timing) and 5 <= timing.samples <= 9 for timing in found.values())
    assert found["slow"].median > 2 * found["fast"].median
    assert found["fast"].best <= found["fast"].median <= found["fast"].worst


def test_what_is_entered_around_samples_is_not_timed():
    entered = []

    @contextmanager
    def around():
        time.sleep(0.02)
        entered.append(1)
        yield
        time.sleep(0.02)

    work = {"wrapped": lambda: time.sleep(0.003), "bare": lambda: time.sleep(0.003)}
    found = measure(work, CPU, seconds=0.0, least=3, around={"wrapped": around})
    assert len(entered) >= 3 + 1
    assert found["wrapped"].median < 0.015


def test_measure_does_not_repeat_what_exceeds_its_patience(monkeypatch):
    monkeypatch.setattr("attnc.bench.measure.PATIENCE", 0.05)
    calls = []
    found = measure({"slow": lambda: (calls.append(1), time.sleep(0.06))}, CPU, seconds=10.0, least=5)
    assert found["slow"].samples == 1
    assert len(calls) <= 3  # to warm up, to see how often to repeat it, and once to measure


def test_peak_memory_sees_what_is_freed_again():
    def work():
        return torch.ones(1 << 24).sum()

    for _ in range(3):  # recycled memory counts too
        found = peak_memory(work, CPU)
        assert found is not None
        assert 64 << 20 <= found < 65 << 20


def test_peak_memory_is_what_was_in_use_at_once():
    given = torch.ones(1 << 20)

    def work():
        result = given
        for _ in range(5):
            result = result + 1.0
        return result

    found = peak_memory(work, CPU)
    assert found is not None
    assert 8 << 20 <= found < 9 << 20


def test_peak_memory_says_nothing_on_standard_error(capfd):
    peak_memory(lambda: torch.ones(10), CPU)
    assert capfd.readouterr() == ("", "")


def test_a_table_has_a_column_of_notes_only_where_there_are_any():
    timed = Result("fast", Timing(1.0, 1.0, 1.0, 5))
    plain = Comparison("a", Shape(1, 1, 1, 8, 8, 16, 16), 36.0, 36 / 64, 2304.0, 99, 1.0, 0.5, Mode.FORWARD, (timed,))
    assert table(plain).columns[-1].header == "error"
    refused = replace(plain, results=(timed, Result("slow", problem="wrong")))
    assert table(refused).columns[-1].header == "note"


def test_useful_flops_count_both_products():
    shape = Shape(2, 4, 2, 10, 10, 8, 16)
    assert useful_flops(shape, 55.0) == 2 * 55 * (8 + 16) * 4 * 2
    assert useful_flops(shape, 55.0, Mode.BOTH) == 3.5 * useful_flops(shape, 55.0)
    assert useful_flops(shape, 55.0, Mode.BACKWARD) == 2.5 * useful_flops(shape, 55.0)


def test_least_bytes_count_every_tensor_once():
    one = attention("attention a { input ids: int[B, M] sorted\n mask same(ids) }")
    shape = Shape(2, 4, 2, 10, 12, 8, 16)
    three = make_tensors(shape, seed=1, dtype=torch.float16)
    case = Case(one, shape, *three, make_data(one, shape, seed=0))
    given = 2 * 2 * (4 * 10 * 8 + 2 * 12 * 8 + 2 * 12 * 16)
    out, ids = 2 * 2 * 4 * 10 * 16, 8 * 2 * 12
    assert least_bytes(case, Mode.FORWARD) == given + out + ids
    assert least_bytes(case, Mode.BACKWARD) == 2 * given + 2 * out + ids
    assert least_bytes(case, Mode.BOTH) == least_bytes(case, Mode.FORWARD) + least_bytes(case, Mode.BACKWARD)
