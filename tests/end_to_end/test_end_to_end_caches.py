"""Layers that go on from a cache: stretch by stretch, they compute what they do for the whole sequence."""

import copy
from functools import cache

import pytest
import torch
from torch.utils._pytree import tree_flatten

from attnc.compiler import import_compiled, plan_source, render
from attnc.plan.layer_caches import Kept
from attnc.reference import layer_reference
from attnc.runtime.linear import State
from attnc.runtime.structures.caches import LayerCache
from attnc.runtime.structures.latents import products_in_order
from attnc.source import SourceFile

ATTENTIONS = """
attention causal_one { mask causal }
attention full { }
attention near { mask causal and i - j < 4
 learned slope: float[H] = 0.1 * h
 score s - slope[h] * (i - j) }
attention packed { input doc: int[B, M] sorted
 mask causal and same(doc) }
attention turned { prepare rms
 prepare rotary(100)
 mask causal }
attention pooled { keys mean_pool(2, 2)
 mask causal }
attention retention { prepare rotary(100)
 feature identity
 weight 0.9 ** (i - j)
 mask causal
 normalize none }
attention performer { feature favor(8, 0)
 mask causal }
attention plain_sums { weight 1 / (j + 2)
 normalize none
 mask causal }
attention by_size { feature relu
 weight 1 + j / M
 mask causal }
attention by_table { input gain: float[M]
 feature relu
 weight gain[j]
 mask causal }
attention cosine { feature cosformer
 mask causal }
attention first { mask causal
 align start }
attention placed { input pos: int[B]
 mask causal
 align at(pos[b]) }
attention by_landmarks { decompose nystrom(3) }
attention prefix_of { mask j <= i or j < 3 }
"""

FEEDFORWARD = "feedforward swiglu(hidden = 20, dense)"
KEYS, SUMS, NOTHING = Kept.KEYS, Kept.SUMS, Kept.NOTHING
LAYERS = {
    "plain": (KEYS, f"norm rms; heads 4; kv_heads 2; rotary theta = 100; attend causal_one; {FEEDFORWARD}"),
    "latent": (KEYS, f"norm rms; heads 4; key low_rank(5); value low_rank(4); attend causal_one; {FEEDFORWARD}"),
    "grouped": (KEYS, "heads 6; kv_heads 2; key low_rank(5); value low_rank(7); attend near; output banded(4)"),
    "latent_values": (KEYS, "norm layer; heads 4; kv_heads 2; value low_rank(5); rotary theta = 50; attend near"),
    "latent_keys": (KEYS, "norm rms; heads 4; kv_heads 2; key low_rank(5); attend causal_one"),
    "documents": (KEYS, "norm rms; heads 4; kv_heads 2; key low_rank(5); rotary theta = 100; attend packed"),
    "within": (KEYS, "norm rms; heads 4; kv_heads 2; value low_rank(3); attend turned"),
    "shortened": (KEYS, "norm rms; heads 4; kv_heads 2; rotary theta = 100; attend pooled"),
    "pointwise": (KEYS, "norm rms; heads 4; query conv(1, 1); attend causal_one"),
    "recurrent": (SUMS, f"norm rms; heads 4; kv_heads 2; attend retention; {FEEDFORWARD}"),
    "without_features": (SUMS, "norm rms; heads 4; kv_heads 2; attend plain_sums; value low_rank(3)"),
    "by_key": (KEYS, "norm rms; heads 4; kv_heads 2; attend by_table"),
    "by_features": (SUMS, "norm rms; heads 4; kv_heads 2; rotary theta = 100; attend performer; key low_rank(3)"),
}
OTHERS = {
    "by_length": (KEYS, "norm rms; heads 4; attend cosine"),
    "by_last": (KEYS, "norm rms; heads 4; attend by_size"),
    "both_ways": (KEYS, "norm rms; heads 4; kv_heads 2; key low_rank(5); value low_rank(5); attend full"),
    "partly": (KEYS, "norm rms; heads 4; kv_heads 2; rotary theta = 100; attend prefix_of"),
    "at_start": (NOTHING, "norm rms; heads 4; attend first; key low_rank(3)"),
    "anywhere": (NOTHING, "norm rms; heads 4; rotary theta = 100; attend placed"),
    "approximate": (NOTHING, "norm rms; heads 4; attend by_landmarks"),
    "filtered": (NOTHING, "norm rms; heads 4; attend causal_one; output conv(2, 1)"),
    "on_a_grid": (NOTHING, "norm rms; heads 4; attend full; key conv2d(3, 1, 1)"),
}
WIDTH = 24
EXACT = {"atol": 1e-10, "rtol": 1e-10}


