"""Run the kernel in Gluon of a pattern in the emulator, and compare it with the dense definition in float64."""

import importlib.util
import itertools
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from gluon_machine import Machine

from attnc.codegen.render import render_module
from attnc.plan.choose import plan_attention
from attnc.runtime.gluon_launch import prefer_template
from attnc.runtime.tiles import assume_target
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

_count = itertools.count()
_folder = tempfile.TemporaryDirectory()


def plan_of(text, **params):
    program = check_program(parse_source(SourceFile("test.attn", text)), params=params)
    return plan_attention(program.attentions[-1])


@cache
def module_of(text):
    """Return the module of a pattern's only attention, and its source."""
    plan = plan_of(text)
    source = render_module([plan], source=SourceFile("test.attn", text), gluon=True)
    name = f"gluon_module_{next(_count)}"
    path = Path(_folder.name) / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module, source, plan.attention.name


def launched(text, tensors, out, lse, inputs=(), *, seed=0, change=lambda source: source, tiles=None, scale=None):
    """Run the launcher of a pattern for an sm_90; return the names of the kernels that it launched.

    Args:
        text: a pattern with one attention.
        tensors: query, key and value.
        out, lse: written.
        inputs: values of inputs, in the order of declaration.
        seed: of the order in which partitions go on.
        change: made to the source of the kernel.
        tiles: instead of the kernel's own.
        scale: of the call.
    """
    module, source, name = module_of(text)
    names = []

    def emulated(kernel, described):
        def run(**arguments):
            names.append(kernel.__name__)
            Machine(change(source), seed).launch(kernel.__name__, described.grid[0], arguments)

        return run

    original = vars(module)["gluon_launchable"]
    vars(module)["gluon_launchable"] = emulated
    try:
        with assume_target("sm_90", tiles, shares=1), prefer_template("gluon"):
            vars(module)[f"_{name}_launch"](*tensors, out, lse, inputs, scale, None)
    finally:
        vars(module)["gluon_launchable"] = original
    return names


def data(B=1, H=2, G=1, N=65, M=None, D=64, dtype=torch.float16, seed=0):
    """Return query, key and value, and memory for output and log-sum-exp that is poisoned."""
    M = N if M is None else M
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, H, N, D), (B, G, M, D), (B, G, M, D)]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    out = torch.full((B, H, N, D), float("nan"), dtype=dtype)
    return tensors, out, torch.full((B, H, N), float("nan"))


def check(text, tensors, out, lse, inputs=None, *, tolerance=4e-3, **options):
    """Run the kernel and compare output and log-sum-exp with the reference."""
    module, _, name = module_of(text)
    inputs = inputs or {}
    names = launched(text, tensors, out, lse, tuple(inputs.values()), **options)
    assert names == [f"_{name}_gluon_kernel"]
    wide = [tensor.double() for tensor in tensors]
    scale = {"scale": options["scale"]} if options.get("scale") is not None else {}
    expected, expected_lse = vars(module)[f"{name}_reference"](*wide, return_lse=True, **inputs, **scale)
    assert torch.equal(out.isnan(), expected.isnan())
    size = expected.nan_to_num(0, 0, 0).abs().max().item() + 1e-6
    torch.testing.assert_close(out.double(), expected, atol=tolerance * max(size, 0.25), rtol=0, equal_nan=True)
    torch.testing.assert_close(lse.double(), expected_lse.double(), atol=2e-3, rtol=1e-4, equal_nan=True)
