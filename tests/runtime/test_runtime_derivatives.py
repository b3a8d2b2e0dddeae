"""Derivatives of every order and mode, in float64: of the operators, and of what takes their place under transforms."""

import pytest
import torch
from patterns import WITHOUT_LSE, LargestStorage, function_of, inputs_for, tensors
from torch.autograd import forward_ad

NAMES = ("causal", "strided", "packed", "relative", "sink", "scaled", "weighted", "sigmoid", "relu", "rows", "none")

SMALL = {"B": 1, "H": 2, "G": 1, "N": 5, "M": 6, "D": 3, "E": 2}


def differentiable(name, **sizes):
    """Return a function of float tensors alone, and those."""
    query, key, value = tensors(**SMALL | sizes)
    inputs = inputs_for(name, query, key)
    floats = [one for one, given in inputs.items() if given.is_floating_point()]
    lse = name not in WITHOUT_LSE

    def run(query, key, value, *tables):
        found = function_of(name)(query, key, value, **inputs | dict(zip(floats, tables, strict=True)), return_lse=lse)
        return (found[0], torch.where(found[1].isfinite(), found[1], 0.0)) if lse else found

    return run, (query, key, value, *(inputs[one] for one in floats))


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives(name):
    run, leaves = differentiable(name)
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_second_derivatives_with_dropout():
    query, key, value = tensors(**SMALL)
    function = function_of("causal")

    def run(query, key, value):
        return function(query, key, value, dropout_p=0.4, seed=3)

    assert torch.autograd.gradcheck(run, (query, key, value))
    assert torch.autograd.gradgradcheck(run, (query, key, value))


def test_a_second_derivative_takes_strips(monkeypatch):
    run, leaves = differentiable("packed", N=20, M=20)
    whole = torch.autograd.functional.hvp(lambda *given: run(*given)[0].sin().sum(), leaves, leaves)[1]
    monkeypatch.setattr("attnc.runtime.second_derivatives.STRIP_PAIRS", 100)
    strips = torch.autograd.functional.hvp(lambda *given: run(*given)[0].sin().sum(), leaves, leaves)[1]
    for one, other in zip(whole, strips, strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_derivative_has_memory_linear_in_the_length(monkeypatch):
    monkeypatch.setattr("attnc.runtime.second_derivatives.STRIP_PAIRS", 1 << 13)
    largest = []
    for length in (512, 1024):
        query, key, value = tensors(B=1, H=1, G=1, N=length, M=length, D=4, E=4, dtype=torch.float32)
        out = function_of("causal")(query, key, value)
        (first,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
        with LargestStorage() as mode:
            torch.autograd.grad(first.square().sum(), (query, key, value))
        largest.append(mode.largest)
    assert largest[1] <= 2 * largest[0]
    assert largest[1] < 1024 * 1024 // 16


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode(name):
    """An operator without a rule gives tangents of 0 silently: these are not 0, and those of finite differences."""
    run, leaves = differentiable(name)
    points = tuple(leaf.detach() for leaf in leaves)
    draw = torch.Generator().manual_seed(5)
    steps = tuple(torch.randn(point.shape, generator=draw, dtype=torch.float64) for point in points)

    def first(*given):
        found = run(*given)
        return found[0] if isinstance(found, tuple) else found

    _, tangent = torch.func.jvp(first, points, steps)
    assert float(tangent.abs().max()) > 1e-3
    ahead = first(*(point + 1e-6 * step for point, step in zip(points, steps, strict=True)))
    behind = first(*(point - 1e-6 * step for point, step in zip(points, steps, strict=True)))
    torch.testing.assert_close(tangent, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(point, step) for point, step in zip(points, steps, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(first(*duals)).tangent, tangent)


@pytest.mark.parametrize("name", ["causal", "packed", "rows"])
def test_transforms_of_torch_func(name):
    run, leaves = differentiable(name)
    points = tuple(leaf.detach() for leaf in leaves)

    def loss(*given):
        found = run(*given)
        return (found[0] if isinstance(found, tuple) else found).square().sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    for mine, theirs in zip(torch.func.grad(loss, tuple(range(len(points))))(*points), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    _, pull = torch.func.vjp(loss, *points)
    for mine, theirs in zip(pull(torch.ones((), dtype=torch.float64)), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    hessian = torch.func.jacrev(torch.func.grad(loss))(*points)
    assert torch.isfinite(hessian).all()
    assert float(hessian.abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["causal", "packed", "sigmoid", "grid"])
def test_vmap(name):
    query, key, value = tensors(**SMALL, grad=False)
    inputs = inputs_for(name, query, key, grad=False)

    def run(query, key, value):
        return function_of(name)(query, key, value, **inputs)

    queries = torch.stack([query, 2 * query, -query])
    found = torch.func.vmap(run, in_dims=(0, None, None))(queries, key, value)
    torch.testing.assert_close(found, torch.stack([run(one, key, value) for one in queries]))


def test_vmap_keeps_poison_to_the_rows_that_see_it():
    query, key, value = tensors(**SMALL, grad=False)
    values = torch.stack([value, value])
    values[1, 0, 0, 5] = torch.nan
    found = torch.func.vmap(function_of("causal"), in_dims=(None, None, 0))(query, key, values)
    assert torch.isfinite(found[0]).all()
    assert torch.equal(found[1].isnan().any(-1), torch.tensor([False] * 4 + [True]).expand(1, 2, 5))
