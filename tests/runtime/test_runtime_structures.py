"""Structures of projection matrices against their dense expansions: values, gradients, nearest matrices, scales."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnc.ir.matrices import Matrix, count_band, count_parameters
from attnc.ir.nodes import Binary, BinaryOp, Const, Index, IndexName
from attnc.ir.program import Projection as Written
from attnc.ir.types import Type
from attnc.reference.layers import dense_matrix
from attnc.runtime.structures.convolutions import ConvProjection, GridConvProjection
from attnc.runtime.structures.factors import (
    BlockDiagonalProjection,
    DenseProjection,
    LowRankProjection,
    MonarchProjection,
)
from attnc.runtime.structures.sparse import BandedProjection, MaskedProjection

QUERY, KEY = Index(IndexName.QUERY), Index(IndexName.KEY)


def binary(op, left, right):
    kind = Type.BOOL if op.is_comparison else Type.INT
    return Binary(op, left, Const(right, Type.INT) if isinstance(right, int) else right, kind)


MASKS = {
    "triangle": (binary(BinaryOp.GE, QUERY, KEY), lambda at: at.i >= at.j),
    "residues": (
        binary(BinaryOp.EQ, binary(BinaryOp.MOD, binary(BinaryOp.SUB, QUERY, KEY), 4), 0),
        lambda at: (at.i - at.j) % 4 == 0,
    ),
    "scattered": (
        binary(BinaryOp.LT, binary(BinaryOp.MOD, binary(BinaryOp.MUL, binary(BinaryOp.ADD, QUERY, 3), KEY), 11), 2),
        lambda at: ((at.i + 3) * at.j) % 11 < 2,
    ),
    "some rows": (
        binary(BinaryOp.EQ, binary(BinaryOp.MOD, QUERY, 5), 2),
        lambda at: at.i % 5 == 2,
    ),
}


def number(**arguments):
    return tuple((name, Const(value, Type.INT)) for name, value in arguments.items())


def structures(inputs, outputs):
    """Yield what is written, and the module."""
    yield Written("dense"), DenseProjection(inputs, outputs)
    yield Written("low_rank", number(r=5)), LowRankProjection(inputs, outputs, 5)
    for width in (1, 3, 100):
        yield Written("banded", number(width=width)), BandedProjection(inputs, outputs, width)
    for expr, condition in MASKS.values():
        yield Written("masked", (("condition", expr),)), MaskedProjection(inputs, outputs, condition)
    for blocks in (1, 2, 3, 6, 7):
        if inputs % blocks == outputs % blocks == 0:
            yield Written("block_diagonal", number(blocks=blocks)), BlockDiagonalProjection(inputs, outputs, blocks)
            yield Written("monarch", number(blocks=blocks)), MonarchProjection(inputs, outputs, blocks)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(24, 60), (17, 41), *(pytest.param(*size, marks=pytest.mark.slow) for size in ((36, 36), (60, 24), (63, 7)))],
)
def test_values_and_gradients_are_those_of_the_dense_expansion(inputs, outputs):
    torch.manual_seed(0)
    for written, module in structures(inputs, outputs):
        module = module.double()
        matrix = Matrix("query", written, outputs, inputs)
        state = dict(module.named_parameters())
        x = torch.randn(2, 3, inputs, dtype=torch.float64, requires_grad=True)
        leaves = [x, *state.values()]
        found, right = module(x), x @ dense_matrix(matrix, state).T
        torch.testing.assert_close(found, right, msg=partial("{}: {}".format, module))
        torch.testing.assert_close(module.to_dense(), dense_matrix(matrix, state))
        upstream = torch.randn_like(found)
        for one, other in zip(
            torch.autograd.grad(found, leaves, upstream, create_graph=True),
            torch.autograd.grad(right, leaves, upstream, create_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other, msg=partial("{}: {}".format, module))
        entries = state["values"].numel() if written.structure == "masked" else None
        assert sum(one.numel() for one in state.values()) == count_parameters(matrix, entries), str(module)


def test_one_by_one():
    for module in (
        DenseProjection(1, 1),
        LowRankProjection(1, 1, 1),
        MonarchProjection(1, 1, 1),
        BandedProjection(1, 1, 1),
        ConvProjection(1, 1, 3),
    ):
        assert module(torch.ones(2, 3, 1)).shape == (2, 3, 1)


@pytest.mark.parametrize(("inputs", "outputs", "width"), [(9, 9, 2), (5, 23, 1), (23, 5, 3), (64, 65, 7)])
def test_bands_are_counted_and_square_ones_are_those_of_the_prelude(inputs, outputs, width):
    band = [(i, j) for i in range(outputs) for j in range(inputs)
            if abs(i * inputs - j * outputs) < width * max(inputs, outputs)]  # fmt: skip
    assert count_band(outputs, inputs, width) == len(band) == BandedProjection(inputs, outputs, width).values.numel()
    if inputs == outputs:
        assert band == [(i, j) for i in range(outputs) for j in range(inputs) if abs(i - j) < width]
    assert {i for i, _ in band} == set(range(outputs))
    assert {j for _, j in band} == set(range(inputs)), "every input is read by some output"


class Largest(TorchDispatchMode):
    """Remembers the most elements that any tensor has."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.untyped_storage().nbytes() // one.element_size())
        return out


