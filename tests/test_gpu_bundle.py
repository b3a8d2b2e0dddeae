"""The GPU bundle, made here and run on the CPU at tiny sizes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def make(out, *only):
    subprocess.run(
        [sys.executable, "tools/gpu_bundle.py", "--out", str(out), *(["--only", *only] if only else [])],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )


def run(bundle, out, *options):
    code = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in {'attnc', 'islpy', 'lark', 'typer', 'platformdirs'}:\n"
        "            raise ImportError(f'{name} is not in the bundle')\n"
        "sys.meta_path.insert(0, Block())\n"
        f"sys.argv = ['run.py', '--out', {str(out)!r}, '--device', 'cpu', *{list(options)!r}]\n"
        f"import runpy; runpy.run_path({str(bundle / 'run.py')!r}, run_name='__main__')\n"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=out.parent, capture_output=True, text=True)


def check_results(out, names):
    found = json.loads((out / "results.json").read_text())
    assert {key.split()[0] for key in found["correct"]} == names
    assert all(entry["ok"] for entry in found["correct"].values())
    assert {key.split()[0] for key in found["times"]} == names
    assert all(row["seconds"]["attnc"] > 0 for row in found["times"].values())
    table = (out / "results.md").read_text()
    assert all(name in table for name in names)
    return found


def test_bundle_checks_times_and_resumes(tmp_path):
    bundle, out = tmp_path / "gpu", tmp_path / "results"
    make(bundle, "streaming", "packed")
    first = run(bundle, out, "--only", "streaming")
    assert first.returncode == 0, first.stderr
    check_results(out, {"streaming"})
    second = run(bundle, out)
    assert second.returncode == 0, second.stderr
    assert "streaming fp32" not in second.stdout  # what is known is not measured again
    check_results(out, {"streaming", "packed"})


def test_a_wrong_module_is_reported_and_not_timed(tmp_path):
    bundle, out = tmp_path / "gpu", tmp_path / "results"
    make(bundle, "gpt")
    module = bundle / "gpt.py"
    module.write_text(module.read_text() + "\n_right = gpt\ndef gpt(*a, **k):\n    return 1.5 * _right(*a, **k)\n")
    done = run(bundle, out)
    assert done.returncode == 1
    found = json.loads((out / "results.json").read_text())
    assert not any(entry["ok"] for entry in found["correct"].values())
    assert found["times"] == {}


def load(path):
    spec = importlib.util.spec_from_file_location(f"bundle_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_functions_for_flex_attention_say_the_pattern(tmp_path):
    bundle = tmp_path / "gpu"
    make(bundle, "streaming", "bigbird", "bert")
    data = {"length": torch.tensor([700])}
    places = torch.arange(8192)
    for name in ("streaming", "bigbird", "bert"):
        mask_mod, _ = load(bundle / "flex_modifiers.py").MODIFIERS[name, 8192](data, "cpu")
        inputs = data if name == "bert" else {}
        expected = getattr(load(bundle / f"{name}.py"), f"{name}_mask")(8192, 8192, H=2, **inputs)
        for head in (0, 1):
            rows = torch.tensor([0, 1, 63, 64, 1029, 8191])
            found = mask_mod(torch.tensor(0), torch.tensor(head), rows[:, None], places[None])
            assert torch.equal(found.expand(len(rows), -1), expected[0, head, rows])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a device")
def test_calls_are_captured_in_graphs(tmp_path):
    bundle, out = tmp_path / "gpu", tmp_path / "results"
    make(bundle, "streaming", "packed", "relative")
    run_module = load(bundle / "run.py")
    entries = json.loads((bundle / "manifest.json").read_text())
    examples = [run_module.Example(**entry) for entry in entries]
    results = run_module.Results(out, "cuda")
    run_module.capture_all(examples, results, "cuda", float("inf"))
    assert len(results.data["correct"]) == len(examples)
    assert all(entry["ok"] for entry in results.data["correct"].values()), results.data["correct"]


def test_a_graph_that_cannot_be_captured_is_reported(tmp_path, monkeypatch):
    bundle, out = tmp_path / "gpu", tmp_path / "results"
    make(bundle, "streaming")
    run_module = load(bundle / "run.py")
    examples = [run_module.Example(**entry) for entry in json.loads((bundle / "manifest.json").read_text())]
    results = run_module.Results(out, "cpu")

    def waits(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(run_module, "graph_errors", waits)
    run_module.capture_all(examples, results, "cuda", float("inf"))
    (entry,) = results.data["correct"].values()
    assert not entry["ok"]
    assert "capturing" in entry["why"]


@pytest.mark.slow
def test_whole_bundle_is_right_and_small(tmp_path):
    bundle, out = tmp_path / "gpu", tmp_path / "results"
    make(bundle)
    assert sum(file.stat().st_size for file in bundle.iterdir()) < 20 * 2**20
    done = run(bundle, out)
    assert done.returncode == 0, done.stdout + done.stderr
    check_results(out, {entry["name"] for entry in json.loads((bundle / "manifest.json").read_text())})
