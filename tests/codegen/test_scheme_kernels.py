"""Fused kernels of bilinear schemes, in the interpreter: values, edges, strides, what they leave alone, their text."""

import importlib.util
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from attnc.algebra.bilinear.accuracy import accuracy_of
from attnc.algebra.bilinear.exactness import check_exact
from attnc.algebra.bilinear.reading import read_scheme
from attnc.algebra.bilinear.scheme import classical, compose, left_gradient, right_gradient
from attnc.codegen.render_scheme import render_scheme_module
from attnc.codegen.scheme_view import scheme_kernel_view
from attnc.resources import schemes_directory
from attnc.runtime import scheme_product
from attnc.runtime.bilinear import scheme_matmul
from attnc.runtime.scheme_kernels import count_scheme_programs, multiply_fused
from attnc.schemes import float_rows

UNITS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11}


@cache
def exact(name):
    if name == "rectangular":
        return compose(classical(1, 2, 1), read_scheme((schemes_directory() / "winograd.json").read_bytes()))
    return read_scheme((schemes_directory() / f"{name}.json").read_bytes())


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schemes")

    @cache
    def load(name):
        path = folder / f"generated_{name}.py"
        path.write_text(render_scheme_module(exact(name), name.upper()))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return getattr(module, name.upper())

    return load


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_within_bound(found, a, b, name):
    """The bound for sums in order, each of a few terms, with factors of half precision rounded."""
    accuracy = accuracy_of(exact(name), 20)
    half = UNITS[found.dtype] if found.dtype is torch.float16 else 0.0
    allowed = accuracy.bound(a.shape[-1], 1, UNITS[torch.float32], factor_unit=half, output_unit=half)
    allowed *= a.double().abs().max() * b.double().abs().max()
    assert (found.double() - a.double() @ b.double()).abs().max() <= allowed


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (63, 65, 100), (130, 1, 64), (64, 33, 129)])
@pytest.mark.parametrize("name", ["strassen", "winograd"])
def test_kernels_multiply(generated, name, sizes, dtype):
    p, q, s = sizes
    a, b = random(2, p, q, dtype=dtype), random(2, q, s, dtype=dtype, seed=1)
    found = multiply_fused(generated(name).fused[0], a, b)
    assert found.dtype is dtype
    assert_within_bound(found, a, b, name)


@pytest.mark.parametrize("name", [pytest.param("laderman", marks=pytest.mark.slow), "rectangular"])
def test_kernels_of_several_walks_multiply(generated, name):
    scheme = exact(name)
    assert len(scheme_kernel_view(scheme, "_kernel").groups) > 1
    a, b = random(35, 22), random(22, 40, seed=1)
    assert_within_bound(multiply_fused(generated(name).fused[0], a, b), a, b, name)


def test_kernels_write_the_result_and_nothing_else(generated):
    """The result lies inside NaN, of which nothing may be left inside or lost outside."""
    fused = generated("winograd").fused[0]
    a, b = random(1, 70, 40).mT.contiguous().mT, random(1, 40, 200, seed=1)[:, :, ::2]
    around = torch.full((1, 90, 120), float("nan"))
    result = around[:, 10:80, 10:110]
    arguments = fused.arguments(a, b, result, "ieee")
    fused.kernel[(count_scheme_programs(1, arguments),)](**arguments)
    assert_within_bound(result, a, b, "winograd")
    result.fill_(0)
    assert around.isnan().sum() == 90 * 120 - 70 * 100


