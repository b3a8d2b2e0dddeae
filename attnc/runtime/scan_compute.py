"""A causal scan on the device that its tensors are on, directly and as an operator that torch can trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.autocast import without_autocast
from attnc.runtime.blocks import compute_dtype
from attnc.runtime.compute import runs_triton
from attnc.runtime.scan_launch import launch_scan
from attnc.runtime.scan_torch import scan_by_torch


def scan_compute(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    rows: Tensor | None,
    keys: Tensor | None,
    state: Tensor | None,
    state_log: Tensor | None,
    heads: int,
    reverse: bool,
    chunk: int,
    with_state: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a scan of checked arguments, see `causal_scan`.

    Returns:
        The output, the state at the end and its log; the last two are empty where not wanted, or there is none.
    """
    by_kernels = runs_triton(x.device) and x.dtype is not torch.float64 and x.shape[2] > 1
    compute = launch_scan if by_kernels else scan_by_torch
    with without_autocast(x.device.type):
        return compute(
            x, y, z, rows, keys, state, state_log, heads, reverse, chunk, with_state, out_dtype
        )  # fmt: skip


def _fake_scan(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    rows: Tensor | None,
    keys: Tensor | None,
    state: Tensor | None,
    state_log: Tensor | None,
    heads: int,
    reverse: bool,
    chunk: int,
    with_state: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors without data, of the shapes that a scan returns."""
    batch, _, length, features = x.shape
    values = z.shape[3]
    out = z.new_empty((batch, heads, length, values), dtype=out_dtype)
    end = z.new_empty((batch, heads, features, values) if with_state else (0,), dtype=compute_dtype(x.dtype))
    shapes = [part.shape[:2] for part in (keys, state_log) if part is not None]
    has_log = with_state and (rows is not None or bool(shapes))
    shape = torch.broadcast_shapes((1, 1), *shapes) if has_log else (0,)  # type: ignore[no-untyped-call]
    return out, end, z.new_empty(shape, dtype=torch.float64)


_SCAN_SCHEMA = (
    "(Tensor x, Tensor y, Tensor z, Tensor? rows, Tensor? keys, Tensor? state, Tensor? state_log, int heads,"
    " bool reverse, int chunk, bool with_state, ScalarType out_dtype) -> (Tensor, Tensor, Tensor)"
)


def register_scan(gradients: Callable[..., Any], save: Callable[..., None]) -> Any:
    """Return the operator in `torch.ops.attnc`, registered here unless another copy of this module has.

    Args:
        gradients: its backward function.
        save: keeps what that reads.
    """
    name = "causal_scan_1"
    if not hasattr(torch.ops.attnc, name):
        operator = torch.library.custom_op(f"attnc::{name}", scan_compute, mutates_args=(), schema=_SCAN_SCHEMA)
        operator.register_fake(_fake_scan)
        operator.register_autograd(gradients, setup_context=save)
    return getattr(torch.ops.attnc, name)
