"""Forward and backward passes as `torch.compile` traces them for a device: whole graphs of kernels."""

import json

import pytest
from without_device import DRIVER, ROOT, run_python

EXAMPLES = sorted((ROOT / "examples").glob("*.attn"))

TRACE = """
import contextlib, json, sys
from pathlib import Path
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from attnc.compiler import import_compiled, plan_source
from attnc.files import read_pattern
from attnc.runtime.pairs import Sizes
from attnc.runtime import gpu_library
from attnc.runtime.tiles import assume_target
from attnc.runtime.tuned import LibraryCall, try_tiles

SIZES = Sizes(B=2, H=4, N=192, M=192, D=64, g=2, value_size=64)
DTYPES = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
graphs = []

def kernels(graph):
    nodes = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    names = [kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__name__ for node in nodes]
    called = [str(node.target) for node in graph.graph.nodes if "_flash_attention" in str(node.target)]
    return [*zip(names, [node.kwargs["tensors_to_clone"] for node in nodes]), *[(name, []) for name in called]]

def keep(graph, inputs):
    # what a device would compile is kept, and zeros are returned in its place
    graphs.append(kernels(graph))
    (output,) = graph.graph.find_nodes(op="output")
    hint = lambda size: size.node.hint if isinstance(size, torch.SymInt) else size
    def zeros(node):
        result = node.meta["val"] if isinstance(node, torch.fx.Node) else node
        if not isinstance(result, torch.Tensor):
            return hint(result)
        return torch.zeros([hint(size) for size in result.shape], dtype=result.dtype)
    return make_boxed_func(lambda *args: [zeros(node) for node in output.args[0]])

def stand_in(tensor):
    if not tensor.dims:
        return 0.5 if tensor.type == "float" else 7
    shape = [64 if dim is None else int(dim(SIZES)) for dim in tensor.dims]
    made = torch.zeros(shape, dtype=DTYPES[tensor.type])
    return made.requires_grad_(made.is_floating_point())

def head(count):
    return torch.empty(2, count, 192, 64, dtype=torch.bfloat16, requires_grad=True)

def library(program):
    # what is said to be faster by the library
    if sys.argv[3] == "kernels":
        return contextlib.nullcontext()
    gpu_library.runs_flash_attention = lambda device: True
    names = [gpu_library.library_name(program, backward=way, part=True) for way in (False, True)]
    return try_tiles(dict.fromkeys(names, LibraryCall()))

compiled = plan_source(read_pattern(Path(sys.argv[1])))
module = import_compiled(compiled)
vars(module)["launchable"] = lambda kernel, call: torch.library.wrap_triton(kernel)
found = {}
for plan in compiled.plans:
    name = plan.attention.name
    inputs = {tensor.name: stand_in(tensor) for tensor in vars(module)[f"_{name}_program"].tensors}
    graphs.clear()
    torch.compiler.reset()
    with assume_target("sm_90"):
        backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
        attend = vars(module)[name]
        call = torch.compile(attend, backend=backend, fullgraph=True, dynamic=sys.argv[2] == "dynamic")
        with library(vars(module)[f"_{name}_program"]):
            call(head(4), head(2), head(2), **inputs).sum().backward()
    found[name] = list(graphs)
print(json.dumps(found))
"""


def trace(path, shapes, by="kernels"):
    """Trace in a process of its own, as this one interprets its kernels; CPU tensors stand for those of a device."""
    code, environment = DRIVER + TRACE, {"ATTNC_TARGET": "triton", "TRITON_DEFAULT_FP_FUSION": "1"}
    return json.loads(run_python(code, str(path), shapes, by, **environment).stdout)


def check(found):
    """Check that both graphs of each attention launch its kernels, and that no kernel changes anything else."""
    for forward, backward in found.values():
        assert all("out_ptr" in changed or "part_out_ptr" in changed for _, changed in forward)
        changed = [name for _, names in backward for name in names]
        assert {"grad_query_ptr", "grad_key_ptr", "grad_value_ptr"} <= set(changed)
        assert all(name.startswith(("grad_", "d_", "strip_")) for name in changed)


def test_gradients_of_a_pattern_are_traced_with_dynamic_shapes():
    found = trace(ROOT / "examples" / "streaming.attn", "dynamic")
    assert list(found) == ["streaming"]
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("shapes", ["static", "dynamic"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_gradients_of_every_example_are_traced(path, shapes):
    check(trace(path, shapes))


@pytest.mark.slow
@pytest.mark.parametrize("shapes", ["static", "dynamic"])
def test_a_library_s_part_is_traced_with_the_kernels_of_the_other_passes(shapes):
    found = trace(ROOT / "tools" / "gpu_patterns" / "split_sinks.attn", shapes, "library")
    forward, backward = ([name for name, _ in graph] for graph in found["split_sinks"])
    assert forward == ["_split_sinks_beside_pass_2_kernel", "aten._flash_attention_forward.default"]
    assert backward == [
        "_split_sinks_beside_pass_2_query_gradient_kernel", "_split_sinks_beside_pass_2_key_gradient_kernel",
        "aten._flash_attention_backward.default",
    ]  # fmt: skip
