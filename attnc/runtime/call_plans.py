"""What calls on a device come to, remembered by their signature.

Tiles, grids, strides, numbers of shares and all else that launchers derive follow from shapes, strides, types, numbers
and what is known of tuned tiles, and from no value on the device. A call whose signature came before is recorded: its
torch operations and its launches, with the tensors that each reads and makes. Calls after that do the same in the same
order on their own tensors, and nothing else. What cannot be told in this way is computed as it always was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from attnc.runtime.call_recorder import record_call, recorder_here
from attnc.runtime.call_steps import CallPlan, Given
from attnc.runtime.calls import Store
from attnc.runtime.tiles import assumptions
from attnc.runtime.tuned import are_kernels_watched, is_pinned, tuned_version

MOST_SEEN = 1024
"""Signatures that are kept, those that were used last. Lengths that grow with every call leave these alone behind."""

PLAN_SIZE = 4
"""Signatures that one with a plan counts as: it takes some tens of kilobytes."""

_ALIGNMENT = 15
"""Bits of addresses on which kernels depend."""

_PLANS: Store[CallPlan | str] = Store(MOST_SEEN)
"""By signature: a plan, or `seen` once, or `untold` where there can be none."""


class _Signature:
    """What a call is known by; it is long, so that its hash is computed once."""

    __slots__ = ("hashed", "parts")

    def __init__(self, parts: tuple[Hashable, ...]) -> None:
        self.parts, self.hashed = parts, hash(parts)

    def __hash__(self) -> int:
        return self.hashed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Signature) and self.parts == other.parts


def run_planned(
    what: Hashable, device: torch.device, compute: Callable[..., Sequence[Tensor]], given: Given
) -> Sequence[Tensor]:
    """Return what `compute` returns for the tensors that are given.

    Args:
        what: equal for two computations only if they differ in nothing but the device and those tensors.
        device: where they are; kernels are launched on it.
        compute: reads no other tensors, and no values of these but of single numbers on the CPU.
        given: plain tensors, which nothing watches.
    """
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):  # Triton launches on the current device, whatever its arguments are on
            return run_planned(what, device, compute, given)
    if are_kernels_watched() or recorder_here() is not None:
        return compute(*given)
    state = tuned_version(), is_pinned(), assumptions(), torch.is_autocast_enabled(device.type)
    name = _Signature((what, device, state, *[_signature(tensor) for tensor in given]))
    found = _PLANS.get(name)
    if isinstance(found, CallPlan):
        return found.run(given)
    if found == "seen":
        results, plan = record_call(compute, given)
        _PLANS.put(name, plan or "untold", PLAN_SIZE)
        return results
    if found is None:
        _PLANS.put(name, "seen", 1)
    return compute(*given)


def exact(number: float | None) -> str | None:
    """Return a number such that 0.0 and -0.0 differ, as signatures have it."""
    return None if number is None else number.hex()


def _signature(tensor: Tensor | None) -> Hashable:
    """Return what launchers may ask of a tensor."""
    if tensor is None:
        return None
    if tensor.is_cpu and not tensor.dim():
        number = tensor.item()
        return tensor.dtype, exact(number) if isinstance(number, float) else number
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() & _ALIGNMENT
