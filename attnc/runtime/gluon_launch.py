"""The host's side of a kernel in Gluon: whether a call takes it, and the descriptors that it reads by.

Modules have such kernels where they were written with `--template gluon`. The Triton kernels beside them stay the
default: a call takes the other one where it was asked for, by `ATTNC_TEMPLATE=gluon` or `prefer_template`, or where an
entry for it was tuned, which only a device that has checked it writes. What a call has that no Gluon kernel can
handle sends it to the Triton kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.call_recorder import recorder_here
from attnc.runtime.gluon_kernels import TensorDescriptor, gl
from attnc.runtime.kernel_launch import compile_options
from attnc.runtime.launch import Launch
from attnc.runtime.tensor_rows import is_describable
from attnc.runtime.tiles import FEW_ROWS, Tiles, TileTable, choose_tiles, target_of
from attnc.runtime.transforms import PLAIN_TENSORS, is_watched
from attnc.runtime.tuned import find_tuned, watch_kernels

TEMPLATE = "ATTNC_TEMPLATE"
"""Environment variable: `gluon` takes kernels in Gluon where a module has them and the device is an sm_90.

It is read once, at the first call of such a module: what calls come to is remembered.
"""

GROUPS = 2
"""Groups of four warps that compute rows."""

GROUP_ROWS = 64
"""Rows of each."""

HEAD_SIZES = (64, 128)

_TEMPLATE: ContextVar[str | None] = ContextVar("attnc_template", default=None)


@dataclass(frozen=True, slots=True)
class GluonLaunch:
    """What a kernel in Gluon takes besides the arguments of the Triton kernel.

    Attributes:
        query, key, value, out: descriptors of the tensors, `(batch, head, row, column)`.
        lse: `(B, H, N)` float32; memory of its own where the caller wants none.
        tiles: rows of both groups, keys of a tile, and buffers of each ring as stages.
    """

    query: Any
    key: Any
    value: Any
    out: Any
    lse: Tensor
    tiles: Tiles
    grid: tuple[int]


@contextmanager
def prefer_template(template: str) -> Iterator[None]:
    """Take kernels of a template, `gluon` or `tl`, while the block runs in this thread."""
    token = _TEMPLATE.set(template)
    try:
        with watch_kernels():  # what other calls came to is not taken, nor is what these come to remembered
            yield
    finally:
        _TEMPLATE.reset(token)


@cache
def template_of_environment() -> str:
    """Return the template that the environment asks for; empty if none."""
    return os.environ.get(TEMPLATE, "")


def gluon_launch(call: Launch, *, tiles: TileTable, kernel: str) -> GluonLaunch | None:
    """Return how a call launches a kernel in Gluon; None where it takes the Triton kernel.

    Args:
        call: the launch of that one.
        tiles: the kernel's table of tiles.
        kernel: what tuned tiles know it by.
    """
    chosen = _TEMPLATE.get() or template_of_environment()
    if chosen == "tl" or why_not_gluon(call):
        return None
    sizes = (call.head_size, call.value_size)
    found = find_tuned(kernel, call.query, sizes, (call.N, call.M))
    if not isinstance(found, Tiles):
        if chosen != "gluon":
            return None
        found = choose_tiles(tiles, call.query, call.head_size, FEW_ROWS + 1)
    lse = call.lse
    if lse is None:
        lse = call.query.new_empty((call.B, call.H, call.N), dtype=torch.float32)
    return GluonLaunch(
        query=_descriptor(call.query, GROUP_ROWS),
        key=_descriptor(call.key, found.key),
        value=_descriptor(call.value, found.key),
        out=_descriptor(call.out, GROUP_ROWS),
        lse=lse,
        tiles=found,
        grid=(-(-call.N // found.query) * call.H * call.B,),
    )


def why_not_gluon(call: Launch) -> str:
    """Return why no kernel in Gluon can run a call; empty where one can."""
    tensors = (call.query, call.key, call.value, call.out)
    if target_of(call.query.device) != "sm_90":
        return "the device is no sm_90"
    if TensorDescriptor is None:
        return "this Triton has no Gluon for sm_90"
    if call.query.dtype not in (torch.float16, torch.bfloat16):
        return f"numbers are {str(call.query.dtype).removeprefix('torch.')}, not 16-bit"
    if {call.D, call.head_size, call.value_size} not in ({size} for size in HEAD_SIZES):
        return f"head sizes are {call.D} and {call.target_out.shape[3]}, not both 64 or both 128"
    if call.seed is not None:
        return "weights are dropped"
    if call.shares > 1:
        return "programs share the keys of the same rows"
    if is_watched() or type(call.query) not in PLAIN_TENSORS:
        return "the call is traced or transformed"
    if not all(is_describable(one) and not _repeats(one) for one in tensors):
        return "a tensor's memory has no descriptor"
    return ""


def gluon_launchable(kernel: Any, launch: GluonLaunch) -> Any:
    """Return the kernel in the form that is called with its arguments."""
    options = {"num_warps": launch.tiles.warps, **compile_options(False, nvidia=True)}
    recorder = recorder_here()
    if recorder is None:
        return partial(kernel[launch.grid], **options)

    def start(
        **arguments: Any,
    ) -> None:  # descriptors cannot be told again: such calls are computed as they always were
        recorder.launch(kernel, launch.grid, options, None, arguments)

    return start


def _repeats(tensor: Tensor) -> bool:
    """Tell whether a dimension is one matrix over and over, as `expand` makes them."""
    return any(step == 0 and length > 1 for length, step in zip(tensor.shape, tensor.stride(), strict=True))


def _descriptor(tensor: Tensor, rows: int) -> Any:
    """Describe a tensor `(batch, head, row, column)` for tiles of so many rows of one head."""
    width = tensor.shape[3]
    layout = gl.NVMMASharedLayout(128, 8 * tensor.element_size(), 4)
    return TensorDescriptor(tensor, list(tensor.shape), _strides(tensor), [1, 1, rows, width], layout)


def _strides(tensor: Tensor) -> Sequence[int]:
    """Return strides; those of dimensions with one entry, which may be any number, as aligned as rows are."""
    row = tensor.stride(2) if tensor.shape[2] > 1 else tensor.shape[3]
    pairs = zip(tensor.shape[:2], tensor.stride()[:2], strict=True)
    return [*(step if length > 1 else tensor.shape[2] * row for length, step in pairs), row, 1]
