"""Kernels of block diagonal and Monarch matrices in Triton's interpreter, against the dense expansion in float64."""

import copy

import pytest
import torch

from attnc.runtime.structures import factor_launch
from attnc.runtime.structures.factor_gradients import block_gradient, monarch_gradients
from attnc.runtime.structures.factor_operators import blocks_operator, monarch_operator
from attnc.runtime.structures.factors import BlockDiagonalProjection, MonarchProjection
from attnc.runtime.tuned import ProjectionForm, try_tiles

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Let kernels run on the CPU, and let memory hold NaN before they write it."""
    make = torch.Tensor.new_empty
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *shape, **options: make(self, *shape, **options).fill_(torch.nan)
    )


@pytest.fixture
def launched(monkeypatch):
    """Return a list of the kernels that are launched."""
    found = []
    start = factor_launch._start

    def watch(launch, x, out):
        found.append(launch.kernel.__name__)
        start(launch, x, out)

    monkeypatch.setattr(factor_launch, "_start", watch)
    return found


def by_kernel(module):
    return try_tiles({module.measured_as: ProjectionForm("kernel")})


def gradients(module, x, upstream, **options):
    return torch.autograd.grad(module(x), [x, *module.parameters()], upstream, **options)


def check(module, x, launched):
    """Compare outputs and gradients with those of the dense matrix in float64."""
    dtype, exact = x.dtype, copy.deepcopy(module).double()
    wide = x.detach().double().requires_grad_()
    x = x.detach().requires_grad_()
    upstream = torch.randn(*x.shape[:-1], module.out_features).to(dtype)
    with by_kernel(module):
        found = module(x)
        grads = torch.autograd.grad(found, [x, *module.parameters()], upstream)
    right = wide @ exact.to_dense().T
    for one, other in zip(
        (found, *grads),
        (right, *torch.autograd.grad(right, [wide, *exact.parameters()], upstream.double())),
        strict=True,
    ):
        assert one.dtype is dtype
        assert one.shape == other.shape
        if other.numel():
            error = (one.double() - other).abs().max() / other.abs().max().clamp(min=1e-9)
            assert float(error.detach()) < TOLERANCE[dtype], (error, str(module), x.shape)
    assert len(launched) == 2, "an output and a gradient by kernels"
    launched.clear()


SIZES = (
    (BlockDiagonalProjection, 32, 32, 2),
    (BlockDiagonalProjection, 30, 42, 3),
    (BlockDiagonalProjection, 200, 90, 1),
    (MonarchProjection, 32, 32, 4),
    (MonarchProjection, 24, 60, 6),
    (MonarchProjection, 60, 24, 3),
    (MonarchProjection, 35, 56, 7),
    (MonarchProjection, 20, 12, 4),
    (MonarchProjection, 48, 48, 1),
    (MonarchProjection, 16, 16, 16),
)


@pytest.mark.parametrize(("kind", "inputs", "outputs", "blocks"), SIZES)
def test_values_and_gradients(kind, inputs, outputs, blocks, launched):
    torch.manual_seed(0)
    for dtype in TOLERANCE:
        check(kind(inputs, outputs, blocks).to(dtype), torch.randn(2, 13, inputs).to(dtype), launched)


@pytest.mark.parametrize("kind", [BlockDiagonalProjection, MonarchProjection])
@pytest.mark.parametrize("tokens", [0, 1, 63, 65, 100])
def test_tokens(kind, tokens, launched):
    torch.manual_seed(0)
    check(kind(24, 32, 4), torch.randn(tokens, 24), launched)


LARGER = (
    (512, 512, 8, TOLERANCE),
    (768, 768, 16, [torch.float16]),
    (128, 512, 32, [torch.float16]),
    (96, 24, 12, TOLERANCE),
)


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "outputs", "blocks", "dtypes"), LARGER)
def test_larger_sizes(inputs, outputs, blocks, dtypes, launched):
    torch.manual_seed(0)
    for kind in (BlockDiagonalProjection, MonarchProjection):
        for dtype in dtypes:
            check(kind(inputs, outputs, blocks).to(dtype), torch.randn(1, 65, inputs).to(dtype), launched)


def test_one_by_one():
    for module in (BlockDiagonalProjection(1, 1, 1), MonarchProjection(1, 1, 1)):
        x, upstream = torch.randn(5, 1, requires_grad=True), torch.randn(5, 1)
        right = gradients(module, x, upstream)
        with by_kernel(module):
            for one, other in zip(gradients(module, x, upstream), right, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [BlockDiagonalProjection, MonarchProjection])
def test_strides(kind, launched):
    torch.manual_seed(0)
    module = kind(24, 36, 6)
    for x in (
        torch.randn(24, 5).t(),
        torch.randn(5, 2, 24).transpose(0, 1),
        torch.randn(7, 40)[:, 3:27],
        torch.randn(1, 24).expand(5, 24),
    ):
        check(module, x, launched)
    x = torch.randn(5, 24, requires_grad=True)
    with by_kernel(module):
        module(x).sum().backward()  # an upstream gradient without strides
    torch.testing.assert_close(x.grad, module.to_dense().sum(0).expand(5, 24))


@pytest.mark.parametrize("kind", [BlockDiagonalProjection, MonarchProjection])
def test_second_derivatives_and_transforms(kind):
    torch.manual_seed(0)
    module = kind(12, 8, 2)
    x, upstream = torch.randn(3, 12, requires_grad=True), torch.randn(3, 8)

    def penalty():
        first = gradients(module, x, upstream, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), [x, *module.parameters()])

    right = penalty()
    with by_kernel(module):
        for one, other in zip(penalty(), right, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.func.vmap(module)(x[None].detach())[0], module(x))
        tangent = torch.randn(3, 12)
        _, found = torch.func.jvp(module, (x.detach(),), (tangent,))
        torch.testing.assert_close(found, module(tangent))
        of_batch = torch.autograd.grad(module(x), x, torch.stack([upstream] * 2), is_grads_batched=True)[0]
        torch.testing.assert_close(of_batch[1], torch.autograd.grad(module(x), x, upstream)[0])


def test_autocast():
    module, x = MonarchProjection(16, 16, 4), torch.randn(3, 16)
    with by_kernel(module), torch.autocast("cpu", dtype=torch.float16):
        found = module(x)
        found.float().sum().backward()
    assert found.dtype is torch.float16
    torch.testing.assert_close(found.float(), x @ module.to_dense().T, rtol=2e-2, atol=2e-2)
    assert all(one.grad.dtype is torch.float32 for one in module.parameters())


@pytest.mark.parametrize("turned", [False, True])
def test_operators_are_registered_in_full(turned):
    torch.manual_seed(0)
    first, second = (torch.randn(shape, requires_grad=True) for shape in ((3, 4, 5), (3, 2, 4)))
    x = torch.randn(4, 6 if turned else 15, requires_grad=True)
    torch.library.opcheck(torch.ops.attnc.monarch.default, (x, first, second, turned))
    matrix = MonarchProjection(15, 6, 3)
    matrix.first.data, matrix.second.data = first.detach(), second.detach()
    dense = matrix.to_dense().detach()
    found = monarch_operator(x, first, second, turned)
    torch.testing.assert_close(found, x @ (dense if turned else dense.T), rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(found)
    of_x, *of_factors = torch.autograd.grad(found, [x, first, second], upstream)
    torch.testing.assert_close(of_x, upstream @ (dense.T if turned else dense), rtol=1e-4, atol=1e-4)
    outer = (x, upstream) if turned else (upstream, x)
    for one, other in zip(of_factors, monarch_gradients((True, True), *outer, first, second), strict=True):
        torch.testing.assert_close(one, other)


def test_the_operator_of_blocks_has_gradients():
    torch.manual_seed(0)
    blocks, x = torch.randn(3, 4, 5, requires_grad=True), torch.randn(7, 15, requires_grad=True)
    torch.library.opcheck(torch.ops.attnc.block_diagonal.default, (x, blocks))
    found = blocks_operator(x, blocks)
    dense = torch.block_diag(*blocks)
    torch.testing.assert_close(found, x @ dense.T)
    upstream = torch.randn_like(found)
    of_x, of_blocks = torch.autograd.grad(found, [x, blocks], upstream)
    torch.testing.assert_close(of_x, upstream @ dense)
    torch.testing.assert_close(of_blocks, block_gradient(upstream, x, blocks))


def test_what_does_not_suit_takes_the_chain(launched):
    """A middle layer that no chip holds, two types, and float64."""
    module = MonarchProjection(8192, 8192, 1)
    x = torch.randn(2, 8192)
    with by_kernel(module):
        torch.testing.assert_close(module(x), module.chain(x, module.first, module.second))
    module = BlockDiagonalProjection(8, 8, 2).double()
    with by_kernel(module):
        module(torch.randn(2, 8, dtype=torch.float64))
    assert not launched
