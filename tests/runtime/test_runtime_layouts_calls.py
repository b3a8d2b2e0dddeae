"""Passes in layouts under all that a call may bring: heads, strides, precisions, NaN, pieces, compile."""

from importlib import import_module

import hypothesis.strategies as st
import pytest
import torch
from grid_layouts import in_grid
from hypothesis import given, settings
from layout_plans import (
    FIXED,
    SPLITS,
    STRIDED,
    Split,
    compare,
    function_of_split,
    inputs_of,
    keys_in,
    plan_of,
    queries_in,
)
from patterns import LargestStorage, attention_of, module_of_plans, tensors

from attnc.algebra.coordinates import PLAIN, residue
from attnc.reference.dense import reference
from attnc.runtime import calls, cpu_flash, cpu_tiles, grids
from attnc.runtime.cpu import cpu_backward, cpu_forward


@pytest.mark.parametrize(
    "name", ["strided", "fixed", "row_runs", "softcap", "at_heads", "learned", "class_gaps", "grid_ends"]
)
@pytest.mark.parametrize(
    "sizes",
    [
        {"B": 1, "H": 1, "G": 1, "D": 1, "E": 1},
        {"B": 3, "H": 6, "G": 1, "D": 8, "E": 24},
        {"B": 1, "H": 4, "G": 4, "D": 33, "E": 5},
        {"B": 40, "H": 2, "G": 1, "D": 4, "E": 4},
    ],
    ids=["one", "multi-query", "odd", "more-entries-than-classes"],
)
def test_heads_and_head_sizes(name, sizes):
    compare(SPLITS[name], N=70, M=90, **sizes)


@pytest.mark.parametrize("name", ["place", "strided", "heads"])
def test_rows_that_differ_inside_equal_tiles(name):
    compare(SPLITS[name], N=1500, M=1500, B=2, H=8, D=8, E=8, grad=False)


def test_heads_whose_long_rows_differ_inside_a_tile():
    compare(Split((("causal and (i - j < 8 or i % 32 == 3 * h)", PLAIN),)), N=400, M=400, H=8, grad=False)


@pytest.mark.parametrize("name", ["strided", "fixed", "row_runs", "sigmoid", "grid_columns"])
def test_strides_do_not_matter(name):
    split = SPLITS[name]
    query, key, value = tensors(N=90, M=90, grad=False)
    inputs = inputs_of(split, query, key, grad=False)
    function = function_of_split(split)
    expected = function(query, key, value, **inputs)
    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)]
    torch.testing.assert_close(function(*turned, **inputs), expected)
    spread = [torch.stack([tensor, tensor * 7], -1)[..., 0] for tensor in (query, key, value)]
    torch.testing.assert_close(function(*spread, **inputs), expected)
    columns = [tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (query, key, value)]
    torch.testing.assert_close(function(*columns, **inputs), expected)


