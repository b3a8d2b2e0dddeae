"""Derivatives beyond the first backward pass: twice backward, forward mode, and the transforms of `torch.func`."""

import pytest
import torch
from patterns import (
    PATTERNS,
    WITHOUT_LSE,
    LargestStorage,
    attention_of,
    differentiable,
    function_of,
    inputs_for,
    module_of,
    tensors,
)
from torch import func
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from attnc.reference.dense import reference

SOME = (
    "causal",
    "window",
    "strided",
    "packed",
    "relative",
    "row_term",
    "sink",
    "scaled",
    "tempered",
    "weighted",
    "somewhere",
    "sigmoid",
    "relu",
    "rows",
    "none",
)
"""Every normalizer, and every place in which a learned tensor may stand."""

SMALL = {"B": 1, "H": 2, "G": 1, "N": 5, "M": 6, "D": 3, "E": 2}


def small(name, grad=True, dropout_p=0.0, **sizes):
    """Return a function of everything that has a derivative, with its log-sum-exp, and arguments for it."""
    query, key, value = tensors(**(SMALL | sizes), grad=grad)
    inputs = inputs_for(name, query, key, grad=grad)
    leaves = differentiable(query, key, value, inputs)
    names = [given for given, tensor in inputs.items() if tensor.is_floating_point()]

    def run(query, key, value, *tables):
        given = inputs | dict(zip(names, tables, strict=True))
        options = {"return_lse": name not in WITHOUT_LSE, "dropout_p": dropout_p, "seed": 3}
        found = function_of(name)(query, key, value, **given, **options)
        if name in WITHOUT_LSE:
            return found
        return found[0], torch.where(found[1] == -torch.inf, 0.0, found[1])  # differences of infinities are NaN

    return run, leaves


def reference_of(name):
    return getattr(module_of(PATTERNS[name]), f"{attention_of(PATTERNS[name]).name}_reference")


def scalar(run):
    """Return a function with one number as its result, no derivative of which is constant."""

    def loss(*leaves):
        found = run(*leaves)
        if isinstance(found, torch.Tensor):
            return found.sin().sum()
        return found[0].sin().sum() + found[1].cos().sum()

    return loss


def slope_along(function, leaves, steps, size=1e-6):
    """Return the derivative along a direction by differences."""
    with torch.no_grad():
        ahead, behind = (
            function(*(leaf + sign * size * step for leaf, step in zip(leaves, steps, strict=True))) for sign in (1, -1)
        )
    return (ahead - behind) / (2 * size)


@pytest.mark.parametrize("name", SOME)
def test_first_and_second_derivatives_backward_and_forward(name):
    run, leaves = small(name)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["causal", "at", "packed", "weighted", "rows", "sigmoid"])
def test_derivatives_with_dropout_backward_and_forward(name):
    run, leaves = small(name, dropout_p=0.4)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in ("powers", "nothing")])
def test_derivatives_of_every_pattern_number_by_number(name):
    run, leaves = small(name)
    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["causal", "packed", "weighted", "sigmoid"])
def test_tangents_are_right_and_not_zero(name):
    run, leaves = small(name, grad=False, N=9, M=9)
    loss = scalar(run)
    draw = torch.Generator().manual_seed(5)
    steps = [torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype) for leaf in leaves]
    for position in range(len(leaves)):
        alone = [step if place == position else torch.zeros_like(step) for place, step in enumerate(steps)]
        expected = slope_along(loss, leaves, alone)
        assert expected.abs() > 1e-4
        _, tangent = func.jvp(loss, tuple(leaves), tuple(alone))
        torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)
        with forward_ad.dual_level():
            mixed = list(leaves)
            mixed[position] = forward_ad.make_dual(leaves[position], steps[position])
            torch.testing.assert_close(forward_ad.unpack_dual(loss(*mixed)).tangent, tangent)


