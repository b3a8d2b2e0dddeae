"""Products by schemes: values within the stated bound, derivatives of every kind, any sizes, strides and dtypes."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnc.algebra.bilinear.accuracy import accuracy_of
from attnc.algebra.bilinear.reading import read_scheme
from attnc.algebra.bilinear.scheme import classical, compose
from attnc.resources import schemes_directory
from attnc.runtime import scheme_product
from attnc.runtime.bilinear import BilinearScheme, SchemeProduct, scheme_linear, scheme_matmul
from attnc.schemes import float_rows

NAMES = ("strassen", "winograd", "laderman", "strassen_twice")
UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def read(name):
    return read_scheme((schemes_directory() / f"{name}.json").read_bytes())


EXACT = {name: read(name) for name in NAMES}
EXACT["rectangular"] = compose(classical(1, 2, 3), EXACT["strassen"])  # 2 x 4 by 4 x 6


def runtime(exact):
    return BilinearScheme(exact.m, exact.k, exact.n, *float_rows(exact))


SCHEMES = {name: runtime(exact) for name, exact in EXACT.items()}


def bound(name, inner, levels, dtype, **units):
    scheme = SCHEMES[name]
    accuracy = accuracy_of(EXACT[name], sum(scheme.steps.depths))
    if dtype in (torch.float16, torch.bfloat16):
        return accuracy.bound(inner, levels, UNITS[torch.float32], output_unit=UNITS[dtype], **units)
    return accuracy.bound(inner, levels, UNITS[dtype], **units)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_within_bound(found, a, b, name, levels, **units):
    exact = a.double() @ b.double()
    allowed = bound(name, a.shape[-1], levels, found.dtype, **units) * a.double().abs().max() * b.double().abs().max()
    if found.dtype is torch.float64:
        allowed = 2 * allowed  # what it is compared with is rounded as well
    assert (found.double() - exact).abs().max() <= allowed
    return (found.double() - exact).abs().max() / allowed


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("dtype", UNITS, ids=str)
def test_products_are_within_the_bound(name, levels, dtype):
    sizes = [(64, 65, 63), (100, 1, 257), (1, 100, 64), (33, 257, 31), (16, 48, 96)]
    for p, q, s in sizes:
        a, b = random(p, q, dtype=dtype), random(q, s, dtype=dtype, seed=1)
        found = scheme_matmul(a, b, SCHEMES[name], levels)
        assert found.dtype is dtype
        assert found.shape == (p, s)
        assert_within_bound(found, a, b, name, levels)


def test_the_bound_is_not_idle():
    """Signs that add up every rounding come within a small factor of it; the library's own bound is exceeded."""
    a, b = random(256, 256, dtype=torch.float32), random(256, 256, dtype=torch.float32, seed=1)
    a[:128] *= 1e4  # large blocks, whose products must cancel elsewhere
    found = scheme_matmul(a, b, SCHEMES["winograd"], 3)
    exact = a.double() @ b.double()
    error, plain = (found.double() - exact).abs().max(), ((a @ b).double() - exact).abs().max()
    assert error > 3 * plain
    assert 0 < assert_within_bound(found, a, b, "winograd", 3) < 1


@pytest.mark.parametrize("name", ["winograd", "laderman"])
def test_half_precision_as_on_a_device(name):
    """Sums in float32, factors and products of blocks rounded."""
    for dtype in (torch.float16, torch.bfloat16):
        a, b = random(72, 72, dtype=dtype), random(72, 72, dtype=dtype, seed=1)
        found = torch.empty(72, 72)
        workspace = scheme_product._Workspace(dtype)
        scheme_product._apply_level(a.float(), b.float(), found, SCHEMES[name], 1, workspace)
        scale = a.double().abs().max() * b.double().abs().max()
        error = (found.double() - a.double() @ b.double()).abs().max() / scale
        assert bound(name, 72, 1, torch.float32) < error <= bound(name, 72, 1, torch.float32, factor_unit=UNITS[dtype])


