"""Tuning the CPU program, really measured; what is wrong never wins; what becomes of the results."""

import json

import pytest
import torch
from flash_stand_in import StandIn
from typer.testing import CliRunner

from attnc import cli
from attnc.bench.cases import square
from attnc.bench.measure import Timing
from attnc.bench.names import Mode
from attnc.bench.run import Settings
from attnc.compiler import import_compiled, plan_source
from attnc.runtime import tuned
from attnc.runtime.tiles import Tiles
from attnc.runtime.tuned import LibraryCall, Slabs, TunedTiles
from attnc.runtime.tuned_store import Measured, parse_tuned, remember_tuned, tuned_text, use_remembered_tiles
from attnc.source import SourceFile
from attnc.tuning import measured
from attnc.tuning.measured import (
    Trial,
    TunedKernel,
    WrongResultError,
    describe,
    entry_of,
    library_candidates,
    slab_candidates,
    tune,
)

TEXT = "attention w { mask causal and i - j < 60 }"
SHAPE = square(300, heads=2, head_size=16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Use a cache of the test's own."""
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ATTNC_PINNED", raising=False)
    monkeypatch.setattr(tuned, "_KNOWN", tuned._Known())
    use_remembered_tiles()


def settings(backward=True):
    return Settings(
        torch.device("cpu"), torch.float32, (), Mode.BOTH if backward else Mode.FORWARD, seconds=0.0, least=1
    )


def tuned_kernels(candidates=slab_candidates, budget=60.0, backward=True, text=TEXT):
    compiled = plan_source(SourceFile("w.attn", text))
    module = import_compiled(compiled)
    return tune(compiled.plans[0], module, SHAPE, settings(backward), candidates, budget=budget)


def test_both_passes_are_tuned_with_every_candidate(monkeypatch):
    monkeypatch.setattr(measured, "SLABS", measured.SLABS[::4])
    forward, backward = tuned_kernels()
    assert backward.identity == f"{forward.identity}, backward"
    assert [forward.backward, backward.backward] == [False, True]
    for kernel in (forward, backward):
        assert {trial.tiles for trial in kernel.trials} == set(measured.SLABS)
        assert kernel.left_out == 0
        assert kernel.default.timing is not None
        times = [trial.timing.median for trial in kernel.trials]
        assert times == sorted(times)


def test_the_forward_pass_alone():
    (forward,) = tuned_kernels(backward=False)
    assert not forward.backward


@pytest.mark.parametrize("right", [True, False])
def test_a_library_is_measured_against_the_best_kernels(right, monkeypatch):
    from attnc.runtime import gpu_library

    monkeypatch.setenv("ATTNC_TARGET", "triton")
    monkeypatch.setattr(gpu_library, "runs_flash_attention", lambda device: True)
    seen = []

    def flash(query, key, value, *arguments, scale=None, window_size_left=None, window_size_right=None):
        assert (window_size_left, window_size_right) == (3, 0)
        seen.append(dict(tuned._KNOWN.tried))
        i, j = torch.arange(query.shape[1])[:, None], torch.arange(query.shape[1])[None, :]
        mask = torch.where((j <= i) & (i - j < (4 if right else 5)), 0.0, -torch.inf)
        given = [one.transpose(1, 2).float() for one in (query, key, value)]
        library = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = library(*given, attn_mask=mask, scale=scale)
        return out.to(query.dtype).transpose(1, 2).contiguous(), lse

    monkeypatch.setattr(gpu_library, "_flash_forward", flash)
    compiled = plan_source(SourceFile("w.attn", "attention w { mask causal and i - j < 4 }"))
    chosen = Tiles(16, 16, 4, 1)

    def candidates(identity, backward):
        return library_candidates(identity) or [chosen]

    def timings(bench, identity, backward, tried):
        times = {None: 3.0, chosen: 2.0, LibraryCall(): 1.0}
        return {tiles: Timing(times[tiles], times[tiles], times[tiles], 1) for tiles in tried}

    monkeypatch.setattr(measured, "_measure", timings)
    half = Settings(torch.device("cpu"), torch.float16, (), Mode.FORWARD, seconds=0.0, least=1)
    shape = square(20, heads=1, head_size=16)
    kernel, library = tune(compiled.plans[0], import_compiled(compiled), shape, half, candidates, budget=60.0)
    assert kernel.best.tiles == chosen
    assert library.identity == f"{import_compiled(compiled)._w_program.identity}, library"
    assert seen[-1] == {kernel.identity: chosen, library.identity: LibraryCall()}
    if not right:
        assert library.trials[0].problem.startswith("wrong output")
        assert entry_of(library, shape, half) is None
        return
    entry = entry_of(library, shape, half)
    assert (entry.tiles, entry.versions) == (LibraryCall(), tuned.versions_of_library())
    assert parse_tuned(tuned_text([Measured(entry, 1.0, 3.0)])) == [Measured(entry, 1.0, 3.0)]
    tuned.use_tuned([entry])
    seen.clear()
    query = torch.randn(1, 1, 20, 16, dtype=torch.float16)
    import_compiled(compiled).w(query, query, query)
    assert len(seen) == 1


def test_a_library_s_part_is_measured_checked_and_remembered(monkeypatch):
    from attnc.runtime import gpu_library

    stand_in = StandIn()
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    monkeypatch.setattr(gpu_library, "runs_flash_attention", lambda device: True)
    monkeypatch.setattr(gpu_library, "_flash_forward", stand_in.forward)
    compiled = plan_source(
        SourceFile("w.attn", "attention w { mask causal and (i - j < 70 or j < 5)\n decompose split(j < 5) }")
    )

    def timings(bench, identity, backward, tried):
        times = {None: 3.0, LibraryCall(): 1.0}
        return {tiles: Timing(times[tiles], times[tiles], times[tiles], 1) for tiles in tried}

    monkeypatch.setattr(measured, "_measure", timings)
    half = Settings(torch.device("cpu"), torch.float16, (), Mode.FORWARD, seconds=0.0, least=1)
    shape, said = square(20, heads=1, head_size=16), []
    module = import_compiled(compiled)
    *_, part = tune(
        compiled.plans[0], module, shape, half, lambda identity, _: library_candidates(identity), budget=60.0,
        progress=said.append,
    )  # fmt: skip
    assert part.identity == f"{module._w_program.identity}, library pass 2"
    assert said[-2] == "w, pass 2: checking the library (flash)"
    entry = entry_of(part, shape, half)
    assert parse_tuned(tuned_text([Measured(entry, 1.0, 3.0)])) == [Measured(entry, 1.0, 3.0)]
    remember_tuned([Measured(entry, 1.0, 3.0)])
    stand_in.calls.clear()
    query = torch.randn(1, 1, 20, 16, dtype=torch.float16)
    found = module.w(query, query, query)
    assert stand_in.calls == ["forward"]
    torch.testing.assert_close(found, module.w_reference(query, query, query), rtol=1e-2, atol=1e-2)


def test_a_budget_ends_the_search_and_says_what_it_left_out():
    forward, backward = tuned_kernels(budget=0.0)
    assert forward.left_out == backward.left_out == len(measured.SLABS) - measured.AT_ONCE
    assert len(forward.trials) == measured.AT_ONCE


def test_what_is_wrong_gets_no_time(monkeypatch):
    """A schedule with slabs of 64 rows that leaves the last rows out."""
    from attnc.runtime import parts

    original = parts.choose_schedules

    def broken(section, cost):
        found = original(section, cost)
        if cost.slabs.rows != 64:
            return found
        return tuple(parts.replace(one, bands=one.bands[:-1], covered=False) for one in found)

    monkeypatch.setattr(parts, "choose_schedules", broken)
    monkeypatch.setattr(parts, "_SCHEDULES", parts.Store(64))
    found = tuned_kernels(lambda identity, backward: (Slabs(64), Slabs(128)))
    for kernel in found:
        problems = {trial.tiles: trial.problem for trial in kernel.trials}
        assert problems[Slabs(64)].startswith("wrong ")
        assert problems[Slabs(128)] == ""
        assert kernel.best.tiles != Slabs(64)


def test_a_wrong_default_is_an_error(monkeypatch):
    monkeypatch.setattr(measured, "check_output", lambda *arguments: measured_verdict(1.0))
    with pytest.raises(WrongResultError, match=r"default configuration: wrong output: error 1.0e\+00, allowed 5.0e-01"):
        tuned_kernels()


def measured_verdict(error):
    from attnc.bench.checking import Verdict

    return Verdict(error, 0.5, 1)


def kernel(default, *times):
    def timing(seconds):
        return Timing(seconds, seconds, seconds, 1)

    trials = tuple(Trial(Slabs(rows), timing(seconds)) for rows, seconds in zip((32, 64), times, strict=False))
    return TunedKernel("w 0", False, Trial(None, timing(default)), trials, 0)


def test_the_default_stays_where_little_is_saved():
    assert kernel(1.0, 0.99).best.tiles is None
    assert kernel(1.0, 0.97).best.tiles == Slabs(32)
    assert kernel(1.0).best.tiles is None


def test_what_is_remembered_of_a_kernel():
    assert entry_of(kernel(1.0, 0.99), SHAPE, settings()) is None
    found = entry_of(kernel(1.0, 0.5), SHAPE, settings())
    device = tuned.device_name(torch.device("cpu"), program=True)
    versions = tuned.versions_of(program=True)
    assert found == TunedTiles("w 0", device, versions, "float32", 16, 16, 256, 256, Slabs(32))


@pytest.mark.parametrize(
    ("tiles", "text"),
    [
        (None, "default"),
        (Tiles(128, 64, 8, 3), "128 x 64, 8 warps, 3 stages"),
        (Tiles(128, 64, 8, 3, descriptors=True), "128 x 64, 8 warps, 3 stages, descriptors"),
        (Slabs(64), "64 rows"),
        (Slabs(0, alone=True), "rows by estimate, full ranges alone"),
        (Slabs(64, alone=False), "64 rows, one call for all keys"),
        (LibraryCall(), "the library (flash)"),
    ],
)
def test_configurations_in_words(tiles, text):
    assert describe(tiles) == text


def attnc(*arguments):
    return CliRunner().invoke(cli.app, ["tune", *map(str, arguments)])


QUICK = ("-n", "128", "--heads", "1", "--head-size", "16", "--seconds", "0", "--budget", "0")


def test_the_command_measures_and_writes(tmp_path):
    pattern = tmp_path / "w.attn"
    pattern.write_text(TEXT)
    out, export, figures = tmp_path / "w.py", tmp_path / "tuned.json", tmp_path / "w.json"
    found = attnc(pattern, *QUICK, "--out", out, "--export", export, "--json", figures)
    assert found.exit_code == 0, found.stderr
    assert "w, backward" in found.stdout
    entries = parse_tuned(export.read_text())
    assert out.read_text().count("TunedTiles(\n") == len(entries)
    rows = json.loads(figures.read_text())["kernels"]
    assert [row["backward"] for row in rows] == [False, True]
    assert all(row["trials"][0]["seconds"] > 0 for row in rows)
    assert sum(row["chosen"] is not None for row in rows) == len(entries)


def test_a_library_call_has_nothing_to_tune(tmp_path):
    (tmp_path / "c.attn").write_text("attention c { mask causal }")
    found = attnc(tmp_path / "c.attn", *QUICK)
    assert found.exit_code == 0, found.stderr
    assert "c at 128: one call of PyTorch's own attention computes it here" in found.stdout


def test_modules_are_written_with_their_tiles(tmp_path):
    from attnc.compiler import render
    from attnc.runtime.load import load_module
    from attnc.tuning.session import _configs

    compiled = plan_source(SourceFile("w.attn", TEXT))
    identity = import_compiled(compiled)._w_program.identity
    device = tuned.device_name(torch.device("cpu"), program=True)
    versions = tuned.versions_of(program=True)
    own = TunedTiles(identity, device, versions, "float32", 16, 16, 256, 256, Slabs(64, alone=True))
    hostile = TunedTiles('k "\\ 0', "a\nb", "triton 3", "float16", 16, 16, 1, 2, Tiles(64, 32, 4, 2, descriptors=True))
    found = [Measured(own, 1e-3, 2e-3, "2026-01-02"), Measured(hostile)]
    for standalone in (False, True):
        text = render(compiled, standalone=standalone, tuned=_configs(found))
        assert "# 2026-01-02: 1 ms, and 2 ms by default\n" in text
        path = tmp_path / f"w_{standalone}.py"
        path.write_text(text)
        module = load_module(path)
        known = module._KNOWN if standalone else tuned._KNOWN
        assert len(known.written) == 2
        query = torch.randn(1, 2, 300, 16)
        wanted = module.w_reference(query, query, query)
        torch.testing.assert_close(module.w(query, query, query), wanted, rtol=1e-5, atol=1e-5)
    assert tuned.find_tuned(identity, query, (16, 16), (300, 300), program=True) == Slabs(64, alone=True)


def test_what_was_tuned_elsewhere_is_kept(tmp_path):
    path = tmp_path / "tuned.json"
    one = TunedTiles("w 0", "NVIDIA H200", "triton 3.6.0", "bfloat16", 128, 128, 8192, 8192, Tiles(128, 64, 8, 3))
    path.write_text(tuned_text([Measured(one)]))
    found = attnc("--import", path)
    assert found.exit_code == 0
    assert found.stdout.startswith("1 tuned configurations -> ")
    assert found.stdout.strip().endswith("nvidia-h200.json")
    assert attnc("--import", path).stdout == found.stdout


MISTAKES = [
    ((), 2, "name a pattern, or say --import TUNED.json"),
    (("w.attn", "--import", "t.json"), 2, "--import is alone"),
    (("w.attn", "w.attn", "--out", "w.py"), 2, "--out takes one pattern"),
    (("w.attn", "--standalone"), 2, "--standalone is for --out"),
    (("w.attn", "--heads", "6", "--kv-heads", "4"), 2, "4 key/value heads do not divide 6 heads"),
    (("w.attn", "--gpu", "sm_91"), 1, "error[unknown-gpu]: no GPU is called `sm_91`"),
    (("w.attn", "--device", "moon"), 1, "error[no-such-device]: `moon` cannot be used"),
    (("none.attn",), 1, "none.attn"),
    (("--import", "none.json"), 1, "error[unreadable-file]: cannot read none.json"),
    (("--import", "w.attn"), 1, "error[not-tuned-tiles]: w.attn holds no tuned tiles: it is not JSON"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.attn").write_text(TEXT)
    found = attnc(*arguments)
    assert found.exit_code == code, found.stderr
    assert message in " ".join(found.stderr.replace("│", " ").split())
    assert not (tmp_path / "w.py").exists()


def test_the_interpreter_is_not_tuned(tmp_path, monkeypatch):
    (tmp_path / "w.attn").write_text(TEXT)
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    found = attnc(tmp_path / "w.attn", *QUICK)
    assert found.exit_code == 1
    assert "error[tuning-interpreter]" in found.stderr
