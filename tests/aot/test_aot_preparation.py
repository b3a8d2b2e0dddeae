"""The kernel that prepares queries and keys, compiled ahead of time: no spills on any target."""

import json

import pytest
from without_device import run_python

COMPILE = """
import json, sys
import torch
from attnc.runtime.preparation_aot import compile_preparation
rows = []
for target, dtype, size, more in json.loads(sys.argv[1]):
    report = compile_preparation(target, getattr(torch, dtype), size, **more)
    rows.append([target, dtype, size, more, report.spills, report.registers])
print(json.dumps(rows))
"""

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def check(cases):
    rows = json.loads(run_python(COMPILE, json.dumps(cases)).stdout)
    assert len(rows) == len(cases)
    for row in rows:
        assert row[4] == 0, row


def test_kernels_on_one_target():
    check([("sm_90", "bfloat16", 128, {"norm": "rms", "backward": backward}) for backward in (False, True)])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_kernels(target):
    chains = [{"norm": norm, "turned": turned} for norm, turned in (("", True), ("unit", False), ("rms", True))]
    sizes = [("bfloat16", 64), ("float16", 128), ("float32", 128), ("bfloat16", 256), ("bfloat16", 80)]
    ways = [chain | {"backward": backward} for chain in chains for backward in (False, True)]
    check([(target, *size, way) for size in sizes for way in ways])
