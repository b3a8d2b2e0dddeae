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
import contextlib, importlib.util, json, sys, traceback
import torch
from attnc.codegen.launch_view import launch_views
from attnc.codegen.render import render_module
from attnc.plan.choose import plan_attention
from attnc.runtime.aot import compile_kernels
from attnc.runtime.tiles import Tiles
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

def kernels_of(plan):
    return {kernel.function: kernel for launch in launch_views(plan) for kernel in launch.written}

def reports(pattern, folder, targets, head_sizes, dtypes, shares, gradients, tiles):
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
                    options = {"name": name, "shares": shares, "gradients": gradients}
                    options["tiles"] = Tiles(**tiles) if tiles else None
                    made = compile_kernels(module, target, getattr(torch, dtype), size, **options)
                    yield from ((kernels.get(report.kernel), size, report) for report in made)

def row_of(kernel, size, report):
    fields = ("registers", "spills", "shared", "shared_limit", "matrix_instructions", "dtype", "target")
    row = {"name": report.name, "head_size": size, **{f: getattr(report, f) for f in fields}}
    row["gathered"] = kernel is not None and any(loop.order is not None for loop in kernel.loops)
    row["joins"] = report.joined > 0
    row["keys"], row["descriptors"] = report.tiles.key, report.tiles.descriptors
    row["descriptor_reads"] = report.assembly.count("cp.async.bulk.tensor")
    return row

answers = sys.stdout
for line in sys.stdin:
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = [row_of(*found) for found in reports(*json.loads(line))]
        except Exception:
            answer = traceback.format_exc()
    print(json.dumps(answer), file=answers, flush=True)
