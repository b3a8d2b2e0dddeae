"""The torch operator of one attention: visible to compile and export, with a fake and a gradient."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype
from attnc.runtime.checks import check_head_sizes
from attnc.runtime.cpu import cpu_backward, cpu_forward, rows_outside
from attnc.runtime.program import Program

NAMESPACE = "attnc"

_FORWARD = (
    "(Tensor query, Tensor key, Tensor value, Tensor[] inputs, float? scale, str? precision, bool with_lse)"
    " -> (Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor[] inputs, Tensor out,"
    " Tensor lse, float? scale, bool[] wanted) -> Tensor[]"
)


def runs_triton(device: torch.device) -> bool:
    """Tell whether tensors on a device are computed by the Triton kernel.

    `ATTNC_TARGET=triton` forces it for CPU tensors (under Triton's interpreter), `torch` forbids it for them.
    """
    if device.type == "cpu":
        return os.environ.get("ATTNC_TARGET", "auto") == "triton"
    return device.type == "cuda"


def register(program: Program) -> str:
    """Register a program's operators and return the name of the one to be called, in `torch.ops.attnc`.

    Registering the same program again does nothing, so that a module may be loaded twice.
    """
    name = f"{program.name}_{program.key[:16]}"
    if hasattr(getattr(torch.ops, NAMESPACE), name):
        return name
    on_cpu = _register_cpu(program, name)
    backward = _register_backward(program, name)

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: list[Tensor],
        scale: float | None,
        precision: str | None,
        with_lse: bool,
    ) -> tuple[Tensor, Tensor]:
        if runs_triton(query.device):
            return _launch(program, query, key, value, inputs, scale, precision, with_lse)
        return on_cpu(query, key, value, inputs, scale, precision, with_lse)  # type: ignore[no-any-return]

    operator: Any = torch.library.triton_op(f"{NAMESPACE}::{name}", forward, mutates_args=(), schema=_FORWARD)
    operator.register_fake(_make_fake(program))
    operator.register_autograd(_make_backward(backward), setup_context=_save)
    return name


def _register_cpu(program: Program, name: str) -> Any:
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: list[Tensor],
        scale: float | None,
        precision: str | None,
        with_lse: bool,
    ) -> tuple[Tensor, Tensor]:
        out, lse = cpu_forward(program, query, key, value, inputs, scale)
        return out, lse if with_lse else out.new_empty((0,))

    operator = torch.library.custom_op(f"{NAMESPACE}::{name}_cpu", forward, mutates_args=(), schema=_FORWARD)
    operator.register_fake(_make_fake(program))
    return operator


def _make_fake(program: Program) -> Callable[..., tuple[Tensor, Tensor]]:
    def fake(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: list[Tensor],
        scale: float | None,
        precision: str | None,
        with_lse: bool,
    ) -> tuple[Tensor, Tensor]:
        out = _new_output(query, value)
        shape = query.shape[:3] if with_lse and program.has_lse else (0,)
        return out, query.new_empty(shape, dtype=compute_dtype(query.dtype))

    return fake


def _register_backward(program: Program, name: str) -> Any:
    def backward(
        grad_out: Tensor,
        grad_lse: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: list[Tensor],
        out: Tensor,
        lse: Tensor,
        scale: float | None,
        wanted: list[bool],
    ) -> list[Tensor]:
        if query.device.type != "cpu":
            raise RuntimeError(
                f"{program.name}: gradients are computed on the CPU only, and query is on {query.device}"
            )
        tensors, results = (query, key, value, inputs), (out, lse)
        return cpu_backward(program, (grad_out, grad_lse), tensors, results, scale, wanted)

    def fake(
        grad_out: Tensor,
        grad_lse: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: list[Tensor],
        out: Tensor,
        lse: Tensor,
        scale: float | None,
        wanted: list[bool],
    ) -> list[Tensor]:
        chosen = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
        return [tensor.new_empty(tensor.shape) for tensor in (query, key, value, *chosen)]

    operator = torch.library.custom_op(f"{NAMESPACE}::{name}_backward", backward, mutates_args=(), schema=_BACKWARD)
    operator.register_fake(fake)
    return operator


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, tables, scale, _, _ = inputs
    ctx.save_for_backward(query, key, value, *tables, *output)
    ctx.scale = scale
    ctx.set_materialize_grads(False)
    ctx.wanted = [table.is_floating_point() and table.requires_grad for table in tables]


def _make_backward(operator: Any) -> Callable[..., tuple[Any, ...]]:
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        query, key, value, *tables, out, lse = ctx.saved_tensors
        if grad_out is None and grad_lse is None:
            return (None, None, None, [None] * len(tables), None, None, None)
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        found = operator(grad_out, grad_lse, query, key, value, tables, out, lse, ctx.scale, ctx.wanted)
        own = iter(found[3:])
        return (*found[:3], [next(own) if want else None for want in ctx.wanted], None, None, None)

    return backward


def _launch(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: list[Tensor],
    scale: float | None,
    precision: str | None,
    with_lse: bool,
) -> tuple[Tensor, Tensor]:
    program = program.at(query.shape[2], key.shape[2])
    if program.launch is None:
        raise RuntimeError(f"{program.name}: tensors on {query.device} need triton, which is not installed")
    shape = query.shape[:3] if with_lse and program.has_lse else (0,)
    lse = query.new_empty(shape, dtype=compute_dtype(query.dtype))
    if query.device.type == "cuda" and not lse.numel() and program.is_library_call(query.shape[2], key.shape[2]):
        causal = program.library == "causal"
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return rows_outside(out), lse
    check_head_sizes(program.name, query, value)
    out = _new_output(query, value)
    program.launch(query, key, value, out, lse if lse.numel() else None, tuple(inputs), scale, precision)
    return out, lse


def _new_output(query: Tensor, value: Tensor) -> Tensor:
    """Return memory for an output `(B, H, N, E)`, laid out as `(B, N, H, E)`."""
    batch, heads, rows = query.shape[:3]
    return query.new_empty((batch, rows, heads, value.shape[3])).transpose(1, 2)
