"""Dropout of weights: the same pairs everywhere, right outputs and gradients, and numbers that look random."""

import pytest
import torch
from patterns import (
    PATTERNS,
    WITHOUT_LSE,
    attention_of,
    differentiable,
    function_of,
    inputs_for,
    module_of,
    outputs_and_gradients,
    tensors,
)

from attnc.reference.dense import reference
from attnc.reference.dropout import kept_pairs
from attnc.runtime.dropout import is_kept
from attnc.runtime.pairs import splitmix_state
from attnc.runtime.tiles import Tiles, assume_target

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SOME = ("causal", "strided", "grid", "packed", "weighted", "rows", "sigmoid", "at", "sink", "relative", "fixed")


def run(name, *, p=0.3, seed=7, dtype=torch.float64, tolerance=1e-9, **sizes):
    query, key, value = tensors(dtype=dtype, **sizes)
    inputs = inputs_for(name, query, key)
    leaves, lse = differentiable(query, key, value, inputs), name not in WITHOUT_LSE
    function, attention = function_of(name), attention_of(PATTERNS[name])
    found = outputs_and_gradients(
        lambda: function(query, key, value, **inputs, return_lse=lse, dropout_p=p, seed=seed), leaves, lse
    )
    expected = outputs_and_gradients(
        lambda: reference(attention, query, key, value, inputs, return_lse=lse, dropout_p=p, seed=seed), leaves, lse
    )
    for mine, theirs in zip(found, expected, strict=True):
        size = max(1.0, float(theirs.abs().max()) if theirs.numel() else 1.0)
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("name", SOME)
def test_the_cpu_program(name):
    run(name, B=2, H=4, G=2, N=70, M=90)


QUICK = ("strided", "packed", "weighted", "rows", "at")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SOME if name not in QUICK)]
)
def test_kernels(name, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    run(name, B=2, H=4, G=2, N=70, M=90, dtype=torch.float32, tolerance=3e-5)


@pytest.mark.parametrize("tiles", [Tiles(16, 16, 4, 1), Tiles(32, 128, 4, 1)], ids=str)
def test_tiles_do_not_matter(tiles, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    with assume_target("cpu", tiles):
        run("streaming", B=1, H=2, G=1, N=90, M=100, dtype=torch.float32, tolerance=3e-5)


@pytest.mark.parametrize("name", ["causal", "packed", "rows"])
def test_a_module_s_own_reference(name):
    query, key, value = tensors(B=1, H=2, G=1, N=30, M=40)
    inputs = inputs_for(name, query, key)
    dense = getattr(module_of(PATTERNS[name]), attention_of(PATTERNS[name]).name + "_reference")
    found = function_of(name)(query, key, value, **inputs, dropout_p=0.5, seed=3)
    torch.testing.assert_close(found, dense(query, key, value, **inputs, dropout_p=0.5, seed=3))


def test_a_seed_in_a_tensor_and_other_seeds():
    query, key, value = tensors(B=1, H=2, G=1, N=30, M=40, grad=False)
    function = function_of("causal")
    first = function(query, key, value, dropout_p=0.5, seed=3)
    assert torch.equal(first, function(query, key, value, dropout_p=0.5, seed=torch.tensor(3, dtype=torch.int32)))
    assert torch.equal(first, function(query, key, value, dropout_p=0.5, seed=torch.tensor([3])))
    assert not torch.equal(first, function(query, key, value, dropout_p=0.5, seed=4))
    plain = function(query, key, value)
    assert torch.equal(plain, function(query, key, value, dropout_p=0.0, seed=4))
    assert torch.equal(plain, function(query, key, value, dropout_p=0.0))


def test_the_log_sum_exp_knows_nothing_of_it():
    query, key, value = tensors(B=1, H=2, G=1, N=30, M=40, grad=False)
    _, plain = function_of("causal")(query, key, value, return_lse=True)
    _, dropped = function_of("causal")(query, key, value, return_lse=True, dropout_p=0.5, seed=1)
    torch.testing.assert_close(plain, dropped)


def test_what_is_dropped_does_not_matter():
    """A NaN among the values reaches the rows that keep it, and no other."""
    query, key, value = tensors(B=1, H=1, G=1, N=40, M=40, grad=False)
    value[0, 0, 5] = torch.nan
    out = function_of("causal")(query, key, value, dropout_p=0.5, seed=9)
    kept = kept_pairs(9, 1, 1, torch.arange(40).view(1, 1, -1), 40, 0.5)[0, 0]
    assert torch.equal(out[0, 0].isnan().any(-1), kept[:, 5] & (torch.arange(40) >= 5))


def some_rows():
    heads, rows = torch.arange(4).view(4, 1, 1), torch.arange(500).view(500, 1)
    return splitmix_state(torch.tensor(5), torch.tensor(0), heads, rows)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_as_many_are_kept_as_are_asked_for(p):
    kept = is_kept(some_rows(), torch.arange(600), int(p * 2**32)).double()
    assert abs(float(kept.mean()) - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
    by_row, by_key = kept.mean(-1), kept.mean(-2)
    assert abs(float(by_row.var()) * 600 / (p * (1 - p)) - 1) < 0.15
    assert abs(float(by_key.var()) * 500 / (p * (1 - p)) - 1) < 0.15


def test_neighbours_have_nothing_to_do_with_each_other():
    kept = is_kept(some_rows(), torch.arange(512), 2**31).double() * 2 - 1
    for step in (1, 2, 3, 64):
        for one, other in (
            (kept[..., step:], kept[..., :-step]),
            (kept[:, step:], kept[:, :-step]),
            (kept[:, step:, step:], kept[:, :-step, :-step]),
        ):
            assert abs(float((one * other).mean())) < 5 / one.numel() ** 0.5
    assert abs(float((kept[0] * kept[1]).mean())) < 5 / kept[0].numel() ** 0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout_p": 1.0, "seed": 1}, ValueError, "dropout_p is 1.0, expected at least 0 and less than 1"),
        ({"dropout_p": -0.1, "seed": 1}, ValueError, "dropout_p is -0.1"),
        ({"dropout_p": float("nan"), "seed": 1}, ValueError, "dropout_p is nan"),
        ({"dropout_p": "a", "seed": 1}, TypeError, "dropout_p is a str, expected a number"),
        ({"dropout_p": 0.1}, ValueError, "dropout_p is 0.1, but there is no seed"),
        ({"dropout_p": 0.1, "seed": 1.5}, TypeError, "seed is a float, expected an int"),
        ({"dropout_p": 0.1, "seed": True}, TypeError, "seed is a bool"),
        ({"dropout_p": 0.1, "seed": 2**64}, ValueError, "expected an int of 64 bits"),
        ({"dropout_p": 0.1, "seed": torch.tensor([1, 2])}, ValueError, r"seed has shape \(2,\)"),
        ({"dropout_p": 0.1, "seed": torch.tensor(0.5)}, TypeError, "seed is float32"),
    ],
)
def test_bad_options(options, error, message):
    query, key, value = tensors(B=1, H=2, G=1, N=5, M=5, grad=False)
    with pytest.raises(error, match=message):
        function_of("causal")(query, key, value, **options)