"""


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    """A process that compiles, for as long as the tests last: this one interprets its kernels."""
    folder = tmp_path_factory.mktemp("aot")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment.setdefault("TRITON_CACHE_DIR", str(folder / "cache"))
    said = folder / "stderr"
    with said.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", COMPILE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            cwd=ROOT,
        )
    with process:
        yield process, said
        process.stdin.close()


@pytest.fixture
def compile_example(compiler, tmp_path):
    """Return a function that compiles an example for targets, head sizes and element types."""
    process, said = compiler

    def compile_one(
        path, targets=TARGETS, head_sizes=HEAD_SIZES, dtypes=("bfloat16",), shares=0, gradients=False, tiles=None
    ):
        request = [str(path), str(tmp_path), targets, head_sizes, dtypes, shares, gradients, tiles]
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, said.read_text()
        assert "Warning" not in said.read_text()
        found = json.loads(answer)
        assert not isinstance(found, str), found
        return found

    return compile_one


def check_report(report, *, joins=False):
    """Check what was made of a kernel, or of what `joins` the sums of programs without walking keys."""
    assert report["spills"] == 0, report
    assert report["matrix_instructions"] > 0 or joins, report
    assert report["shared"] <= report["shared_limit"], report
    # keys that are read out of order have no descriptors, nor what takes fewer registers without them
    large = report["target"] == "sm_90" and report["head_size"] > 128
    by_pointers = large and report["name"].startswith("bigbird")
    expected = report["target"] in ("sm_90", "sm_100") and not report["gathered"] and not by_pointers
    assert report["descriptors"] == expected, report
    assert (report["descriptor_reads"] > 0) == (expected and not joins), report


QUICK = ("alibi", "dilated", "gpt", "longformer", "neighborhood", "packed", "streaming")
"""Examples that the quick tests compile for sm_90: every layout, data, and a table."""


def targets_of(path):
    """Yield an example with targets that it is compiled for at once, those that take long marked so."""
    marks = [] if path.stem in QUICK else [pytest.mark.slow]
    yield pytest.param(path, ("sm_90",), marks=marks, id=f"{path.stem}-sm_90")
    others = ("sm_80", "sm_100", "gfx942")
    yield pytest.param(path, others, marks=[pytest.mark.slow], id=f"{path.stem}-{'-'.join(others)}")


@pytest.mark.parametrize(("path", "targets"), [one for path in EXAMPLES for one in targets_of(path)])
def test_examples_at_head_size_128(path, targets, compile_example):
    reports = compile_example(path, targets, (128,), shares=1)
    assert [report["target"] for report in reports if report["name"] == reports[0]["name"]] == list(targets)
    for report in reports:
        check_shares([report])
        assert report["registers"] > 0


@pytest.mark.parametrize(("name", "size"), [("packed", 124), ("gpt", 60)])
def test_head_sizes_without_vectors_of_their_own(name, size, compile_example):
    """Rows of such heads get zeros behind them, so that they are read as those of the next multiple of 16."""
    for report in compile_example(ROOT / "examples" / f"{name}.attn", ("sm_90",), (size,)):
        check_report(report)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_head_sizes_between_powers_of_two(path, compile_example):
    for report in compile_example(path, ("sm_90",), (60, 80, 96, 100, 124, 252)):
        check_shares([report])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "packed", "gemma"])
def test_head_sizes_between_powers_of_two_on_other_targets(name, compile_example):
    targets = ("sm_80", "sm_100", "gfx942")
    for report in compile_example(ROOT / "examples" / f"{name}.attn", targets, (32, 60, 80, 100, 124, 252)):
        check_report(report)


@pytest.mark.parametrize("targets", [("sm_90",), pytest.param(("sm_80", "sm_100", "gfx942"), marks=pytest.mark.slow)])
def test_fused_loops_compile(targets, compile_example):
    """Small tiles: where keys are read by pointers, one loop for all of them takes more registers."""
    for target in targets:
        tiles = {"query": 64, "key": 32, "warps": 4, "stages": 1, "fused": True}
        tiles["descriptors"] = target in ("sm_90", "sm_100")
        for report in compile_example(ROOT / "examples" / "streaming.attn", (target,), (64,), shares=1, tiles=tiles):
            check_report(report)


@pytest.mark.parametrize("targets", [("sm_90",), pytest.param(("sm_80", "sm_100", "gfx942"), marks=pytest.mark.slow)])
def test_persistent_programs_compile(targets, compile_example):
    for target in targets:
        tiles = {"query": 64, "key": 64, "warps": 4, "stages": 1, "persistent": 1}
        tiles["descriptors"] = target in ("sm_90", "sm_100")
        for report in compile_example(ROOT / "examples" / "streaming.attn", (target,), (64,), shares=1, tiles=tiles):
            check_report(report)


def check_shares(reports):
    """Check the launches of one call: those that walk keys, and those that join the sums of such."""
    for report in reports:
        check_report(report, joins=report["joins"])


def test_programs_that_share_keys(compile_example):
    reports = compile_example(ROOT / "examples" / "streaming.attn", ("sm_90",), (128,), shares=4)
    assert [report["joins"] for report in reports] == [False, True]
    check_shares(reports)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_programs_that_share_keys_on_every_target(path, compile_example):
    check_shares(compile_example(path, shares=4))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_on_every_target(path, compile_example):
    check_shares(compile_example(path, dtypes=("float16", "bfloat16")))


@pytest.mark.slow
def test_kernels_fit_shared_memory_of_smaller_devices(compile_example):
    path = ROOT / "examples" / "streaming.attn"
    for report in compile_example(path, targets=("sm_86", *TARGETS), dtypes=("float32", "bfloat16")):
        assert report["shared"] <= report["shared_limit"], report


@pytest.mark.parametrize("name", ["streaming", "packed"])
@pytest.mark.parametrize(
    ("target", "size"),
    [("sm_90", 128), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("sm_80", 64), ("sm_90", 64)))],
)
def test_gradients_spill_nothing(name, target, size, compile_example):
    reports = compile_example(ROOT / "examples" / f"{name}.attn", (target,), (size,), gradients=True)
    check_gradients(reports)
    of_keys = next(report for report in reports if "key_gradient" in report["name"])
    assert of_keys["keys"] >= 64  # as many as an instruction of sm_90 takes, and so that queries are read seldom
    assert of_keys["descriptors"] == (of_keys["descriptor_reads"] > 0) == (target == "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_gradients_of_every_example_spill_nothing(path, compile_example):
    check_gradients(compile_example(path, ("sm_80", "sm_90"), (64, 128), gradients=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_gradients_compile_for_every_target(path, compile_example):
    for report in compile_example(path, gradients=True):
        assert report["shared"] <= report["shared_limit"], report


def check_gradients(reports):
    assert len({report["name"] for report in reports}) >= 2
    for report in reports:
        assert report["spills"] == 0, report
        assert report["matrix_instructions"] > 0, report
        assert report["shared"] <= report["shared_limit"], report
