"""Gradients by Triton kernels, in Triton's interpreter, against the dense float64 reference."""

import pytest
import torch
from layout_plans import SPLITS, function_of_split, inputs_of
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
    tensors,
)

from attnc.reference.dense import reference
from attnc.runtime.gradient_launch import cut_gradients, start_gradients
from attnc.runtime.gradient_strips import sum_diagonals
from attnc.runtime.tiles import Tiles, assume_target

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter computes with numpy, which warns where the language is silent: 1 / 0, log 0."""

SIZES = [(1, 1), (63, 64), (65, 63), (100, 257), (130, 70)]

SOME = ("streaming", "strided", "at", "packed")

TABLES = ("relative", "table")
"""Patterns that read tables for each pair."""


def _slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Run kernels, on memory that holds NaN before anything is written to it."""
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def compare(found, expected, tolerance=2e-5):
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        size = max(1.0, float(theirs[theirs.isfinite()].abs().max()) if theirs.isfinite().any() else 0.0)
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=tolerance, atol=tolerance * size)


def run(name, *, scale=None, dtype=torch.float32, tolerance=2e-5, **sizes):
    query, key, value = tensors(dtype=dtype, **sizes)
    inputs = inputs_for(name, query, key)
    leaves, lse = differentiable(query, key, value, inputs), name not in WITHOUT_LSE
    function = function_of(name)
    found = outputs_and_gradients(
        lambda: function(query, key, value, **inputs, scale=scale, return_lse=lse), leaves, lse
    )
    attention = attention_of(PATTERNS[name])
    expected = outputs_and_gradients(
        lambda: reference(attention, query, key, value, inputs, return_lse=lse, scale=scale, dtype=torch.float64),
        leaves,
        lse,
    )
    compare(found, expected, tolerance)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern(name):
    run(name, B=2, H=4, G=2, N=70, M=90)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", SOME)
def test_sizes(name, sizes):
    run(name, B=1, H=2, G=1, N=sizes[0], M=sizes[1])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in SOME])
def test_sizes_of_all_others(name, sizes):
    if name == "table" and sizes[0] < sizes[1]:
        pytest.skip("positions of queries are rows of its table")
    run(name, B=1, H=2, G=1, N=sizes[0], M=sizes[1])


def test_a_scale_of_queries_in_tiles_without_a_test():
    run("scaled", B=1, H=2, G=1, N=100, M=257)


@pytest.mark.parametrize("heads", [(8, 8), (40, 24), (64, 128), (128, 256)], ids=str)
def test_head_sizes(heads):
    run("packed", B=1, H=2, G=1, N=40, M=50, D=heads[0], E=heads[1])


@pytest.mark.parametrize("groups", [(4, 4), (4, 1), (6, 2)], ids=str)
def test_grouped_heads(groups):
    run("packed", B=2, H=groups[0], G=groups[1], N=40, M=50)


@pytest.mark.parametrize("name", ["scaled", "tempered", "sigmoid"])
def test_the_caller_s_scale(name):
    run(name, scale=-0.4, B=1, H=2, G=1, N=40, M=50)


@pytest.mark.parametrize("tiles", [Tiles(16, 16, 4, 1), Tiles(32, 64, 4, 1), _slow(Tiles(128, 32, 4, 1))], ids=str)
@pytest.mark.parametrize("name", ["fixed", "relative", *map(_slow, ("streaming", "packed"))])
def test_tiles_do_not_matter(name, tiles):
    with assume_target("cpu", tiles):
        run(name, B=1, H=2, G=1, N=90, M=100)


@pytest.mark.parametrize("name", ["streaming", *map(_slow, ("causal", "packed", "scaled", "relative", "rows"))])
@pytest.mark.parametrize("sizes", [(90, 100), _slow((1, 257)), _slow((257, 63)), _slow((65, 130))], ids=str)
def test_descriptors(name, sizes):
    """Tiles that are walked are read by them, for every head of a group; a program has as many keys as by default."""
    with assume_target("cpu", Tiles(32, 128, 4, 1, descriptors=True)):
        run(name, B=2, H=4, G=2, N=sizes[0], M=sizes[1], D=16, E=24)


def test_kernels_have_descriptors_for_what_they_walk():
    query, key, value, grad_out = (torch.randn(2, 2, 40, 16) for _ in range(4))
    aside = torch.randn(2, 2, 40, 20)[..., 1:17]  # begins between multiples of 16 bytes

    def described(query, key):
        with assume_target("cpu", Tiles(32, 128, 4, 1, descriptors=True)):
            call = start_gradients(
                query, key, value, grad_out, None, None, kept="", scale=None, own_scale=False, precision=None,
                base_2=True, dropout=None, add=(False, False),
            )  # fmt: skip
            cut = [cut_gradients(call, tiles={}, kernel="", of_keys=of_keys) for of_keys in (False, True)]
        return [one.tiles.descriptors for one in cut]

    assert described(query, key) == [True, True]
    assert described(aside, key) == [True, False]
    assert described(query, aside) == [False, True]


