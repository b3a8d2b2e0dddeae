"""Compile a pattern to a module that holds its Triton kernel and nothing else, and run it in the interpreter."""

import importlib.util
import itertools
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import jinja2
import torch

from attnc.codegen.launch_view import launch_views
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import SizeName
from attnc.ir.program import NormalizeKind
from attnc.ir.types import Type
from attnc.plan.choose import plan_attention
from attnc.reference.dense import reference
from attnc.resources import templates_directory
from attnc.runtime.tiles import assume_target
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

HEADER = """from attnc.runtime.kernel_loads import *
from attnc.runtime.kernel_math import *
from attnc.runtime.kernel_launch import *
from attnc.runtime.launch import *
from attnc.runtime.tiles import Tiles
from attnc.runtime.summaries import with_summaries
from attnc.runtime.row_orders import GridRows, RowOrder


"""
_count = itertools.count()
_folder = tempfile.TemporaryDirectory()


def plan_text(text, *, every=False, **params):
    """Return the plan of the last attention of a pattern, or of each."""
    plans = _plans(text, tuple(params.items()))
    return list(plans) if every else plans[-1]


@cache
def _plans(text, params):
    program = check_program(parse_source(SourceFile("test.attn", text)), params=dict(params))
    return [plan_attention(attention) for attention in program.attentions]


def render_kernel(plan):
    return _templates().get_template("launcher.py.jinja").render(launch=launch_views(plan)[0])


@cache
def _templates():
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_directory()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def load_kernel(plan):
    path = Path(_folder.name) / f"kernel_{next(_count)}.py"
    path.write_text(HEADER + render_kernel(plan))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def run_kernel(module, plan, query, key, value, inputs=None, *, scale=None, precision=None, lse=True):
    """Run a kernel on outputs that are NaN before."""
    inputs = inputs or {}
    batch, heads, queries, _ = query.shape
    out = torch.full((batch, heads, queries, value.shape[3]), float("nan"), dtype=query.dtype)
    softmax = plan.attention.normalize.kind is NormalizeKind.SOFTMAX
    parts = () if plan.attention.weight is None else (2,)
    row_sums = torch.full((*parts, batch, heads, queries), float("nan")) if lse and softmax else None
    given = tuple(inputs[tensor.name] for tensor in plan.attention.tensors)
    launch = getattr(module, f"_{plan.attention.name}_launch")
    launch(query, key, value, out, row_sums, given, scale, precision)
    return out, row_sums[0] + row_sums[1].log() if parts and row_sums is not None else row_sums


def tensors(batch, heads, kv_heads, queries, keys, head_size, value_size=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def sample(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return (
        sample(batch, heads, queries, head_size),
        sample(batch, kv_heads, keys, head_size),
        sample(batch, kv_heads, keys, value_size or head_size),
    )


def sample_inputs(attention, query, key, seed=1):
    """Return random values for inputs and learned tensors."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, queries, head_size = query.shape
    keys = key.shape[2]
    sizes = {"B": batch, "H": heads, "N": queries, "M": keys, "D": head_size, "g": heads // key.shape[1]}
    env = Environment(sizes={name: sizes[name.value] for name in SizeName})
    found = {}
    for tensor in attention.tensors:
        shape = [7 if dim is None else evaluate(dim, env) for dim in tensor.dims]
        match tensor.type:
            case Type.INT:
                table = torch.randint(0, 4 if tensor.sorted else keys + 3, shape, generator=generator)
                found[tensor.name] = table.sort(-1).values if tensor.sorted else table
            case Type.BOOL:
                found[tensor.name] = torch.rand(shape, generator=generator) < 0.5
            case _:
                found[tensor.name] = torch.rand(shape, generator=generator)
    return found


def check_kernel(plan, query, key, value, inputs=None, *, scale=None, module=None):
    """Compare a kernel with the dense reference in float64; return its output."""
    inputs = inputs or {}
    out, lse = run_kernel(module or load_kernel(plan), plan, query, key, value, inputs, scale=scale)
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    softmax = plan.attention.normalize.kind is NormalizeKind.SOFTMAX
    doubles = (tensor.double() for tensor in (query, key, value))
    # keys are shortened before kernels see them
    plain = tuple(one for one in plan.attention.deferred if one.statement != "keys")
    attention = replace(plan.attention, deferred=plain)
    expected = reference(attention, *doubles, wide, scale=scale, return_lse=softmax)
    expected_out, expected_lse = expected if softmax else (expected, None)
    tolerance = {torch.float32: 3e-5, torch.float16: 4e-3}[query.dtype]
    finite = expected_out[expected_out.isfinite()]
    size = max(1.0, finite.abs().max().item() if finite.numel() else 1.0)
    torch.testing.assert_close(out.double(), expected_out, rtol=tolerance, atol=tolerance * size, equal_nan=True)
    if expected_lse is not None and plan.scoring.dropped is None:
        torch.testing.assert_close(lse.double(), expected_lse.double(), rtol=1e-4, atol=1e-4, equal_nan=True)
    return out


@cache
def loaded(statements):
    """Return the plan and the module of an attention's statements."""
    plan = plan_text(f"attention foo {{ {statements} }}")
    return plan, load_kernel(plan)


def check_statements(statements, sizes, tiles, *, shares=1, poisoned=False, scale=None, **more):
    """Check the kernel of an attention's statements with tiles, at sizes (N, M), values poisoned or not."""
    plan, module = loaded(statements)
    query, key, value = tensors(2, 2, 1, *sizes, 16, **more)
    if poisoned:
        value[:, :, sizes[1] // 2, 3] = float("nan")
        value[:, :, sizes[1] // 3, 5:7] = float("inf")
    inputs = sample_inputs(plan.attention, query, key)
    with assume_target("cpu", tiles, shares=shares):
        return check_kernel(plan, query, key, value, inputs, scale=scale, module=module)
