"""Low-rank keys and values of layers: both orders of products against the dense meaning, and the choice of one."""

from functools import cache

import pytest
import torch

from attnc.compiler import import_compiled, plan_source
from attnc.plan.latents import Growth, latent_orders
from attnc.reference import layer_reference
from attnc.runtime.checks import LARGEST_HEAD
from attnc.runtime.structures.latents import LatentChain, products_in_order
from attnc.source import SourceFile

ATTENTIONS = """
attention causal_one { mask causal }
attention full { }
attention biased { mask causal and i - j < 5
 input gain: float
 learned slope: float[H] = 0.1 * h
 score s * gain - slope[h] * (i - j)
 normalize softmax(sink = 0.3) }
attention scaled { mask causal
 scale 2 / sqrt(D) }
attention sized { mask causal
 score s + (j - i) / D }
attention grouped { mask causal
 score s * g }
attention squashed { normalize sigmoid(bias = -1.0)
 mask causal }
attention packed { input doc: int[B, M] sorted
 mask causal and same(doc) }
attention unit { prepare unit
 mask causal }
attention mapped { feature relu
 mask causal }
attention mapped_near { feature relu
 mask causal and i - j < 4 }
attention pooled { keys mean_pool(2, 2)
 mask causal }
attention landmarks { decompose nystrom(3) }
attention first { mask causal
 align start }
attention linear_one { normalize none
 mask causal }
"""

BOTH = "key low_rank(5); value low_rank(4)"
LAYERS = {
    "plain": f"norm rms; heads 4; {BOTH}; attend causal_one; feedforward gelu(hidden = 10, dense)",
    "grouped_heads": f"norm rms; heads 6; kv_heads 2; {BOTH}; query low_rank(7); attend causal_one",
    "one_head_of_keys": "norm layer; heads 4; kv_heads 1; key low_rank(3); value low_rank(6); attend full",
    "with_inputs": f"heads 4; kv_heads 2; {BOTH}; attend biased; output low_rank(3)",
    "own_head_size": f"heads 2; kv_heads 2; head_size 7; {BOTH}; attend scaled",
    "by_sigmoid": f"heads 4; kv_heads 2; {BOTH}; attend squashed",
    "documents": f"norm rms; heads 4; kv_heads 2; {BOTH}; attend packed",
    "keys_alone": "norm rms; heads 4; kv_heads 2; key low_rank(5); attend causal_one",
    "values_alone": "norm rms; heads 4; kv_heads 2; value low_rank(5); attend causal_one",
    "turned": f"norm rms; heads 4; kv_heads 2; {BOTH}; rotary theta = 100; attend causal_one",
    "prepared": f"norm rms; heads 4; kv_heads 2; {BOTH}; attend unit",
    "reads_size": f"heads 4; kv_heads 2; {BOTH}; attend sized",
    "reads_group": f"heads 4; kv_heads 2; {BOTH}; attend grouped",
    "at_start": f"heads 4; kv_heads 2; {BOTH}; attend first",
    "by_features": f"heads 4; kv_heads 2; {BOTH}; attend mapped",
    "by_near_features": f"heads 4; kv_heads 2; {BOTH}; attend mapped_near",
    "shortened": f"heads 4; kv_heads 2; {BOTH}; attend pooled",
    "approximate": f"heads 4; kv_heads 2; {BOTH}; attend landmarks",
    "of_linear_cost": f"heads 4; kv_heads 2; {BOTH}; attend linear_one",
    "wide": "heads 2; kv_heads 2; head_size 150; key low_rank(12); value low_rank(12) via strassen(1); attend full",
}
WIDTH = 24
CHOICES = {  # of those above that are no choice for both, what is left to choose
    "keys_alone": ("key",), "values_alone": ("value",), "turned": ("value",), "prepared": ("value",),
    "reads_size": ("value",), "reads_group": ("value",), "by_features": (), "by_near_features": ("value",),
    "shortened": (), "approximate": (), "of_linear_cost": (), "wide": ("key",),
}  # fmt: skip


@cache
def compiled():
    texts = [f"layer {name}(width: int = {WIDTH}) {{ {items} }}\n" for name, items in LAYERS.items()]
    return plan_source(SourceFile("latents.attn", ATTENTIONS + "".join(texts)))


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
    if name == "documents":
        return {"doc": torch.randint(0, 2, (batch, keys), generator=torch.Generator().manual_seed(1)).sort(-1).values}
    return {"gain": 0.7} if name == "with_inputs" else {}


@pytest.mark.parametrize("order", ["absorb", "expand", None])
@pytest.mark.parametrize("name", [name for name in LAYERS if CHOICES.get(name) != ()])
def test_values_and_gradients_are_the_dense_ones_in_every_order(name, order):
    layer, plan = layer_of(name), plan_of(name)
    for batch, queries, keys in ((1, 1, None), (2, 9, None), (2, 3, 11), (1, 9, 6)):
        torch.manual_seed(1)
        x = torch.randn(batch, queries, WIDTH, dtype=torch.float64, requires_grad=True)
        context = None
        if keys is not None:
            context = torch.randn(batch, keys, WIDTH, dtype=torch.float64, requires_grad=True)
        inputs, state = inputs_of(name, batch, keys or queries), dict(layer.named_parameters())
        if order is None:
            found = layer(x, context, **inputs)
        else:
            with products_in_order(order):
                found = layer(x, context, **inputs)
        right = layer_reference(plan.layer, state, x, context, inputs)
        torch.testing.assert_close(found, right, atol=1e-10, rtol=1e-10)
        leaves = [x, *([context] if context is not None else []), *state.values()]
        upstream = torch.randn_like(found)
        theirs = torch.autograd.grad(right, leaves, upstream, allow_unused=True)
        ours = torch.autograd.grad(found, leaves, upstream, allow_unused=True)
        for one, other, leaf in zip(ours, theirs, leaves, strict=True):
            zero = torch.zeros_like(leaf)
            torch.testing.assert_close(
                zero if one is None else one, zero if other is None else other, atol=1e-9, rtol=1e-9
            )


