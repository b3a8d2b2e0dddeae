"""Kernels in Gluon compiled ahead of time for sm_90: no spills, wgmma, copies by descriptors, and what overlaps."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from without_device import ROOT, run_python

from attnc.codegen.gluon_view import unsuitable_for_gluon
from attnc.compiler import plan_source
from attnc.files import read_pattern

COMPILE = """
import importlib.util, json, re, subprocess, sys
import torch, triton
from pathlib import Path
from attnc.compiler import compile
from attnc.runtime.aot import compile_kernels

pattern, folder, sizes, dtypes = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
def instructions(binary):
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    text = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"/\\*[0-9a-f]{4,}\\*/\\s+(?:@!?U?P\\w+\\s+)?([A-Z][\\w.]*)", text)

path = compile(pattern, out=folder / "generated.py", template="gluon")
spec = importlib.util.spec_from_file_location("generated", path)
module = importlib.util.module_from_spec(spec)
sys.modules["generated"] = module
spec.loader.exec_module(module)
for size in sizes:
    for dtype in dtypes:
        for report in compile_kernels(module, "sm_90", getattr(torch, dtype), size, template="gluon"):
            fields = ("kernel", "identity", "registers", "spills", "shared", "shared_limit", "is_clean")
            row = {field: getattr(report, field) for field in fields}
            row["copies"] = report.assembly.count("cp.async.bulk.tensor")
            row["products"] = report.assembly.count("wgmma.mma_async")
            row["names"] = instructions(report.binary)
            print(json.dumps(row))
"""


def compiled(path, folder, sizes, dtypes=("bfloat16",)):
    result = run_python(COMPILE, str(path), str(folder), json.dumps(sizes), json.dumps(dtypes))
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def check_report(row):
    assert row["kernel"].endswith("_gluon_kernel"), row["kernel"]
    assert row["identity"].endswith(" gluon")
    assert row["is_clean"], row
    assert row["spills"] == 0
    assert row["shared"] <= 227 * 1024
    # 384 threads share the registers of a multiprocessor; setmaxnreg divides them up
    assert row["registers"] <= 65536 // 384
    assert row["copies"] >= 4
    assert row["products"] >= 8


def overlapped(names):
    """Return for each stretch of code with products of two kinds under way how many exponentials are taken in it.

    A wait that lets one of two groups of products go on is followed by one for the last: what stands between them is
    executed while the sums of the tile before are computed.
    """
    waits = [place for place, name in enumerate(names) if name.startswith("WARPGROUP.DEPBAR")]
    exponentials = [0] * len(names)
    for place, name in enumerate(names):
        exponentials[place] = exponentials[place - 1] + name.startswith("MUFU.EX2") if place else 0
    products = [place for place, name in enumerate(names) if name.startswith("HGMMA")]
    found = []
    for first, second in pairwise(waits):
        if not any(first < place < second for place in products):
            found.append(exponentials[second] - exponentials[first])
    return found


def test_a_causal_kernel(tmp_path):
    (row,) = compiled(ROOT / "attnc" / "bench" / "patterns" / "causal.attn", tmp_path, [128])
    check_report(row)
    # two groups of warps with two loops each: 64 weights of a thread, and a factor of two rows
    steady = [count for count in overlapped(row["names"]) if count]
    assert steady == [66] * 4


EXAMPLES = [
    path
    for path in sorted((ROOT / "examples").glob("*.attn"))
    if path.stem not in ("bigbird", "dilated", "neighborhood", "sigmoid", "sparse_transformer")
]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_examples(path, tmp_path):
    rows = compiled(path, tmp_path, [64, 128], ["bfloat16", "float16"])
    assert len(rows) == 4
    for row in rows:
        check_report(row)


def test_examples_that_are_left_out_are_unsuitable():
    for path in set((ROOT / "examples").glob("*.attn")) - set(EXAMPLES):
        assert any(unsuitable_for_gluon(plan) for plan in plan_source(read_pattern(Path(path))).plans)