@pytest.mark.parametrize("name", ["strided", "fixed", "row_runs", "sink", "sigmoid", "rows", "grid_ends"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(name, dtype):
    split = SPLITS[name]
    query, key, value = tensors(N=200, M=200, dtype=dtype, grad=False)
    inputs = inputs_of(split, query, key, grad=False)
    expected = reference(attention_of(split.whole), query, key, value, inputs, dtype=torch.float64)
    eager = reference(attention_of(split.whole), query, key, value, inputs, dtype=dtype)
    found = function_of_split(split)(query, key, value, **inputs)
    assert found.dtype is dtype
    floor = 4 * torch.finfo(dtype).eps * expected.abs().max()
    assert (found - expected).abs().max() <= 2 * (eager - expected).abs().max() + floor


@pytest.mark.parametrize(
    "name",
    ["residue", "strided", "fixed", "row_runs", "softcap", "sink", "sigmoid", "none", "grid_ends", "grid_softcap"],
)
@pytest.mark.parametrize("spoiler", [torch.nan, torch.inf])
def test_what_masked_pairs_hold_does_not_matter(name, spoiler):
    split = SPLITS[name]
    query, key, value = tensors(N=60, M=80)
    spoiled = [tensor.detach().clone() for tensor in (query, key, value)]
    spoiled[1][:, :, 70], spoiled[2][:, 1, 71] = spoiler, spoiler
    inputs = inputs_of(split, query, key, grad=False)
    function, attention = function_of_split(split), attention_of(split.whole)
    mask = function_mask(split, inputs)
    clean = function(query, key, value, **inputs)
    found = function(*(tensor.requires_grad_() for tensor in spoiled), **inputs)
    reached = mask[:, :, :, 70] | (mask[:, :, :, 71] & (torch.arange(4) >= 2).view(1, 4, 1))
    torch.testing.assert_close(found[~reached], clean[~reached])
    expected = reference(attention, *(tensor.detach() for tensor in spoiled), inputs, dtype=torch.float64)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(found[~reached].sum(), spoiled)
    expected_grads = torch.autograd.grad(clean[~reached].sum(), (query, key, value))
    torch.testing.assert_close(grads[0][~reached], expected_grads[0][~reached], rtol=1e-9, atol=1e-9)
    seen = (mask & reached.unsqueeze(-1)).any(2).view(2, 2, 2, 80).any(2)
    for mine, theirs in zip(grads[1:], expected_grads[1:], strict=True):
        torch.testing.assert_close(mine[~seen], theirs[~seen], rtol=1e-9, atol=1e-9)


def function_mask(split, inputs):
    """Return the mask of the calls of the test above."""
    function = function_of_split(split)
    module = import_module(function.__module__)
    names = {tensor.name for tensor in attention_of(split.whole).tensors}
    given = {name: tensor for name, tensor in inputs.items() if name in names}
    return module.split_mask(60, 80, B=2, H=4, **given)


@pytest.mark.parametrize(
    "name",
    [
        "strided",
        "dilated",
        "fixed",
        "row_runs",
        "class_mask",
        "class_gaps",
        "alibi",
        "sigmoid",
        "grid_columns",
        "grid_alibi",
        "grid_none",
    ],
)
@pytest.mark.parametrize("most", [1, 3000])
def test_pieces_of_any_size(name, most, monkeypatch):
    monkeypatch.setattr(cpu_flash, "RESULT_ELEMENTS", most)
    monkeypatch.setattr(cpu_flash, "MASK_ELEMENTS", most)
    monkeypatch.setattr(cpu_flash, "REMEMBERED_PAIRS", most)
    monkeypatch.setattr(cpu_tiles, "ELEMENTS", most)
    monkeypatch.setattr(cpu_tiles, "HEADS", 3)
    monkeypatch.setattr(calls, "_LARGEST_KEY", -1)
    monkeypatch.setattr(grids, "GATHERED_AT_ONCE", most)
    monkeypatch.setattr(grids, "_LARGEST_LISTS", -1)
    compare(SPLITS[name], N=150, M=170, D=4, E=4)


@pytest.mark.parametrize("name", ["strided", "fixed", "global_rows", "grid_columns"])
def test_modules_that_stand_alone(name):
    split = SPLITS[name]
    query, key, value = tensors(N=70, M=70, grad=False)
    alone = module_of_plans((plan_of(split),), split.whole, standalone=True).split
    torch.testing.assert_close(alone(query, key, value), function_of_split(split)(query, key, value))


@pytest.mark.parametrize(
    "name", ["strided", "fixed", "row_runs", "class_mask", "sigmoid", "grid_columns", "grid_sigmoid"]
)
def test_memory_is_linear_in_the_length(name):
    split, length = SPLITS[name], 8192
    program = vars(import_module(function_of_split(split).__module__))["_split_program"]
    query, key, value = (torch.randn(1, 1, length, 16) for _ in range(3))
    inputs = [torch.zeros(1)] if split.head else []
    with LargestStorage() as seen:
        out, lse = cpu_forward(program, query, key, value, inputs, None)
        cpu_backward(
            program, (torch.ones_like(out), None), (query, key, value, inputs), (out, lse), None, [False] * len(inputs)
        )
    assert seen.largest <= 1 << 20


def test_gradients_are_deterministic():
    split = SPLITS["learned"]
    query, key, value = tensors(N=130, M=130, dtype=torch.float32)
    inputs = inputs_of(split, query, key)
    leaves = [query, key, value, *inputs.values()]

    def gradients():
        return torch.autograd.grad(function_of_split(split)(query, key, value, **inputs).square().sum(), leaves)

    assert all(torch.equal(one, two) for one, two in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("name", ["residue", "strided", "fixed", "row_runs", "softcap", "rows"])
def test_gradcheck(name):
    split = SPLITS[name]
    leaves = tensors(B=1, H=2, G=1, N=20, M=23, D=3, E=3)
    function, lse = function_of_split(split), split.has_lse
    inputs = inputs_of(split, leaves[0], leaves[1], grad=False)

    def call(query, key, value):
        results = function(query, key, value, **inputs, return_lse=lse)
        return (results[0], torch.where(torch.isinf(results[1]), 0, results[1])) if lse else results

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


def test_torch_compile_sees_one_operator():
    split = SPLITS["strided"]
    function = function_of_split(split)
    query, key, value = tensors(N=60, M=60, dtype=torch.float32)
    compiled = torch.compile(lambda *given: function(*given) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(query, key, value), function(query, key, value) * 2)


@pytest.mark.parametrize("parts_of", [STRIDED, FIXED], ids=["strided", "fixed"])
def test_order_of_passes_does_not_matter(parts_of):
    compare(Split(tuple(reversed(parts_of))), N=100, M=120)


@settings(max_examples=5)
@given(
    period=st.integers(1, 40),
    ahead=st.integers(-50, 50),
    reach=st.integers(1, 60),
    causal=st.booleans(),
    align=st.sampled_from(["align end", "align start", "align at(h - 2)"]),
    queries=st.integers(1, 90),
    keys=st.integers(1, 90),
)
def test_any_residue(period, ahead, reach, causal, align, queries, keys):
    part = f"abs(i - j) <= {reach} and (j - i) % {period} == {ahead % period}{' and j <= i' if causal else ''}"
    compare(Split(((part, residue(period, ahead)),), "", align), N=queries, M=keys, D=4, E=4)


@settings(max_examples=5)
@given(
    period=st.integers(2, 30),
    first=st.integers(0, 29),
    length=st.integers(1, 30),
    of_keys=st.booleans(),
    edge=st.integers(-30, 30),
    queries=st.integers(1, 90),
    keys=st.integers(1, 90),
)
def test_any_runs(period, first, length, of_keys, edge, queries, keys):
    first = first % period
    length = min(length, period - first)
    name, layout = ("j", keys_in) if of_keys else ("i", queries_in)
    inside = f"{name} % {period} >= {first} and {name} % {period} < {first + length}"
    split = Split(((f"{inside} and j <= i + {edge}", layout(period, first, length)),))
    compare(split, N=queries, M=keys, D=4, E=4)


@settings(max_examples=5)
@given(
    width=st.integers(2, 12),
    reach=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    tile=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    lead=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    causal=st.booleans(),
    align=st.sampled_from(["align end", "align start", "align at(h - 2)"]),
    queries=st.integers(1, 90),
    keys=st.integers(1, 90),
)
def test_any_grid(width, reach, tile, lead, causal, align, queries, keys):
    near = f"abs(i // {width} - j // {width}) <= {reach[0]} and abs(i % {width} - j % {width}) <= {reach[1]}"
    part = in_grid(
        f"{near}{' and j <= i' if causal else ''}",
        (width, 0, tile[0], lead[0] % tile[0]),
        (1, width, tile[1], lead[1] % tile[1]),
    )
    compare(Split((part,), "", align), N=queries, M=keys, D=4, E=4)


@pytest.mark.parametrize("name", ["strided", "grid", "grid_columns"])
def test_query_key_and_value_may_share_memory(name):
    split = SPLITS[name]
    one = tensors(N=80, M=80, H=2, G=2, D=8, E=8, grad=False)[0]
    packed = torch.stack([one, one.flip(2), -one], -2).unbind(-2)
    for call in ((one, one, one), packed):
        expected = reference(attention_of(split.whole), *call, {}, dtype=torch.float64)
        torch.testing.assert_close(function_of_split(split)(*call), expected, rtol=1e-9, atol=1e-9)
