"""The host's side of a call on a device waits for nothing: no value of a tensor there is read, none is copied here."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnc.compiler import import_compiled, loads, plan_source
from attnc.files import read_pattern
from attnc.runtime import gpu_library
from attnc.runtime.compute import launch_forward
from attnc.runtime.dropout import Dropout
from attnc.runtime.kernel_gradients import kernel_backward
from attnc.runtime.pairs import Sizes
from attnc.runtime.tiles import assume_target
from attnc.runtime.tuned import LibraryCall, try_tiles

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
WAITING = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2"}
DTYPES = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}


class WaitsError(Exception):
    """A launch would have waited for the device."""


class NothingWaits(TorchDispatchMode):
    """Refuses what needs a value, or moves tensors from the device to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        on_device = [one for one in args if isinstance(one, torch.Tensor) and one.device.type == "meta"]
        name = func.overloadpacket.__name__
        if on_device and name in WAITING:
            raise WaitsError(name)
        result = func(*args, **(kwargs or {}))
        if on_device and isinstance(result, torch.Tensor) and result.device.type == "cpu":
            raise WaitsError(f"{name} to the host")
        return result


class Recorder:
    """Takes the place of a kernel: keeps how often it is launched."""

    def __init__(self, launches, kernel):
        self.launches, self.kernel = launches, kernel

    def __getitem__(self, grid):
        return self

    def __call__(self, **arguments):
        self.launches.append(self.kernel.__name__)


@contextmanager
def without_device(module):
    """Stand in for a device, whose tensors have no values here (`meta`); kernels are recorded."""
    launches, launchable = [], module.launchable
    module.launchable = lambda kernel, call: Recorder(launches, kernel)
    try:
        with assume_target("sm_90"), NothingWaits():
            yield launches
    finally:
        module.launchable = launchable


def make_inputs(program, sizes, scalars_on):
    found = []
    for tensor in program.tensors:
        shape = [8 if dim is None else int(dim(sizes)) for dim in tensor.dims]
        found.append(torch.ones(shape, dtype=DTYPES[tensor.type], device="meta" if shape else scalars_on))
    return found


def call_both_ways(program, sizes, scalars_on):
    """Run a forward and a backward pass on tensors that stand for the device."""
    heads = [(sizes.H, sizes.N), (sizes.kv_heads, sizes.M), (sizes.kv_heads, sizes.M)]
    tensors = [torch.empty(sizes.B, *pair, sizes.D, dtype=torch.bfloat16, device="meta") for pair in heads]
    inputs = make_inputs(program, sizes, scalars_on)
    seed = torch.zeros((), dtype=torch.int64, device="meta")
    for probability in (0.0, 0.25):
        out, state = launch_forward(program, *tensors, inputs, None, None, probability, seed, True)
        wanted = [tensor.is_floating_point() for tensor in inputs]
        kernel_backward(
            program, (torch.empty_like(out), None), (*tensors, inputs), (out, state), None, None,
            Dropout.of(probability, seed), wanted,
        )  # fmt: skip


@pytest.mark.parametrize("lengths", [(64, 64), (100, 257), (1, 4096)], ids=str)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_launches_wait_for_nothing(path, lengths):
    compiled = plan_source(read_pattern(path))
    module = import_compiled(compiled)
    sizes = Sizes(B=2, H=4, N=lengths[0], M=lengths[1], D=64, g=2, value_size=64)
    for plan in compiled.plans:
        program = vars(module)[f"_{plan.attention.name}_program"]
        for scalars_on in ("meta", "cpu"):
            with without_device(module) as launches:
                call_both_ways(program, sizes, scalars_on)
            assert len(launches) >= 4, launches


def test_a_library_s_part_waits_for_nothing(monkeypatch):
    module = loads("attention a { mask causal or j < 66\n decompose split(j < 66) }")
    monkeypatch.setattr(gpu_library, "runs_flash_attention", lambda device: True)
    names = [gpu_library.library_name(module._a_program, backward=backward, part=True) for backward in (False, True)]
    sizes = Sizes(B=2, H=4, N=300, M=300, D=64, g=2, value_size=64)
    with without_device(module) as launches, try_tiles(dict.fromkeys(names, LibraryCall())):
        call_both_ways(module._a_program, sizes, "meta")
    assert launches[:3] == [
        "_a_beside_pass_2_kernel", "_a_beside_pass_2_query_gradient_kernel", "_a_beside_pass_2_key_gradient_kernel",
    ]  # fmt: skip
    assert not any("beside" in name for name in launches[3:])  # with dropout


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x.nonzero(), lambda x: x.cpu(), torch.Tensor.tolist],
)
def test_what_waits_is_noticed(wait):
    with NothingWaits(), pytest.raises((WaitsError, NotImplementedError)):
        wait(torch.ones(3, device="meta"))
