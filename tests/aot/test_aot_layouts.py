"""Kernels of several passes, in residue order and in runs, compiled ahead of time."""

import json

import pytest
from without_device import DRIVER, run_python

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

PATTERNS = {
    "residue": {"causal and (i - j) % 64 == 0": "residue(64)"},
    "dilated": {"dilated(64, 16)": "residue(16)"},
    "strided": {
        "causal and i - j < 128": "PLAIN",
        "causal and i - j >= 128 and (i - j) % 128 == 0": "residue(128)",
    },
    "long_stride": {
        "causal and i - j < 256": "PLAIN",
        "causal and i - j >= 256 and (i - j) % 256 == 0": "residue(256)",
    },
    "fixed": {
        "causal and i // 128 == j // 128": "PLAIN",
        "j <= i and i // 128 != j // 128 and j % 128 >= 120": "Layout(IDENTITY, runs(128, 120, 8))",
    },
    "rows": {
        "i % 128 == 0": "Layout(runs(128, 0, 1), IDENTITY)",
        "i % 128 != 0 and abs(i - j) < 100": "PLAIN",
    },
}
"""Masks by pass, with their layouts. A call of 4096 queries has classes of 16, 32, 64 and 256 rows."""

COMPILE = """
import importlib.util, json, sys
import torch
from attnc.algebra.coordinates import IDENTITY, PLAIN, Layout, residue, runs
from attnc.codegen.render import render_module
from attnc.plan.choose import plan_attention, with_passes
from attnc.runtime.aot import compile_kernels
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

parts, statements, folder, targets, head_sizes, dtypes = json.loads(sys.argv[1])

def plan_of(mask):
    source = SourceFile("pattern.attn", f"attention foo {{ {statements} mask {mask} }}")
    return plan_attention(check_program(parse_source(source), params={}).attentions[0])

whole = plan_of(" or ".join(f"({mask})" for mask in parts))
plan = with_passes(whole, [(plan_of(mask).attention.mask, eval(layout)) for mask, layout in parts.items()])
path = folder + "/generated.py"
open(path, "w").write(render_module([plan]))
spec = importlib.util.spec_from_file_location("generated", path)
module = importlib.util.module_from_spec(spec)
sys.modules["generated"] = module
spec.loader.exec_module(module)
fields = ("kernel", "registers", "spills", "shared", "shared_limit", "matrix_instructions", "dtype", "target", "joined")
for target in targets:
    for size in head_sizes:
        for dtype in dtypes:
            for report in compile_kernels(module, target, getattr(torch, dtype), size):
                print(json.dumps({"head_size": size, **{f: getattr(report, f) for f in fields}}))
"""


TRACE = (
    COMPILE[: COMPILE.index("fields = ")]
    + DRIVER
    + """
from unittest import mock
from functorch.compile import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode

def keep(graph, inputs):
    for node in graph.graph.nodes:
        if "triton_kernel_wrapper" in str(node.target):
            print(json.dumps(node.kwargs["tensors_to_clone"]))
        else:
            assert not any(word in str(node.target) for word in ("clone", "copy", "contiguous")), node
    return graph.forward

class Properties:
    multi_processor_count = 132

capability = mock.patch("torch.cuda.get_device_capability", lambda device: (9, 0))
properties = mock.patch("torch.cuda.get_device_properties", lambda device: Properties)
with FakeTensorMode(), torch.no_grad(), capability, properties:
    query = torch.empty(2, 4, 512, 64, dtype=torch.bfloat16, device="cuda")
    aot_function(lambda *tensors: (module.foo(*tensors),), fw_compiler=keep)(query, query, query)
"""
)


def compile_parts(parts, folder, targets=TARGETS, head_sizes=(128,), dtypes=("bfloat16",), statements=""):
    """Compile in a process of its own: this one interprets its kernels."""
    return run_lines(COMPILE, folder, [parts, statements, str(folder), targets, head_sizes, dtypes])


def run_lines(code, folder, arguments):
    """Run a process and return what it prints, a JSON value per line."""
    result = run_python(code, json.dumps(arguments), TRITON_CACHE_DIR=str(folder / "cache"))
    return [json.loads(line) for line in result.stdout.splitlines()]


def check_report(report):
    assert report["spills"] == 0, report
    assert report["matrix_instructions"] > 0 or report["joined"], report
    assert report["shared"] <= report["shared_limit"], report


@pytest.mark.parametrize("name", ["fixed", pytest.param("strided", marks=pytest.mark.slow)])
def test_kernels_on_hopper(name, tmp_path):
    reports = compile_parts(PATTERNS[name], tmp_path, targets=("sm_90",))
    expected = ["_foo_kernel"] if name == "fixed" else ["_foo_residue_128_kernel", "_foo_kernel"]
    assert [report["kernel"] for report in reports] == expected
    for report in reports:
        check_report(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_kernels_on_every_target(name, tmp_path):
    for report in compile_parts(PATTERNS[name], tmp_path, head_sizes=(64, 128, 256)):
        check_report(report)


@pytest.mark.slow
@pytest.mark.parametrize("statements", ["score s + alibi;", "normalize sigmoid(bias = -log(M));"])
@pytest.mark.parametrize("name", ["residue", "strided", "fixed"])
def test_scores_and_normalizers(name, statements, tmp_path):
    for report in compile_parts(PATTERNS[name], tmp_path, statements=statements):
        check_report(report)


def test_traced_kernels_change_what_they_keep_and_their_output_alone(tmp_path):
    changed = run_lines(TRACE, tmp_path, [PATTERNS["strided"], "", str(tmp_path), [], [], []])
    left = ["part_out_ptr", "part_m_ptr", "part_l_ptr"]
    assert changed == [["kept_out_ptr", "kept_m_ptr", "kept_l_ptr"], left, ["out_ptr"]]
