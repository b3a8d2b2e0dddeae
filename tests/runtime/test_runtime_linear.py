"""Preparation, feature maps, linear and chunked forms, shorter keys and landmarks against the dense float64 meaning."""

import math
from contextlib import nullcontext

import pytest
import torch

import attnc
from attnc.checking import check_source
from attnc.diagnostics import CompileError
from attnc.reference import reference
from attnc.source import SourceFile

PATTERNS = {
    "elu1": "feature elu1\n mask causal",
    "elu1_full": "feature elu1",
    "favor": "feature favor(24, seed = 3)\n mask causal",
    "favor_full": "feature favor(24)",
    "favor_sums": "feature favor(24)\n mask causal\n normalize none",
    "favor_scaled": "feature favor(24)\n scale 0.1 + 0.01 * h",
    "favor_window": "feature favor(24)\n mask window(9)",
    "exp": "feature exp\n mask causal\n normalize none",
    "square": "feature square\n mask causal and i - j < 20",
    "cosformer": "feature cosformer\n mask causal",
    "cosformer_full": "feature cosformer",
    "relu": "feature relu\n mask causal\n align start",
    "relu_scaled": "feature relu\n mask causal\n scale 0.3",
    "relu_usual": "feature relu\n mask causal\n scale 1 / sqrt(D)\n normalize none",
    "retention": "feature identity\n weight (1 - exp2(-5 - h)) ** (i - j)\n mask causal\n normalize none",
    "decay": "learned rate: float[H] = 0.3\n feature elu1\n weight exp(-rate[h] * abs(i - j))\n mask causal",
    "signed": "learned rate: float[H] = 0.9\n weight rate[h] ** (i - j)\n mask causal\n normalize none",
    "product": "feature elu1\n weight (i + 1) / (1 + j % 3)\n mask causal\n normalize none",
    "vanishing": "feature elu1\n weight (1 - 1.0 / M) ** (i - j) * 0.0 ** (i - j)\n mask causal",
    "scored": "feature relu\n mask causal\n score s * (i + 1) / (2 + j)",
    "unmapped": "mask causal\n normalize none",
    "sized": "learned u: float[D] = 1\n feature favor(24)\n mask causal\n weight u[i % D] * D\n normalize none",
    "mixed": "feature relu\n normalize softmax\n score s + 0.1 * (j - i)\n mask causal",
    "rotary": "prepare rotary\n mask causal",
    "prepared": "prepare unit\n prepare rotary(100.0)\n feature elu1\n mask causal\n scale 3.0",
    "rms": "prepare rms\n mask window(9)",
    "pooled": "keys mean_pool(4, 2)\n mask causal",
    "pooled_first": "keys mean_pool(5, 3)\n mask first(j) <= i\n normalize softmax(sink = 0.5)",
    "pooled_bias": "keys mean_pool(3, 3)\n input bias: float[K]\n score s + bias[last(j)]\n mask first(j) - i < 5",
    "pooled_features": "keys mean_pool(3, 2)\n feature elu1",
    "conv": "keys conv(3, 2)\n mask causal",
    "conv2d": "keys conv2d(5, 3, 2)\n mask causal",
    "projected": "keys project(8, 300)",
    "nystrom": "decompose nystrom(8)",
    "nystrom_scaled": "decompose nystrom(8)\n prepare rms\n scale 0.3",
    "asked": "feature elu1\n mask causal\n decompose chunk(16)",
}


@pytest.fixture(scope="module")
def compiled():
    found = {}

    def get(name):
        if name not in found:
            text = f"attention x {{ {PATTERNS[name]} }}"
            with pytest.warns() if name == "sized" else nullcontext():
                module = attnc.loads(text)
            found[name] = module, check_source(SourceFile("x", text)).program.attentions[0]
        return found[name]

    return get