def test_calls_take_kernels_where_a_device_has_them(generated, monkeypatch):
    """One level of a product and of both gradients, and the last of several levels."""
    scheme = generated("strassen")
    called = []

    def fused_kernel(scheme, a):
        called.append(scheme)
        return scheme.fused[0]

    monkeypatch.setattr(scheme_product, "_fused_kernel", fused_kernel)
    a, b = random(9, 6).requires_grad_(), random(6, 10, seed=1).requires_grad_()
    upstream = random(9, 10, seed=2)
    found = scheme_matmul(a, b, scheme)
    assert_within_bound(found, a.detach(), b.detach(), "strassen")
    of_a, of_b = torch.autograd.grad(found, (a, b), upstream)
    torch.testing.assert_close(of_a, upstream @ b.detach().mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_b, a.detach().mT @ upstream, rtol=1e-4, atol=1e-4)
    assert [one.fused[0] for one in called] == [*scheme.fused]
    called.clear()
    twice = scheme_matmul(a.detach(), b.detach(), scheme, 2)
    assert len(called) == 7  # one for each product of the outer level
    torch.testing.assert_close(twice, a.detach() @ b.detach(), rtol=1e-4, atol=1e-4)


def test_kernels_run_where_they_are_asked_for(generated, monkeypatch):
    scheme, on_device = generated("strassen"), SimpleNamespace(is_cuda=True, dtype=torch.float32)
    assert scheme_product._fused_kernel(scheme, on_device) is None
    monkeypatch.setenv("ATTNC_SCHEMES", "fused")
    assert scheme_product._fused_kernel(scheme, on_device) is scheme.fused[0]
    assert scheme_product._fused_kernel(scheme, SimpleNamespace(is_cuda=False, dtype=torch.float32)) is None
    assert scheme_product._fused_kernel(scheme, SimpleNamespace(is_cuda=True, dtype=torch.float64)) is None


def test_nothing_is_launched_on_a_cpu(generated, monkeypatch):
    monkeypatch.setattr(scheme_product, "multiply_fused", None)
    a = random(8, 8)
    torch.testing.assert_close(scheme_matmul(a, a, generated("strassen")), a @ a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["strassen", "winograd", "laderman", "rectangular"])
def test_gradients_of_schemes_are_schemes(name):
    scheme = exact(name)
    for gradient, other in ((left_gradient(scheme), "of_left_gradient"), (right_gradient(scheme), "of_right_gradient")):
        check_exact(gradient)
        runtime = scheme_product.BilinearScheme(scheme.m, scheme.k, scheme.n, *float_rows(scheme))
        sizes = gradient.m, gradient.k, gradient.n
        assert getattr(runtime, other) == scheme_product.BilinearScheme(*sizes, *float_rows(gradient))
    assert left_gradient(left_gradient(scheme)) == scheme
    assert right_gradient(right_gradient(scheme)) == scheme


@pytest.mark.parametrize("name", ["strassen", "laderman"])
def test_text_is_readable_and_the_same_every_time(name):
    text = render_scheme_module(exact(name), name.upper())
    assert text == render_scheme_module(exact(name), name.upper())
    assert max(map(len, text.splitlines())) <= 130
    assert "\n\n\n\n" not in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_every_product_is_written_once():
    view = scheme_kernel_view(exact("laderman"), "_kernel")
    names = [product.name for group in view.groups for product in group.products]
    assert names == [f"product_{r}" for r in range(23)]
    assert [out.name for out in view.outs] == [f"c_{i}{j}" for i in range(3) for j in range(3)]


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        (torch.ones(4, 4), torch.ones(5, 4), ValueError),
        (torch.ones(2, 4, 4), torch.ones(4, 4), ValueError),
        (torch.ones(4, 4).double(), torch.ones(4, 4).double(), TypeError),
        (torch.ones(4, 4), torch.ones(4, 4).half(), TypeError),
    ],
)
def test_mistakes(generated, a, b, error):
    with pytest.raises(error):
        multiply_fused(generated("strassen").fused[0], a, b)


def test_empty_matrices(generated):
    fused = generated("strassen").fused[0]
    assert multiply_fused(fused, torch.ones(0, 3, 4), torch.ones(0, 4, 5)).shape == (0, 3, 5)
    assert torch.equal(multiply_fused(fused, torch.ones(3, 0), torch.ones(0, 5)), torch.zeros(3, 5))
    assert multiply_fused(fused, torch.ones(0, 4), torch.ones(4, 5)).shape == (0, 5)
