"""Inputs of masks as callers give them: dtypes, strides, broadcasting, extremes, nothing in them, the wrong size."""

import pytest
import torch

import attnc
from attnc.ir.arithmetic import INT_MAX, INT_MIN

TEXT = """
attention unsorted { input ids: int[B, M]
    mask causal and ids[b, i] == ids[b, j] }
attention by_head { input ids: int[B, H, M]
    mask ids[b, h, i] <= ids[b, h, j] }
attention runs { input ids: int[B, M] sorted
    mask same(ids) }
attention blocks { input keep: bool[B, H, (N + 63) // 64, (M + 63) // 64]
    mask keep[b, h, r // 64, j // 64] }
attention line { input keep: bool[B, H, (M + 63) // 64]
    mask causal and keep[b, h, j // 64] }
attention any_length { input seen: bool[?]
    input rank: float[?]
    mask seen[j] or rank[i] < rank[j] }
attention lengths { input size: int[B]
    input cut: int
    mask j < size[b] and i - j < cut }
attention up_to { input last: int[B]
    mask j <= last[b] }
attention around { input middle: int[B, H]
    mask abs(j - middle[b, h]) < 20 or j // 8 == middle[b, h] // 8 }
"""
EXTREMES = torch.tensor([INT_MIN, INT_MIN + 1, -1, 0, INT_MAX - 1, INT_MAX])


@pytest.fixture(scope="module")
def module():
    return attnc.loads(TEXT)


@pytest.fixture(params=["torch", "triton"])
def target(request, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", request.param)
    return request.param


def call(module, name, queries, keys, inputs, *, batch=2, heads=4):
    draw = torch.Generator().manual_seed(queries)
    query = torch.randn(batch, heads, queries, 16, generator=draw)
    key, value = (torch.randn(batch, 2, keys, 16, generator=draw) for _ in range(2))
    return getattr(module, name)(query, key, value, **inputs), (query, key, value)


def check(module, name, queries, keys, inputs, **shape):
    found, tensors = call(module, name, queries, keys, inputs, **shape)
    wanted = getattr(module, f"{name}_reference")(*(tensor.double() for tensor in tensors), **inputs)
    torch.testing.assert_close(found.double(), wanted, atol=3e-5, rtol=1e-4)


def ids_of(shape, values, seed=0):
    draw = torch.Generator().manual_seed(seed)
    found = values[torch.randint(0, len(values), shape, generator=draw)]
    return found[..., torch.arange(shape[-1]) // 29 * 29]


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (130, 130), (70, 150), (150, 70)])
@pytest.mark.parametrize("name", ["unsorted", "by_head", "runs"])
def test_extreme_ids(module, target, name, queries, keys):
    shape = (2, 4, keys) if name == "by_head" else (2, keys)
    ids = ids_of(shape, EXTREMES, queries)
    check(module, name, queries, keys, {"ids": ids.sort(-1).values if name == "runs" else ids})


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("name", ["unsorted", "runs"])
def test_dtypes_of_ids(module, target, name, dtype):
    ids = ids_of((2, 140), torch.tensor([0, 3, 7, 100, 200]), 1).to(dtype)
    check(module, name, 140, 140, {"ids": ids.sort(-1).values if name == "runs" else ids})


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 1)])
def test_broadcast_entries_and_heads(module, target, shape):
    check(module, "by_head", 140, 140, {"ids": ids_of((*shape, 140), torch.arange(5), 2)})
    draw = torch.Generator().manual_seed(3)
    check(module, "blocks", 140, 200, {"keep": torch.rand(*shape, 3, 4, generator=draw) < 0.4})


def test_any_strides(module, target):
    draw = torch.Generator().manual_seed(4)
    keep = torch.rand(4, 3, 2, 4, generator=draw).permute(2, 3, 1, 0) < 0.4
    assert not keep.is_contiguous()
    check(module, "blocks", 140, 200, {"keep": keep})
    ids = ids_of((140, 2), torch.arange(3), 5).t()
    check(module, "unsorted", 140, 140, {"ids": ids})
    check(module, "unsorted", 140, 140, {"ids": torch.arange(3)[None, :1].expand(2, 140)})
    check(module, "runs", 70, 70, {"ids": (torch.arange(280).view(2, 140) // 20)[:, ::2]})


def test_one_block_too_few_or_too_many(module, target):
    for name, right in (("blocks", (2, 4, 3, 4)), ("line", (2, 4, 4))):
        for axis in range(2, len(right)):
            for change in (-1, 1):
                shape = [length + change * (at == axis) for at, length in enumerate(right)]
                with pytest.raises(ValueError, match=r"keep has shape \(.*\), expected \(2, 4, "):
                    call(module, name, 140, 200, {"keep": torch.ones(shape, dtype=torch.bool)})
        with pytest.raises(ValueError, match="keep is int64, expected bool"):
            call(module, name, 140, 200, {"keep": torch.ones(right, dtype=torch.int64)})
        check(module, name, 140, 200, {"keep": torch.ones(right, dtype=torch.bool)})


@pytest.mark.parametrize("length", [0, 1, 64, 129, 300])
def test_tables_of_any_length(module, target, length):
    draw = torch.Generator().manual_seed(length)
    seen = torch.arange(length) % 100 < 20
    rank = torch.randn(length, generator=draw)
    for queries, keys in ((130, 130), (40, 130), (130, 40)):
        check(module, "any_length", queries, keys, {"seen": seen, "rank": rank})


@pytest.mark.parametrize("last", [(0, 150), (-1, 33), (INT_MIN, INT_MAX), (INT_MAX - 1, 2**62)])
def test_ends_of_any_size(module, target, last):
    check(module, "up_to", 100, 150, {"last": torch.tensor(last)})
    middle = [max(one, INT_MIN + 200) for one in (*last, 40, 70)]  # the mask itself must not wrap around
    check(module, "around", 100, 150, {"middle": torch.tensor([middle] * 2)})


@pytest.mark.parametrize("cut", [-5, 0, 3, 200, 2**48])
def test_lengths_and_scalars_of_any_size(module, target, cut):
    for size in ((0, 150), (-7, 33), (INT_MIN, INT_MAX)):
        check(module, "lengths", 100, 150, {"size": torch.tensor(size), "cut": cut})


def test_nothing_is_allowed(module, target):
    out, _ = call(module, "blocks", 140, 200, {"keep": torch.zeros(2, 4, 3, 4, dtype=torch.bool)})
    assert not out.any()
    found, tensors = call(module, "line", 140, 200, {"keep": torch.zeros(1, 1, 4, dtype=torch.bool)})
    assert not found.any()
    _, lse = module.line(*tensors, keep=torch.zeros(1, 1, 4, dtype=torch.bool), return_lse=True)
    assert (lse == -torch.inf).all()


def test_a_hidden_keyword_stays_an_input():
    text = "attention odd { input checked: int[M] sorted\n input other: int[M] sorted\n mask same_as(checked, other) }"
    text = "def same_as(a, c) = a[i] == a[j] and c[i] == c[j]\n" + text
    odd = attnc.loads(text)
    query, key, value = (torch.randn(1, 1, 4, 8) for _ in range(3))
    broken = torch.tensor([0, 1, 0, 1])
    found = odd.odd(query, key, value, checked=broken, other=broken)
    torch.testing.assert_close(found, odd.odd_reference(query, key, value, checked=broken, other=broken))
    with pytest.raises(TypeError, match="checked is a bool, expected a tensor"):
        odd.odd(query, key, value, checked=True, other=broken)
