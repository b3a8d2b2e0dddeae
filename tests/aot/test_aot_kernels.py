"""Kernels of the examples compiled ahead of time: no spills, matrix instructions, shared memory within the target's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.attn"))
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
HEAD_SIZES = (64, 128, 256)

COMPILE = """
import importlib.util, json, sys
import torch
from attnc.codegen.launch_view import launch_views
from attnc.codegen.render import render_module
from attnc.plan.choose import plan_attention
from attnc.runtime.aot import compile_kernels
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

def kernels_of(plan):
    return {kernel.function: kernel for launch in launch_views(plan) for kernel in launch.written}


pattern, folder, targets, head_sizes, dtypes, shares = json.loads(sys.argv[1])
source = SourceFile(pattern, open(pattern).read())
plans = [plan_attention(a) for a in check_program(parse_source(source), params={}).attentions]
path = folder + "/generated.py"
open(path, "w").write(render_module(plans, source=source))
spec = importlib.util.spec_from_file_location("generated", path)
module = importlib.util.module_from_spec(spec)
sys.modules["generated"] = module
spec.loader.exec_module(module)
for plan in plans:
    for target in targets:
        for size in head_sizes:
            for dtype in dtypes:
                kernels, name = kernels_of(plan), plan.attention.name
                for report in compile_kernels(module, target, getattr(torch, dtype), size, name=name, shares=shares):
                    kernel = kernels[report.kernel]
                    fields = ("registers", "spills", "shared", "shared_limit", "matrix_instructions", "dtype", "target")
                    row = {"name": report.name, "head_size": size, **{f: getattr(report, f) for f in fields}}
                    row["gathered"] = any(loop.order is not None for loop in kernel.loops)
                    row["joins"] = report.joined > 0
                    row["descriptors"] = report.tiles.descriptors
                    row["descriptor_reads"] = report.assembly.count("cp.async.bulk.tensor")
                    print(json.dumps(row))
"""


def compile_example(path, folder, targets=TARGETS, head_sizes=HEAD_SIZES, dtypes=("bfloat16",), shares=0):
    """Compile in a process of its own: this one interprets its kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment.setdefault("TRITON_CACHE_DIR", str(folder / "cache"))
    arguments = json.dumps([str(path), str(folder), targets, head_sizes, dtypes, shares])
    command = [sys.executable, "-c", COMPILE, arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def check_report(report, *, joins=False):
    """Check what was made of a kernel, or of what `joins` the sums of programs without walking keys."""
    assert report["spills"] == 0, report
    assert report["matrix_instructions"] > 0 or joins, report
    assert report["shared"] <= report["shared_limit"], report
    # keys that are read out of order have no descriptors, nor what takes fewer registers without them
    by_pointers = report["name"].startswith("bigbird") and (report["target"], report["head_size"]) == ("sm_90", 256)
    expected = report["target"] in ("sm_90", "sm_100") and not report["gathered"] and not by_pointers
    assert report["descriptors"] == expected, report
    assert (report["descriptor_reads"] > 0) == (expected and not joins), report


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_at_head_size_128(path, tmp_path):
    reports = compile_example(path, tmp_path, head_sizes=(128,), shares=1)
    assert [report["target"] for report in reports if report["name"] == reports[0]["name"]] == list(TARGETS)
    for report in reports:
        check_shares([report])
        assert report["registers"] > 0


@pytest.mark.parametrize(("name", "size"), [("packed", 124), ("gpt", 60)])
def test_head_sizes_without_vectors_of_their_own(name, size, tmp_path):
    """Rows of such heads get zeros behind them, so that they are read as those of the next multiple of 16."""
    for report in compile_example(ROOT / "examples" / f"{name}.attn", tmp_path, ("sm_90",), (size,)):
        check_report(report)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_head_sizes_between_powers_of_two(path, tmp_path):
    for report in compile_example(path, tmp_path, ("sm_90",), (60, 80, 96, 100, 124, 252)):
        check_shares([report])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "packed", "gemma"])
def test_head_sizes_between_powers_of_two_on_other_targets(name, tmp_path):
    targets = ("sm_80", "sm_100", "gfx942")
    for report in compile_example(ROOT / "examples" / f"{name}.attn", tmp_path, targets, (32, 60, 80, 100, 124, 252)):
        check_report(report)


def check_shares(reports):
    """Check the launches of one call: those that walk keys, and those that join the sums of such."""
    for report in reports:
        check_report(report, joins=report["joins"])


def test_programs_that_share_keys(tmp_path):
    reports = compile_example(ROOT / "examples" / "streaming.attn", tmp_path, ("sm_90",), (128,), shares=4)
    assert [report["joins"] for report in reports] == [False, True]
    check_shares(reports)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_programs_that_share_keys_on_every_target(path, tmp_path):
    check_shares(compile_example(path, tmp_path, shares=4))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_on_every_target(path, tmp_path):
    check_shares(compile_example(path, tmp_path, dtypes=("float16", "bfloat16")))


@pytest.mark.slow
def test_kernels_fit_shared_memory_of_smaller_devices(tmp_path):
    path = ROOT / "examples" / "streaming.attn"
    for report in compile_example(path, tmp_path, targets=("sm_86", *TARGETS), dtypes=("float32", "bfloat16")):
        assert report["shared"] <= report["shared_limit"], report