@pytest.mark.parametrize("name", ["winograd", "rectangular"])
def test_batches_broadcast(name):
    scheme = SCHEMES[name]
    batches = [
        ((3,), ()),
        ((), (3,)),
        ((2, 1), (3,)),
        ((2, 3), (2, 3)),
        ((5, 1, 2), (4, 1)),
        ((0,), ()),
        ((2, 0), (1,)),
    ]
    for one, two in batches:
        a, b = random(*one, 13, 18), random(*two, 18, 15, seed=1)
        torch.testing.assert_close(scheme_matmul(a, b, scheme), a @ b)


def test_linear_takes_vectors_and_any_leading_sizes():
    weight = random(31, 18, seed=1)
    for leading in [(), (1,), (7,), (2, 3, 5)]:
        x = random(*leading, 18)
        torch.testing.assert_close(scheme_linear(x, weight, SCHEMES["strassen"], 2), x @ weight.T)


def test_projections_take_a_product():
    x, weight = random(3, 10), random(12, 10, seed=1)
    product = SchemeProduct(SCHEMES["winograd"], 2)
    torch.testing.assert_close(product(x, weight), x @ weight.T)
    assert str(product) == "by <2, 2, 2; 7> 2 times"
    assert str(SchemeProduct(SCHEMES["laderman"])) == "by <3, 3, 3; 23>"


