"""Functions that expressions of generated modules call."""

import math

import torch

from attnc.runtime.pairs import hyperbolic_tangent


def test_the_hyperbolic_tangent_is_exact_to_a_few_units_in_the_last_place():
    draw = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(20_000, generator=draw) * size for size in (1e-6, 1e-3, 0.1, 1.0, 5.0, 40.0)])
    exact = torch.tanh(values.double())
    error = (hyperbolic_tangent(values) - exact).abs() / exact.abs().clamp(min=1e-30)
    assert error.max() <= 4 * 2.0**-24


def test_the_hyperbolic_tangent_of_what_is_no_small_number():
    values = torch.tensor([math.inf, -math.inf, 1e30, -1e30, 0.0, -0.0, math.nan])
    found = hyperbolic_tangent(values)
    torch.testing.assert_close(found, torch.tanh(values), equal_nan=True, rtol=0, atol=0)
    assert torch.equal(found.signbit()[:6], values.signbit()[:6])


def test_the_hyperbolic_tangent_has_derivatives():
    values = torch.linspace(-3, 3, 13, requires_grad=True)
    (found,) = torch.autograd.grad(hyperbolic_tangent(values).sum(), values)
    torch.testing.assert_close(found, 1 - torch.tanh(values.detach()) ** 2)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(hyperbolic_tangent))(values.detach()), found)
