"""What projections say of inputs that do not fit, whichever form computes them."""

import io

import pytest
import torch

from attnc.runtime.linear import State
from attnc.runtime.structures.caches import LayerCache
from attnc.runtime.structures.convolutions import ConvProjection, GridConvProjection
from attnc.runtime.structures.factors import BlockDiagonalProjection, MonarchProjection
from attnc.runtime.structures.sparse import BandedProjection, MaskedProjection

FLAT = {
    "block_diagonal": lambda: BlockDiagonalProjection(12, 12, 4),
    "monarch": lambda: MonarchProjection(12, 12, 4),
    "banded": lambda: BandedProjection(12, 12, 3),
    "masked": lambda: MaskedProjection(12, 12, lambda at: (at.i - at.j) % 3 == 0),
}
KERNELS = {
    "conv": lambda: ConvProjection(12, 12, 3),
    "conv2d": lambda: GridConvProjection(12, 12, 4, 3),
}
EVERY = FLAT | KERNELS


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("width", [1, 13, 24])
def test_other_widths(name, width):
    with pytest.raises(ValueError, match=rf"x has shape \(2, 8, {width}\), expected \((\.\.\.|B, N), 12\)"):
        EVERY[name]()(torch.randn(2, 8, width))


@pytest.mark.parametrize("name", EVERY)
def test_other_dtypes(name):
    with pytest.raises(ValueError, match=rf"x is float64, but the parameters of {name} are float32"):
        EVERY[name]()(torch.randn(2, 8, 12, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert EVERY[name]()(torch.randn(2, 8, 12)).shape == (2, 8, 12)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", [(12,), (8, 12), (1, 2, 8, 12)])
def test_kernels_along_positions_know_which_ones(name, shape):
    with pytest.raises(ValueError, match=r"x has shape .*, expected \(B, N, 12\)"):
        KERNELS[name]()(torch.randn(shape))


@pytest.mark.parametrize("name", FLAT)
def test_others_take_any_dimensions(name):
    projection = FLAT[name]()
    x = torch.randn(2, 3, 5, 12)
    for part in (x, x[0], x[0, 0], x[0, 0, 0], x[:0]):
        assert projection(part).shape == part.shape


@pytest.mark.parametrize("name", ["banded", "masked"])
def test_batches_of_gradients_are_refused_in_words(name):
    projection, x = FLAT[name](), torch.randn(4, 12)
    with pytest.raises(RuntimeError, match="takes no batches of gradients"):
        torch.autograd.functional.jacobian(projection, x, vectorize=True)
    assert torch.func.jacrev(projection)(x).shape == (4, 12, 4, 12)


@pytest.mark.parametrize(
    "kept", [LayerCache(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4)), State(torch.ones(1, 2, 3, 4), None, 7)]
)
def test_what_layers_keep_can_be_saved(kept):
    memory = io.BytesIO()
    torch.save(kept, memory)
    memory.seek(0)
    found = torch.load(memory)
    assert type(found) is type(kept)
    assert torch.equal(found[0], kept[0])
