"""Calls without the dispatcher: the same numbers as the operator's, and the operator wherever somebody watches."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import attnc
from attnc.runtime import direct, ops

CAUSAL = "attention causal {\n    mask causal\n}\n"
FULL = "attention full {\n}\n"
BIASED = "attention biased {\n    learned slope: float[H] = 1.0\n    mask causal\n    score s - slope[h] * (i - j)\n}\n"


def module_and_name(text):
    return attnc.loads(text), text.split()[1]


def make(n=40, m=40, heads=(4, 4), dtype=torch.float32, size=16, value_size=None):
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, heads[0], n, size), (2, heads[1], m, size), (2, heads[1], m, value_size or size)]
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def both_ways(call, tensors):
    out, lse = call(*tensors, return_lse=True)
    (out.float().square().sum() + lse.sum().float()).backward()
    grads = [tensor.grad.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    return [out.detach(), lse.detach(), *grads]


@pytest.mark.parametrize("text", [CAUSAL, FULL], ids=["causal", "full"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"m": 57},
        {"heads": (4, 2)},
        {"n": 1},
        {"dtype": torch.float16},
        {"dtype": torch.float64},
        {"value_size": 24},
    ],
    ids=str,
)
def test_plain_calls_equal_the_operator_and_the_reference(text, given, monkeypatch):
    module, name = module_and_name(text)
    tensors = make(**given)
    found = both_ways(vars(module)[name], tensors)
    monkeypatch.setattr("attnc.runtime.dispatch.is_plain", lambda tensors: False)
    monkeypatch.setattr(direct, "is_plain", lambda tensors: False)
    same = both_ways(vars(module)[name], tensors)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = both_ways(vars(module)[f"{name}_reference"], wide)
    tolerance = 5e-3 if tensors[0].dtype is torch.float16 else 2e-5
    for one, other, right in zip(found, same, expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
        torch.testing.assert_close(one.double(), right, rtol=tolerance, atol=tolerance * float(right.abs().max() + 1))


@pytest.mark.parametrize("text", [CAUSAL, FULL], ids=["causal", "full"])
def test_library_calls_take_strides_scales_and_gradients_of_outputs_alone(text):
    module, name = module_and_name(text)
    base = torch.randn(2, 40, 3 * 4 * 16, dtype=torch.float64)
    packed = base.view(2, 40, 3, 4, 16).permute(2, 0, 3, 1, 4)
    tensors = [one.detach().requires_grad_() for one in packed]
    upstream = torch.randn(2, 4, 16, 40, dtype=torch.float64).transpose(2, 3)
    for scale in (None, -0.5, 0.0):
        results = []
        for call in (vars(module)[name], vars(module)[f"{name}_reference"]):
            out = call(*tensors, scale=scale)
            results.append([out, *torch.autograd.grad(out, tensors, upstream)])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_library_calls_keep_masked_values_away(bad):
    module, name = module_and_name(CAUSAL)
    query, key, value = make()
    with torch.no_grad():
        value[:, :, 30] = bad
    out = vars(module)[name](query, key, value)
    assert torch.isfinite(out[:, :, :30]).all()
    assert not torch.isfinite(out[:, :, 30:]).any()
    (grad,) = torch.autograd.grad(out[:, :, :30].sum(), [value])
    assert torch.isfinite(grad).all()


def test_results_may_be_changed_in_place_and_differentiated_twice():
    module, name = module_and_name(CAUSAL)
    tensors = [tensor.detach().double().requires_grad_() for tensor in make(n=6, m=6, size=4)]
    call = vars(module)[name]
    with torch.no_grad():
        call(*tensors).add_(1.0)
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)
    with torch.inference_mode():
        assert not call(*tensors).requires_grad


def test_learned_tensors_get_gradients():
    module, name = module_and_name(BIASED)
    slope = torch.full((4,), 0.3, requires_grad=True)
    found = torch.autograd.grad(vars(module)[name](*make(), slope=slope).sum(), [slope])
    expected = torch.autograd.grad(vars(module)[f"{name}_reference"](*make(), slope=slope).sum(), [slope])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Seen, SeenFunctions])
def test_modes_see_the_operator(mode):
    module, name = module_and_name(CAUSAL)
    with mode() as seen:
        vars(module)[name](*make())
    assert any(ops.NAMESPACE in one and name in one for one in seen.names)


def test_the_profiler_and_traces_see_the_operator():
    module, name = module_and_name(CAUSAL)
    with torch.profiler.profile() as profile:
        vars(module)[name](*make())
    assert any(event.key.startswith(f"attnc::{name}") for event in profile.key_averages())
    with torch.no_grad():
        graph = make_fx(lambda *tensors: vars(module)[name](*tensors))(*make())
    assert "attnc" in graph.code


class Own(torch.Tensor):
    """A subclass that wants to see operators."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclasses_and_negated_views_go_by_the_operator():
    module, name = module_and_name(CAUSAL)
    query, key, value = (tensor.detach() for tensor in make())
    vars(module)[name](query.as_subclass(Own), key, value)
    assert any(name in one for one in Own.seen)
    negated = torch.complex(query, -query).conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(vars(module)[name](negated, key, value), vars(module)[name](query, key, value))
