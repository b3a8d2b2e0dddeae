"""What a launch says to Triton's compiler besides tiles."""

from types import SimpleNamespace

import pytest
import torch

from attnc.runtime.kernel_launch import launchable
from attnc.runtime.tiles import Tiles

CUDA = SimpleNamespace(
    query=SimpleNamespace(device=torch.device("cuda")), tiles=Tiles(64, 64, 4, 2), all_registers=False
)
JOINING = SimpleNamespace(query=CUDA.query, tiles=CUDA.tiles, all_registers=True)


class Kernel:
    """Stands in for a jitted kernel: keeps what it is launched with."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda **options: self.launches.append((grid, options))


@pytest.mark.parametrize("options", [{}, {"num_warps": 8}])
def test_kernels_fuse_products_and_sums_whatever_the_default(options, monkeypatch):
    monkeypatch.setattr(torch.library, "wrap_triton", lambda kernel: kernel)
    kernel = Kernel()
    launchable(kernel, CUDA)[(3,)](x=1, **options)
    assert kernel.launches == [((3,), {"x": 1, **options, "enable_fp_fusion": True})]


def test_what_joins_sums_may_use_all_registers_of_nvidias(monkeypatch):
    monkeypatch.setattr(torch.library, "wrap_triton", lambda kernel: kernel)
    for version, more in ((None, {"maxnreg": 255}), ("6.3", {})):
        monkeypatch.setattr(torch.version, "hip", version)
        kernel = Kernel()
        launchable(kernel, JOINING)[(3,)](x=1)
        assert kernel.launches == [((3,), {"x": 1, "enable_fp_fusion": True, **more})]


def test_what_is_traced_is_left_to_the_tracer(monkeypatch):
    traced = object()
    monkeypatch.setattr(torch.library, "wrap_triton", lambda kernel: traced)
    assert launchable(Kernel(), CUDA) is traced
