"""Generated modules as their users see them."""

import copy
import inspect
import os
import pickle
import subprocess
import sys

import pytest
import torch
from patterns import (
    PATTERNS,
    WITHOUT_LSE,
    attention_of,
    differentiable,
    function_of,
    inputs_for,
    module_of,
    oracle,
    outputs_and_gradients,
    plans_of,
    tensors,
)

from attnc.codegen.render import render_module
from attnc.ir.nodes import SizeName
from attnc.reference.dense import dense_mask, dense_weights, initial_value
from attnc.source import SourceFile


@pytest.mark.parametrize("name", PATTERNS)
def test_the_dense_reference_of_a_module_is_the_oracle(name):
    query, key, value = tensors(N=37, M=45)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    function = getattr(module_of(PATTERNS[name]), f"{attention_of(PATTERNS[name]).name}_reference")
    lse = name not in WITHOUT_LSE
    ours = outputs_and_gradients(lambda: function(query, key, value, **inputs, return_lse=lse), leaves, lse)
    theirs = outputs_and_gradients(lambda: oracle(name, query, key, value, inputs, lse), leaves, lse)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("name", PATTERNS)
def test_mask_and_weights(name):
    query, key, _ = tensors(N=30, M=41, grad=False)
    inputs = inputs_for(name, query, key, grad=False)
    attention = attention_of(PATTERNS[name])
    module = module_of(PATTERNS[name])
    mask = getattr(module, f"{attention.name}_mask")(30, 41, B=2, H=4, **inputs)
    assert mask.dtype is torch.bool
    assert torch.equal(mask, dense_mask(attention, 30, 41, batch=2, heads=4, inputs=inputs))
    weights = getattr(module, f"{attention.name}_weights")(query, key, rows=[3, -1, 3], **inputs)
    expected = dense_weights(attention, query, key, rows=[3, 29, 3], inputs=inputs)
    torch.testing.assert_close(weights, expected)


def test_the_mask_needs_only_what_it_reads():
    module = module_of(PATTERNS["packed"])
    assert module.packed_mask(5, 5, doc=torch.zeros(1, 5, dtype=torch.long)).shape == (1, 1, 5, 5)
    with pytest.raises(TypeError, match="doc"):
        module.packed_mask(5, 5)