@pytest.mark.parametrize("name", ["causal", "strided", "packed", "weighted", "rows"])
def test_half_precision_is_as_good_as_pytorch_s(name):
    """Errors are at most thrice those of eager attention in float16, as FlashAttention's own tests ask."""
    sizes = {"B": 1, "H": 2, "G": 1, "N": 70, "M": 90, "dtype": torch.float16}
    query, key, value = tensors(**sizes)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    found = outputs_and_gradients(lambda: function_of(name)(query, key, value, **inputs), leaves, False)
    attention = attention_of(PATTERNS[name])
    eager, wide = (
        outputs_and_gradients(lambda d=dtype: reference(attention, query, key, value, inputs, dtype=d), leaves, False)
        for dtype in (torch.float16, torch.float64)
    )
    for place, (mine, theirs, exact) in enumerate(zip(found, eager, wide, strict=True)):
        allowed = (2 if place == 0 else 3) * (theirs.double() - exact.double()).abs().max() + 1e-4
        if place > 3:  # tables: what all weights of a row have in common comes from an output that has been rounded
            allowed += 4e-3 * exact.double().abs().max()
        assert (mine.double() - exact.double()).abs().max() <= allowed


@pytest.mark.parametrize("name", ["ahead", "fixed", "row_runs", "rows_and_columns"])
def test_layouts(name):
    split = SPLITS[name]
    query, key, value = tensors(B=1, H=2, G=1, N=90, M=110, dtype=torch.float32)
    inputs = inputs_of(split, query, key)
    leaves = differentiable(query, key, value, inputs)
    function, lse = function_of_split(split), split.has_lse
    found = outputs_and_gradients(lambda: function(query, key, value, **inputs, return_lse=lse), leaves, lse)
    expected = outputs_and_gradients(
        lambda: reference(attention_of(split.whole), query, key, value, inputs, return_lse=lse, dtype=torch.float64),
        leaves,
        lse,
    )
    compare(found, expected)


@pytest.mark.parametrize(
    "text",
    [
        "mask causal\n score s + t[1, j % 4]",
        "mask causal\n score s + t[1, (i + j) % 4]",
        "mask causal and t[1, j % 4] > -0.5",
        "mask i == j or t[1, (i + j) % 4] > -0.5",
        "weight abs(t[1, j % 4])",
        "mask causal and (i - j) % 4 == 0\n score s + t[1, j % 4] * t[1, i % 4]",
        "mask causal\n scale t[1, i % 4]",
    ],
)
@pytest.mark.parametrize("poisoned", [False, True])
def test_reads_that_a_head_may_put_outside(text, poisoned):
    """The test of such a read is one for all pairs, and is spread over tiles that need not be square."""
    text = f"attention guarded {{ input t: float[H, 4]\n {text} }}"
    query, key, value = (one.detach() for one in tensors(B=1, H=2, G=1, N=100, M=100, dtype=torch.float32))
    if poisoned:  # a walk over everything, a few columns at a time
        query[0, 0, 0] = float("inf")
    table = torch.rand(2, 4) + 0.5
    leaves = [tensor.requires_grad_() for tensor in (query, key, value, table)]
    function, attention = module_of(text).guarded, attention_of(text)
    with assume_target("cpu", Tiles(32, 64, 4, 1)):
        found = outputs_and_gradients(lambda: function(query, key, value, t=table), leaves, False)
    expected = outputs_and_gradients(
        lambda: reference(attention, query, key, value, {"t": table}, dtype=torch.float64), leaves, False
    )
    if poisoned:
        assert found[2].isnan().any()
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine.isfinite(), theirs.isfinite())
        found, expected = ([one.nan_to_num(0.0, 0.0, 0.0) for one in some] for some in (found, expected))
    compare(found, expected)


def test_points_of_a_grid_before_the_first_position_are_no_keys():
    """They once had negative numbers of rows, which a kernel of keys read and wrote."""
    check_layout("grid_ends", (64, 64))


def test_grids_of_positions_that_are_rows():
    """Bounds of boxes once named a shift that kernels do not have then."""
    check_layout("grid_start", (40, 57))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(64, 64), (130, 70), (37, 150)], ids=str)
@pytest.mark.parametrize("name", SPLITS)
def test_every_layout(name, sizes):
    # scores beyond a hundred round as much in the log-sum-exp that weights are computed from
    check_layout(name, sizes, 1e-4 if name == "row_term" else 2e-5)


def check_layout(name, sizes, tolerance=2e-5):
    split = SPLITS[name]
    query, key, value = tensors(B=2, H=4, G=2, N=sizes[0], M=sizes[1], dtype=torch.float32)
    inputs = inputs_of(split, query, key)
    leaves = differentiable(query, key, value, inputs)
    function, lse = function_of_split(split), split.has_lse
    found = outputs_and_gradients(lambda: function(query, key, value, **inputs, return_lse=lse), leaves, lse)
    expected = outputs_and_gradients(
        lambda: reference(attention_of(split.whole), query, key, value, inputs, return_lse=lse, dtype=torch.float64),
        leaves,
        lse,
    )
    compare(found, expected, tolerance)


