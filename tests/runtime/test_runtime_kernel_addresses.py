"""The check of addresses that all tests of kernels rely on finds what it is there to find."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def copy(source_ptr, target_ptr, read, written, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    values = tl.load(source_ptr + at, mask=at < read, other=0.0)
    tl.store(target_ptr + at, values, mask=at < written)


def test_elements_inside_may_be_copied():
    source, target = torch.randn(10), torch.zeros(20)
    copy[(1,)](source[2:], target[:9], 8, 9, 16)
    assert torch.equal(target[:8], source[2:])
    assert not target[8:].any()


@pytest.mark.parametrize(("read", "written", "message"), [(11, 10, "loads 1 elements"), (10, 12, "stores 2 elements")])
def test_elements_outside_are_found(read, written, message):
    with pytest.raises(InterpreterError, match=message):
        copy[(1,)](torch.randn(10), torch.zeros(10), read, written, 16)


def test_an_element_half_outside_is_found():
    with pytest.raises(InterpreterError, match="loads 1 elements"):
        copy[(1,)](torch.zeros(38, dtype=torch.uint8)[:36].view(torch.float32), torch.zeros(16), 10, 0, 16)
