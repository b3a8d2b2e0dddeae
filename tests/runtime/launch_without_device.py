"""Run calls on CPU tensors with Triton's launcher for sm_90, under a driver that only keeps what it is told.

Started by `test_runtime_call_plans`, in a process in which Triton does not interpret kernels.
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

import attnc  # noqa: E402
from attnc.runtime import call_recorder  # noqa: E402
from attnc.runtime.tiles import assume_target  # noqa: E402

use_idle_driver()
launched, direct = keep_launches(), []
module = attnc.loads("attention causal {\n    mask causal\n}\n")


def watch(compiled, original=call_recorder._is_direct):
    direct.append(original(compiled))
    return direct[-1]


call_recorder._is_direct = watch


def call():
    """Return what a forward and a backward pass launch."""
    launched.clear()
    out = module.causal(*given, scale=0.25)
    torch.autograd.grad(out, given, upstream)
    return [tuple(describe(one) for one in launch) for launch in launched]


def describe(argument):
    """Tell memory of the call's own, which is another one in each call, by its type and alignment."""
    if not isinstance(argument, torch.Tensor):
        return argument
    own = [number for number, tensor in enumerate((*given, upstream)) if tensor.data_ptr() == argument.data_ptr()]
    return argument.dtype, argument.shape, argument.stride(), argument.data_ptr() % 16, own


launches = 0
with assume_target("sm_90"):
    for queries in (1, 40):
        given = [torch.randn(2, heads, queries, 64, dtype=torch.float16).requires_grad_() for heads in (4, 2, 2)]
        upstream = torch.randn(2, 4, queries, 64, dtype=torch.float16)
        found = [call() for _ in range(4)]
        assert all(one == found[0] for one in found), found
        launches += len(found[0])
print(f"{launches} launches agree, {sum(direct)} direct")
