"""Norms and rotations of queries and keys: step by step in float64, and the kernel that takes them all together."""

import math

import pytest
import torch

import attnc
from attnc.runtime import preparation
from attnc.runtime.preparation import Preparation, prepare

CHAINS = {
    "unit": ("unit",),
    "rms": ("rms",),
    "turned": (100.0,),
    "turned after rms": ("rms", 10000.0),
    "turned before unit": (50.0, "unit"),
    "two norms": ("unit", 30.0, "rms"),
    "turned twice": (10000.0, "rms", 20.0),
}


def steps_of(chain):
    return tuple(Preparation(one) if isinstance(one, str) else Preparation("rotary", one) for one in chain)


def step_by_step(chain, rows, positions):
    """Follow the language, a step at a time."""
    for one in chain:
        if isinstance(one, str):
            square = (rows.square().sum if one == "unit" else rows.square().mean)(-1, keepdim=True)
            rows = torch.where(square > 0, rows / torch.where(square > 0, square, 1.0).sqrt(), 0.0)
        else:
            half = rows.shape[-1] // 2
            angles = positions[..., None].double() * one ** (-torch.arange(half).double() / half)
            pairs = torch.complex(*rows.split(half, -1)) * torch.polar(torch.ones_like(angles), angles)
            rows = torch.cat((pairs.real, pairs.imag), -1)
    return rows


def make(batch, heads, length, size, dtype=torch.float64, seed=0):
    """Return rows as projections leave them, positions before heads in memory, one of them all zeros."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(batch, length, heads, size, generator=generator, dtype=torch.float64)
    rows[0, length // 2] = 0
    return rows.to(dtype).transpose(1, 2)


@pytest.fixture
def kernels(monkeypatch):
    """Let the kernel run on the CPU, into memory that holds NaN; return what was launched."""
    found = []
    launch, make_empty = preparation.launch_preparation, torch.Tensor.new_empty

    def watch(*args):
        found.append(args)
        return launch(*args)

    monkeypatch.setenv("ATTNC_TARGET", "triton")
    monkeypatch.setattr(preparation, "launch_preparation", watch)
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *shape, **options: make_empty(self, *shape, **options).fill_(math.nan)
    )
    return found


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def check(chain, rows, positions):
    rows = rows.detach().requires_grad_()
    exact_rows = rows.detach().double().requires_grad_()
    out = prepare(steps_of(chain), rows, positions)
    exact = step_by_step(chain, exact_rows, positions)
    upstream = make(*rows.shape[:2], *rows.shape[2:], seed=1)
    (grad,) = torch.autograd.grad(out, rows, upstream.to(rows.dtype))
    (exact_grad,) = torch.autograd.grad(exact, exact_rows, upstream.to(rows.dtype).double())
    assert out.dtype == grad.dtype == rows.dtype
    for found, right in ((out, exact), (grad, exact_grad)):
        assert torch.isfinite(found).all()
        error = float((found.double() - right).detach().abs().max())
        assert error <= TOLERANCE[rows.dtype] * max(1.0, float(right.detach().abs().max())), error


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_any_chain_is_one_factor_and_one_rotation(name, dtype):
    check(CHAINS[name], make(2, 3, 37, 10, dtype), torch.arange(37) + 1000)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_takes_a_chain_at_once(kernels, name, dtype):
    check(CHAINS[name], make(2, 3, 65, 10, dtype), torch.arange(65) + 1000)
    assert [grad is not None for _, grad, *_ in kernels] == [False, True]


@pytest.mark.parametrize("size", [2, 8, 64, 80, 256])
@pytest.mark.parametrize("length", [1, 63, 64, 100, 257])
def test_the_kernel_at_sizes(kernels, size, length):
    check(CHAINS["turned after rms"], make(1, 2, length, size, torch.float32), torch.arange(length))
    assert kernels


@pytest.mark.parametrize("size", [1, 7, 33])
def test_odd_heads_have_norms(kernels, size):
    for name in ("unit", "rms"):
        check(CHAINS[name], make(2, 2, 20, size, torch.float32), torch.zeros((), dtype=torch.int64))
    assert kernels


@pytest.mark.parametrize("shape", [(2, 1, 30), (2, 3, 30), (1, 3, 30), (30,)])
def test_positions_may_differ_by_sequence_and_head(kernels, shape):
    positions = torch.randint(0, 5000, shape, generator=torch.Generator().manual_seed(3))
    check(CHAINS["turned after rms"], make(2, 3, 30, 8, torch.float32), positions)
    assert kernels


def test_rows_of_any_strides(kernels):
    wide = torch.randn(2, 3, 20, 32, generator=torch.Generator().manual_seed(0))
    for rows in (wide[..., ::2], wide[:, :, ::3], wide[:1, :1].expand(2, 3, -1, -1), wide[..., 5:13]):
        check(CHAINS["turned before unit"], rows, torch.arange(rows.shape[2]))
    assert len(kernels) == 8


def test_further_derivatives(kernels):
    rows = make(1, 1, 3, 4, torch.float32).requires_grad_()
    positions = torch.arange(3)

    def by_kernel(rows):
        return prepare(steps_of(CHAINS["turned after rms"]), rows, positions)

    upstream = make(1, 1, 3, 4, torch.float32, seed=2).requires_grad_()
    (grad,) = torch.autograd.grad(by_kernel(rows), rows, upstream, create_graph=True)
    second = torch.autograd.grad(grad.square().sum(), (rows, upstream))
    exact_rows, exact_upstream = (one.detach().double().requires_grad_() for one in (rows, upstream))
    exact = step_by_step(CHAINS["turned after rms"], exact_rows, positions)
    (grad,) = torch.autograd.grad(exact, exact_rows, exact_upstream, create_graph=True)
    for found, right in zip(
        second, torch.autograd.grad(grad.square().sum(), (exact_rows, exact_upstream)), strict=True
    ):
        assert torch.allclose(found.double(), right, rtol=1e-4, atol=1e-4)
    tangent = torch.func.jvp(by_kernel, (rows.detach(),), (upstream.detach(),))[1]
    right = torch.func.jvp(
        lambda one: step_by_step(CHAINS["turned after rms"], one, positions),
        (exact_rows.detach(),),
        (exact_upstream.detach(),),
    )[1]
    assert torch.allclose(tangent.double(), right, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_attention_runs_it_for_queries_and_keys(kernels):
    module = attnc.loads("attention x { prepare rms\n prepare rotary\n feature elu1\n mask causal }")
    query, key, value = (make(1, heads, 40, 16, torch.float32, seed) for seed, heads in enumerate((4, 2, 2)))
    found = module.x(query, key, value)
    assert len(kernels) == 2
    assert torch.allclose(found, module.x_reference(query, key, value), atol=1e-4)
