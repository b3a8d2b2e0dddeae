"""The host's side of the kernel that prepares queries and keys."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from attnc.runtime.kernel_launch import KernelCall, KernelLaunch, launchable
from attnc.runtime.preparation_kernels import prepare_rows_kernel
from attnc.runtime.tiles import Tiles, padded

PREPARED_ELEMENTS = 4096
"""Of a block: what a program's threads hold beside gradients and angles without spills."""

_NORMS = ("", "unit", "rms")


def launch_preparation(
    rows: Tensor, grad: Tensor | None, cosine: Tensor | None, sine: Tensor | None, norm: str
) -> Tensor:
    """Return prepared rows, or the gradient of rows, from that of what they became.

    Args:
        rows: `(B, heads, length, D)`, at least one element.
        grad: the same shape; None for prepared rows.
        cosine: of the rotation, broadcasting against `(B, heads, length, D / 2)`; None for none.
        sine: likewise.
        norm: `unit`, `rms` or empty.
    """
    out = rows.new_empty(rows.shape)
    with torch.cuda.device(rows.device) if rows.is_cuda else nullcontext():  # Triton launches on the current one
        launch = preparation_launch(rows, grad, cosine, sine, norm, out)
        options = launch.arguments["num_warps"], launch.arguments["num_stages"]
        call = KernelCall(rows, Tiles(launch.block, launch.block, *options))
        launchable(launch.kernel, call)[(launch.programs,)](**launch.arguments)
    return out


def preparation_launch(
    rows: Tensor, grad: Tensor | None, cosine: Tensor | None, sine: Tensor | None, norm: str, out: Tensor
) -> KernelLaunch:
    """Return what is launched to write `out`."""
    batch, heads, length, size = rows.shape
    rows = _with_rows_in_one(rows)
    given = rows if grad is None else _with_rows_in_one(grad)
    turn = [0, 0, 0]
    if cosine is not None and sine is not None:
        shape = (batch, heads, length, size // 2)
        cosine, sine = cosine.expand(shape), sine.expand(shape)
        if cosine.stride(3) != 1 or cosine.stride() != sine.stride():
            cosine, sine = cosine.contiguous(), sine.contiguous()
        turn = [*cosine.stride()[:3]]
    width = padded(-(-size // 2))
    block = max(1, PREPARED_ELEMENTS // (2 * width))
    arguments = {
        "rows_ptr": rows,
        "grad_ptr": given,
        "out_ptr": out,
        "cosine_ptr": rows if cosine is None else cosine,
        "sine_ptr": rows if sine is None else sine,
        **_row_strides("rows", rows),
        **_row_strides("grad", given),
        **_row_strides("out", out),
        **{f"turn_stride_{axis}": stride for axis, stride in zip("bhn", turn, strict=True)},
        "heads": heads,
        "length": length,
        "SIZE": size,
        "NORM": _NORMS.index(norm),
        "TURN": cosine is not None,
        "BACKWARD": grad is not None,
        "BLOCK_N": block,
        "BLOCK_D": width,
        "num_warps": 4,
        "num_stages": 1,
    }
    return KernelLaunch(prepare_rows_kernel, batch * heads * -(-length // block), arguments)


def _with_rows_in_one(rows: Tensor) -> Tensor:
    """Return rows whose elements are next to each other."""
    return rows if rows.stride(3) == 1 or rows.shape[3] == 1 else rows.contiguous()


def _row_strides(name: str, tensor: Tensor) -> dict[str, int]:
    return {f"{name}_stride_{axis}": stride for axis, stride in zip("bhn", tensor.stride()[:3], strict=True)}
