"""Biases of distances as views of vectors: the same results as from the dense oracle, without masks of pairs."""

import pytest
import torch
from patterns import LargestStorage, attention_of, module_of, outputs_and_gradients, tensors

from attnc.reference.dense import reference
from attnc.runtime import cpu_flash

BIASED = {
    "all": "attention all_biased { input t: float[H, 2 * M]\n score s + t[h, clamp(i - j, -40, 40) + 40] }",
    "causal": "attention causal_biased { input t: float[H, 2 * M]\n mask causal\n score s - t[h, (i - j) // 3] }",
    "start": "attention start_biased { input t: float[H, 2 * M]\n align start\n mask j <= i\n score s - t[h, i - j] }",
    "window": "attention window_biased { input t: float[H, 2 * M]\n mask window(37)\n score s + t[h, i - j + 37] }",
    "holes": "attention holes { input t: float[H, 2 * M]\n mask causal and (i - j) % 5 != 2\n"
    " score 2 * s + t[h, i - j] }",
    "batch": "attention of_batch { input t: float[B, 2 * M]\n mask abs(i - j) != 9\n score s + t[b, abs(i - j)] }",
    "plain": "attention of_all { input t: float[B, 2 * M]\n score s - 0.1 * abs(i - j) }",
    "infinite": "attention infinite { input t: float[H, 2 * M]\n score s + log(max(i - j, 0)) }",
    "fixed": "attention with_fixed { input t: float[H, 2 * M]\n mask causal and (i - j < 20 or j < 3)\n"
    " score s + t[h, i - j] }",
    "residues": "attention in_classes { input t: float[H, 2 * M]\n mask causal and (i - j) % 4 == 0\n"
    " score s + t[h, i - j] }",
    "data": "attention in_documents { input t: float[H, 2 * M]\n input doc: int[B, M] sorted\n mask same(doc)\n"
    " score s + t[h, abs(i - j)] }",
}
SIZES = [(1, 1), (63, 63), (65, 65), (100, 257), (257, 100), (300, 300)]


def compare(name, learned=False, **sizes):
    text = BIASED[name]
    query, key, value = tensors(D=8, E=8, **sizes)
    draw = torch.Generator().manual_seed(5)
    rows = query.shape[0] if "float[B" in text else query.shape[1]
    inputs = {"t": torch.randn((rows, 2 * key.shape[2]), generator=draw, dtype=torch.float64, requires_grad=learned)}
    if "doc" in text:
        inputs["doc"] = torch.randint(0, 3, (query.shape[0], key.shape[2]), generator=draw).sort(-1).values
    leaves = [query, key, value, *([inputs["t"]] if learned else [])]
    attention = attention_of(text)
    function = getattr(module_of(text), attention.name)
    ours, theirs = (
        outputs_and_gradients(found, leaves, True)
        for found in (
            lambda: function(query, key, value, **inputs, return_lse=True),
            lambda: reference(attention, query, key, value, inputs, return_lse=True),
        )
    )
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", BIASED)
def test_outputs_and_gradients_are_the_oracles(name, size):
    compare(name, N=size[0], M=size[1])


@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("heads", [(1, 1, 1), (1, 6, 2), (3, 4, 1)])
def test_heads_and_gradients_of_the_bias(name, heads):
    batch, query_heads, key_heads = heads
    compare(name, learned=True, B=batch, H=query_heads, G=key_heads, N=140, M=140)


@pytest.mark.parametrize("name", ["causal", "window", "holes", "batch"])
def test_blocks_whose_mask_is_too_large_to_be_made_are_taken_one_by_one(name, monkeypatch):
    monkeypatch.setattr(cpu_flash, "REMEMBERED_PAIRS", 64)
    compare(name, N=300, M=300)
    compare(name, B=1, H=6, G=2, N=257, M=257)


@pytest.mark.parametrize("name", ["all", "causal", "window"])
def test_no_mask_of_pairs_is_made(name):
    text, length = BIASED[name], 4096
    query, key, value = tensors(B=1, H=4, G=4, N=length, M=length, D=4, E=4, dtype=torch.float32)
    t = torch.randn(4, 2 * length)
    function = getattr(module_of(text), attention_of(text).name)
    with LargestStorage() as seen:
        function(query, key, value, t=t).sum().backward()
    assert seen.largest <= 1 << 20
