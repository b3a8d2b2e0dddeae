"""Kernels in the form in which launchers start them: compiled with options, seen by `torch.compile`, or recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from attnc.runtime.call_recorder import CallRecorder, recorder_here
from attnc.runtime.tiles import Tiles
from attnc.runtime.transforms import PLAIN_TENSORS, is_watched

MOST_REGISTERS = 255
"""Registers that one thread can have on NVIDIA's devices."""


LEAST_BLOCK = 16
"""Rows, features or values of a block: the least that matrix instructions take."""


class Launchable(Protocol):
    """What `launchable` needs to know of a launch."""

    query: Tensor
    tiles: Tiles

    @property
    def all_registers(self) -> bool:
        """Whether the kernel may use all registers, see `compile_options`."""


@dataclass(slots=True)
class KernelCall:
    """One launch of a kernel that knows no pattern, as `launchable` wants to know it."""

    query: Tensor
    tiles: Tiles
    all_registers: bool = True


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """A kernel and what it is launched with."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]

    @property
    def block(self) -> int:
        """Rows of a block, or what stands for them."""
        return self.arguments.get("BLOCK_N", LEAST_BLOCK)  # type: ignore[no-any-return]


def launchable(kernel: Any, call: Launchable) -> Any:
    """Return the kernel in the form that `torch.compile` can see; Triton's interpreter runs it as it is."""
    recorder = recorder_here()
    if call.query.device.type == "cpu":
        return kernel if recorder is None else _RecordedKernel(recorder, kernel, {}, None)
    if call.tiles.descriptors and _provide_scratch not in kernel.pre_run_hooks:
        kernel.add_pre_run_hook(_provide_scratch)
    if recorder is not None:
        options = compile_options(call.all_registers, nvidia=torch.version.hip is None)
        return _RecordedKernel(recorder, kernel, options, _provide_scratch if call.tiles.descriptors else None)
    if is_watched() or type(call.query) not in PLAIN_TENSORS:
        traceable = torch.library.wrap_triton(kernel)
        if traceable is not kernel:
            return traceable
    return _WithOptions(kernel, compile_options(call.all_registers, nvidia=torch.version.hip is None))


def compile_options(all_registers: bool, *, nvidia: bool) -> dict[str, bool | int]:
    """Return how a kernel is compiled besides its tiles. What `torch.compile` traces takes Triton's defaults.

    Multiply-adds are fused: by default Triton fuses before 3.10 and not from then on, and 3.9 warns where nothing is
    said. What joins sums, or computes gradients, may use all registers: the assembler would leave some to a second
    program, and spill others.

    Args:
        all_registers: of a thread.
        nvidia: whether the device is one of NVIDIA's; only their assembler takes a number of registers.
    """
    fused: dict[str, bool | int] = {"enable_fp_fusion": True}
    return fused | {"maxnreg": MOST_REGISTERS} if all_registers and nvidia else fused


@dataclass(frozen=True, slots=True)
class _WithOptions:
    """A kernel that is launched with options."""

    kernel: Any
    options: dict[str, bool | int]

    def __getitem__(self, grid: tuple[int]) -> Any:
        return partial(self.kernel[grid], **self.options)


@dataclass(frozen=True, slots=True)
class _RecordedKernel:
    """A kernel that is launched with options, while a call is recorded."""

    recorder: CallRecorder
    kernel: Any
    options: dict[str, bool | int]
    prepare: Callable[[], None] | None

    def __getitem__(self, grid: tuple[int]) -> Any:
        def start(**arguments: Any) -> None:
            self.recorder.launch(self.kernel, grid, self.options, self.prepare, arguments)

        return start


def _provide_scratch(*_: object, **__: object) -> None:
    """Give Triton memory for the descriptors of a launch.

    Triton keeps its allocator for each thread and context apart, so that every launch sets it; what `torch.compile`
    makes of a kernel does so by itself.
    """
    import triton

    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