def tensors(attention, queries, keys, dtype=torch.float64, heads=4, groups=2, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    value_size = size if attention.shorten is not None and attention.shorten.form.startswith("conv") else 8
    # as projections leave them: positions before heads in memory
    query, key = (make(2, n, h, size).transpose(1, 2) for n, h in ((queries, heads), (keys, groups)))
    value = make(2, keys, groups, value_size).transpose(1, 2)
    inputs = {}
    for one in attention.tensors:
        if not one.hidden:
            lengths = {"H": heads, "D": size, "K": keys}
            shape = [lengths.get(getattr(dim, "table", getattr(getattr(dim, "name", None), "value", None))) or dim.value
                     for dim in one.dims]  # fmt: skip
            inputs[one.name] = make(*shape).abs() + 0.2 if one.name == "rate" else make(*shape)
    return query, key, value, inputs


def both(compiled, name, queries, keys, dtype=torch.float64, seed=0):
    module, attention = compiled(name)
    if name == "conv2d":
        keys = -(-keys // 5) * 5
    query, key, value, inputs = tensors(attention, queries, keys, dtype, seed=seed)
    leaves = {"query": query, "key": key, "value": value, **inputs}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    out = module.x(**leaves)
    exact = reference(attention, *(leaves[name].double() for name in ("query", "key", "value")),
                      {name: leaves[name].double() for name in inputs})  # fmt: skip
    return out, exact, leaves


SIZES = [(1, 1), (65, 65), (40, 100), (100, 40)]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("queries", "keys"), [*SIZES, pytest.param(257, 257, marks=pytest.mark.slow)])
def test_values_and_gradients_are_those_of_the_dense_meaning(compiled, name, queries, keys):
    out, exact, leaves = both(compiled, name, queries, keys)
    assert torch.isfinite(out).all()
    assert torch.allclose(out, exact, rtol=1e-9, atol=1e-9)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    found = torch.autograd.grad(out, leaves.values(), upstream, allow_unused=True, materialize_grads=True)
    right = torch.autograd.grad(exact, leaves.values(), upstream, allow_unused=True, materialize_grads=True)
    for which, one, other in zip(leaves, found, right, strict=True):
        size = float(other.abs().max()) if other.numel() else 0.0
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-8 * max(1.0, size)), which


@pytest.mark.parametrize("name", ["elu1", "favor", "retention", "conv", "prepared", "favor_full", "cosformer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_keep_their_digits(compiled, name, dtype):
    out, exact, _ = both(compiled, name, 90, 90, dtype)
    assert out.dtype == dtype
    error = float((out.double() - exact).detach().abs().max())
    assert error <= 64 * torch.finfo(dtype).eps * max(1.0, float(exact.detach().abs().max())), error


@pytest.mark.parametrize("name", ["elu1", "favor", "favor_sums", "retention", "prepared", "relu", "exp", "product"])
def test_a_state_carries_a_sequence_on(compiled, name):
    if name == "prepared":
        name = "asked"
    module, attention = compiled(name)
    query, key, value, inputs = tensors(attention, 90, 90)
    whole = reference(attention, query, key, value, inputs)
    found, state, at = [], None, 0
    for end in (50, 51, 52, 53, 90):
        part = (one[:, :, at:end] for one in (query, key, value))
        out, state = module.x(*part, **inputs, state=state, return_state=True)
        found.append(out)
        at = end
    assert state.length == 90
    assert torch.allclose(torch.cat(found, 2), whole, rtol=1e-9, atol=1e-9)


def test_gradients_flow_through_a_state(compiled):
    module, attention = compiled("retention")
    query, key, value, _ = tensors(attention, 70, 70)
    leaves = [one.detach().requires_grad_() for one in (query, key, value)]
    first, state = module.x(*(one[:, :, :40] for one in leaves), return_state=True)
    second = module.x(*(one[:, :, 40:] for one in leaves), state=state)
    exact = reference(attention, *leaves)
    upstream = torch.randn_like(exact)
    found = torch.autograd.grad(torch.cat((first, second), 2), leaves, upstream)
    for one, other in zip(found, torch.autograd.grad(exact, leaves, upstream), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8)


def test_distant_positions_do_not_overflow():
    module = attnc.loads("attention x { feature identity\n weight exp(-0.03 * i) * exp(0.03 * j)\n mask causal\n"
                         " normalize none }")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1, 30_000, 8, generator=generator) for _ in range(3))
    out = module.x(query, key, value)
    rows = [0, 63, 29_999]
    weights = module.x_weights(query, key, rows=rows)
    assert torch.isfinite(out).all()
    assert torch.allclose(out[:, :, rows], weights @ value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["favor", pytest.param("retention", marks=pytest.mark.slow)])
