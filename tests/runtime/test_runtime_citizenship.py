"""Generated modules among PyTorch's own tools: operators' checks, compilers, copies, precision, wrappers."""

import copy
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from patterns import (
    PATTERNS,
    WITHOUT_LSE,
    attention_of,
    differentiable,
    function_of,
    inputs_for,
    module_of,
    oracle,
    outputs_and_gradients,
    tensors,
)
from torch import distributed, func, nn
from torch.utils.checkpoint import checkpoint

from attnc.runtime.load import rebuild_layer


def operators_of(name):
    operation = getattr(module_of(PATTERNS[name]), f"_{attention_of(PATTERNS[name]).name}")
    own = torch.ops.attnc
    return [getattr(own, f"{operation.operator}{suffix}") for suffix in ("", "_cpu", "_backward", "_backward_cpu")]


class Block(nn.Module):
    """Attention as models use it: projections around a pattern with a learned tensor, and dropout of weights."""

    def __init__(self, heads=4, size=8):
        super().__init__()
        self.heads, self.size = heads, size
        self.project = nn.Linear(heads * size, 3 * heads * size)
        self.attend = module_of(PATTERNS["packed"]).Packed(heads)
        self.out = nn.Linear(heads * size, heads * size)

    def forward(self, inputs, doc):
        query, key, value = self.project(inputs).unflatten(-1, (3, self.heads, self.size)).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(query, key, value, doc=doc, dropout_p=0.2, seed=5).transpose(1, 2).flatten(2))


def block_and_inputs(length=24):
    torch.manual_seed(0)
    return Block(), torch.randn(2, length, 32), torch.arange(length).expand(2, length) // 9


@pytest.mark.parametrize("name", ["packed", "sigmoid", pytest.param("weighted", marks=pytest.mark.slow)])
def test_opcheck_of_every_operator(name):
    query, key, value = tensors(B=1, H=2, G=1, N=12, M=12, D=4, E=4)
    inputs = list(inputs_for(name, query, key).values())
    forward, forward_cpu, backward, backward_cpu = operators_of(name)
    options = None, None, 0.3, torch.tensor(7)
    torch.library.opcheck(forward, (query, key, value, inputs, *options, True))
    plain = [tensor.detach() for tensor in (query, key, value)], [tensor.detach() for tensor in inputs]
    torch.library.opcheck(forward_cpu, (*plain[0], plain[1], *options, True))
    out, state = forward_cpu(*plain[0], plain[1], *options, True)
    wanted = [tensor.requires_grad for tensor in inputs]
    grad_lse = None if name in WITHOUT_LSE else torch.ones(query.shape[:3], dtype=query.dtype)
    rest = (out, state, *options, wanted)
    torch.library.opcheck(backward_cpu, (torch.ones_like(out), grad_lse, *plain[0], plain[1], *rest))
    grad_out = torch.ones_like(out).requires_grad_()
    torch.library.opcheck(backward, (grad_out, grad_lse, query, key, value, inputs, *rest))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_model_trains(dynamic):
    torch._dynamo.reset()
    block, inputs, doc = block_and_inputs()
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (24, 40) if dynamic else (24,):
        _, inputs, doc = block_and_inputs(length)
        results = []
        for model in (block, compiled):
            block.zero_grad()
            out = model(inputs, doc)
            out.sin().sum().backward()
            results.append([out.detach(), *(parameter.grad.clone() for parameter in block.parameters())])
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_compiled_transforms_are_those_of_eager_mode():
    """Dynamo traces no function with a `jvp` of its own: it leaves the graph there, and refuses `fullgraph`."""
    torch._dynamo.reset()
    query, key, value = tensors(B=1, H=2, G=1, N=6, M=6, grad=False)
    function = function_of("causal")

    def loss(value):
        return function(query, key, value).sin().sum()

    def along(value):
        return func.jvp(loss, (value,), (torch.ones_like(value),))[1]

    for transformed, given in (
        (func.grad(loss), value),
        (along, value),
        (func.vmap(loss), torch.stack([value, -value])),
    ):
        expected = transformed(given)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(torch.compile(transformed, backend="aot_eager")(given), expected)


def test_export_keeps_one_operator():
    block, inputs, doc = block_and_inputs()
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(block, (inputs, doc), dynamic_shapes=({1: length}, {1: length}))
    calls = [node for node in program.graph.nodes if node.op == "call_function" and "attnc" in str(node.target)]
    assert len(calls) == 1
    for given in ((inputs, doc), block_and_inputs(37)[1:]):
        torch.testing.assert_close(program.module()(*given), block(*given))


