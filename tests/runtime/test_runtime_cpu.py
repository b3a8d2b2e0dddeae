"""The CPU program against the dense oracle: outputs, log-sum-exp and gradients."""

import pytest
import torch
from patterns import (
    PATTERNS,
    WITHOUT_LSE,
    differentiable,
    function_of,
    inputs_for,
    oracle,
    outputs_and_gradients,
    tensors,
)

SIZES = [(1, 1), (63, 63), (100, 100), (257, 257), (40, 150), (150, 40), (1, 65)]


def compare(name, return_lse, tolerance=1e-10, **sizes):
    query, key, value = tensors(**sizes)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    function = function_of(name)
    ours = outputs_and_gradients(
        lambda: function(query, key, value, **inputs, return_lse=return_lse), leaves, return_lse
    )
    theirs = outputs_and_gradients(lambda: oracle(name, query, key, value, inputs, return_lse), leaves, return_lse)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance, equal_nan=False)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", PATTERNS)
def test_outputs_and_gradients_are_the_oracles(name, size):
    compare(name, name not in WITHOUT_LSE, N=size[0], M=size[1])


@pytest.mark.parametrize("name", ["window", "longformer", "packed", "gemma", "sink", "sigmoid", "relative", "heads"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"B": 1, "H": 1, "G": 1, "D": 1, "E": 1},
        {"B": 3, "H": 6, "G": 1, "D": 8, "E": 24},
        {"B": 1, "H": 4, "G": 4, "D": 33, "E": 5},
    ],
    ids=["one", "multi-query", "odd"],
)
def test_heads_and_head_sizes(name, sizes):
    compare(name, name not in WITHOUT_LSE, N=90, M=110, **sizes)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", ["causal", "strided", "packed", "relative", "sigmoid", "rows"])
def test_rows_are_cut_for_any_number_of_threads(name, threads, set_threads):
    set_threads(threads)
    compare(name, name not in WITHOUT_LSE, N=150, M=170)


@pytest.mark.parametrize("name", ["streaming", "packed", "gemma", "rows"])
def test_strides_do_not_matter(name):
    query, key, value = tensors(N=70, M=70, grad=False)
    inputs = inputs_for(name, query, key, grad=False)
    function = function_of(name)
    expected = function(query, key, value, **inputs)
    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)]
    torch.testing.assert_close(function(*turned, **inputs), expected)
    spread = [torch.stack([tensor, tensor * 7], -1)[..., 0] for tensor in (query, key, value)]
    torch.testing.assert_close(function(*spread, **inputs), expected)
    columns = [tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (query, key, value)]
    torch.testing.assert_close(function(*columns, **inputs), expected)


@pytest.mark.parametrize("name", ["streaming", "packed", "gemma", "sigmoid", "sink", "weighted"])
def test_gradients_are_deterministic(name):
    query, key, value = tensors(N=130, M=130, dtype=torch.float32)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    runs = [
        outputs_and_gradients(lambda: function_of(name)(query, key, value, **inputs), leaves, False) for _ in range(2)
    ]
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["causal", "streaming", "packed", "gemma", "sink", "sigmoid", "relative"])
def test_error_in_low_precision_is_within_that_of_eager_torch(name, dtype):
    """FlashAttention's rule: at most twice the error of eager torch in the same dtype, three times for gradients."""
    query, key, value = tensors(N=150, M=150, dtype=dtype)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    function = function_of(name)
    ours = outputs_and_gradients(lambda: function(query, key, value, **inputs), leaves, False)
    eager = outputs_and_gradients(lambda: oracle(name, query, key, value, inputs, False, dtype), leaves, False)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    names = [given for given, tensor in inputs.items() if tensor.is_floating_point()]
    wide = {**inputs, **dict(zip(names, exact_leaves[3:], strict=True))}
    exact = outputs_and_gradients(lambda: oracle(name, *exact_leaves[:3], wide, False), exact_leaves, False)
    assert ours[0].dtype == dtype
    for position, (mine, theirs, true) in enumerate(zip(ours, eager, exact, strict=True)):
        limit = (2 if position == 0 else 3) * (theirs.double() - true).abs().max() + 1e-5
        assert (mine.double() - true).abs().max() <= limit


@pytest.mark.parametrize("name", ["streaming", "gemma", "packed", "sigmoid", "rows", "none", "weighted", "sink"])
def test_masked_nans_reach_nobody(name):
    """Keys that nobody may see hold NaN; keys and values that some rows see make exactly those rows NaN."""
    query, key, value = tensors(B=1, N=80, M=80, grad=False)
    inputs = inputs_for(name, query, key, grad=False)
    key[:, :, 70], value[:, :, 71, 3], value[:, :, 60, 1] = torch.nan, torch.inf, -torch.inf
    ours = function_of(name)(query, key, value, **inputs)
    expected = oracle(name, query, key, value, inputs, False)
    assert torch.equal(torch.isnan(ours), torch.isnan(expected))
    assert torch.isfinite(ours[:, :, :30]).all()
    torch.testing.assert_close(ours, expected, equal_nan=True, rtol=1e-9, atol=1e-9)


def test_nans_of_masked_pairs_do_not_reach_gradients():
    query, key, value = tensors(B=1, N=40, M=60, grad=False)
    key[:, :, 30:], value[:, :, 30:] = torch.nan, torch.nan
    length = torch.tensor([30])
    for tensor in (query, key, value):
        tensor.requires_grad_()
    leaves = [query, key, value]
    ours = outputs_and_gradients(lambda: function_of("padded")(query, key, value, length=length), leaves, False)
    assert all(torch.isfinite(part).all() for part in ours)
    expected = outputs_and_gradients(
        lambda: oracle("padded", query, key, value, {"length": length}, False), leaves, False
    )
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["tempered", "sink", "gemma", "somewhere", "relative", "weighted", "rows", "relu"])
def test_gradcheck(name):
    query, key, value = tensors(B=1, H=2, G=1, N=5, M=6, D=3, E=2)
    inputs = inputs_for(name, query, key)
    names = list(inputs)

    def run(query, key, value, *given):
        return function_of(name)(query, key, value, **dict(zip(names, given, strict=True)))

    assert torch.autograd.gradcheck(run, (query, key, value, *inputs.values()))


@pytest.mark.parametrize("name", ["causal", "gemma"])
def test_a_scale_given_at_the_call_wins(name):
    query, key, value = tensors(N=50, M=50, grad=False)
    function = function_of(name)
    root = query.shape[-1] ** 0.5
    torch.testing.assert_close(function(query, key, value, scale=0.3), function(query * 0.3 * root, key, value))


def test_scale_zero_gives_the_mean_and_its_gradients():
    query, key, value = tensors(N=20, M=20)
    out = function_of("full")(query, key, value, scale=0.0)
    torch.testing.assert_close(out, value.mean(2, keepdim=True).repeat_interleave(2, 1).expand_as(out))
    grads = torch.autograd.grad(out.sum(), [query, key, value])
    assert all(torch.isfinite(grad).all() for grad in grads)