def test_modules_can_be_compiled_by_torch(compiled, name):
    module, attention = compiled(name)
    query, key, value, inputs = tensors(attention, 70, 70, torch.float32)
    layer = module.X()
    found = torch.compile(layer, backend="aot_eager", fullgraph=True)(query, key, value, **inputs)
    assert torch.allclose(found, layer(query, key, value, **inputs), atol=1e-6)


def test_random_features_can_be_drawn_again(compiled):
    module, _ = compiled("favor_full")
    query, key, value, _ = tensors(compiled("favor_full")[1], 80, 80)
    layer = module.X()
    before = layer(query, key, value)
    layer.redraw(11)
    after = layer(query, key, value)
    assert not torch.allclose(before, after)
    other = module.X()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(query, key, value), after)
    assert torch.equal(module.x(query, key, value, feature_seed=11), after)
    right = module.x_reference(query, key, value, feature_seed=11)
    assert torch.allclose(after, right)


def test_random_features_approach_the_exponential(compiled):
    """The mean over many draws comes near softmax, which one draw only approximates."""
    module = attnc.loads("attention x { feature favor(256) }")
    generator = torch.Generator().manual_seed(0)
    query, key, value = (0.5 * torch.randn(1, 1, 32, 16, generator=generator, dtype=torch.float64) for _ in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    errors = [float((module.x(query, key, value, feature_seed=seed) - exact).norm()) for seed in range(6)]
    mean = sum(module.x(query, key, value, feature_seed=seed) for seed in range(6)) / 6
    assert float((mean - exact).norm()) < 0.7 * sum(errors) / 6
    assert max(errors) < 0.2 * float(exact.norm())


@pytest.mark.parametrize("name", ["elu1", "retention", "favor"])
def test_later_keys_that_are_not_finite_reach_no_query_before_them(compiled, name):
    module, attention = compiled(name)
    query, key, value, inputs = tensors(attention, 90, 90)
    whole = module.x(query, key, value, **inputs)
    spoiled = value.clone()
    spoiled[:, :, 70] = torch.nan
    found = module.x(query, key, spoiled, **inputs)
    assert torch.allclose(found[:, :, :70], whole[:, :, :70])
    assert bool(found[:, :, 70].isnan().all())


def test_keys_that_vanish_leave_zeros(compiled):
    module, attention = compiled("pooled")
    query, key, value, _ = tensors(attention, 9, 3)
    query.requires_grad_()
    out, lse = module.x(query, key, value, return_lse=True)
    assert torch.equal(out, torch.zeros_like(out))
    assert bool((lse == -math.inf).all())
    assert float(torch.autograd.grad(out.sum(), query)[0].abs().max()) == 0.0


def test_filters_begin_as_averages():
    learned = attnc.loads("attention x { keys conv(4, 2)\n mask causal }")
    pooled = attnc.loads("attention x { keys mean_pool(4, 2)\n mask causal }")
    layer = learned.X(D=8)
    assert sorted(name for name, _ in layer.named_parameters()) == ["key_filter", "value_filter"]
    query, key, value = (torch.randn(1, 2, 40, 8) for _ in range(3))
    assert torch.allclose(layer(query, key, value), pooled.x(query, key, value), atol=1e-6)


def test_masks_of_shortened_keys(compiled):
    module, _ = compiled("pooled")
    mask = module.x_mask(20, 9, K=20)[0, 0]
    assert torch.equal(mask, torch.arange(9) * 2 + 3 <= torch.arange(20).view(-1, 1))
    with pytest.raises(ValueError, match="K is 30, which gives 14 keys, and M is 9"):
        module.x_mask(20, 9, K=30)


BAD = {
    "decay-grows": "feature elu1\n weight 1.1 ** (i - j)\n mask causal",
    "projected-keys-leak": "keys project(8, 100)\n mask causal",
    "nystrom-leaks": "decompose nystrom(8)\n mask causal",
    "decompose-does-not-fit": "feature elu1\n mask window(5)\n decompose chunk(16)",
    "kernel-too-wide": "keys conv2d(4, 5, 1)",
    "name-not-allowed": "input K: int\n keys mean_pool(2, 2)",
    "argument-out-of-range": "feature favor(1000000000)",
}


@pytest.mark.parametrize("code", BAD)
def test_what_cannot_be_right_is_refused(code):
    with pytest.raises(CompileError, match=rf"error\[{code}\]"):
        attnc.loads(f"attention x {{ {BAD[code]} }}")


CALLS = [
    ("elu1", {"state": 3}, TypeError, "state is an int, expected what an earlier call returned"),
    ("elu1", {"return_state": 1}, TypeError, "return_state is an int, expected a bool"),
    ("favor", {"feature_seed": 1.5}, TypeError, "feature_seed is a float, expected an int or None"),
    ("elu1", {"return_state": True, "dropout_p": 0.5, "seed": 1}, ValueError, "weights cannot be dropped"),
    ("cosformer", {"return_state": True}, ValueError, "the features of `cosformer` depend on the number of all keys"),
    ("nystrom", {"return_lse": True}, ValueError, "`decompose nystrom` has no log-sum-exp"),
    ("elu1", {"return_lse": True}, ValueError, "`normalize rows` has no log-sum-exp"),
]


@pytest.mark.parametrize(("name", "options", "kind", "message"), CALLS)
def test_wrong_calls_are_told(compiled, name, options, kind, message):
    module, attention = compiled(name)
    query, key, value, inputs = tensors(attention, 20, 20)
    with pytest.raises(kind, match=message):
        module.x(query, key, value, **inputs, **options)


def test_shapes_that_do_not_fit_are_told(compiled):
    turned, _ = compiled("rotary")
    odd = torch.randn(1, 1, 4, 7)
    with pytest.raises(ValueError, match="query has head size 7, expected an even one"):
        turned.x(odd, odd, odd)
    grid, attention = compiled("conv2d")
    query, key, value, inputs = tensors(attention, 20, 20)
    with pytest.raises(ValueError, match="key has length 19, expected a multiple of 5"):
        grid.x(query, key[:, :, :19], value[:, :, :19], **inputs)
    with pytest.raises(ValueError, match="value has head size 8, expected 16 as key has"):
        grid.x(query, key, value[..., :8], **inputs)
    projected, attention = compiled("projected")
    query, key, value, inputs = tensors(attention, 20, 310)
    with pytest.raises(ValueError, match="key has length 310, expected at most 300"):
        projected.x(query, key, value, **inputs)


@pytest.mark.parametrize(
    "text",
    ["prepare rotary(theta = inf)", "keys project(100000, 100000)",
     "feature elu1\n mask causal\n decompose chunk(1000000000)", "decompose nystrom(8)\n scale 0.1 * (h + 1)"],
)  # fmt: skip
def test_absurd_arguments_are_refused(text):
    with pytest.raises(CompileError, match=r"argument-out-of-range|decompose-does-not-fit"):
        attnc.loads(f"attention x {{ {text} }}")


def test_standalone_modules_need_no_attnc(tmp_path):
    import subprocess
    import sys

    source = tmp_path / "x.attn"
    source.write_text(
        "attention x { feature favor(16)\n mask causal }\nattention y { keys conv(3, 2)\n mask causal }\n"
    )
    out = attnc.compiler.compile(source, tmp_path / "alone.py", standalone=True)
    assert "from attnc" not in out.read_text()
    assert "import attnc" not in out.read_text()
    script = (
        "import sys; sys.modules['attnc'] = None\nimport torch, alone\nq = torch.randn(1, 2, 90, 8)\n"
        "print(alone.x(q, q, q).shape, alone.Y(D=8)(q, q, q).shape)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([1, 2, 90, 8]) torch.Size([1, 2, 90, 8])", done.stderr