def test_autocast_computes_in_its_precision_as_pytorch_s_attention_does():
    query, key, value = tensors(N=40, M=40, dtype=torch.float32)
    inputs = inputs_for("packed", query, key)
    leaves = differentiable(query, key, value, inputs)
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in (query, key, value)]
    expected = outputs_and_gradients(
        lambda: function_of("packed")(*low, **inputs), [*low, *leaves[3:]], return_lse=False
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        found = outputs_and_gradients(lambda: function_of("packed")(query, key, value, **inputs), leaves, False)
        mixed = function_of("packed")(query, key.bfloat16(), value, **inputs)
        wide = function_of("packed")(query.double(), key.double(), value.double(), **inputs)
    assert found[0].dtype is theirs.dtype is mixed.dtype is torch.bfloat16
    assert wide.dtype is torch.float64
    for mine, exact, leaf in zip(found[1:], expected[1:], leaves, strict=True):
        assert mine.dtype is leaf.dtype
        assert torch.equal(mine, exact.to(leaf.dtype))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(mixed, expected[0])


@pytest.mark.parametrize("name", ["packed", "gemma", "relative", "sigmoid"])
def test_autocast_does_not_reach_inside(name):
    """float64 is left alone by autocast, so that whatever is computed within stays exact."""
    query, key, value = tensors(N=40, M=40)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)
    expected = outputs_and_gradients(lambda: function_of(name)(query, key, value, **inputs), leaves, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outputs_and_gradients(lambda: function_of(name)(query, key, value, **inputs), leaves, False)
        along = func.grad(lambda query: function_of(name)(query, key, value, **inputs).sum())(query.detach())
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
    ones = torch.autograd.grad(function_of(name)(query, key, value, **inputs).sum(), query)[0]
    torch.testing.assert_close(along, ones, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant):
    block, inputs, doc = block_and_inputs()
    inputs.requires_grad_()
    leaves = [inputs, *block.parameters()]
    expected = torch.autograd.grad(block(inputs, doc).sin().sum(), leaves)
    out = checkpoint(block, inputs, doc, use_reentrant=reentrant)
    if reentrant:  # which supports `backward` alone
        out.sin().sum().backward()
        found = [leaf.grad for leaf in leaves]
    else:
        found = torch.autograd.grad(out.sin().sum(), leaves)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_second_derivatives_inside_a_checkpoint_and_with_saved_tensors_elsewhere():
    leaves = tensors(B=1, H=2, G=1, N=9, M=9)

    def penalty(query, key, value):
        first = torch.autograd.grad(function_of("causal")(query, key, value).sin().sum(), query, create_graph=True)
        return first[0].pow(2).sum()

    expected = torch.autograd.grad(penalty(*leaves), leaves)
    with torch.autograd.graph.save_on_cpu():
        found = [torch.autograd.grad(penalty(*leaves), leaves)]
    found.append(torch.autograd.grad(checkpoint(penalty, *leaves, use_reentrant=False), leaves))
    for way in found:
        for mine, theirs in zip(way, expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_layers_are_copied_moved_and_saved(tmp_path):
    layer = module_of(PATTERNS["packed"]).Packed(4)
    with torch.no_grad():
        layer.slope.add_(0.25)
    query, key, value = tensors(N=20, M=20, dtype=torch.float32, grad=False)
    doc = inputs_for("packed", query, key)["doc"]
    expected = layer(query, key, value, doc=doc)
    fresh = module_of(PATTERNS["packed"]).Packed(4)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    assert fresh.load_state_dict(torch.load(tmp_path / "state.pt"), strict=True).missing_keys == []
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert type(other) is type(layer)
        assert torch.equal(other(query, key, value, doc=doc), expected)
    assert copy.deepcopy(layer).slope is not layer.slope
    for dtype in (torch.float16, torch.bfloat16):
        moved = copy.deepcopy(layer).half() if dtype is torch.float16 else copy.deepcopy(layer).to(dtype)
        assert moved.slope.dtype is dtype
        out = moved(query.to(dtype), key.to(dtype), value.to(dtype), doc=doc)
        assert out.dtype is dtype
        torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    assert copy.deepcopy(layer).to("meta", torch.float64).slope.device.type == "meta"
    layer.requires_grad_(False)
    assert not layer(query, key, value, doc=doc).requires_grad


UNPICKLE = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    layer = pickle.load(file)
print(layer, layer.slope.tolist())
"""


def test_a_process_that_has_not_imported_the_module_unpickles_its_layers(tmp_path):
    layer = module_of(PATTERNS["packed"]).Packed(2)
    (tmp_path / "layer.pickle").write_bytes(pickle.dumps(layer))
    command = [sys.executable, "-c", UNPICKLE, str(tmp_path / "layer.pickle")]
    environment = {**os.environ, "ATTNC_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == f"Packed(H=2) {layer.slope.tolist()}", done.stderr


def test_a_layer_whose_module_is_not_to_be_found_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path))
    (tmp_path / "other.py").write_text("raise AssertionError('this is another module')\n")
    for name, file in (("attnc_cache_gone", "gone.py"), ("attnc_module_other_0123456789abcdef", "other.py")):
        with pytest.raises(ModuleNotFoundError, match="Packed is of a compiled pattern that is neither imported here"):
            rebuild_layer(name, str(tmp_path / "elsewhere" / file), "Packed")


@pytest.fixture
def one_process(tmp_path):
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["fully_shard", "data parallel"])
def test_distributed_wrappers_train_the_same_model(wrapper, one_process):
    block, inputs, doc = block_and_inputs()
    wrapped = copy.deepcopy(block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if wrapper == "fully_shard":
            mesh = distributed.init_device_mesh("cpu", (1,))
            distributed.fsdp.fully_shard(wrapped.attend, mesh=mesh)
            distributed.fsdp.fully_shard(wrapped, mesh=mesh)
        else:
            wrapped = nn.parallel.DistributedDataParallel(wrapped)
        losses = []
        for model in (block, wrapped):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                loss = model(inputs, doc).pow(2).sum()
                loss.backward()
                optimizer.step()
            losses.append(loss.detach())
    assert torch.equal(*losses)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["streaming", "strided", "packed", "relative", "weighted", "sink", "sigmoid", "rows"])
def test_two_runs_agree_bit_by_bit_and_no_algorithm_is_refused(name, deterministic):
    query, key, value = tensors(B=2, H=4, G=2, N=70, M=70, dtype=torch.float32)
    inputs = inputs_for(name, query, key)
    leaves = differentiable(query, key, value, inputs)

    def run():
        out = function_of(name)(query, key, value, **inputs, dropout_p=0.2, seed=5)
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(part.pow(2).sum() for part in first), leaves)
        return [out, *first, *second]

    for one, two in zip(run(), run(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["packed", "strided", "weighted", "sigmoid"])
def test_outputs_are_no_views_and_may_be_changed_in_place(name):
    query, key, value = tensors(N=20, M=20, dtype=torch.float32)
    inputs = inputs_for(name, query, key)
    lse = name not in WITHOUT_LSE
    with torch.no_grad():
        found = function_of(name)(query, key, value, **inputs, return_lse=lse)
        again = function_of(name)(query, key, value, **inputs, return_lse=lse)
    for mine, theirs in zip(found if lse else (found,), again if lse else (again,), strict=True):
        assert not mine._is_view()
        assert torch.equal(mine.mul_(2.0), 2 * theirs)
    function_of(name)(query, key, value, **inputs).sum().backward()
    assert all(tensor.grad.is_contiguous() for tensor in differentiable(query, key, value, inputs))


@pytest.mark.parametrize("changed", ["query", "key", "value", "slope", "out"])
def test_changes_in_place_before_the_backward_pass_are_noticed(changed):
    query, key, value = (tensor * 1.0 for tensor in tensors(N=20, M=20))
    inputs = inputs_for("packed", query, key)
    inputs["slope"] = inputs["slope"] * 1.0
    out = function_of("packed")(query, key, value, **inputs)
    everything = {"query": query, "key": key, "value": value, "out": out, **inputs}
    with torch.no_grad():
        everything[changed].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_integers_have_no_gradient():
    query, key, value = tensors(N=20, M=20)
    inputs = inputs_for("packed", query, key)
    with pytest.raises(RuntimeError, match="floating point"):
        inputs["doc"].requires_grad_()
    out = function_of("packed")(query, key, value, **inputs)
    (none,) = torch.autograd.grad(out.sum(), [inputs["slope"]])
    assert none.shape == (4,)
    assert inputs["doc"].grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_of_another_dtype_are_taken_in_the_output_s(dtype):
    query, key, value = tensors(N=20, M=20, dtype=torch.float32)
    out = function_of("causal")(query, key, value)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = torch.autograd.grad(out, [query, key, value], grad.to(dtype), retain_graph=True)
    expected = torch.autograd.grad(out, [query, key, value], grad.float())
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype is torch.float32
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["causal", "strided", "gemma", "weighted", "rows", "sigmoid"])
def test_poison_in_a_gradient_reaches_what_its_row_sees_and_nothing_else(name, poison):
    query, key, value = tensors(B=1, H=2, G=1, N=40, M=40)
    inputs = inputs_for(name, query, key)
    leaves = [query, key, value]
    grad = torch.randn(1, 2, 40, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grad[0, 0, 20, 3] = poison
    found = torch.autograd.grad(function_of(name)(query, key, value, **inputs), leaves, grad)
    expected = torch.autograd.grad(oracle(name, query, key, value, inputs, False), leaves, grad)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine.isfinite(), theirs.isfinite())
        torch.testing.assert_close(mine[mine.isfinite()], theirs[theirs.isfinite()])


def test_functional_call_and_inference_mode():
    layer = module_of(PATTERNS["packed"]).Packed(4, dtype=torch.float64)
    query, key, value = tensors(N=20, M=20)
    doc = inputs_for("packed", query, key)["doc"]
    slope = torch.linspace(-1, 1, 4, dtype=torch.float64, requires_grad=True)
    found = func.functional_call(layer, {"slope": slope}, (query, key, value), {"doc": doc})
    expected = module_of(PATTERNS["packed"]).packed(query, key, value, doc=doc, slope=slope)
    assert torch.equal(found, expected)
    assert torch.autograd.grad(found.sin().sum(), slope)[0].abs().sum() > 0
    with torch.inference_mode():
        assert torch.equal(layer(query, key, value, doc=doc), layer(query, key, value, doc=doc))
