"""The GPU bundle, made here and run on the CPU at tiny sizes, in Triton's interpreter."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from flash_stand_in import StandIn
from typer.testing import CliRunner

from attnc import cli
from attnc.bench.measure import Timing
from attnc.bench.standard_row import StandardRow
from attnc.compiler import load as load_pattern
from attnc.runtime import tuned
from attnc.runtime.tiles import Tiles
from attnc.runtime.tuned import LibraryCall
from attnc.runtime.tuned_store import parse_tuned, use_remembered_tiles

ROOT = Path(__file__).parent.parent

SIZES = {"length": 128, "batch": 1, "heads": 2, "kv_heads": 2, "head_size": 16, "dtype": "float32", "mode": "both"}

CARRIED = {"query": 32, "key": 64, "warps": 4, "stages": 2, "descriptors": False, "chunk": 0}


@pytest.fixture(scope="module")
def tools():
    """Make the tools importable."""
    sys.path.insert(0, str(ROOT / "tools"))
    yield
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def made(tools, tmp_path_factory):
    """Write a bundle of a few patterns, with few cases and one configuration to try."""
    import gpu_bundle

    out = tmp_path_factory.mktemp("bundle") / "gpu"
    gpu_bundle.write_bundle(out, ["streaming", "window", "documents", "relative"])
    manifest = json.loads((out / "manifest.json").read_text())
    targets = [case for case in manifest["cases"] if case["first"]]
    assert [case["sizes"]["mode"] for case in targets] == 2 * ["forward"] + 2 * ["both"] + 2 * ["backward"]
    manifest["cases"] = [
        one for one in targets if one["pattern"] == "standard/window" and one["sizes"]["mode"] == "both"
    ]
    (out / "gluon_check.py").write_text("""print('checked')\nprint('{"kernels": 2}')\n""")
    manifest["long"] = manifest["long"][:1]
    identity = identities(out / "standard" / "window.py")[0]
    at = {"pattern": "standard/window", "sizes": manifest["cases"][0]["sizes"]}
    manifest["tuned"] = [{**at, "candidates": {identity: [CARRIED]}}]
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture
def bundle(made, monkeypatch):
    """Let the test import the bundle's own modules."""
    monkeypatch.syspath_prepend(str(made))
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "bundle"]:
        del sys.modules[name]


def identities(module):
    return re.findall(r'kernel="(.*? [0-9a-f]{16})"', module.read_text())


def run(folder, out, *options):
    """Run the script where nothing but torch, triton and numpy can be imported, its processes included."""
    block = out.parent / "block"
    block.mkdir(exist_ok=True)
    for name in ("attnc", "islpy", "lark", "typer", "platformdirs", "rich"):
        (block / f"{name}.py").write_text(f"raise ImportError('{name} is not in the bundle')\n")
    environment = {**os.environ, "PYTHONPATH": str(block), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "run.py"), "--out", str(out), "--device", "cpu", "--workers", "1", *options]
    return subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_all_steps_run_and_resume_and_are_reported(made, tmp_path):
    out = tmp_path / "results"
    first = run(made, out, "--steps", "check", "--only", "streaming")
    assert first.returncode == 0, first.stdout + first.stderr
    second = run(made, out, "--only", "streaming,window")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "correct examples/streaming" not in second.stdout  # what is known is not done again
    found = json.loads((out / "results.json").read_text())
    parts = found["parts"]
    assert all(row["ok"] for rows in parts.values() for row in rows.values()), parts
    assert {part: len(rows) for part, rows in parts.items()} == {
        "ceilings": 1, "correct": 2, "graphs": 0, "prepared": 1, "standard": 1, "profiles": 1, "gluon": 1,
        "kernels": 1, "gates": 1, "tuned": 1, "long": 1,
    }  # fmt: skip
    compared = parts["correct"]["examples/streaming float32 B1 H2/1 N65 M65 D16"]["compared"]
    assert set(compared) == {
        "output", "lse", "output, trained", "gradient of query", "gradient of key", "gradient of value",
    }  # fmt: skip
    assert parts["gluon"]["gluon_check.py"]["report"] == {"kernels": 2}
    (row,) = (StandardRow.from_json(row) for row in parts["standard"].values())
    assert row.right
    assert {"attnc", "sdpa", "sdpa-math"} == set(row.seconds)
    (trials,) = (row["trials"] for row in parts["tuned"].values())
    assert [trial["tiles"] for trial in trials] == [CARRIED]
    assert json.loads((out / "tuned.json").read_text())["format"] == "attnc tuned tiles, 1"
    check_report(out / "results.json", tmp_path)


