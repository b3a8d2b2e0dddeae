"""The tool that derives tables of default tiles: what it ranks, what it keeps, and a run in a tiny space."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from attnc.compiler import plan_source
from attnc.plan.configs import TileConfig, Traits
from attnc.source import SourceFile
from attnc.tuning.counting import FORWARD, KEYS

ROOT = Path(__file__).parent.parent

SMALL, LARGE, OTHER = TileConfig(64, 32, 4, 2), TileConfig(128, 32, 8, 2), TileConfig(128, 64, 8, 3)


@pytest.fixture
def tool(monkeypatch):
    """Make the tool importable, with a space of three configurations; LARGE is what the tables have."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import derive_tiles

    monkeypatch.setattr(derive_tiles, "LENGTH", 1024)
    monkeypatch.setattr(derive_tiles, "_space", lambda plan, place: [SMALL, LARGE, OTHER])
    monkeypatch.setattr(derive_tiles, "present_config", lambda place, traits, described: None if described else LARGE)
    return derive_tiles


class Compiler:
    """Stands in for processes that compile: with times of a pair for each pattern, and kernels that spill.

    Attributes:
        outside: kernels and configurations that spill outside of their loops over tiles.
        asked: how many kernels were compiled.
    """

    def __init__(self, times, spills=(), outside=()):
        self.times, self.spills, self.outside, self.asked = times, spills, outside, 0

    def map(self, function, jobs):
        """Return what would be found."""
        self.asked += len(jobs)
        return [self._found(case, config) for case, _, config in jobs]

    def _found(self, case, config):
        code = replace(config, chunk=0)
        clean = (case.kernel, code) not in self.spills and (case.kernel, config) not in self.outside
        time = self.times.get(case.example, {}).get(code, 1.0) * config.query * config.key
        return {"registers": 1, "spills": 0, "shared": 0, "clean": clean, "tile": time, "program": 0.0}


def case(name, **traits):
    return SimpleNamespace(
        example=name, attention=name, kernel=f"_{name}_kernel", part=FORWARD, traits=Traits(**traits),
        trait=next(iter(traits), "plain"), module="",
    )  # fmt: skip


CASES = [case("causal"), case("full"), case("hard", heavy=True)]


def plans():
    masks = {"causal": "mask causal", "full": ""}
    return {name: plan_source(SourceFile(f"{name}.attn", f"attention {name} {{ {mask} }}")).plans[0]
            for name, mask in masks.items()}  # fmt: skip


def derived(tool, tmp_path, compiler, cases=CASES, **options):
    findings = tool.Findings(compiler, tmp_path / f"{id(compiler)}.jsonl", time.monotonic() + 100)
    return list(tool.derive(findings, cases, plans(), tool.Place(FORWARD, "sm_80", 64, "bfloat16"), **options))


def times(small, large, other):
    return {SMALL: small, LARGE: large, OTHER: other}


def test_a_faster_one_is_taken_where_no_kernel_spills(tool, tmp_path):
    compiler = Compiler({"causal": times(2.0, 2.0, 1.0), "full": times(2.0, 2.0, 1.2)}, {("_hard_kernel", OTHER)})
    plain, heavy = derived(tool, tmp_path, compiler)
    assert (plain.trait, plain.present, plain.chosen) == ("plain", LARGE, OTHER)
    # what is as fast as another one in a pattern, and two thirds of the time in the other
    assert plain.shares[0] > 1.7
    assert plain.shares[1] == pytest.approx(1.0)
    # one that spills with a chunk of any size falls back to what the tables have
    assert (heavy.trait, heavy.chosen) == ("heavy", LARGE)


def test_what_is_there_stays_where_others_save_little(tool, tmp_path):
    compiler = Compiler({"causal": times(2.0, 1.1, 1.0), "full": times(2.0, 1.1, 1.0)})
    assert [row.chosen for row in derived(tool, tmp_path, compiler)] == [LARGE, LARGE]


def test_what_is_faster_for_one_pattern_alone_is_not_taken(tool, tmp_path):
    compiler = Compiler({"causal": times(2.0, 1.1, 1.0), "full": times(2.0, 1.0, 1.25)})
    plain, _ = derived(tool, tmp_path, compiler)
    assert plain.chosen == LARGE


def test_what_spills_is_replaced_or_takes_fewer_keys_at_once(tool, tmp_path):
    even = {"causal": times(1.3, 1.0, 1.1), "full": times(1.3, 1.0, 1.1)}
    spills = {("_full_kernel", LARGE), ("_hard_kernel", OTHER)}
    plain, heavy = derived(tool, tmp_path, Compiler(even, spills))
    assert (plain.chosen, heavy.chosen) == (OTHER, LARGE)
    everywhere = {("_hard_kernel", config) for config in (SMALL, LARGE, OTHER)}
    plain, heavy = derived(tool, tmp_path, Compiler(even, everywhere, {("_full_kernel", LARGE)}))
    assert (plain.chosen, heavy.chosen) == (replace(LARGE, chunk=16), None)


def test_what_is_known_is_not_compiled_again(tool, tmp_path):
    compiler = Compiler({"causal": times(2.0, 1.0, 1.5), "full": times(2.0, 1.0, 1.5)})
    findings = tool.Findings(compiler, tmp_path / "results.jsonl", time.monotonic() + 100)
    place = tool.Place(FORWARD, "sm_80", 64, "bfloat16")
    first = list(tool.derive(findings, CASES, plans(), place))
    asked = compiler.asked
    lines = [json.loads(line) for line in findings.file.read_text().splitlines()]
    assert len(lines) == asked > 0
    again = tool.Findings(compiler, findings.file, 0.0, {tuple(name): found for name, found in lines})
    assert list(tool.derive(again, CASES, plans(), place)) == first
    assert compiler.asked == asked
    with pytest.raises(tool.OutOfTimeError):
        list(tool.derive(again, CASES, plans(), replace(place, target="sm_90")))


def test_present_rows(tool, monkeypatch):
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    place = tool.Place(FORWARD, "sm_90", 100, "bfloat16")
    assert tool.present_config(place, Traits(), described=True).descriptors
    assert not tool.present_config(place, Traits(), described=False).descriptors
    assert tool.present_config(replace(place, target="sm_80"), Traits(), described=True) is None
    of_keys = tool.present_config(replace(place, part=KEYS), Traits(), described=False)
    assert of_keys.key >= 64


@pytest.mark.slow
def test_a_run_in_a_tiny_space(tmp_path):
    results = tmp_path / "results.jsonl"
    where = ["--kinds", "forward", "--targets", "sm_80", "--head-sizes", "32", "--examples", "gpt", "--jobs", "1"]
    command = [sys.executable, "tools/derive_tiles.py", "--results", str(results), *where]
    command += ["--representatives", "gpt", "--most", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("forward sm_80 32 plain pointers TileConfig("), done.stdout
    compiled = [json.loads(line)[1] for line in results.read_text().splitlines()]
    assert len(compiled) >= 2
    assert all(one["registers"] > 0 for one in compiled)