STRIDES = {
    "rows beside heads": lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2),
    "columns first": lambda tensor: tensor.transpose(2, 3).contiguous().transpose(2, 3),
    "a part of a row": lambda tensor: torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]],
}


@pytest.mark.parametrize("layout", STRIDES)
def test_strides(layout):
    query, key, value = tensors(B=2, H=4, G=2, N=40, M=50, dtype=torch.float32)
    plain = outputs_and_gradients(lambda: function_of("streaming")(query, key, value), [query, key, value], False)
    moved = [STRIDES[layout](tensor.detach()).requires_grad_() for tensor in (query, key, value)]
    found = outputs_and_gradients(lambda: function_of("streaming")(*moved), moved, False)
    compare(found, plain, 1e-6)


@pytest.mark.parametrize("name", ["streaming", "packed", "relative", "fixed"])
def test_gradients_are_the_same_each_time(name):
    query, key, value = tensors(B=2, H=4, G=2, N=70, M=90, dtype=torch.float32)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    first, second = (
        outputs_and_gradients(lambda: function_of(name)(query, key, value, **inputs), leaves, False) for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


POISONED = ("causal", "strided", "weighted", *map(_slow, ("grid", "rows", "gemma")))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), _slow(float("-inf"))])
@pytest.mark.parametrize("where", ["query", "key", "value", "gradient"])
@pytest.mark.parametrize("name", POISONED)
def test_poison_reaches_the_rows_that_see_it_and_no_other(name, where, value):
    shapes = {"query": (1, 2, 40, 8), "key": (1, 1, 40, 8), "value": (1, 1, 40, 8), "gradient": (1, 2, 40, 8)}
    draw = torch.Generator().manual_seed(0)
    given = {part: torch.randn(shape, generator=draw) for part, shape in shapes.items()}
    given[where][0, 0, 20, 3] = value
    inputs = inputs_for(name, given["query"], given["key"], grad=False)
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [given[part].to(dtype).requires_grad_() for part in ("query", "key", "value")]
        call = function_of(name) if dtype is torch.float32 else None
        out = call(*leaves, **inputs) if call else oracle(name, *leaves, inputs, False)
        grads = torch.autograd.grad(out, leaves, given["gradient"].to(out.dtype))
        results.append([out.detach(), *grads])
    for mine, theirs in zip(*results, strict=True):
        finite = theirs.isfinite()
        assert torch.equal(mine.isfinite(), finite)
        torch.testing.assert_close(mine.double()[finite], theirs.double()[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_are_read_for_each_pair_take_strips(name, monkeypatch):
    monkeypatch.setattr("attnc.runtime.gradient_strips.STRIP_BYTES", 1 << 16)
    run(name, B=2, H=4, G=2, N=100, M=100)


@pytest.mark.parametrize(
    "mask",
    [
        "causal and (i - j) % 8 == 0",
        _slow("causal"),
        _slow("causal and (i - j < 5 or (i - j) % 8 == 0)"),
        _slow("j % 8 >= 6"),
    ],
)
def test_toeplitz_tables_in_every_order(mask):
    text = f"attention toeplitz {{ learned bias: float[H, 150] = 0.0\n mask {mask}\n score s + bias[h, i - j + 40] }}"
    query, key, value = tensors(B=2, H=4, G=2, N=90, M=100, dtype=torch.float32)
    bias = torch.randn(4, 150, generator=torch.Generator().manual_seed(2)).requires_grad_()
    leaves, inputs = [query, key, value, bias], {"bias": bias}
    found = outputs_and_gradients(lambda: module_of(text).toeplitz(query, key, value, bias=bias), leaves, False)
    attention = attention_of(text)
    expected = outputs_and_gradients(
        lambda: reference(attention, query, key, value, inputs, dtype=torch.float64), leaves, False
    )
    compare(found, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 7), (8, 3)], ids=str)
def test_diagonals_are_summed(shape):
    tile = torch.arange(1.0, shape[0] * shape[1] + 1).view(shape)
    expected = [tile.diagonal(offset).sum() for offset in range(1 - shape[0], shape[1])]
    assert torch.equal(sum_diagonals(tile), torch.stack(expected))


def test_an_input_without_a_gradient_gets_none():
    query, key, value = tensors(B=1, H=2, G=1, N=40, M=40, dtype=torch.float32)
    inputs = inputs_for("packed", query, key, grad=False)
    out = function_of("packed")(query, key, value, **inputs)
    grads = torch.autograd.grad(out.sum(), [query, key, value])
    assert all(grad.isfinite().all() for grad in grads)