def check_report(results, tmp_path):
    import gpu_report

    data = json.loads(results.read_text())
    paths = gpu_report.write_report(data, tmp_path / "one")
    texts = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in gpu_report.write_report(data, tmp_path / "two")] == texts
    report = (paths[0].parent / "summary.md").read_text()
    assert "2 of 2 comparisons" in report
    assert "| standard/window 100000 | 2 | both |" in report
    assert "| window | 128 |" in (paths[0].parent / "standard.md").read_text()


def test_what_is_wrong_or_of_another_bundle_is_said(made, tmp_path):
    folder, out = tmp_path / "gpu", tmp_path / "results"
    shutil.copytree(made, folder)
    out.mkdir()
    (out / "results.json").write_text('{"machine": {}, "bundle": "another", "parts": {"correct": {"old": {}}}}')
    module = folder / "examples" / "streaming.py"
    module.write_text(
        module.read_text() + "\n_right = streaming\ndef streaming(q, k, v, return_lse=False):\n"
        "    found = _right(q, k, v, return_lse=return_lse)\n"
        "    return (1.5 * found[0], found[1]) if return_lse else 1.5 * found\n"
    )
    done = run(folder, out, "--steps", "check", "--only", "streaming")
    assert done.returncode == 1
    rows = json.loads((out / "results.json").read_text())["parts"]["correct"]
    assert len(rows) == 2
    for row in rows.values():
        assert row["wrong"] == [name for name in row["compared"] if name != "lse"]
    assert "another" in (out / "results-of-another-run.json").read_text()


WORKER = """
import json, os, sys, time
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    asked = json.loads(line)
    if asked["kind"] == "dies":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    if asked["kind"] == "hangs":
        time.sleep(60)
    answers.write(json.dumps({"ok": True, "process": os.getpid(), "broken": asked["kind"] == "breaks"}) + "\\n")
    answers.flush()
"""


def test_processes_may_fail_without_the_others(bundle, tmp_path, monkeypatch):
    from bundle import workers

    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "worker.py").write_text(WORKER)
    monkeypatch.setattr(workers, "HERE", tmp_path)
    worker = workers.Worker("cpu", tmp_path / "log")
    found = {}
    for kind in ("works", "works again", "breaks", "dies", "hangs", "works at last"):
        found[kind] = worker.call(workers.Job("part", kind, kind), 0.8 if kind == "hangs" else 20)
    worker.close()
    assert found["works"]["process"] == found["works again"]["process"] == found["breaks"]["process"]
    assert found["dies"] == {"ok": False, "why": "the process ended with code 3: last words"}
    assert found["hangs"]["why"] == "no answer within 1 s"
    assert found["works at last"]["ok"]
    assert found["works at last"]["process"] != found["works"]["process"]
    pool, rows = workers.Pool(2, "cpu", tmp_path / "log"), {}
    jobs = [workers.Job("part", kind, kind, limit=4) for kind in ("works", "hangs")]
    pool.run(jobs, time.monotonic() + 0.5, lambda job, row: rows.update({job.key: row}), alone=False)
    pool.run(jobs, time.monotonic() - 1.0, lambda job, row: rows.update({"late": row}), alone=True)
    pool.close()
    assert set(rows) == {"works"}  # what the end of the budget has cut short is left for the next run


def test_causal_scans_are_checked(bundle):
    from bundle import plan, scans

    (asked,) = plan.DRY_SCANS
    dtype, sizes, weights, reverse = asked
    found = scans.check(dtype, list(sizes), weights, reverse, "cpu")
    assert found["ok"], found
    right = scans.function()
    scans.function = lambda: (
        lambda *args, **options: tuple(1.1 * part if part is not None else None for part in right(*args, **options))
    )
    wrong = scans.check(dtype, list(sizes), weights, reverse, "cpu")
    assert wrong["wrong"] == ["output", "state", "gradient of x", "gradient of y", "gradient of z"]
    jobs = list(plan.Steps("cuda", ["causal_scan"]).checks())
    assert [job.kind for job in jobs] == ["scan"] * len(plan.SCANS)


def test_structured_projections_are_checked(bundle):
    from bundle import plan, structures

    (asked,) = plan.DRY_STRUCTURES
    dtype, kind, *sizes = asked
    found = structures.check(dtype, kind, sizes, "cpu")
    assert found["ok"], found
    projection = structures.module().MonarchProjection
    right = projection.table(None, None)
    form = right.others[0]
    broken = dataclasses.replace(
        form,
        product=lambda *given: 1.1 * form.product(*given),
        gradients=lambda *given: [1.1 * one for one in form.gradients(*given)],
    )
    projection.table = lambda self, device: dataclasses.replace(right, others=(broken,))
    wrong = structures.check(dtype, kind, sizes, "cpu")
    assert wrong["wrong"] == ["output", "gradient of x", "gradient of first", "gradient of second"]
    jobs = list(plan.Steps("cuda", ["projections"]).checks())
    assert [job.kind for job in jobs] == ["structure"] * len(plan.STRUCTURES)


