"""Kernels of causal scans compiled ahead of time: no spills, matrix instructions, shared memory within the target's."""

import json

import pytest
from without_device import run_python

COMPILE = """
import json, sys
import torch
from attnc.runtime.scan_aot import compile_scan
rows = []
for target, dtype, features, values, more in json.loads(sys.argv[1]):
    for report in compile_scan(target, getattr(torch, dtype), features, values, **more):
        fields = ("kernel", "target", "dtype", "registers", "spills", "shared", "shared_limit", "matrix_instructions")
        rows.append({name: getattr(report, name) for name in fields} | {"sizes": (features, values), **more})
print(json.dumps(rows))
"""

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def check_kernels(cases):
    rows = json.loads(run_python(COMPILE, json.dumps(cases)).stdout)
    assert len(rows) == 3 * len(cases)
    for row in rows:
        assert row["spills"] == 0, row
        assert row["shared"] <= row["shared_limit"], row
        assert (row["matrix_instructions"] > 0) == (row["kernel"] != "scan_walk_kernel"), row


def test_kernels_on_one_target():
    check_kernels([("sm_90", "bfloat16", 128, 65, {})])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("target", TARGETS)
def test_kernels(target, dtype):
    sizes = [(features, values) for features in (64, 128, 256) for values in (64, 128)]
    check_kernels([(target, dtype, *size, {}) for size in [*sizes, (64, 65), (33, 16)]])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_without_weights_and_from_the_end(target):
    for dtype in ("bfloat16", "float16"):
        more = [{"logs": False}, {"reverse": True}, {"chunk": 256}, {"chunk": 16}]
        check_kernels([(target, dtype, 128, 128, one) for one in more])


@pytest.mark.slow
def test_kernels_of_float32_fit():
    for target in TARGETS:
        rows = json.loads(run_python(COMPILE, json.dumps([(target, "float32", 128, 65, {})])).stdout)
        assert all(row["shared"] <= row["shared_limit"] for row in rows), rows
        assert all(row["spills"] == 0 for row in rows), rows