@pytest.mark.parametrize("empty", [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_empty_matrices(empty):
    p, q, s = empty
    a, b = torch.zeros(p, q, requires_grad=True), torch.ones(q, s)
    found = scheme_matmul(a, b, SCHEMES["strassen"])
    assert torch.equal(found, a @ b)
    found.sum().backward()
    assert torch.equal(a.grad, torch.full_like(a, s))


def test_strides_and_results_that_may_be_changed():
    a, b = random(80, 40).mT[::2], random(160, 60)[::2, ::3]
    found = scheme_matmul(a, b, SCHEMES["laderman"])
    torch.testing.assert_close(found, a @ b)
    assert found.is_contiguous()
    found.add_(1)
    expanded = random(1, 40).expand(40, 40)
    torch.testing.assert_close(scheme_matmul(expanded, expanded, SCHEMES["winograd"], 2), expanded @ expanded)


def test_levels_larger_than_the_sizes_leave_all_to_the_library():
    a, b = random(7, 64), random(64, 64, seed=1)
    assert torch.equal(scheme_matmul(a, b, SCHEMES["strassen"], 3), a @ b)


def test_nothing_but_what_the_scheme_needs_is_multiplied(monkeypatch):
    """Products of blocks and of the rim, counted: no dense product behind the scheme's back."""
    for levels, (p, q, s) in itertools.product((1, 2), [(64, 64, 64), (65, 66, 67), (127, 1, 64)]):
        with FlopCounterMode(display=False) as counter:
            scheme_matmul(random(p, q), random(q, s), SCHEMES["strassen"], levels)
        base = 2**levels
        inside = math.prod(size - size % base for size in (p, q, s))
        assert counter.get_total_flops() == 2 * (p * q * s - inside) + 2 * inside * 7**levels // 8**levels


@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_are_those_of_the_product(name):
    for (p, q, s), levels in [((18, 24, 13), 1), ((17, 37, 29), 2)]:
        a, b = random(p, q).requires_grad_(), random(q, s, seed=1).requires_grad_()
        upstream = random(p, s, seed=2)
        found = torch.autograd.grad(scheme_matmul(a, b, SCHEMES[name], levels), (a, b), upstream)
        for ours, exact in zip(found, (upstream @ b.mT, a.mT @ upstream), strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["winograd", "rectangular"])
def test_gradients_are_products_by_schemes_too(name):
    scheme = EXACT[name]
    p, q, s = 4 * scheme.m, 4 * scheme.k, 4 * scheme.n
    a, b = random(p, q).requires_grad_(), random(q, s, seed=1).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        scheme_matmul(a, b, SCHEMES[name]).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * scheme.rank * 4**3


def test_gradients_in_both_directions_of_any_order():
    scheme = SCHEMES["winograd"]
    a, b = random(3, 2).requires_grad_(), random(2, 4, seed=1).requires_grad_()
    call = lambda a, b: scheme_matmul(a, b, scheme)  # noqa: E731
    assert torch.autograd.gradcheck(call, (a, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (a, b), check_fwd_over_rev=True)


def test_transforms_of_functions():
    from torch.func import grad, jvp, vmap

    scheme = SCHEMES["strassen"]
    a, b = random(3, 5, 4), random(3, 4, 6, seed=1)
    call = lambda a, b: scheme_matmul(a, b, scheme)  # noqa: E731
    torch.testing.assert_close(vmap(call)(a, b), a @ b)
    torch.testing.assert_close(vmap(call, in_dims=(0, None))(a, b[0]), a @ b[0])
    last = random(4, 6, 3)
    found = vmap(call, in_dims=(None, 2), out_dims=1)(a[0], last)
    torch.testing.assert_close(found, vmap(torch.matmul, in_dims=(None, 2), out_dims=1)(a[0], last))
    per_entry = vmap(grad(lambda a, b: call(a, b).square().sum()))(a, b)
    torch.testing.assert_close(per_entry, 2 * a @ b @ b.mT)
    _, tangent = jvp(call, (a[0], b[0]), (a[1], b[1]))
    torch.testing.assert_close(tangent, a[1] @ b[0] + a[0] @ b[1])


def test_autocast_and_half_precision_gradients():
    x = random(40, 32, dtype=torch.float32).requires_grad_()
    weight = random(24, 32, dtype=torch.float32, seed=1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scheme_linear(x, weight, SCHEMES["strassen"], 1)
    assert found.dtype is torch.bfloat16
    found.float().sum().backward()
    assert x.grad.dtype is weight.grad.dtype is torch.float32
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x), rtol=2e-2, atol=2e-1)


def test_compiled_by_torch():
    a, b = random(20, 18).requires_grad_(), random(18, 30, seed=1).requires_grad_()
    scheme = SCHEMES["winograd"]
    compiled = torch.compile(lambda a, b: scheme_matmul(a, b, scheme) * 2, backend="aot_eager", fullgraph=True)
    found = compiled(a, b)
    torch.testing.assert_close(found, 2 * a @ b)
    found.sum().backward()
    torch.testing.assert_close(a.grad, 2 * b.sum(1).expand_as(a))


def test_schemes_are_copied_and_pickled():
    scheme = runtime(EXACT["winograd"])
    scheme.steps  # noqa: B018
    assert pickle.loads(pickle.dumps(scheme)) == copy.deepcopy(scheme) == scheme


def test_memory_is_a_few_blocks():
    """Depth first: what the levels keep beside the result is at most four matrices, however many there are."""
    buffers = []

    class Watched(scheme_product._Workspace):
        def buffer(self, level, side, slot, like):
            found = super().buffer(level, side, slot, like)
            if all(found is not one for one in buffers):
                buffers.append(found)
            return found

    for name, most in (("strassen", 2.0), ("winograd", 3.7), ("laderman", 2.3)):
        buffers.clear()
        base = EXACT[name].m ** 3
        size = base * 4
        a = random(size, size)
        scheme_product._apply_level(a, a, torch.empty_like(a), SCHEMES[name], 3, Watched(None))
        assert sum(one.numel() for one in buffers) <= most * size**2


@pytest.mark.parametrize(
    ("a", "b", "levels", "error", "message"),
    [
        ((4, 4), (5, 4), 1, ValueError, "shapes"),
        ((4,), (2, 4, 4), 1, ValueError, "shapes"),
        ((4, 4), (4,), 1, ValueError, "shapes"),
        ((4, 4), (4, 4), 0, ValueError, "levels"),
    ],
)
def test_mistakes(a, b, levels, error, message):
    with pytest.raises(error, match=message):
        scheme_matmul(torch.ones(a), torch.ones(b), SCHEMES["strassen"], levels)


def test_wrong_types():
    with pytest.raises(TypeError, match="one dtype"):
        scheme_matmul(torch.ones(4, 4), torch.ones(4, 4, dtype=torch.float64), SCHEMES["strassen"])
    with pytest.raises(TypeError, match="floating point"):
        scheme_matmul(torch.ones(4, 4, dtype=torch.int64), torch.ones(4, 4, dtype=torch.int64), SCHEMES["strassen"])
