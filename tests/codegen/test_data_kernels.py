"""Kernels that skip tiles by data: block tables, minima and maxima of other tables, NaN, extremes of int64."""

import pytest
import torch
from kernel_harness import check_kernel, load_kernel, plan_text, render_kernel, run_kernel, tensors

from attnc.ir.arithmetic import INT_MAX, INT_MIN

PATTERNS = {
    "same": "input ids: int[B, M]\n mask causal and ids[b, i] == ids[b, j]",
    "near": "input ids: int[B, H, M]\n input cut: int\n mask abs(ids[b, h, i] - ids[b, h, j]) <= cut",
    "valid": "input valid: bool[B, M]\n mask valid[b, j] and (i - j < 40)",
    "two": "input ids: int[N]\n input other: int[?]\n mask ids[r] < other[j]",
    "square": "input grid: bool[48, 48]\n mask causal and grid[i % 48, j % 48]",
    "floats": "input x: float[M]\n mask not (x[i] < x[j] - 0.5)",
    "blocks": "input keep: bool[B, H, (N + 15) // 16, (M + 15) // 16]\n mask causal and keep[b, h, r // 16, j // 16]",
    "hashed": "mask i // 32 == j // 32 or random_blocks(32, 2, 5)",
}


def stretches(shape, values, seed):
    """Return tensors in which neighbours mostly are equal."""
    draw = torch.Generator().manual_seed(seed)
    found = values[torch.randint(0, len(values), shape, generator=draw)]
    starts = torch.arange(shape[-1]) // 23 * 23
    return torch.where(torch.rand(shape, generator=draw) < 0.03, found, found[..., starts])


def inputs_of(plan, queries, keys, values, seed):
    sizes = {"B": 2, "H": 4, "N": queries, "M": keys}
    found = {}
    for one in plan.attention.tensors:
        shape = []
        for dim in one.dims:
            text = "?" if dim is None else getattr(getattr(dim, "name", None), "value", None)
            shape.append(max(0, keys - 3) if text == "?" else sizes.get(text, 48))
        match one.type.value:
            case "int":
                found[one.name] = stretches(shape, values, seed) if shape else 3
            case "bool":
                found[one.name] = stretches(shape, torch.tensor([False, False, True]), seed)
            case _:
                found[one.name] = stretches(shape, torch.tensor([-1.0, 0.0, 2.0, float("nan")]), seed)
    return found


@pytest.mark.parametrize("name", PATTERNS)
def test_kernels_that_skip_tiles_are_right(name):
    plan = plan_text(f"attention {name} {{ {PATTERNS[name]} }}")
    assert "if " in render_kernel(plan).split("for tile in range")[1]
    module = load_kernel(plan)
    wild = torch.tensor([INT_MIN, -1, 0, 3, INT_MAX])
    for seed, (queries, keys) in enumerate(((1, 1), (65, 65), (100, 200), (200, 100))):
        values = wild if seed % 2 else torch.tensor([0, 1, 4, 9])
        made = inputs_of(plan, queries, keys, values, seed)
        if name == "blocks":
            made["keep"] = torch.rand(2, 4, -(-queries // 16), -(-keys // 16)) < 0.3
        query, key, value = tensors(2, 4, 2, queries, keys, 16, seed=seed)
        check_kernel(plan, query, key, value, made, module=module)


def test_an_excluded_tile_is_not_read():
    plan = plan_text("attention apart { input ids: int[B, M]\n mask ids[b, i] == ids[b, j] }")
    ids = torch.tensor([3] * 64 + [-2] * 64)[None]
    query, key, value = tensors(1, 1, 1, 128, 128, 16)
    out = check_kernel(plan, query, key, value, {"ids": ids})
    key[:, :, 64:], value[:, :, 64:] = float("nan"), float("nan")
    found, _ = run_kernel(load_kernel(plan), plan, query, key, value, {"ids": ids})
    torch.testing.assert_close(found[:, :, :64], out[:, :, :64])
