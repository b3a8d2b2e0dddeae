"""Generated modules as PyTorch's own: compiled, checkpointed, exported, copied, sharded, autocast, deterministic."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from patterns import PATTERNS, WITHOUT_LSE, attention_of, function_of, inputs_for, module_of, tensors
from torch.utils.checkpoint import checkpoint

SIZES = {"B": 2, "H": 4, "G": 2, "N": 40, "M": 40, "D": 8, "E": 8}


def layer(H=4):
    return module_of(PATTERNS["packed"]).Packed(H=H)


def packed_arguments(dtype=torch.float32, grad=True):
    query, key, value = tensors(**SIZES, dtype=dtype, grad=grad)
    doc = torch.arange(40).div(15, rounding_mode="floor").expand(2, 40).contiguous()
    return (query, key, value), {"doc": doc}


@pytest.mark.parametrize(
    "name", ["packed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("streaming", "sigmoid", "weighted"))]
)
def test_opcheck_of_the_backward_operator(name):
    query, key, value = tensors(B=1, H=2, G=1, N=12, M=12, D=4, E=4)
    inputs = list(inputs_for(name, query, key).values())
    operation = getattr(module_of(PATTERNS[name]), f"_{attention_of(PATTERNS[name]).name}")
    forward = getattr(torch.ops.attnc, operation.operator)
    backward = getattr(torch.ops.attnc, f"{operation.operator}_backward")
    out, state = forward(query, key, value, inputs, None, None, 0.0, None, True)
    grad_lse = torch.randn(query.shape[:3], dtype=query.dtype) if name not in WITHOUT_LSE else None
    wanted = [given.is_floating_point() for given in inputs]
    given = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in (query, key, value)]
    torch.library.opcheck(
        backward,
        (torch.randn_like(out), grad_lse, *given, inputs, out.detach(), state.detach(), None, None, 0.0, None, wanted),
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["streaming", "packed"])
def test_torch_compile_takes_forward_and_backward(name, dynamic):
    query, key, value = tensors(**SIZES, dtype=torch.float32)
    inputs, function = inputs_for(name, query, key), function_of(name)

    def loss(query, key, value):
        return function(query, key, value, **inputs, dropout_p=0.2, seed=3).square().sum()

    expected = torch.autograd.grad(loss(query, key, value), (query, key, value))
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found = torch.autograd.grad(compiled(query, key, value), (query, key, value))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_autocast_multiplies_in_the_precision_of_its_tensors():
    (query, key, value), inputs = packed_arguments(grad=False)
    linear = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer()(linear(query), linear(key), linear(value), **inputs)
        out.float().sum().backward()
    assert out.dtype is torch.bfloat16
    assert linear.weight.grad.isfinite().all()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    tensors_, inputs = packed_arguments()
    module = layer()

    def run(*given):
        return module(*given, **inputs, dropout_p=0.1, seed=5)

    expected = torch.autograd.grad(run(*tensors_).square().sum(), tensors_)
    out = checkpoint(run, *tensors_, use_reentrant=use_reentrant)
    out.square().sum().backward()
    for tensor, theirs in zip(tensors_, expected, strict=True):
        assert torch.equal(tensor.grad, theirs)


def test_export():
    given, inputs = packed_arguments(grad=False)
    module = layer()
    program = torch.export.export(module, given, inputs)
    torch.testing.assert_close(program.module()(*given, **inputs), module(*given, **inputs))


def test_copies_and_states(tmp_path):
    given, inputs = packed_arguments(grad=False)
    module = layer()
    with torch.no_grad():
        module.slope.add_(0.1)
    expected = module(*given, **inputs)
    assert torch.equal(copy.deepcopy(module)(*given, **inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(*given, **inputs), expected)
    other = layer()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(*given, **inputs), expected)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = layer()
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(other(*given, **inputs), expected)
    assert torch.equal(torch.func.functional_call(layer(), module.state_dict(), given, inputs), expected)


def test_to_and_half():
    (query, key, value), inputs = packed_arguments(grad=False)
    module = layer()
    expected = module(query, key, value, **inputs)
    assert module.to(torch.float64).slope.dtype is torch.float64
    found = module(query.double(), key.double(), value.double(), **inputs)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)
    assert module.half().slope.dtype is torch.float16
    found = module(query.half(), key.half(), value.half(), **inputs)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_fully_sharded_data_parallel(tmp_path):
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    if not distributed.is_available():
        pytest.skip("torch has no distributed package here")
    path = Path(tmp_path) / "store"
    distributed.init_process_group("gloo", store=distributed.FileStore(str(path), 1), rank=0, world_size=1)
    try:
        given, inputs = packed_arguments()
        module = layer()
        plain = copy.deepcopy(module)
        plain(*given, **inputs).square().sum().backward()
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        sharded = fully_shard(module, mesh=mesh)
        sharded(*given, **inputs).square().sum().backward()
        torch.testing.assert_close(sharded.slope.grad.full_tensor(), plain.slope.grad)
    finally:
        distributed.destroy_process_group()


def test_deterministic_algorithms_and_equal_runs():
    given, inputs = packed_arguments()
    module = layer()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(module(*given, **inputs).square().sum(), (*given, module.slope)) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_changes_in_place_between_forward_and_backward_are_noticed():
    query, key, value = tensors(**SIZES)
    moved = key.clone()
    out = function_of("causal")(query, moved, value)
    moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_integers_have_no_gradient():
    with pytest.raises(RuntimeError, match="floating point"):
        torch.arange(3).requires_grad_()
    given, inputs = packed_arguments()
    inputs["doc"] = inputs["doc"].float()
    with pytest.raises(ValueError, match="doc is float32"):
        layer()(*given, **inputs)


def test_gradients_of_a_wrong_dtype_are_refused():
    query, key, value = tensors(**SIZES, dtype=torch.float32)
    out = function_of("causal")(query, key, value)
    found = torch.autograd.grad(out, query, torch.ones_like(out, dtype=torch.float64), retain_graph=True)[0]
    assert found.dtype is torch.float32
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        torch.autograd.grad(out, query, torch.ones(3))


def test_rows_without_keys_have_no_gradient():
    query, key, value = tensors(B=1, H=2, G=1, N=12, M=8)
    out, lse = function_of("causal")(query, key, value, return_lse=True)
    grads = torch.autograd.grad([out, torch.where(lse.isfinite(), lse, 0.0)], (query, key, value),
                                [torch.ones_like(out), torch.ones_like(lse)])  # fmt: skip
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][:, :, :4].any()
    assert torch.equal(lse[:, :, :4], torch.full_like(lse[:, :, :4], -torch.inf))
