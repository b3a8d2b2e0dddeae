"""Kernels with tensor descriptors as `torch.compile` traces them, and the memory that Triton needs to launch them."""

from without_device import DRIVER, run_python

LOAD = """
import threading
from pathlib import Path
from unittest import mock
import torch
from attnc.compiler import import_compiled, plan_source
from attnc.files import read_pattern
module = import_compiled(plan_source(read_pattern(Path("examples/streaming.attn"))))
"""

TRACE = """
from functorch.compile import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode

graphs = []

def keep(graph, inputs):
    graphs.append(graph)
    return graph.forward

def trace(key):
    query = torch.empty(2, 4, 512, 64, dtype=torch.bfloat16, device="cuda")
    call = lambda *tensors: (module.streaming(*tensors),)
    aot_function(call, fw_compiler=keep)(query, key, key)
    nodes = [node for node in graphs.pop().graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    [node] = nodes
    assert node.kwargs["tensors_to_clone"] == ["out_ptr"], node.kwargs
    return node.kwargs["kwargs"]["DESCRIPTORS"]

whole = mock.patch("attnc.runtime.tiles.multiprocessors", lambda device: 1)  # no keys are shared
with FakeTensorMode(), torch.no_grad(), whole, mock.patch("torch.cuda.get_device_capability", lambda device: (9, 0)):
    key = torch.empty(2, 2, 512, 80, dtype=torch.bfloat16, device="cuda")
    assert trace(key.narrow(3, 0, 64)) is True
    assert trace(key.narrow(3, 8, 64)) is True
    assert trace(key.narrow(3, 1, 64)) is True  # rows that do not begin at 16 bytes are copied to where they do
"""

SCRATCH = """
from attnc.runtime.kernel_launch import launchable
from attnc.runtime.launch import start_launch
from attnc.runtime.tiles import assume_target
from triton.runtime import _allocation

half = torch.empty(1, 1, 256, 64, dtype=torch.float16, device="meta")
tables = vars(module)["_streaming_tiles"]
with assume_target("sm_90"):
    call = start_launch(half, half, half, half, None, scale=None, precision=None, tiles=tables, kernel="", base_2=True)
assert call.tiles.descriptors
kernel = vars(module)["_streaming_kernel"]
launchable(kernel, call)
launchable(kernel, call)
assert len(kernel.pre_run_hooks) == 1
found = []

def launch():
    found.append(isinstance(_allocation._allocator.get(), _allocation.NullAllocator))
    for hook in kernel.pre_run_hooks:
        hook(1, 2, name=3)
    with mock.patch("torch.empty", lambda size, **more: found.append(size)):
        _allocation._allocator.get()(256, 128, None)

for _ in range(2):
    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
assert found == [True, 256, True, 256], found
"""


def run(code):
    """Run what comes after `LOAD`, and return what is warned of."""
    return run_python(LOAD + code).stderr


def test_traced_kernels_read_by_descriptors_and_change_their_output_alone():
    assert "data pointer" not in run(DRIVER + TRACE)


def test_every_thread_gives_triton_memory_for_descriptors():
    run(SCRATCH)