def test_no_product_builds_the_dense_matrix():
    size = 256
    modules = [
        LowRankProjection(size, size, 8),
        BlockDiagonalProjection(size, size, 8),
        MonarchProjection(size, size, 8),
        BandedProjection(size, size, 7),
        MaskedProjection(size, size, lambda at: (at.i - at.j) % 8 == 0),
        MaskedProjection(size, size, lambda at: at.i // 64 == at.j // 64),
    ]
    for module in modules:
        x = torch.randn(2, size, requires_grad=True)
        with Largest() as largest:
            module(x).sum().backward()
        assert largest.most < size * size // 2, str(module)
    with Largest() as largest:
        DenseProjection(size, size)(x).sum().backward()
    assert largest.most == size * size


def test_tiles_are_few_and_compute_little_more_than_the_entries():
    for module, most in (
        (BandedProjection(1024, 1024, 64), 2.5),
        (BandedProjection(1024, 4096, 64), 2.5),
        (MaskedProjection(512, 512, lambda at: at.i >= at.j), 1.5),
        (MaskedProjection(512, 512, lambda at: at.i // 64 == at.j // 64), 1.0),
        (MaskedProjection(512, 512, lambda at: (at.i - at.j) % 16 == 0), 1.0),
    ):
        for tiling in module.tilings.on(torch.device("cpu")):
            assert tiling.work <= most * module.values.numel(), str(module)
            assert len(tiling.batches) <= 40, str(module)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (64, 256), (256, 64)])
def test_initial_outputs_have_the_variance_of_a_dense_layer(inputs, outputs):
    torch.manual_seed(0)
    x = torch.randn(256, 64, inputs)
    for module in [
        DenseProjection(inputs, outputs),
        LowRankProjection(inputs, outputs, 16),
        BlockDiagonalProjection(inputs, outputs, 8),
        MonarchProjection(inputs, outputs, 8),
        BandedProjection(inputs, outputs, 9),
        MaskedProjection(inputs, outputs, lambda at: at.i >= at.j),
        ConvProjection(inputs, outputs, 3),
        ConvProjection(inputs, outputs, 4, 2, causal=True),
        GridConvProjection(inputs, outputs, 8, 3),
    ]:
        with torch.no_grad():
            variance = float(module(x).var())
        wide = 0.12 if "Conv" in type(module).__name__ else 0.05  # zeros outside of a sequence take part
        assert abs(variance - 1 / 3) < wide, f"{module}: {variance}"


def test_the_nearest_matrices():
    torch.manual_seed(0)
    weight = torch.randn(30, 48, dtype=torch.float64)
    values = torch.linalg.svdvals(weight)
    low = LowRankProjection(48, 30, 7)
    assert low.from_dense(weight) == pytest.approx(float(values[7:].norm() / values.norm()), rel=1e-6)
    blocks = BlockDiagonalProjection(48, 30, 3, dtype=torch.float64)
    kept = sum(weight[10 * k : 10 * k + 10, 16 * k : 16 * k + 16].square().sum() for k in range(3))
    assert blocks.from_dense(weight) == pytest.approx(float((1 - kept / weight.square().sum()).sqrt()))
    band = BandedProjection(48, 30, 4, dtype=torch.float64)
    error = band.from_dense(weight)
    dense = band.to_dense().detach()
    assert torch.equal(dense, torch.where(dense != 0, weight, 0.0))
    assert error == pytest.approx(float((dense - weight).norm() / weight.norm()))
    monarch = MonarchProjection(48, 30, 6, dtype=torch.float64)
    found = monarch.from_dense(weight)
    lost = 0.0
    for block in range(6):
        for group in range(6):
            rank = sum(1 for t in range(5) if (group * 5 + t) % 6 == block)
            part = torch.linalg.svdvals(weight[block::6, 8 * group : 8 * group + 8])
            lost += float(part[rank:].square().sum())
    assert found == pytest.approx(lost**0.5 / float(weight.norm()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DenseProjection(24, 36),
        lambda: LowRankProjection(24, 36, 6),
        lambda: BlockDiagonalProjection(24, 36, 4),
        lambda: MonarchProjection(24, 36, 4),
        lambda: MonarchProjection(36, 24, 12),
        lambda: BandedProjection(24, 36, 3),
        lambda: MaskedProjection(24, 36, lambda at: (at.i + at.j) % 3 == 0),
    ],
)
def test_matrices_of_a_structure_are_found_again(make):
    torch.manual_seed(0)
    other, module = make().double(), make().double()
    assert module.from_dense(other.to_dense()) < 1e-12
    torch.testing.assert_close(module.to_dense(), other.to_dense())
    assert module.from_dense(torch.zeros(module.out_features, module.in_features)) == 0
    with pytest.raises(ValueError, match="expected a tensor"):
        module.from_dense(torch.zeros(module.in_features + 1, module.out_features))
    half = copy.deepcopy(other).to(torch.bfloat16)
    assert half.from_dense(other.to_dense()) < 0.02


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolutions_walk_along_positions(kernel, stride, causal):
    torch.manual_seed(0)
    module = ConvProjection(4, 5, kernel, stride, causal=causal).double()
    for length in (1, 2, 6, 7):
        x = torch.randn(2, length, 4, dtype=torch.float64)
        found = module(x)
        assert found.shape == (2, -(-length // stride), 5)
        for place in range(found.shape[1]):
            last = place * stride + (0 if causal else (kernel - 1) // 2)
            total = torch.zeros(2, 4, dtype=torch.float64)
            for tap in range(kernel):
                at = last - kernel + 1 + tap
                if 0 <= at < length:
                    total += x[:, at] * module.kernel[:, tap]
            torch.testing.assert_close(found[:, place], total @ module.weight.T)
        expanded = module.to_dense(length)
        torch.testing.assert_close(torch.einsum("pond,bnd->bpo", expanded, x), found)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 3)])
def test_convolutions_on_a_grid(kernel, stride):
    torch.manual_seed(0)
    module, (height, width) = GridConvProjection(3, 4, 5, kernel, stride).double(), (4, 5)
    x = torch.randn(2, height * width, 3, dtype=torch.float64)
    found, place = module(x), 0
    for row in range(0, height, stride):
        for column in range(0, width, stride):
            total = torch.zeros(2, 3, dtype=torch.float64)
            for down in range(kernel):
                for across in range(kernel):
                    i, j = row + down - kernel // 2, column + across - kernel // 2
                    if 0 <= i < height and 0 <= j < width:
                        total += x[:, i * width + j] * module.kernel[:, down, across]
            torch.testing.assert_close(found[:, place], total @ module.weight.T)
            place += 1
    assert place == found.shape[1]
    with pytest.raises(ValueError, match="rows of 5"):
        module(x[:, :7])


def test_a_dense_matrix_is_a_convolution_of_one_tap():
    weight = torch.randn(6, 4)
    x = torch.randn(2, 10, 4)
    for module in (
        ConvProjection(4, 6, 3),
        ConvProjection(4, 6, 4, causal=True),
        GridConvProjection(4, 6, 5, 3),
        GridConvProjection(4, 6, 5, 2),
    ):
        assert module.from_dense(weight) == 0
        torch.testing.assert_close(module(x), x @ weight.T)
    for module in (ConvProjection(4, 6, 3, 2), GridConvProjection(4, 6, 5, 3, 2)):
        with pytest.raises(ValueError, match="leaves positions out"):
            module.from_dense(weight)


def test_half_precision_autocast_strides_and_empty_batches():
    torch.manual_seed(0)
    for _, module in structures(24, 36):
        for dtype in (torch.float16, torch.bfloat16):
            half = copy.deepcopy(module).to(dtype)
            x = torch.randn(5, 2, 24).transpose(0, 1).to(dtype)
            right = x.double() @ copy.deepcopy(half).double().to_dense().T
            torch.testing.assert_close(half(x).double(), right, atol=0.05, rtol=0.05)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(torch.randn(3, 24))
        assert out.dtype is torch.bfloat16
        out.float().sum().backward()
        assert all(one.grad is not None and one.grad.dtype is torch.float32 for one in module.parameters())
        assert module(torch.randn(0, 3, 24)).shape == (0, 3, 36)


def test_sparse_products_under_transforms_and_in_forward_mode():
    torch.manual_seed(0)
    module = BandedProjection(12, 9, 2).double()
    x, values = torch.randn(4, 3, 12, dtype=torch.float64), module.values.detach()

    def run(values, x):
        return torch.func.functional_call(module, {"values": values}, (x,))

    tangent = torch.randn_like(values)
    _, found = torch.func.jvp(lambda values: run(values, x), (values,), (tangent,))
    torch.testing.assert_close(found, run(tangent, x))
    torch.testing.assert_close(torch.func.vmap(module)(x), module(x))
    gradient = torch.func.grad(lambda values: run(values, x).square().sum())(values)
    (right,) = torch.autograd.grad(module(x).square().sum(), module.values)
    torch.testing.assert_close(gradient, right)
    leaves = [x[0].clone().requires_grad_(), values.clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, values: run(values, x), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, values: run(values, x), leaves, fast_mode=True)


def test_a_mask_without_entries_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        MaskedProjection(4, 4, lambda at: at.i < 0)


def test_random_masks():
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        rows, columns = (int(torch.randint(1, 50, (), generator=generator)) for _ in range(2))
        allowed = torch.rand(rows, columns, generator=generator) < (0.02, 0.1, 0.5, 0.9)[number % 4]
        if number % 3 == 0:  # rows that are alike, and some without an entry
            allowed = allowed[torch.randint(0, max(1, rows // 9), (rows,), generator=generator)]
        allowed[0, 0] = True
        module = MaskedProjection(columns, rows, lambda at, allowed=allowed: allowed[at.i, at.j]).double()
        dense = torch.zeros(rows, columns, dtype=torch.float64)
        dense[allowed] = module.values.detach()
        x = torch.randn(5, columns, dtype=torch.float64, generator=generator).requires_grad_()
        found = module(x)
        torch.testing.assert_close(found, x @ dense.T)
        of_x, of_values = torch.autograd.grad(found, [x, module.values], torch.ones_like(found))
        torch.testing.assert_close(of_x, dense.sum(0).expand_as(x))
        torch.testing.assert_close(of_values, x.detach().sum(0).expand_as(dense)[allowed])


def other_product(x, weight):
    """Multiply in another way, as a scheme would."""
    return torch.einsum("...i,oi->...o", x, weight)


def test_every_structure_takes_another_product_for_its_dense_blocks(monkeypatch):
    monkeypatch.setattr(torch, "bmm", None)
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    torch.manual_seed(0)
    for _, module in structures(24, 60):
        module = module.double()
        module.product = other_product
        x = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
        found = module(x)
        torch.testing.assert_close(found, x @ module.to_dense().T)
        found.sum().backward()
        assert x.grad is not None
        assert "other_product" in str(module)


def test_default_devices_and_shared_tilings():
    with torch.device("meta"):
        modules = [module for _, module in structures(24, 60)]
        assert all(one.device.type == "meta" for module in modules for one in module.parameters())
        assert all(module(torch.zeros(2, 24)).shape == (2, 60) for module in modules)
    with torch.inference_mode():
        BandedProjection(24, 60, 4)
    BandedProjection(24, 60, 4)(torch.randn(3, 24)).sum().backward()
    first, second = BandedProjection(24, 60, 3), BandedProjection(24, 60, 3)
    assert first.tilings is second.tilings is copy.deepcopy(first).tilings
    again = pickle.loads(pickle.dumps(first))
    x = torch.randn(3, 24)
    assert torch.equal(again(x), first(x))
