"""Kernels of block diagonal and Monarch matrices compiled ahead of time: no spills, and shared memory that is there."""

import json

import pytest
from without_device import run_python

COMPILE = """
import json, sys
import torch
from attnc.runtime.structures.factor_aot import compile_factors
rows = []
for target, dtype, *sizes in json.loads(sys.argv[1]):
    for report in compile_factors(target, getattr(torch, dtype), *sizes):
        fields = ("kernel", "target", "dtype", "registers", "spills", "shared", "shared_limit", "matrix_instructions")
        rows.append({name: getattr(report, name) for name in fields} | {"sizes": sizes})
print(json.dumps(rows))
"""

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def check_kernels(cases):
    rows = json.loads(run_python(COMPILE, json.dumps(cases)).stdout)
    names = ["block_diagonal_kernel"] * 2 + ["monarch_kernel"] * 2
    assert [row["kernel"] for row in rows] == names * len(cases)
    for row in rows:
        assert row["spills"] == 0, row
        assert row["shared"] <= row["shared_limit"], row
        assert row["matrix_instructions"] > 0 or row["dtype"] == "float32", row


def test_kernels_on_one_target():
    check_kernels([("sm_90", "bfloat16", 1024, 1024, 16)])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_kernels(target):
    """Of the width of a transformer and its feed-forward network, and of widths that are no power of two."""
    sizes = [(1024, 4096, 16), (1024, 1024, 32), (768, 3072, 16), (512, 512, 8), (512, 512, 4), (96, 64, 4)]
    check_kernels([(target, "bfloat16", *size) for size in sizes] + [(target, "float16", 768, 768, 16)])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_of_float32(target):
    check_kernels([(target, "float32", *size) for size in [(512, 512, 8), (512, 512, 16), (64, 256, 4)]])