@pytest.mark.parametrize("name", LAYERS)
def test_which_orders_there_are(name):
    plan = plan_of(name)
    assert tuple(one.name for one in plan.latents if one.is_choice) == CHOICES.get(name, ("key", "value"))
    source = import_text(name)
    assert ("absorb_up" in source) is ("key" in CHOICES.get(name, ("key", "value")))
    assert ("apply_up" in source) is ("value" in CHOICES.get(name, ("key", "value")))


def import_text(name):
    """Return the source of one layer's `forward`."""
    import inspect

    return inspect.getsource(type(layer_of(name)).forward)


def test_why_latents_are_expanded():
    def reasons(name):
        return {one.name: one.expanded_because for one in plan_of(name).latents}

    assert reasons("turned") == {"key": "`rotary` turns the keys of heads", "value": ""}
    assert reasons("prepared")["key"] == "`prepare unit` changes the keys of heads"
    assert reasons("reads_size")["key"] == "the attention reads the head size `D`"
    assert reasons("reads_group")["key"] == "the attention reads `g`, the query heads of each key head"
    assert reasons("by_features")["key"] == "`feature relu` maps the keys of heads"
    assert reasons("shortened")["value"] == "`keys mean_pool` shortens the keys and values of heads"
    assert reasons("approximate")["value"] == "`decompose nystrom` weighs no pairs of queries and keys"
    assert reasons("of_linear_cost")["value"] == "the attention has a form of linear cost, which has other products"
    assert reasons("wide") == {"key": "", "value": "`via strassen` multiplies with the whole factor"}
    from attnc.plan.latents import LARGEST_LATENT

    assert LARGEST_LATENT == LARGEST_HEAD
    text = "attention a { }\nlayer b(width: int = 600) { heads 2; key low_rank(257); value low_rank(256); attend a }"
    (plan,) = plan_source(SourceFile("b.attn", text)).layers
    assert {one.name: one.expanded_because for one in plan.latents} == {
        "key": "kernels take heads of up to 256 numbers, and latents have 257",
        "value": "",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["absorb", "expand"])
def test_other_precisions(dtype, order):
    layer, plan = layer_of("grouped_heads", dtype), plan_of("grouped_heads")
    x = torch.randn(2, 9, WIDTH, dtype=dtype)
    state = {key: value.detach() for key, value in layer.state_dict().items()}
    with products_in_order(order):
        found = layer(x)
    right, plain = (layer_reference(plan.layer, state, x, dtype=kind) for kind in (torch.float64, dtype))
    assert found.dtype is dtype
    allowed = 2 * float((plain.double() - right).abs().max()) + 1e-6
    assert float((found.double() - right).detach().abs().max()) <= allowed


def test_the_choice_is_the_cheaper_chain():
    """The runtime decides by the numbers that the algebra of chains gives."""
    taken = set()
    for name in ("plain", "grouped_heads", "one_head_of_keys", "with_inputs", "documents"):
        plan = plan_of(name)
        for one in plan.latents:
            chain = getattr(module(), f"_{name}_{one.name}_chain")
            sizes = plan.sizes
            assert (chain.heads, chain.kv_heads, chain.head_size) == (sizes.heads, sizes.kv_heads, sizes.head_size)
            for queries in (1, 2, 7, 64, 1000):
                for keys in (1, 7, 64, 1000, 4096):
                    assert chain.pairs(queries, keys) == plan.growth.pairs(queries, keys)
                    first, second = latent_orders(one, sizes, plan.growth, queries, keys)
                    assert first.cost.flops <= second.cost.flops
                    assert chain.absorbs(queries, keys) is (first.form == "absorb")
                    taken.add((name, first.form))
    assert {form for _, form in taken} == {"absorb", "expand"}


def test_pairs_grow_as_they_are_counted():
    assert plan_of("plain").growth == Growth(1.0, 0.0, True)
    assert plan_of("one_head_of_keys").growth == Growth(1.0, 0.0, False)
    assert plan_of("with_inputs").growth == Growth(0.0, 5.0, True)
    assert plan_of("documents").growth == Growth(1.0, 0.0, True)  # data decides: at most that
    chain = LatentChain(1, 1, 1, 1, causal=True)
    assert [chain.pairs(*sizes) for sizes in ((4, 4), (1, 9), (3, 9), (9, 4))] == [10, 9, 24, 10]
    window = LatentChain(1, 1, 1, 1, density=0.0, fixed=5.0, causal=True)
    assert [window.pairs(*sizes) for sizes in ((1, 3), (1, 100), (10, 100))] == [3, 5, 50]


def test_decoding_absorbs_what_whole_sequences_expand():
    chain = LatentChain(heads=16, kv_heads=16, head_size=64, rank=128, causal=True)
    assert not chain.absorbs(4096, 4096)
    assert chain.absorbs(1, 4096)
    assert not chain.absorbs(1, 1)
    with pytest.raises(ValueError, match="expected 'absorb' or 'expand'"), products_in_order("other"):
        pass
