"""Tiles that data excludes are left out on the CPU: results, gradients, and which rectangles are computed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnc
from attnc.ir.arithmetic import INT_MAX, INT_MIN
from attnc.runtime import parts, skipping
from attnc.runtime.calls import Store

TEXT = """
attention table {
    input keep: bool[B, H, (N + 15) // 16, (M + 15) // 16]
    mask causal and (i // 16 == j // 16 or keep[b, h, r // 16, j // 16])
}
attention best {
    input top: int[B, H, (N + 31) // 32, 3]
    mask causal and any(t < 3, j // 32 == top[b, h, r // 32, t])
}
attention same_ids {
    input ids: int[B, M]
    mask ids[b, i] == ids[b, j]
    score s - 0.1 * abs(i - j)
}
attention near {
    input x: float[B, H, M]
    mask causal and not (abs(x[b, h, i] - x[b, h, j]) > 0.5)
    normalize sigmoid
}
attention padded {
    input valid: bool[B, M]
    mask valid[b, j]
    learned sink: float[H] = 0.5
    normalize softmax(sink = sink[h])
}
attention strided { mask causal and (i - j) % 96 < 2; decompose none }
attention hashed { mask random_blocks(32, 2, 5) and (j <= i or h == 1) }
"""
NAMES = ("table", "best", "same_ids", "near", "padded", "strided", "hashed")
WILD = torch.tensor([INT_MIN, -1, 0, 3, INT_MAX])


@pytest.fixture(scope="module")
def module():
    return attnc.loads(TEXT)


@pytest.fixture
def always(monkeypatch):
    """Leave tiles out whatever is expected to be faster."""
    monkeypatch.setattr(skipping, "WORTH", float("inf"))
    monkeypatch.setattr(parts, "_SCHEDULES", Store(64))


def stretches(shape, values, draw):
    found = values[torch.randint(0, len(values), shape, generator=draw)]
    return found[..., torch.arange(shape[-1]) // 37 * 37]


def inputs_of(name, batch, heads, queries, keys, seed):
    draw = torch.Generator().manual_seed(seed)
    match name:
        case "table":
            return {"keep": torch.rand(batch, heads, -(-queries // 16), -(-keys // 16), generator=draw) < 0.2}
        case "best":
            return {"top": torch.randint(-1, -(-keys // 32) + 1, (batch, heads, -(-queries // 32), 3), generator=draw)}
        case "same_ids":
            return {"ids": stretches((batch, keys), WILD if seed % 2 else torch.arange(3), draw)}
        case "near":
            values = torch.tensor([0.0, 1.0, 5.0, float("nan")], dtype=torch.float64)
            return {"x": stretches((batch, heads, keys), values, draw)}
        case "padded":
            return {
                "valid": stretches((batch, keys), torch.tensor([False, False, True]), draw),
                "sink": torch.zeros(heads),
            }
        case _:
            return {}


def check(module, name, queries, keys, seed, *, batch=2, heads=4, groups=2):
    query = torch.randn(batch, heads, queries, 8)
    key, value = torch.randn(batch, groups, keys, 8), torch.randn(batch, groups, keys, 8)
    inputs = inputs_of(name, batch, heads, queries, keys, seed)
    given_inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    found = getattr(module, name)(query, key, value, **given_inputs)
    wanted = getattr(module, f"{name}_reference")(query.double(), key.double(), value.double(), **inputs)
    torch.testing.assert_close(found.double(), wanted, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_results_without_excluded_tiles(module, name, always):
    for seed, (queries, keys) in enumerate(((1, 1), (63, 63), (257, 257), (100, 300), (300, 100))):
        check(module, name, queries, keys, seed)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_without_excluded_tiles(module, name, always):
    tensors = [torch.randn(1, 2, 150, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    inputs = inputs_of(name, 1, 2, 150, 150, 2)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    weight = torch.randn(1, 2, 150, 4, dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad((function(*tensors, **inputs) * weight).sum(), tensors)
        for function in (getattr(module, name), getattr(module, f"{name}_reference"))
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("seed", range(3))
def test_values_that_are_not_finite(module, always, seed):
    query, key, value = (torch.randn(1, 2, 200, 8) for _ in range(3))
    inputs = inputs_of("table", 1, 2, 200, 200, seed)
    value[:, :, 70] = float("nan")
    found = module.table(query, key, value, **inputs)
    wanted = module.table_reference(query, key, value, **inputs)
    torch.testing.assert_close(found, wanted, atol=3e-5, rtol=1e-4, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 200), st.integers(1, 200), st.integers(0, 999))
def test_random_data(module, name, queries, keys, seed):
    worth, skipping.WORTH = skipping.WORTH, float("inf")
    try:
        check(module, name, queries, keys, seed, batch=1, heads=2, groups=1)
    finally:
        skipping.WORTH = worth


def pairs_computed():
    [(schedules, _)] = parts._SCHEDULES._kept.values()
    return sum(
        band.count * band.rows * band.width * (one.heads[1] - one.heads[0]) for one in schedules for band in one.bands
    )


def test_few_blocks_are_few_pairs(module, monkeypatch):
    monkeypatch.setattr(parts, "_SCHEDULES", Store(64))
    query, key, value = (torch.randn(1, 2, 2048, 16) for _ in range(3))
    keep = torch.zeros(1, 2, 128, 128, dtype=torch.bool)
    keep[0, 0, :, :4] = True
    module.table(query, key, value, keep=keep)
    assert pairs_computed() < 2 * 2048 * (64 + 96 + 16)


def test_heads_with_masks_of_their_own_pay_for_each(module, monkeypatch):
    """Evaluating the mask of all heads where any of them sees a tile would take longer than all other work."""
    monkeypatch.setattr(parts, "_SCHEDULES", Store(64))
    query, key, value = (torch.randn(1, 8, 2048, 16) for _ in range(3))
    coarse = torch.rand(1, 8, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.15
    keep = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    module.table(query, key, value, keep=keep)
    assert pairs_computed() < 2 * int(coarse.sum()) * 64 * 64


def test_documents_in_any_order_are_computed_alone(module, monkeypatch):
    monkeypatch.setattr(parts, "_SCHEDULES", Store(64))
    query, key, value = (torch.randn(1, 2, 2048, 16) for _ in range(3))
    ids = torch.tensor([9, 2, 5, -7]).repeat_interleave(512).view(1, -1)
    module.same_ids(query, key, value, ids=ids)
    assert pairs_computed() == 2 * 2048 * 512


def test_other_data_has_another_schedule(module):
    query, key, value = (torch.randn(1, 2, 1024, 8) for _ in range(3))
    for step in (128, 512, 256):
        ids = (torch.arange(1024) // step).flip(0).view(1, -1)
        found = module.same_ids(query, key, value, ids=ids)
        torch.testing.assert_close(found, module.same_ids_reference(query, key, value, ids=ids), atol=3e-5, rtol=1e-4)
