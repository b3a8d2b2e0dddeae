"""`//` and `%` of floats: Python's rounding and IEEE 754's infinities, alike in every implementation."""

import itertools
import math
import random
import struct

import pytest
import torch
import triton
import triton.language as tl

from attnc.ir.arithmetic import binary
from attnc.ir.nodes import Binary, BinaryOp, Index, IndexName, Read
from attnc.ir.types import Type
from attnc.reference.tensors import TensorEnvironment, evaluate_tensor
from attnc.runtime.kernel_math import floor_div_float, floor_mod_float

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SPECIAL = (0.0, 0.5, 1.0, 3.0, 7.5, 16777215.0, 1e9, 1e30, 3e38, 1e-30, 1e-38, 1e-45, math.inf, math.nan)


def single(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def operands():
    """Return pairs of numbers that float32 holds."""
    generator = random.Random(1)
    special = [single(value * sign) for value in SPECIAL for sign in (1, -1)]
    pairs = list(itertools.product(special, special))
    for _ in range(4000):
        left, right = (generator.uniform(-1, 1) * 10 ** generator.uniform(-6, 6) for _ in "lr")
        pairs.append((single(left), single(right)))
    for _ in range(1000):  # near the edge between two quotients
        right = single(generator.uniform(0.01, 1))
        pairs.append((single(right * generator.randrange(1, 1000)), right))
    return pairs


@triton.jit
def divide(left_ptr, right_ptr, quotient_ptr, remainder_ptr, n, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    left, right = tl.load(left_ptr + at, mask=at < n), tl.load(right_ptr + at, mask=at < n)
    tl.store(quotient_ptr + at, floor_div_float(left, right), mask=at < n)
    tl.store(remainder_ptr + at, floor_mod_float(left, right), mask=at < n)


def of_kernel(left, right):
    quotient, remainder = torch.empty_like(left), torch.empty_like(left)
    divide[(triton.cdiv(len(left), 1024),)](left, right, quotient, remainder, len(left), 1024)
    return quotient, remainder


def of_reference(left, right):
    tables = {"x": left.double(), "y": right.double()}
    index = (Index(IndexName.KEY),)
    env = TensorEnvironment(indices={IndexName.KEY: torch.arange(len(left))}, tables=tables)
    x, y = Read("x", index, Type.FLOAT), Read("y", index, Type.FLOAT)
    return [evaluate_tensor(Binary(op, x, y, Type.FLOAT), env) for op in (BinaryOp.FLOORDIV, BinaryOp.MOD)]


def of_cpu_program(left, right):
    """Divide as `codegen.expr_torch` writes it. torch's own `%` gives NaN where the quotient overflows float32."""
    overflows = ((left / right).abs() == math.inf) & (left.abs() < math.inf) & (right != 0)
    return left // right, torch.where(overflows, left.double() % right.double(), (left % right).double())


@pytest.mark.parametrize("compute", [of_kernel, of_reference, of_cpu_program])
def test_floor_division_and_remainder_agree_with_the_evaluator(compute):
    pairs = operands()
    expected = [
        [binary(op, Type.FLOAT)(left, right) for left, right in pairs] for op in (BinaryOp.FLOORDIV, BinaryOp.MOD)
    ]
    left, right = (torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))
    for found, wanted in zip(compute(left, right), expected, strict=True):
        wanted = torch.tensor(wanted, dtype=torch.float64).float()
        torch.testing.assert_close(found.float(), wanted, rtol=2e-7, atol=1e-45, equal_nan=True)


def test_the_evaluator_divides_as_python_does():
    for left, right in operands():
        if right:
            for op, python in ((BinaryOp.FLOORDIV, left // right), (BinaryOp.MOD, left % right)):
                found = binary(op, Type.FLOAT)(left, right)
                assert found == python or (math.isnan(found) and math.isnan(python))
