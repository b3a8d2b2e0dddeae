"""Run calls on CPU tensors with Triton's launcher for sm_90, under a driver that only keeps what it is told.

Started by `test_runtime_call_plans` with the path of a pattern, in a process in which Triton interprets no kernel.
"""

import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
os.environ |= {"ATTNC_TARGET": "triton", "ATTNC_PINNED": "1"}
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import torch  # noqa: E402
from idle_driver import keep_launches, use_idle_driver  # noqa: E402

from attnc.compiler import import_compiled, plan_source  # noqa: E402
from attnc.files import read_pattern  # noqa: E402
from attnc.runtime import call_recorder  # noqa: E402
from attnc.runtime.pairs import Sizes  # noqa: E402
from attnc.runtime.tiles import assume_target  # noqa: E402

DTYPES = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}

use_idle_driver()
launched, direct = keep_launches(), []


def watch(compiled, original=call_recorder._is_direct):
    direct.append(original(compiled))
    return direct[-1]


call_recorder._is_direct = watch


def make(program, sizes):
    """Return query, key and value, and the pattern's own tensors."""
    shapes = [(sizes.H, sizes.N), (sizes.kv_heads, sizes.M), (sizes.kv_heads, sizes.M)]
    given = [torch.randn(sizes.B, *shape, sizes.D, dtype=torch.float16).requires_grad_() for shape in shapes]
    inputs = {}
    for tensor in program.tensors:
        shape = [8 if dim is None else int(dim(sizes)) for dim in tensor.dims]
        made = torch.ones(shape, dtype=DTYPES[tensor.type])
        inputs[tensor.name] = made.requires_grad_(made.is_floating_point())
    return given, inputs


def call(function, given, inputs):
    """Return what a forward and a backward pass launch."""
    launched.clear()
    out = function(*given, **inputs, scale=0.25)
    leaves = [*given, *(one for one in inputs.values() if one.requires_grad)]
    upstream = torch.ones_like(out)
    torch.autograd.grad(out, leaves, upstream, allow_unused=True)
    known = [*given, *inputs.values()]
    return [tuple(describe(one, known) for one in launch) for launch in launched]


def describe(argument, known):
    """Tell memory of the call's own, which is another one in each call, by its type and alignment."""
    if not isinstance(argument, torch.Tensor):
        return argument
    own = [number for number, tensor in enumerate(known) if tensor.data_ptr() == argument.data_ptr()]
    return argument.dtype, argument.data_ptr() % 16, own


launches = 0
compiled = plan_source(read_pattern(Path(sys.argv[1])))
module = import_compiled(compiled)
with assume_target("sm_90"):
    for plan in compiled.plans:
        name = plan.attention.name
        for queries, keys in ((1, 40), (40, 40)):
            sizes = Sizes(B=2, H=4, N=queries, M=keys, D=64, g=2, value_size=64)
            given, inputs = make(vars(module)[f"_{name}_program"], sizes)
            found = [call(getattr(module, name), given, inputs) for _ in range(4)]
            assert all(one == found[0] for one in found), found
            launches += len(found[0])
print(f"{launches} launches agree, {sum(direct)} direct")