def test_a_mask_of_the_head_size_or_of_groups_is_told_them():
    text = "attention a { input t: bool[D]\n mask j < D and t[j % D] and (h // g + j) % 2 == 0 }"
    module = module_of(text)
    t = torch.arange(6) != 4
    query, key = torch.randn(1, 4, 5, 6), torch.randn(1, 2, 9, 6)
    j, head = torch.arange(9), torch.arange(4).view(1, 4, 1, 1)
    expected = ((j < 6) & t[j % 6] & ((head // 2 + j) % 2 == 0)).expand(1, 4, 5, 9)
    assert torch.equal(module.a_mask(5, 9, H=4, D=6, g=2, t=t), expected)
    assert torch.equal(module.a_weights(query, key, rows=range(5), t=t) > 0, expected)
    with pytest.raises(TypeError, match="'D'"):
        module.a_mask(5, 9, H=4, g=2, t=t)
    with pytest.raises(ValueError, match="g is 3, expected a divisor of the 4 heads"):
        module.a_mask(5, 9, H=4, D=6, g=3, t=t)
    with pytest.raises(TypeError, match="D is a float, expected an int"):
        module.a_mask(5, 9, H=4, D=6.0, g=2, t=t)
    assert "D" not in inspect.signature(module_of(PATTERNS["packed"]).packed_mask).parameters


def test_the_class_holds_the_learned_tensors():
    module = module_of(PATTERNS["packed"])
    layer = module.Packed(4, dtype=torch.float64)
    assert list(layer.state_dict()) == ["slope"]
    slope = attention_of(PATTERNS["packed"]).tensor("slope")
    torch.testing.assert_close(layer.slope.data, initial_value(slope, {SizeName.HEADS: 4}))
    assert repr(layer) == "Packed(H=4)"
    query, key, value = tensors(N=30, M=30)
    doc = inputs_for("packed", query, key)["doc"]
    out = layer(query, key, value, doc=doc)
    torch.testing.assert_close(out, module.packed(query, key, value, doc=doc, slope=layer.slope))
    out.sum().backward()
    assert layer.slope.grad.abs().sum() > 0
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(query, key, value, doc=doc), out)
    other = module.Packed(H=4, device="meta")
    assert other.slope.device.type == "meta"
    other.to_empty(device="cpu").load_state_dict(layer.float().state_dict())
    assert torch.equal(other.slope, layer.slope)


def test_a_class_without_learned_tensors_takes_no_sizes():
    layer = module_of(PATTERNS["streaming"]).Streaming()
    assert list(layer.parameters()) == []
    query, key, value = tensors(N=30, M=30)
    torch.testing.assert_close(layer(query, key, value), function_of("streaming")(query, key, value))


def test_all_names_are_exported():
    module = module_of("attention one { mask causal }\nattention other_one { mask true }")
    names = ["one", "one_reference", "one_mask", "one_weights", "One"]
    assert module.__all__[:5] == names
    assert module.__all__[5] == "other_one"
    assert module.__all__[-1] == "OtherOne"
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("name", ["streaming", "packed", "tempered", "row_term"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_takes_the_whole_graph(name, dynamic):
    torch._dynamo.reset()
    function = function_of(name)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (40, 52) if dynamic else (40,):
        compare_compiled(function, compiled, name, length)


def compare_compiled(function, compiled, name, length):
    query, key, value = tensors(N=length, M=length)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    ours = outputs_and_gradients(lambda: compiled(query, key, value, **inputs, return_lse=True), leaves, True)
    eager = outputs_and_gradients(lambda: function(query, key, value, **inputs, return_lse=True), leaves, True)
    for mine, expected in zip(ours, eager, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.slow
def test_inductor_compiles_a_class():
    torch._dynamo.reset()
    layer = module_of(PATTERNS["packed"]).Packed(4)
    query, key, value = tensors(N=40, M=40, dtype=torch.float32)
    doc = inputs_for("packed", query, key)["doc"]
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(query, key, value, doc=doc), layer(query, key, value, doc=doc))
    compiled(query, key, value, doc=doc).sum().backward()


@pytest.mark.parametrize("name", ["streaming", "packed", "sigmoid"])
def test_opcheck(name):
    module = module_of(PATTERNS[name])
    operation = getattr(module, f"_{attention_of(PATTERNS[name]).name}")
    query, key, value = tensors(N=20, M=20)
    inputs = list(inputs_for(name, query, key).values())
    operator = getattr(torch.ops.attnc, operation.operator)
    torch.library.opcheck(operator, (query, key, value, inputs, None, None, 0.0, None, name not in WITHOUT_LSE))


def test_fake_tensors_are_enough():
    with torch._subclasses.FakeTensorMode():
        query, key, value = (torch.empty(2, 4, 33, 8, dtype=torch.bfloat16) for _ in range(3))
        out, lse = function_of("streaming")(query, key, value, return_lse=True)
    assert out.shape == (2, 4, 33, 8)
    assert out.dtype is torch.bfloat16
    assert lse.shape == (2, 4, 33)
    assert lse.dtype is torch.float32
    query, key, value = (torch.empty(1, 2, 9, 8, device="meta") for _ in range(3))
    assert function_of("causal")(query, key, value).device.type == "meta"


@pytest.mark.parametrize("name", ["streaming", "packed", "row_term", "sink", "sigmoid"])
def test_the_triton_kernel_runs_on_cpu_tensors_when_forced(name, monkeypatch):
    query, key, value = tensors(B=1, N=70, M=70, dtype=torch.float32)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    lse = name not in WITHOUT_LSE
    function = function_of(name)
    expected = outputs_and_gradients(lambda: function(query, key, value, **inputs, return_lse=lse), leaves, lse)
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    ours = outputs_and_gradients(lambda: function(query, key, value, **inputs, return_lse=lse), leaves, lse)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


BLOCK_ATTNC = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("attnc", "lark", "islpy", "typer", "platformdirs"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
import torch
import alone
query, key, value = (torch.randn(1, 2, 50, 8, requires_grad=True) for _ in range(3))
doc = torch.arange(50).view(1, 50) // 17
layer = alone.Packed(2)
out = layer(query, key, value, doc=doc)
out.sum().backward()
expected = alone.packed_reference(query, key, value, doc=doc, slope=layer.slope)
assert torch.allclose(out, expected, atol=1e-5), (out - expected).abs().max()
assert not any(name.split(".")[0] == "attnc" for name in sys.modules)
print("fine")
"""


def test_a_standalone_module_runs_without_attnc(tmp_path):
    text = PATTERNS["packed"]
    source = render_module(plans_of(text), source=SourceFile("packed.attn", text), standalone=True)
    (tmp_path / "alone.py").write_text(source)
    command = [sys.executable, "-c", BLOCK_ATTNC, str(tmp_path)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_learned_tensors_follow_the_default_device():
    module = module_of("attention slopes { learned slope: float[H] = h + 1\n score s * slope[h] }")
    with torch.device("meta"):
        assert module.Slopes(2).slope.device.type == "meta"
        assert module.Slopes(2, device="cpu").slope.tolist() == [1.0, 2.0]
    assert module.Slopes(2).slope.device.type == "cpu"
