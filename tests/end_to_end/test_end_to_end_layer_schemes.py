"""Layers whose products are taken by bilinear schemes compute what they compute without, with the same state."""

import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attnc
from attnc.codegen.layer_schemes import SCHEME_ROOTS
from attnc.codegen.runtime_source import DECOMPOSED_ROOTS, GLUON_ROOTS, ROOTS, read_runtime
from attnc.compiler import import_compiled, plan_source, render
from attnc.files import read_pattern

TEXT = """attention near { mask causal and i - j < 5 }
layer block(width: int = 32) {
    norm rms
    heads 4; kv_heads 2
    query block_diagonal(4) via winograd(1); key low_rank(8) via strassen(2); value masked(i >= j) via strassen(1)
    rotary theta = 100
    attend near
    output dense via bilinear("mine.json", 1)
    feedforward swiglu(hidden = 64, monarch(4) via strassen(1))
}
layer kernels(width: int = 32) {
    heads 4
    query conv(2, 1) via strassen(2); key banded(3) via winograd(1)
    attend near
}
"""
STRUCTURES = ("convolutions", "factors", "layer_parts", "sparse")
SCHEMES = Path(__file__).parents[2] / "schemes"
pytestmark = pytest.mark.filterwarnings("ignore::attnc.compiler.PatternWarning")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path / "cache"))
    shutil.copy(SCHEMES / "laderman.json", "mine.json")
    Path("block.attn").write_text(TEXT)
    Path("plain.attn").write_text(re.sub(r" via \w+\([^)]*\)", "", TEXT))
    return tmp_path


def test_values_gradients_and_states_are_those_without_schemes(place):
    module, plain = attnc.load("block.attn"), attnc.load("plain.attn")
    torch.manual_seed(0)
    for name in ("Block", "Kernels"):
        layer, other = getattr(module, name)(dtype=torch.float64), getattr(plain, name)(dtype=torch.float64)
        assert {key: value.shape for key, value in layer.state_dict().items()} == {
            key: value.shape for key, value in other.state_dict().items()
        }
        other.load_state_dict(layer.state_dict())
        x = torch.randn(2, 9, 32, dtype=torch.float64, requires_grad=True)
        found, right = layer(x), other(x)
        torch.testing.assert_close(found, right)
        upstream = torch.randn_like(found)
        ours = torch.autograd.grad(found, [x, *layer.parameters()], upstream)
        theirs = torch.autograd.grad(right, [x, *other.parameters()], upstream)
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two)
        for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(again(x), found)
    assert "<3, 3, 3; 23>" in str(module.Block())
    assert "2 times" in str(module.Block().key)


def test_a_changed_file_is_another_module(place):
    first = attnc.load("block.attn")
    shutil.copy(SCHEMES / "strassen_twice.json", "mine.json")
    second = attnc.load("block.attn")
    assert second is not first
    assert second.Block().output.product.scheme.m == 4
    assert attnc.load("block.attn") is second
    Path("mine.json").write_text("{}")
    with pytest.raises(attnc.CompileError, match="scheme-malformed"):
        attnc.load("block.attn")


def test_explain_says_what_a_scheme_is(place):
    _, block, kernels = attnc.explain("block.attn", length=64)
    vias = {one["name"]: one["via"] and (one["via"]["rank"], one["via"]["levels"]) for one in block["projections"]}
    assert vias == {
        "query": (7, 1), "key": (7, 2), "value": (7, 1), "output": (23, 1), "gate": (7, 1), "up": (7, 1),
        "down": (7, 1),
    }  # fmt: skip
    assert json.dumps(kernels)


def test_modules_are_formatted_and_the_same_again(place):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    compiled = plan_source(read_pattern("block.attn"))
    text = render(compiled)
    assert text == render(plan_source(read_pattern("block.attn")))
    assert text.count("_strassen_scheme = BilinearScheme(") == 1
    (place / "block.py").write_text(text)
    assert ruff is not None
    command = [ruff, "format", "--isolated", "--check", "--diff", "--line-length", "120", "block.py"]
    formatted = subprocess.run(command, capture_output=True, text=True)
    assert formatted.returncode == 0, formatted.stdout[:3000]


@pytest.mark.slow
def test_modules_with_schemes_stand_alone(place):
    compiled = plan_source(read_pattern("block.attn"))
    (place / "alone.py").write_text(render(compiled, standalone=True))
    layer = import_compiled(compiled).Block(dtype=torch.float64)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    torch.save((layer.state_dict(), x, layer(x)), "state.pt")
    program = (
        "import sys, torch; import alone; state, x, right = torch.load('state.pt')\n"
        "layer = alone.Block(dtype=torch.float64); layer.load_state_dict(state)\n"
        "torch.testing.assert_close(layer(x), right); assert 'attnc' not in sys.modules"
    )
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=place, env={"PATH": "", "PYTHONPATH": ""}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_everything_together(place):
    text = """attention streaming(window: int = 1024, sink_tokens: int = 4) {
        mask causal and (i - j < window or sinks(sink_tokens))
    }
    attention performer { feature favor(8, 0)
        mask causal
    }
    layer ssnn_block(width: int = 1024) {
        norm rms
        heads 16; kv_heads 4
        query block_diagonal(8); key low_rank(width // 8); value dense
        attend streaming(window = 16)
        output dense via strassen(1)
        feedforward swiglu(hidden = 4 * width, monarch(16))
    }
    layer linear_block(width: int = 1024) { norm rms; heads 4; attend performer; output monarch(4) via winograd(1) }
    """
    module = attnc.loads(text, width=64)
    model = torch.nn.Sequential(module.SsnnBlock(), module.LinearBlock(), module.SsnnBlock())
    x = torch.randn(2, 40, 64)
    changed = torch.cat([x[:, :20], torch.randn(2, 20, 64)], 1)
    torch.testing.assert_close(model(changed)[:, :20], model(x)[:, :20])
    model(x).square().mean().backward()
    assert all(one.grad is not None and bool(one.grad.isfinite().all()) for one in model.parameters())


def test_all_of_the_runtime_fits_into_one_module():
    every = (*ROOTS, *DECOMPOSED_ROOTS, *GLUON_ROOTS, *SCHEME_ROOTS, *(f"structures.{name}" for name in STRUCTURES))
    assert {"SchemeProduct", "MonarchProjection", "Decomposed"} <= read_runtime(every).names