def test_what_a_kernel_leaves_out_is_not_a_number(bundle):
    from bundle import checks

    exact = torch.zeros(4)
    with checks.poisoned():
        left_out = torch.empty(4)
    assert left_out.isnan().all()
    assert not checks.verdict(left_out, exact, exact, "float32", 2.0, 8)["ok"]
    infinite = torch.tensor([-torch.inf, 1.0])
    assert checks.verdict(infinite, infinite, infinite, "float32", 2.0, 8)["ok"]
    assert not checks.verdict(exact[:2], infinite, infinite, "float32", 2.0, 8)["ok"]


def test_gradients_of_learned_tensors_are_compared(bundle):
    from bundle import checks
    from bundle.data import Shape, patterns

    pattern = patterns()["standard/relative"]
    found = checks.check(pattern, Shape(1, 2, 1, 20, 20, 16), "float32", "cpu")
    assert found["ok"], found
    assert "gradient of bias" in found["compared"]


def test_a_step_that_cannot_be_done_is_a_row(bundle):
    from bundle import worker

    found = worker.do(
        "capture", {"pattern": "examples/streaming", "shape": [1, 2, 1, 9, 9, 16], "dtype": "float32"}, "cpu"
    )
    assert not found["ok"]
    assert "cuda" in found["why"].lower()


@pytest.mark.parametrize("key", ["standard/window", "standard/documents", "standard/relative"])
def test_functions_for_flex_attention_say_the_pattern(bundle, key):
    from bundle import peers
    from bundle.data import Shape, make_inputs, patterns

    pattern, shape = patterns()[key], Shape(2, 2, 2, 128, 128, 16)
    inputs = make_inputs(pattern, shape, "cpu")
    made = peers.modifiers(pattern, 128, inputs, "cpu")
    ((_, strip),) = peers.strips(*made, (2, 2), shape, "cpu")
    query, key_, value = torch.randn(3, 2, 2, 128, 16).double()
    expected = pattern.function("reference")(query, key_, value, **inputs)
    masked = {"attn_mask": strip if strip.dtype == torch.bool else strip.double()}
    found = torch.nn.functional.scaled_dot_product_attention(query, key_, value, **masked)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_tuning_enters_is_imported_and_taken(bundle, tmp_path, monkeypatch):
    """The fastest of the configurations that were right, by a clock that says so."""
    from bundle import results, tuning

    identity = identities(bundle / "standard" / "window.py")[0]
    slow, fast = CARRIED, CARRIED | {"query": 64, "key": 32}
    for tiles in (slow, fast):
        assert tuning.gate("standard/window", SIZES, identity, tiles, "cpu") == {"ok": True}

    def clock(work, device, **options):
        times = {"None": 3.0, "0": 2.0, "1": 1.0}
        return {name: Timing(times[name], times[name], times[name], 3) for name in work if not run_once(work[name])}

    def run_once(call):
        call()

    monkeypatch.setattr(tuning, "measure", clock)
    row = tuning.tune("standard/window", SIZES, identity, False, [slow, fast], {}, 0.0, "cpu")
    assert row["entry"]["seconds"] == 1.0
    path = tmp_path / "tuned.json"
    path.write_text(results.tuned_text([row]))

    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ATTNC_PINNED", raising=False)
    monkeypatch.setattr(tuned, "_KNOWN", tuned._Known())
    use_remembered_tiles()
    done = CliRunner().invoke(cli.app, ["tune", "--import", str(path)])
    assert done.exit_code == 0, done.output
    assert "1 " in done.output
    launched = watch_tiles(monkeypatch)
    module = load_pattern(ROOT / "attnc" / "bench" / "patterns" / "window.attn")
    with torch.no_grad():
        module.window_pattern(*torch.randn(3, 1, 2, 128, 16))
    assert launched == [Tiles(64, 32, 4, 2)]


