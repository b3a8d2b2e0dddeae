"""Compiled layers against their dense meaning, and as members of PyTorch's family of modules."""

import copy
import pickle
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from attnc.compiler import import_compiled, plan_source, render
from attnc.plan.convolutions import Direction
from attnc.reference import layer_reference
from attnc.source import SourceFile

ATTENTIONS = """
attention near(width: int = 4) { mask causal and i - j < width
 learned slope: float[H] = 0.1 * h
 score s - slope[h] * (i - j) }
attention full { }
attention packed { input doc: int[B, M] sorted
 input gain: float
 mask causal and same(doc)
 score s * gain }
attention cached { input pos: int[B]
 mask causal
 align at(pos[b]) }
attention first { mask causal
 align start }
attention shorter { keys conv(3, 2)
 mask causal }
attention performer { feature favor(16, 0)
 mask causal }
attention prepared { prepare unit
 prepare rotary(100)
 scale 3.0
 mask causal }
"""

LAYERS = {
    "plain": "heads 4; attend near",
    "everything": "norm rms; heads 4; kv_heads 2; query block_diagonal(4); key low_rank(4); value monarch(4)\n"
    " rotary theta = 100; attend near(width = 3); output banded(3); feedforward swiglu(hidden = 48, masked(i >= j))",
    "dense_one": "norm rms; heads 4; kv_heads 2; rotary theta = 100; attend near(width = 3)\n"
    " feedforward swiglu(hidden = 48, dense)",
    "rectangular": "norm layer; heads 3; kv_heads 1; head_size 10; query monarch(2); key banded(2)\n"
    " value masked(i != j); rotary theta = 10000; attend near; output block_diagonal(6)\n"
    " feedforward gelu(hidden = 20, monarch(4))",
    "causal_kernels": "norm rms; heads 4; query conv(3, 1); key conv(4, 1); value conv(2, 1); attend near\n"
    " output conv(3, 1); feedforward gelu(hidden = 32, conv(3, 1))",
    "centred_kernels": "norm rms; heads 4; query conv(3, 1); key conv(3, 2); value conv(5, 2); attend full\n"
    " rotary theta = 50; feedforward swiglu(hidden = 40, conv(5, 1))",
    "grid": "norm rms; heads 4; query conv2d(3, 3, 1); key conv2d(3, 3, 2); value conv2d(3, 2, 2); attend full",
    "documents": "norm rms; heads 4; kv_heads 2; rotary theta = 100; attend packed\n"
    " feedforward gelu(hidden = 32, dense)",
    "decoding": "norm rms; heads 4; kv_heads 2; rotary theta = 100; attend cached",
    "short_keys": "norm rms; heads 4; kv_heads 2; rotary theta = 100; attend shorter; key conv(3, 1)",
    "mapped_keys": "norm rms; heads 4; kv_heads 2; attend performer; feedforward gelu(hidden = 32, low_rank(3))",
    "prepared_keys": "heads 4; kv_heads 2; attend prepared; value conv(3, 1)",
    "aligned": "norm rms; heads 4; kv_heads 2; rotary theta = 100; attend first",
}
WIDTH = 24


@cache
def compiled():
    """All layers in one file, which is compiled once."""
    texts = [f"layer {name}(width: int = {WIDTH}) {{ {items} }}\n" for name, items in LAYERS.items()]
    return plan_source(SourceFile("layers.attn", ATTENTIONS + "".join(texts)))


@cache
def module():
    return import_compiled(compiled())


def plan_of(name):
    return next(plan for plan in compiled().layers if plan.name == name)


def layer_of(name, dtype=torch.float64):
    torch.manual_seed(0)
    layer = getattr(module(), "".join(part.capitalize() for part in name.split("_")))(dtype=dtype)
    with torch.no_grad():  # norms and slopes that begin as ones and zeros would hide mistakes
        for one in layer.parameters():
            one.add_(0.05 * torch.randn_like(one))
    return layer