@cache
def compiled():
    every = (LAYERS | OTHERS).items()
    texts = [f"layer {name}(width: int = {WIDTH}) {{ {items} }}\n" for name, (_, items) in every]
    return plan_source(SourceFile("caches.attn", ATTENTIONS + "".join(texts)))


@cache
def module():
    return import_compiled(compiled())


def plan_of(name):
    return next(plan for plan in compiled().layers if plan.name == name)


def layer_of(name, dtype=torch.float64):
    torch.manual_seed(0)
    layer = getattr(module(), "".join(part.capitalize() for part in name.split("_")))(dtype=dtype)
    with torch.no_grad():
        for one in layer.parameters():
            one.add_(0.05 * torch.randn_like(one))
    return layer


def inputs_of(name, batch, keys):
    if name == "by_key":
        return {"gain": 1 + 0.1 * torch.arange(keys, dtype=torch.float64)}
    doc = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]).expand(batch, -1)
    return {"doc": doc[:, :keys]} if name == "documents" else {}


def tokens(length, batch=2):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def in_stretches(name, layer, x, stretches):
    """Return what a layer makes of a sequence that it is given in parts, and the last cache."""
    outs, kept, start = [], None, 0
    for count in stretches:
        inputs = inputs_of(name, x.shape[0], start + count)
        out, kept = layer(x[:, start : start + count], cache=kept, return_cache=True, **inputs)
        outs.append(out)
        start += count
    assert start == x.shape[1]
    return torch.cat(outs, 1), kept