def watch_tiles(monkeypatch):
    from attnc.runtime import launch

    found, original = [], launch.tiles_of_launch

    def watched(*arguments, **options):
        found.append(original(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(launch, "tiles_of_launch", watched)
    return found


def test_a_slower_configuration_is_not_entered(bundle, monkeypatch):
    from bundle import tuning

    monkeypatch.setattr(tuning, "measure", lambda work, device, **_: {name: Timing(1.0, 1.0, 1.0, 3) for name in work})
    identity = identities(bundle / "standard" / "window.py")[0]
    assert tuning.tune("standard/window", SIZES, identity, True, [CARRIED], {}, 0.0, "cpu")["entry"] is None


def test_a_library_in_the_place_of_kernels_is_entered_and_read(bundle):
    from bundle import results, tuning
    from bundle.data import module_of, patterns

    pattern = patterns()["standard/window"]
    entry = tuning._entry(module_of(pattern), "window_pattern 0, library", SIZES, "cpu", {"library": "flash"})
    (found,) = parse_tuned(results.tuned_text([{"entry": entry}]))
    assert found.entry.tiles == LibraryCall("flash")
    assert found.entry.versions == tuned.versions_of_library()


def test_a_library_is_measured_beside_the_tiles_that_were_found(bundle, tmp_path):
    from bundle.plan import Steps
    from bundle.results import Results

    found = Results(tmp_path, {}, {})
    steps = Steps("cpu", ["window"])
    (asked,) = steps.kernels()
    kernel, library = next(iter(steps.manifest["tuned"][0]["candidates"])), "window_pattern 0, library"
    found.put("kernels", asked.key, {"ok": True, "forward": [kernel, library], "backward": []})
    gates = list(steps.gates(found))
    assert [gate.given["tiles"] for gate in gates] == [CARRIED, {"library": "flash"}]
    for gate in gates:
        found.put("gates", gate.key, {"ok": True})
    (own,) = steps.tunings(found, library=False)
    assert own.given["others"] == {}
    found.put("tuned", own.key, {"ok": True, "entry": {"kernel": kernel, "tiles": CARRIED}})
    (other,) = steps.tunings(found, library=True)
    assert other.given["others"] == {kernel: CARRIED}


@pytest.mark.slow
def test_what_a_library_may_compute_of_splits_is_asked_and_gated(tools, tmp_path, monkeypatch):
    import gpu_bundle

    out = tmp_path / "gpu"
    gpu_bundle.write_bundle(out, ["split_sinks"])
    monkeypatch.syspath_prepend(str(out))
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    try:
        from bundle import tuning
        from bundle.data import module_of, patterns
        from bundle.plan import Steps

        (asked,) = Steps("cpu").kernels()
        module = module_of(patterns()[asked.given["key"]])
        assert not any(", library" in name for name in tuning.kernels(**asked.given, device="cpu")["forward"])
        stand_in = StandIn()
        for name, function in {"forward": stand_in.forward, "backward": stand_in.backward}.items():
            monkeypatch.setattr(module, f"_flash_{name}", function)
        monkeypatch.setattr(module, "runs_flash_attention", lambda device: True)
        sizes = asked.given["sizes"] | {"dtype": "float16"}
        names = tuning.kernels(asked.given["key"], sizes, "cpu")
        library = [one for one in names["forward"] + names["backward"] if ", library" in one]
        assert [one.partition(", ")[2] for one in library] == ["library pass 2", "library pass 2 backward"]
        for name in library:
            stand_in.calls.clear()
            assert tuning.gate(asked.given["key"], sizes, name, {"library": "flash"}, "cpu") == {"ok": True}
            assert set(stand_in.calls) == {"backward" if "backward" in name else "forward"}
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "bundle"]:
            del sys.modules[name]


def test_targets_are_laid_out(tools):
    import gpu_report

    def result(name, seconds):
        timing = {"median": seconds, "best": seconds, "worst": seconds, "samples": 5}
        return {"name": name, "timing": timing, "flops_per_second": 4e14, "times_floor": 1.25}

    sizes = {**gpu_report.AT, "batch": 8, "heads": 8, "kv_heads": 8, "mode": "forward"}
    shape = {
        "batch": 8,
        "heads": 8,
        "kv_heads": 8,
        "queries": 16384,
        "keys": 16384,
        "head_size": 128,
        "value_size": 128,
    }
    comparison = {
        "attention": "causal_pattern", "shape": shape, "pairs": 1.0, "density": 0.5, "flops": 1.0, "bytes": 1,
        "dense_seconds": 1.0, "floor_seconds": 0.5, "mode": "forward",
        "results": [result("attnc", 0.01), result("flex 128", 0.015), result("sdpa-cudnn, causal", 0.0125)],
    }  # fmt: skip
    row = {"pattern": "causal", "idea": "", "sizes": sizes, "small": False, "comparison": comparison, "problem": ""}
    lines = list(gpu_report.targets([gpu_report.standard_row(row)]))
    assert lines[-2] == "| causal | forward | 10 ms | 400 | 1.25 | 15 ms | - | 1.50 | 1.20 | sdpa-cudnn | 1.25 |"


@pytest.mark.slow
def test_whole_bundle_is_right_and_small(tools, tmp_path):
    import gpu_bundle

    folder, out = tmp_path / "gpu", tmp_path / "results"
    assert gpu_bundle.write_bundle(folder) < 40 * 2**20
    done = run(folder, out, "--steps", "check", "--budget", "3000")
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = {one["key"] for one in json.loads((folder / "manifest.json").read_text())["patterns"]}
    checked = {key.split()[0] for key in json.loads((out / "results.json").read_text())["parts"]["correct"]}
    assert checked == {key for key in wanted if key.startswith("examples/")} | {"causal_scan", "projections"}