def inputs_of(name, batch, queries, keys):
    if name == "documents":
        doc = torch.randint(0, 3, (batch, keys), generator=torch.Generator().manual_seed(1)).sort(-1).values
        return {"doc": doc, "gain": 0.7}
    return {"pos": torch.arange(batch) * 2} if name == "decoding" else {}


def exact(name, state, x, context, inputs, dtype=torch.float64):
    plan = plan_of(name)
    causal = frozenset(one.matrix.name for one in plan.projections if one.direction is Direction.CAUSAL)
    return layer_reference(plan.layer, state, x, context, inputs, causal=causal, dtype=dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_the_dense_ones(name):
    layer = layer_of(name)
    for batch, queries, keys in ((1, 3, None), (2, 9, None), (2, 6, 12), (1, 9, 6)):
        torch.manual_seed(1)
        x = torch.randn(batch, queries, WIDTH, dtype=torch.float64, requires_grad=True)
        context = None if keys is None else torch.randn(batch, keys, WIDTH, dtype=torch.float64, requires_grad=True)
        inputs = inputs_of(name, batch, queries, keys or queries)
        state = dict(layer.named_parameters())
        found = layer(x, context, **inputs)
        right = exact(name, state, x, context, inputs)
        torch.testing.assert_close(found, right)
        leaves = [x, *([context] if context is not None else []), *state.values()]
        upstream = torch.randn_like(found)
        theirs = torch.autograd.grad(right, leaves, upstream, allow_unused=True)
        ours = torch.autograd.grad(found, leaves, upstream, allow_unused=True)
        for key, one, other in zip(
            ["x", "context"][: len(leaves) - len(state)] + list(state), ours, theirs, strict=True
        ):
            other = torch.zeros_like(one) if other is None else other
            torch.testing.assert_close(one, other, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    layer = layer_of("everything", dtype)
    x = torch.randn(2, 9, WIDTH, dtype=dtype)
    state = {key: value.detach() for key, value in layer.state_dict().items()}
    found, right = layer(x), exact("everything", state, x, None, {})
    plain = exact("everything", state, x, None, {}, dtype)
    assert found.dtype is dtype
    allowed = 2 * float((plain.double() - right).detach().abs().max()) + 1e-6
    assert float((found.double() - right).detach().abs().max()) <= allowed


def test_a_context_takes_the_place_of_x_for_keys_and_values():
    for name in ("everything", "causal_kernels"):
        layer, x = layer_of(name), torch.randn(2, 11, WIDTH, dtype=torch.float64)
        torch.testing.assert_close(layer(x, x), layer(x))
    layer = layer_of("everything")
    torch.testing.assert_close(layer(x[:, -3:], context=x), layer(x)[:, -3:])
    aligned = layer_of("aligned")
    torch.testing.assert_close(aligned(x[:, :3], context=x), aligned(x)[:, :3])


@pytest.mark.parametrize("name", ["everything", "causal_kernels", "rectangular"])
def test_causal_layers_do_not_look_ahead(name):
    layer, x = layer_of(name), torch.randn(1, 12, WIDTH, dtype=torch.float64)
    for place in (1, 6, 11):
        changed = x.clone()
        changed[:, place:] += torch.randn_like(changed[:, place:])
        assert torch.equal(layer(changed)[:, :place], layer(x)[:, :place])


def test_stacks_train_and_their_states_come_back():
    torch.manual_seed(0)
    model = nn.Sequential(*[module().Everything() for _ in range(2)])
    x = torch.randn(4, 16, WIDTH)
    target = x.flip(-1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    again = nn.Sequential(*[module().Everything() for _ in range(2)])
    again.load_state_dict(model.state_dict())
    copies = [again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    empty = nn.Sequential(*[module().Everything(device="meta") for _ in range(2)])
    assert {one.device.type for one in empty.parameters()} == {"meta"}
    assert empty(x.to("meta")).shape == x.shape
    copies.append(empty.to_empty(device="cpu"))
    copies[-1].load_state_dict(model.state_dict())
    for one in copies:
        torch.testing.assert_close(one(x), model(x))
    assert model.to(torch.bfloat16)(x.bfloat16()).dtype is torch.bfloat16


def test_the_state_holds_free_parameters_alone():
    plan = plan_of("everything")
    state = layer_of("everything").state_dict()
    assert set(state) == {
        "attention_norm.weight", "query.blocks", "key.down", "key.up", "value.first", "value.second", "attend.slope",
        "output.values", "feedforward_norm.weight", "gate.values", "up.values", "down.values",
    }  # fmt: skip
    for one in plan.projections:
        own = [value.numel() for key, value in state.items() if key.startswith(f"{one.matrix.name}.")]
        assert sum(own) == one.parameters, one.matrix.name


@pytest.mark.slow
def test_checkpoints_compilers_and_autocast():
    layer, x = layer_of("everything", torch.float32), torch.randn(2, 9, WIDTH, requires_grad=True)
    right = layer(x)
    (gradient,) = torch.autograd.grad(right.sum(), x)
    for function in (
        lambda x: checkpoint(layer, x, use_reentrant=False),
        torch.compile(layer, backend="aot_eager"),
    ):
        found = function(x)
        torch.testing.assert_close(found, right)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), x)[0], gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    torch.testing.assert_close(found.float(), right, atol=0.1, rtol=0.1)


def test_dense_states_are_projected():
    dense = layer_of("dense_one")
    layer = layer_of("everything")
    errors = layer.from_dense(dense.state_dict())
    assert set(errors) == {"query", "key", "value", "output", "gate", "up", "down"}
    assert all(0 < error < 1 for error in errors.values())
    assert torch.equal(layer.attend.slope, dense.attend.slope)
    for name, error in errors.items():
        weight = getattr(dense, name).weight.detach()
        assert error == pytest.approx(float((getattr(layer, name).to_dense().detach() - weight).norm() / weight.norm()))
    with pytest.raises(KeyError):
        layer.from_dense({})
    assert dense.from_dense(dense.state_dict()) == dict.fromkeys(errors, 0.0)


def test_what_does_not_fit_is_told():
    layer = layer_of("everything")
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    for given, kind, words in (
        ((x[0],), ValueError, r"x has shape \(5, 24\), expected \(B, N, 24\)"),
        ((x[..., :3],), ValueError, r"expected \(B, N, 24\)"),
        ((x, x[:1]), ValueError, "2 batch entries, context has 1"),
        ((x.long(),), TypeError, "x is int64, expected floats"),
        ((None,), TypeError, "x is NoneType"),
        ((x, 3), TypeError, "context is int"),
    ):
        with pytest.raises(kind, match=words):
            layer(*given)


def test_layers_share_attentions_and_have_others_specialised():
    kinds = {name: type(layer_of(name).attend).__name__ for name in ("plain", "rectangular", "everything", "dense_one")}
    assert kinds == {
        "plain": "Near",
        "rectangular": "Near",
        "everything": "EverythingNear",
        "dense_one": "EverythingNear",
    }
    assert "everything_near_mask" in module().__all__
    assert not any(name.startswith("dense_one") for name in module().__all__)
    assert int(module().everything_near_mask(8, 8).sum()) == 1 + 2 + 6 * 3


@pytest.mark.slow
def test_modules_that_stand_alone(tmp_path):
    text = render(compiled(), standalone=True)
    (tmp_path / "alone.py").write_text(text)
    state = layer_of("everything").state_dict()
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    torch.save((state, x, layer_of("everything")(x)), tmp_path / "state.pt")
    program = (
        "import sys, torch; import alone; state, x, right = torch.load('state.pt')\n"
        "layer = alone.Everything(dtype=torch.float64); layer.load_state_dict(state)\n"
        "torch.testing.assert_close(layer(x), right); assert 'attnc' not in sys.modules"
    )
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, env={"PATH": "", "PYTHONPATH": ""}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
