"""Fused kernels of bilinear schemes, compiled ahead of time with the tiles that they are launched with."""

import json

import pytest
from without_device import run_python

COMPILE = """
import importlib.util, json, sys, torch
from attnc.codegen.render_scheme import render_scheme_module
from attnc.runtime.aot import Recorded, compile_recorded
from attnc.runtime.tiles import assume_target
from attnc.schemes import scheme_named

name, targets, dtypes, folder, count = sys.argv[1:]
path = f"{folder}/generated.py"
open(path, "w").write(render_scheme_module(scheme_named(name, 1).scheme, "SCHEME"))
spec = importlib.util.spec_from_file_location("generated", path)
module = importlib.util.module_from_spec(spec)
sys.modules["generated"] = module
spec.loader.exec_module(module)
found = []
for target in targets.split(","):
    for dtype in dtypes.split(","):
        a = torch.empty(2, 4096, 4096, dtype=getattr(torch, dtype), device="meta")
        for fused in module.SCHEME.fused[: int(count)]:
            with assume_target(target):
                arguments = fused.arguments(a, a, a, "ieee")
            report = compile_recorded(Recorded(fused.kernel, "", arguments), target, a.dtype)
            found.append({f: getattr(report, f) for f in ("name", "target", "dtype", "registers", "spills", "shared")})
            found[-1] |= {"fits": report.fits, "matrix": report.matrix_instructions}
print(json.dumps(found))
"""


def compiled(tmp_path, name, targets, dtypes, count=3):
    """Compile the kernel of a product, and `count - 1` of gradients."""
    arguments = name, targets, dtypes, str(tmp_path), str(count)
    done = run_python(COMPILE, *arguments, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kernel_of_strassen_on_hopper(tmp_path):
    (report,) = compiled(tmp_path, "strassen", "sm_90", "bfloat16", 1)
    assert report["fits"], report
    assert report["spills"] == 0, report
    assert report["matrix"] >= 7, report


@pytest.mark.slow
@pytest.mark.parametrize("name", ["strassen", "winograd"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_do_not_spill(tmp_path, name, target):
    for report in compiled(tmp_path, name, target, "bfloat16,float16,float32"):
        assert report["fits"], report
        assert report["spills"] == 0, report
        assert report["matrix"] >= 7 or report["dtype"] == "float32", report


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_of_several_walks_compile(tmp_path, target):
    reports = compiled(tmp_path, "laderman", target, "bfloat16,float32")
    assert len(reports) == 6
    assert all(report["fits"] for report in reports)