@pytest.mark.parametrize("stretches", [(1,) * 12, (7, 1, 1, 3), (12,), (2, 10)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_stretches_are_the_whole_sequence(name, stretches):
    layer, x = layer_of(name), tokens(12).requires_grad_()
    inputs = inputs_of(name, 2, 12)
    right = layer_reference(plan_of(name).layer, dict(layer.named_parameters()), x, None, inputs)
    for order in ("absorb", "expand"):
        with products_in_order(order):
            found, kept = in_stretches(name, layer, x, stretches)
        torch.testing.assert_close(found, right, **EXACT)
        assert kept.length == 12
        leaves, upstream = [x, *layer.parameters()], torch.randn_like(right)
        theirs = torch.autograd.grad(right, leaves, upstream, allow_unused=True, retain_graph=True)
        ours = torch.autograd.grad(found, leaves, upstream, allow_unused=True)
        for one, other, leaf in zip(ours, theirs, leaves, strict=True):
            zero = torch.zeros_like(leaf)
            torch.testing.assert_close(zero if one is None else one, zero if other is None else other, **EXACT)


@pytest.mark.parametrize("name", LAYERS | OTHERS)
def test_what_is_kept(name):
    kept, _ = (LAYERS | OTHERS)[name]
    plan, layer = plan_of(name), layer_of(name)
    assert plan.cache.kept is kept
    if kept is NOTHING:
        return
    _, found = layer(tokens(9), return_cache=True, **inputs_of(name, 2, 9))
    assert isinstance(found, State if kept is SUMS else LayerCache)
    numbers = sum(one.numel() for one in tree_flatten(found)[0] if isinstance(one, torch.Tensor))
    if kept is KEYS:
        assert numbers == 2 * 9 * plan.cache.numbers
    else:
        _, more = layer(tokens(9), cache=found, return_cache=True)
        assert numbers == sum(one.numel() for one in tree_flatten(more)[0] if isinstance(one, torch.Tensor))


def test_latents_take_the_place_of_heads():
    sizes = {name: plan_of(name).cache for name in ("plain", "latent", "latent_values", "documents")}
    assert {name: (one.key, one.value, one.numbers) for name, one in sizes.items()} == {
        "plain": ((2, 6), (2, 6), 24),
        "latent": ((5,), (4,), 9),
        "latent_values": ((2, 6), (5,), 17),
        "documents": ((2, 6), (2, 6), 24),  # keys of rank 5 are turned behind their projection
    }


@pytest.mark.parametrize("name", ["by_length", "by_last", "both_ways", "partly"])
def test_other_masks_see_what_there_is_so_far(name):
    """Rows are those of all tokens so far; what earlier calls returned knew of no later ones."""
    layer, x = layer_of(name), tokens(9)
    kept = None
    for start, end in ((0, 4), (4, 6), (6, 7), (7, 9)):
        out, kept = layer(x[:, start:end], cache=kept, return_cache=True)
        torch.testing.assert_close(out, layer(x[:, start:end], context=x[:, :end]), **EXACT)
        torch.testing.assert_close(out, layer(x[:, :end])[:, start:], **EXACT)


@pytest.mark.parametrize("name", ["plain", "latent", "both_ways", "latent_values"])
def test_a_context_is_projected_once(name, monkeypatch):
    layer, x, context = layer_of(name), tokens(5), tokens(8).flip(-1)
    _, kept = layer(x, context=context, return_cache=True)
    assert kept.of_context
    monkeypatch.setattr(layer.key, "forward", None)  # nothing is projected again
    if hasattr(layer.key, "compress"):
        monkeypatch.setattr(layer.key, "compress", None)
    for part in (x, x[:, :1], x[:, 2:4]):
        out, again = layer(part, cache=kept, return_cache=True)
        assert again is kept
        assert torch.equal(layer(part, cache=kept), out)
    monkeypatch.undo()
    torch.testing.assert_close(out, layer(part, context), **EXACT)
    more = tokens(3, 2).neg()
    _, longer = layer(x, context=more, cache=kept, return_cache=True)
    torch.testing.assert_close(layer(x, cache=longer), layer(x, torch.cat((context, more), 1)), **EXACT)


def test_what_does_not_fit_is_told():
    x = tokens(3)
    for name, reason in (
        ("at_start", "at_start: cache: `align start` puts the first query of each call at the first key"),
        ("anywhere", "anywhere: cache: `align at` may put queries elsewhere"),
        ("approximate", "approximate: cache: `decompose nystrom` takes landmarks of all queries"),
        ("filtered", "filtered: cache: the kernels of `output` read tokens that an earlier call had"),
        ("on_a_grid", "on_a_grid: cache: the kernels of `key`"),
    ):
        given = {"pos": torch.zeros(2, dtype=torch.int64)} if name == "anywhere" else {}
        for wrong in ({"return_cache": True}, {"cache": LayerCache(x, x)}):
            with pytest.raises(ValueError, match=reason):
                layer_of(name)(x, **wrong, **given)
        with pytest.raises(TypeError, match="return_cache is int, expected a bool"):
            layer_of(name)(x, return_cache=1, **given)
        assert layer_of(name)(x, **given).shape == x.shape
    layer = layer_of("latent")
    _, kept = layer(x, return_cache=True)
    other = layer_of("plain")(x, return_cache=True)[1]
    for cache_, kind, words in (
        ((kept.key, kept.value), TypeError, "latent: cache is tuple, expected what an earlier call returned, or None"),
        (other, ValueError, r"latent: cache.key has shape \(2, 2, 3, 6\), expected \(2, M, 5\)"),
        (kept._replace(key=3), TypeError, "latent: cache.key is int, expected a tensor"),
        (
            kept._replace(value=kept.value[:, 1:]),
            ValueError,
            r"cache.value has shape \(2, 2, 4\), expected \(2, M, 4\)",
        ),
        (kept._replace(key=kept.key[:1]), ValueError, r"cache.key has shape \(1, 3, 5\), expected \(2, M, 5\)"),
        (kept._replace(key=kept.key.float()), ValueError, "cache.key is float32, but queries are float64"),
        (kept._replace(value=kept.value.to("meta")), ValueError, "cache.value is on meta, but x is on cpu"),
    ):
        with pytest.raises(kind, match=words):
            layer(x, cache=cache_)
    with pytest.raises(ValueError, match="cache has the tokens of earlier calls, to which a context cannot be added"):
        layer(x, context=x, cache=kept)
    with pytest.raises(TypeError, match="latent: return_cache is str, expected a bool"):
        layer(x, return_cache="yes")


def test_what_does_not_fit_sums_is_told():
    layer, x = layer_of("recurrent"), tokens(3)
    _, kept = layer(x, return_cache=True)
    for given, kind, words in (
        ({"cache": LayerCache(x, x)}, TypeError, "recurrent: cache is LayerCache, expected what an earlier call"),
        ({"cache": kept, "context": x}, ValueError, "cache has sums over the tokens of x, which the keys of a context"),
        ({"return_cache": True, "context": x}, ValueError, "recurrent: cache has sums over the tokens of x"),
        ({"cache": kept._replace(memory=kept.memory[:1])}, ValueError, "expected 2 batch entries"),
        ({"cache": kept._replace(memory=kept.memory.to("meta"))}, ValueError, "cache is on meta, but x is on cpu"),
        ({"cache": kept._replace(memory=None)}, TypeError, "cache.memory is NoneType, expected a tensor"),
        ({"cache": kept._replace(length=-1)}, ValueError, "state has a length of -1"),
        ({"return_cache": None}, TypeError, "return_cache is NoneType"),
    ):
        with pytest.raises(kind, match=words):
            layer(x, **given)
    assert layer(x, context=x).shape == x.shape


def test_inputs_cannot_be_called_like_the_cache():
    text = "attention a { input cache: float\n score s * cache }\nlayer b(width: int = 4) { heads 2; attend a }"
    with pytest.raises(Exception, match="unusable-name"):
        render(plan_source(SourceFile("b.attn", text)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_decodes(dtype):
    layer, x = layer_of("grouped", dtype), tokens(12).to(dtype)
    state = {name: one.detach() for name, one in layer.state_dict().items()}
    right = layer_reference(plan_of("grouped").layer, state, x)
    plain = layer_reference(plan_of("grouped").layer, state, x, dtype=dtype)
    found, _ = in_stretches("grouped", layer, x, (5, *(1,) * 7))
    assert found.dtype is dtype
    allowed = 2 * float((plain.double() - right).abs().max()) + 1e-6
    assert float((found.double() - right).detach().abs().max()) <= allowed
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = layer_of("grouped", torch.float32)
        parts, kept = in_stretches("grouped", whole, tokens(12).float(), (5, *(1,) * 7))
        assert kept.key.dtype is torch.bfloat16
        torch.testing.assert_close(parts, whole(tokens(12).float()), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", ["latent", "recurrent", "plain"])
def test_modules_stay_what_they_were(name):
    layer, x = layer_of(name), tokens(6)
    assert not any("cache" in key for key in layer.state_dict())
    stack = torch.nn.Sequential(layer, copy.deepcopy(layer))
    torch.testing.assert_close(stack(x), layer(layer(x)))
    _, kept = layer(x, return_cache=True)
    parts, structure = tree_flatten(kept)
    assert torch.utils._pytree.tree_unflatten(parts, structure) == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latent", "recurrent", "plain", "latent_values"])
def test_compiled_decoding(name):
    layer, x = layer_of(name), tokens(12)
    right = layer(x)
    found, _ = in_stretches(name, torch.compile(layer, backend="aot_eager"), x, (6, 1, 1, 1, 3))
    torch.testing.assert_close(found, right, **EXACT)


@pytest.mark.slow
def test_modules_that_stand_alone(tmp_path):
    import subprocess
    import sys

    (tmp_path / "alone.py").write_text(render(compiled(), standalone=True))
    x = tokens(9)
    cases = {name: (layer_of(name).state_dict(), layer_of(name)(x)) for name in ("latent", "recurrent", "plain")}
    torch.save((cases, x), tmp_path / "cases.pt")
    program = (
        "import sys, torch, alone; cases, x = torch.load('cases.pt')\n"
        "for name, (state, right) in cases.items():\n"
        "    layer = getattr(alone, name.capitalize())(dtype=torch.float64); layer.load_state_dict(state)\n"
        "    first, kept = layer(x[:, :8], return_cache=True)\n"
        "    torch.testing.assert_close(torch.cat((first, layer(x[:, 8:], cache=kept)), 1), right)\n"
        "assert 'attnc' not in sys.modules"
    )
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, env={"PATH": "", "PYTHONPATH": ""}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
