"""Kernels of causal scans in Triton's interpreter, against the definition in float64; memory is poisoned before."""

import pytest
import torch
from scans import FORMS, definition, end_of_definition, make_scan

from attnc.runtime import scan_launch
from attnc.runtime.scan import causal_scan
from attnc.runtime.scan_kernels import scan_walk_kernel

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


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
    """Return a list of what is launched."""
    found = []
    launches = scan_launch.scan_launches

    def watch(*args, **options):
        for one in launches(*args, **options):
            found.append(one)
            yield one

    monkeypatch.setattr(scan_launch, "scan_launches", watch)
    return found


def check_kernels(scan, *, chunk=64, **options):
    out, end, log = causal_scan(
        *scan.tensors, chunk=chunk, return_state=True, out_dtype=torch.float32, **scan.options, **options
    )
    tolerance = TOLERANCE[scan.x.dtype]
    for found, expected in ((out, definition(scan)), (end, end_of_definition(scan, log))):
        assert found.dtype is torch.float32
        error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-9)
        assert error < tolerance, (error, scan.x.shape, scan.z.shape)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    check_kernels(make_scan(40, 5, 3, (1, 2, 1, 2, 2), form=form, state="with log").to(torch.float32), chunk=16)


@pytest.mark.parametrize("form", ["plain", "growing"])
def test_half_precision_from_the_end(form):
    scan = make_scan(20, 5, 3, (2, 2, 2, 1, 1), form=form, state="plain", reverse=True)
    check_kernels(scan.to(torch.float16), chunk=16)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [2, 63, 64, 65, 100, 257])
def test_lengths(length, form):
    check_kernels(make_scan(length, 33, 65, (1, 2, 2, 2, 2), form=form, state="with log").to(torch.float32))
    from_end = make_scan(length, 33, 65, (1, 4, 1, 2, 4), form=form, reverse=True)
    check_kernels(from_end.to(torch.float16))


SIZES = ((1, 1), (16, 65), (64, 16), (33, 1))


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    check_kernels(make_scan(33, *size, (1, 1, 1, 1, 1), form="decay").to(torch.float32), chunk=32)


@pytest.mark.slow
@pytest.mark.parametrize("features", [1, 16, 33, 64, 256])
@pytest.mark.parametrize("values", [1, 16, 65, 200])
def test_more_sizes(features, values):
    for dtype in TOLERANCE:
        check_kernels(make_scan(100, features, values, (1, 2, 1, 1, 2), form="decay", state="with log").to(dtype))


def test_several_blocks(monkeypatch, launched):
    """Blocks of rows in a chunk, of features and of values, and slabs of chunks."""
    tiles = scan_launch.ScanTiles(rows=16, features=16, values=16, warps=4, stages=1)
    monkeypatch.setitem(scan_launch.SCAN_TILES, ("cpu", 4), tiles)
    monkeypatch.setattr(scan_launch, "SUMS_BYTES", 2 * 32 * 32 * 4)
    for reverse, state in ((False, "none"), (True, "with log")):
        scan = make_scan(100, 20, 18, (1, 1, 1, 1, 1), form="decay", state=state, reverse=reverse)
        check_kernels(scan.to(torch.float32), chunk=32)
    walks = [one for one in launched if one.kernel is scan_walk_kernel]
    assert [one.arguments["walked"] for one in walks] == [0, 2] * 2


def test_sums_beyond_float16():
    """Sums of many keys, and products of a row and a key, that 16 bits cannot hold."""
    scan = make_scan(70, 16, 4, (1, 1, 1, 1, 1))
    large = scan.replaced(x=scan.x * 60, y=scan.y.abs() * 300, z=scan.z.abs() * 20).to(torch.float16)
    check_kernels(large, chunk=32)


def test_strides(launched):
    scan = make_scan(20, 6, 5, form="decay", state="with log").to(torch.float32)
    for order in ((0, 2, 1, 3), (3, 2, 1, 0)):
        back = sorted(range(4), key=order.__getitem__)
        changed = {name: getattr(scan, name).permute(order).contiguous().permute(back) for name in "xyz"}
        state = scan.state.permute(order).contiguous().permute(back)
        rows, keys = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in (scan.rows, scan.keys))
        check_kernels(scan.replaced(**changed, state=state, rows=rows, keys=keys), chunk=16)
    assert launched


def test_no_sums_where_nobody_reads_them(launched):
    scan = make_scan(20, 4, 4, form="decay").to(torch.float32)
    out, *_ = causal_scan(*scan.tensors, **scan.options)
    torch.testing.assert_close(out, definition(scan).float(), rtol=1e-4, atol=1e-4)
    assert len(launched) == 1


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gradients(dtype):
    """Kernels of gradients are the same: those by torch operations agree. Gradients may be wider than their tensors."""
    scan = make_scan(20, 5, 3, (1, 2, 1, 2, 2), form="decay", state="with log").to(dtype)

    def gradients():
        given = [part.clone().requires_grad_() for part in scan.tensors[:6]]
        out, end, _ = causal_scan(
            *given, scan.state_log, chunk=16, return_state=True, out_dtype=torch.float32, **scan.options
        )
        return torch.autograd.grad(out.sin().sum() + end.cos().sum(), given)

    by_kernels = gradients()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNC_TARGET", "torch")
        by_torch = gradients()
    tolerance = 1e-3 if dtype is torch.float32 else 2e-2
    for found, expected in zip(by_kernels, by_torch, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_kernels_give_the_same_every_time():
    scan = make_scan(40, 8, 8, (1, 1, 1, 1, 1), form="decay", state="plain").to(torch.float32)
    first, second = (causal_scan(*scan.tensors, **scan.options, return_state=True, chunk=16) for _ in range(2))
    assert all(torch.equal(*parts) for parts in zip(first, second, strict=True))