def test_tangents_of_gradients_that_come_in_are_not_lost():
    run, leaves = small("packed")
    out, lse = run(*leaves)
    draw = torch.Generator().manual_seed(5)
    grads = [torch.randn(result.shape, generator=draw, dtype=result.dtype) for result in (out, lse)]
    expected = torch.autograd.grad((out, lse), leaves, grads, retain_graph=True)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(torch.ones_like(grad), grad) for grad in grads]
        found = torch.autograd.grad((out, lse), leaves, duals, retain_graph=True)
        tangents = [forward_ad.unpack_dual(part).tangent for part in found]
    for mine, theirs in zip(tangents, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", SOME)
def test_transforms_find_the_gradients_of_autograd(name):
    run, leaves = small(name)
    loss, places = scalar(run), tuple(range(len(leaves)))
    expected = torch.autograd.grad(loss(*leaves), leaves)
    given = [leaf.detach() for leaf in leaves]
    pulled = func.vjp(loss, *given)[1](torch.ones((), dtype=torch.float64))
    for found in (func.grad(loss, argnums=places)(*given), pulled):
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["packed", "weighted", "somewhere", "rows"])
def test_all_ways_to_a_hessian_agree(name):
    run, leaves = small(name, grad=False, N=3, M=4, D=2, E=1)
    query, *rest = leaves

    def loss(query):
        return scalar(run)(query, *rest)

    expected = torch.autograd.functional.hessian(loss, query)
    assert expected.abs().max() > 1e-3
    for found in (
        func.hessian(loss)(query),
        func.jacrev(func.jacrev(loss))(query),
        func.jacrev(func.jacfwd(loss))(query),
        func.jacfwd(func.jacfwd(loss))(query),
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["causal", "packed", "at", "padded", "selected", "weighted", "sink", "grid"])
def test_vmap_is_a_loop(name):
    query, key, value = tensors(B=2, H=2, G=1, N=16, M=16, D=4, E=3, grad=False)
    inputs = inputs_for(name, query, key, grad=False)
    function = function_of(name)
    queries = torch.stack([query, query.flip(2), -query])
    many = {given: torch.stack([tensor, tensor.flip(0), tensor]) for given, tensor in inputs.items()}
    found = func.vmap(lambda query, given: function(query, key, value, **given))(queries, many)
    expected = [
        function(queries[place], key, value, **{given: tensor[place] for given, tensor in many.items()})
        for place in range(3)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_vmap_keeps_poison_to_the_rows_that_see_it():
    query, key, value = tensors(**SMALL, grad=False)
    values = torch.stack([value, value])
    values[1, 0, 0, 5] = torch.nan
    found = func.vmap(function_of("causal"), in_dims=(None, None, 0))(query, key, values)
    assert torch.isfinite(found[0]).all()
    assert torch.equal(found[1].isnan().any(-1), torch.tensor([False] * 4 + [True]).expand(1, 2, 5))


def test_vmap_over_seeds_and_positions_drops_what_a_loop_drops():
    query, key, value = tensors(B=2, H=2, G=1, N=9, M=9, D=4, E=3, grad=False)
    seeds, positions = torch.tensor([3, 4]), torch.tensor([[0, 0], [5, -2]])

    def run(seed, pos):
        return function_of("at")(query, key, value, pos=pos, dropout_p=0.4, seed=seed)

    found = func.vmap(run)(seeds, positions)
    torch.testing.assert_close(found, torch.stack([run(*given) for given in zip(seeds, positions, strict=True)]))


def test_vmap_over_learned_tensors_and_gradients_for_each_example():
    layers = [module_of(PATTERNS["packed"]).Packed(2, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        for factor, layer in enumerate(layers):
            layer.slope.mul_(factor)
    query, key, value = tensors(B=2, H=2, G=1, N=8, M=8, D=4, E=3, grad=False)
    doc = inputs_for("packed", query, key)["doc"]
    parameters, buffers = func.stack_module_state(layers)
    found = func.vmap(
        lambda own, rest: func.functional_call(layers[0], (own, rest), (query, key, value), {"doc": doc})
    )(parameters, buffers)
    for mine, layer in zip(found, layers, strict=True):
        torch.testing.assert_close(mine, layer(query, key, value, doc=doc))

    def loss(slope, query, doc):
        result = func.functional_call(
            layers[1], {"slope": slope}, (query[None], key[:1], value[:1]), {"doc": doc[None]}
        )
        return result.sin().sum()

    each = func.vmap(func.grad(loss), in_dims=(None, 0, 0))(layers[1].slope.detach(), query, doc)
    for place in range(2):
        out = layers[1](query[place][None], key[:1], value[:1], doc=doc[place][None])
        torch.testing.assert_close(each[place], torch.autograd.grad(out.sin().sum(), layers[1].slope)[0])


def test_vmap_hides_the_values_that_a_check_looks_at():
    query, key, value = tensors(B=1, N=8, M=8, grad=False)
    inputs = inputs_for("packed", query, key, grad=False)
    docs = torch.stack([inputs.pop("doc")] * 2)
    with pytest.raises(RuntimeError, match="packed: checked=True looks at values, which vmap hides"):
        func.vmap(lambda doc: function_of("packed")(query, key, value, doc=doc, **inputs, checked=True))(docs)


@pytest.mark.parametrize("name", ["packed", "rows"])
@pytest.mark.parametrize("values", ["meta", "fake"])
def test_derivatives_of_tensors_without_values_have_shapes(name, values):
    leaves = tensors(**SMALL)
    inputs = inputs_for(name, *leaves[:2])
    with FakeTensorMode(allow_non_fake_inputs=True) if values == "fake" else torch.device("meta"):
        query, key, value = (torch.empty(leaf.shape, dtype=leaf.dtype, requires_grad=True) for leaf in leaves)
        given = {
            one: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.is_floating_point())
            for one, tensor in inputs.items()
        }

        def run(query):
            return function_of(name)(query, key, value, **given, dropout_p=0.2, seed=3)

        found = [*penalty(run, [query]), func.vmap(run)(query[None])[0]]
        if values == "fake":  # inside a transform, torch makes no tensors of numbers on `meta`
            found.append(func.jvp(run, (query,), (query,))[1])
    out = (*leaves[0].shape[:3], SMALL["E"])
    assert [part.shape for part in found] == [leaves[0].shape, out, out][: len(found)]


def test_transforms_of_something_else_leave_attention_differentiable():
    query, key, value = tensors(**SMALL)
    found = func.vmap(lambda number: function_of("causal")(query, key, value).sum() * number)(torch.arange(3.0))
    found.sum().backward()
    expected = torch.autograd.grad(3 * function_of("causal")(query, key, value).sum(), query)[0]
    torch.testing.assert_close(query.grad, expected)


def test_forward_mode_in_forward_mode_refuses_what_it_cannot_keep_apart():
    query, key, value = tensors(**SMALL, grad=False)
    value[:, :, 5] = torch.nan  # a key that no query but the last may see

    def twice(query):
        return func.jacfwd(func.jacfwd(lambda query: function_of("causal")(query, key, value).sum()))(query)

    with pytest.raises(RuntimeError, match=r"finite numbers alone, .* take one of the two in reverse mode"):
        twice(query)


def test_batches_of_gradients_are_refused_and_func_computes_them():
    query, key, value = tensors(**SMALL)
    out = function_of("causal")(query, key, value)
    grads = torch.randn(3, *out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
    with pytest.raises(RuntimeError, match=r"causal_self takes no batches of gradients .* torch\.func\.jacrev"):
        torch.autograd.grad(out, query, grads, is_grads_batched=True, retain_graph=True)
    (first,) = torch.autograd.grad(out.sin().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="causal_self takes no batches of gradients"):
        torch.autograd.grad(first, value, torch.stack([first, first]).detach(), is_grads_batched=True)
    _, pull = func.vjp(lambda query: function_of("causal")(query, key.detach(), value.detach()), query.detach())
    (found,) = func.vmap(pull)(grads)
    for mine, grad in zip(found, grads, strict=True):
        torch.testing.assert_close(mine, torch.autograd.grad(out, query, grad, retain_graph=True)[0])


@pytest.mark.parametrize("name", ["gemma", "packed", "rows"])
def test_third_derivatives(name):
    _, leaves = small(name)
    query, key, value = leaves[:3]
    inputs = inputs_for(name, query, key)
    found = []
    for function in (function_of(name), reference_of(name)):
        value_of = function(query, key, value, **inputs).sin().sum()
        for _ in range(3):
            (derivative,) = torch.autograd.grad(value_of, query, create_graph=True)
            value_of = derivative.sin().sum()
        found.append(derivative)
    assert found[1].abs().max() > 1e-6
    torch.testing.assert_close(*found)


def test_a_key_that_is_made_of_the_query_counts_once():
    query, _, value = tensors(B=1, H=2, G=2, N=6, M=6)

    def twice(function):
        key = query.sin()
        (first,) = torch.autograd.grad(function(query, key, value).sin().sum(), query, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), [query, value])

    module = module_of(PATTERNS["causal"])
    for mine, theirs in zip(twice(module.causal_self), twice(module.causal_self_reference), strict=True):
        torch.testing.assert_close(mine, theirs)


def penalty(function, leaves):
    """Return second derivatives as a gradient penalty takes them."""
    first = torch.autograd.grad(function(*leaves).sin().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(part.float().pow(2).sum() for part in first), leaves)


@pytest.mark.parametrize("name", ["streaming", "packed", "sink"])
def test_second_derivatives_through_kernels(name, monkeypatch):
    query, key, value = tensors(B=1, H=2, G=1, N=40, M=40, dtype=torch.float32)
    inputs = inputs_for(name, query, key)
    names = [given for given, tensor in inputs.items() if tensor.is_floating_point()]
    leaves = differentiable(query, key, value, inputs)

    def run(query, key, value, *tables):
        return function_of(name)(query, key, value, **(inputs | dict(zip(names, tables, strict=True))))

    expected = penalty(run, leaves)
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    for mine, theirs in zip(penalty(run, leaves), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_second_derivatives_in_low_precision(dtype):
    leaves = tensors(B=1, H=2, G=1, N=30, M=30, dtype=dtype)
    found = penalty(function_of("causal"), leaves)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for mine, theirs in zip(found, penalty(function_of("causal"), wide), strict=True):
        assert mine.dtype is dtype
        assert (mine.double() - theirs).abs().max() <= 0.05 * theirs.abs().max()


@pytest.mark.parametrize("name", ["causal", "at", "packed", "weighted", "rows", "relative"])
def test_second_derivatives_with_dropout_are_those_of_the_dense_reference(name, monkeypatch):
    """In strips, since what is dropped goes by a row's number in the whole."""
    monkeypatch.setattr("attnc.runtime.composite.STRIP_PAIRS", 100)
    query, key, value = tensors(B=2, H=2, G=1, N=11, M=13)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    names = [given for given, tensor in inputs.items() if tensor.is_floating_point()]
    results = []
    for function in (function_of(name), reference_of(name)):

        def run(query, key, value, *tables, function=function):
            given = inputs | dict(zip(names, tables, strict=True))
            return function(query, key, value, **given, dropout_p=0.3, seed=11)

        results.append(penalty(run, leaves))
    for mine, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs)


def test_rows_without_keys_have_no_derivatives():
    leaves = tensors(B=1, H=2, G=1, N=12, M=8)
    out, lse = function_of("causal")(*leaves, return_lse=True)
    assert torch.equal(lse[:, :, :4], torch.full_like(lse[:, :, :4], -torch.inf))
    grads = [torch.ones_like(out).requires_grad_(), torch.ones_like(lse).requires_grad_()]
    first = torch.autograd.grad([out, lse], leaves, grads, create_graph=True)
    second = torch.autograd.grad(sum(part.pow(2).sum() for part in first), [*leaves, *grads])
    assert all(part.isfinite().all() for part in (*first, *second))
    for of_rows in (first[0], second[0], *second[3:]):
        assert not of_rows[:, :, :4].any()
        assert of_rows[:, :, 4:].any()


def test_masked_nans_do_not_reach_second_derivatives():
    query, key, value = tensors(B=2, N=20, M=30, grad=False)
    length = torch.tensor([15, 0])
    results = []
    for poison in (0.0, torch.nan):
        key[:, :, 15:], value[:, :, 15:] = poison, poison
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        results.append(penalty(lambda *given: function_of("padded")(*given, length=length), leaves))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)
        assert clean.isfinite().all()


def test_memory_of_second_derivatives_and_of_forward_mode_is_linear(monkeypatch):
    monkeypatch.setattr("attnc.runtime.composite.STRIP_PAIRS", 1 << 14)
    length = 512
    query, key, value = tensors(B=1, H=1, G=1, N=length, M=length, D=8, E=8, dtype=torch.float32)
    function = function_of("window")
    with LargestStorage() as storage:
        found = penalty(function, [query, key, value])
        with forward_ad.dual_level():
            function(forward_ad.make_dual(query.detach(), query.detach()), key.detach(), value.detach())
    assert all(part.isfinite().all() for part in found)
    assert storage.largest <= length * length // 8


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_derivatives_agree_across_strips(dropout_p, monkeypatch):
    run, leaves = small("packed", N=11, M=13, dropout_p=dropout_p)
    whole = penalty(lambda *given: run(*given)[0], leaves)
    tangents = func.jvp(scalar(run), tuple(leaves), tuple(leaves))
    monkeypatch.setattr("attnc.runtime.composite.STRIP_PAIRS", 60)
    for mine, theirs in zip(penalty(lambda *given: run(*given)[0], leaves), whole, strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(func.jvp(scalar(run), tuple(leaves), tuple(leaves)), tangents)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("name", ["streaming", "packed", "sigmoid"])
def test_composite_results_are_the_oracles(name, dropout_p):
    query, key, value = tensors(N=30, M=40, grad=False)
    inputs = inputs_for(name, query, key, grad=False)
    lse = name not in WITHOUT_LSE
    options = {"return_lse": lse, "dropout_p": dropout_p, "seed": 5}
    found = func.vmap(lambda query: function_of(name)(query, key, value, **inputs, **options))(query[None])
    expected = reference(attention_of(PATTERNS[name]), query, key, value, inputs, **options)
    for mine, theirs in zip(found if lse else (found,), expected if lse else (expected,), strict=True):
        torch.testing.assert_close(mine[0], theirs)
