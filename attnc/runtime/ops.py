"""The torch operator of one attention: visible to compile and export, with a fake and a gradient."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype
from attnc.runtime.checks import check_head_sizes
from attnc.runtime.composite import needs_composite
from attnc.runtime.cpu import cpu_backward, cpu_forward, new_output, rows_outside
from attnc.runtime.dropout import Dropout
from attnc.runtime.kernel_gradients import kernel_backward
from attnc.runtime.program import Program
from attnc.runtime.second_derivatives import composite_backward, make_second_backward, save_reverse
from attnc.runtime.transforms import refuse_gradients_in_batches

NAMESPACE = "attnc"

_FORWARD = (
    "(Tensor query, Tensor key, Tensor value, Tensor[] inputs, float? scale, str? precision, float dropout_p,"
    " Tensor? seed, bool with_state) -> (Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor[] inputs, Tensor out,"
    " Tensor state, float? scale, str? precision, float dropout_p, Tensor? seed, bool[] wanted) -> Tensor[]"
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
        dropout_p: float,
        seed: Tensor | None,
        with_state: bool,
    ) -> tuple[Tensor, Tensor]:
        if runs_triton(query.device):
            return _launch(program, query, key, value, inputs, scale, precision, dropout_p, seed, with_state)
        return on_cpu(query, key, value, inputs, scale, precision, dropout_p, seed, with_state)  # type: ignore[no-any-return]

    operator: Any = torch.library.triton_op(f"{NAMESPACE}::{name}", forward, mutates_args=(), schema=_FORWARD)
    operator.register_fake(_make_fake(program))
    operator.register_autograd(_make_backward(program, backward), setup_context=_save)
    return name


def _register_cpu(program: Program, name: str) -> Any:
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: list[Tensor],
        scale: float | None,
        precision: str | None,
        dropout_p: float,
        seed: Tensor | None,
        with_state: bool,
    ) -> tuple[Tensor, Tensor]:
        out, state = cpu_forward(program, query, key, value, inputs, scale, Dropout.of(dropout_p, seed))
        return out, state if with_state else out.new_empty((0,))

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
        dropout_p: float,
        seed: Tensor | None,
        with_state: bool,
    ) -> tuple[Tensor, Tensor]:
        out = _new_output(query, value)
        shape = program.state_shape(*query.shape[:3]) if with_state else (0,)
        return out, query.new_empty(shape, dtype=compute_dtype(query.dtype))

    return fake


def _register_backward(program: Program, name: str) -> Any:
    on_cpu = _register_cpu_backward(program, name)

    def backward(
        grad_out: Tensor,
        grad_lse: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: list[Tensor],
        out: Tensor,
        state: Tensor,
        scale: float | None,
        precision: str | None,
        dropout_p: float,
        seed: Tensor | None,
        wanted: list[bool],
    ) -> list[Tensor]:
        if not runs_triton(query.device):
            return on_cpu(  # type: ignore[no-any-return]
                grad_out, grad_lse, query, key, value, inputs, out, state, scale, precision, dropout_p, seed, wanted
            )
        tensors, results = (query, key, value, inputs), (out, state)
        dropout = Dropout.of(dropout_p, seed)
        return kernel_backward(program, (grad_out, grad_lse), tensors, results, scale, precision, dropout, wanted)

    operator: Any = torch.library.triton_op(
        f"{NAMESPACE}::{name}_backward", backward, mutates_args=(), schema=_BACKWARD
    )
    operator.register_fake(_fake_backward)
    operator.register_autograd(make_second_backward(program), setup_context=save_reverse)
    return operator


def _register_cpu_backward(program: Program, name: str) -> Any:
    def backward(
        grad_out: Tensor,
        grad_lse: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: list[Tensor],
        out: Tensor,
        state: Tensor,
        scale: float | None,
        precision: str | None,
        dropout_p: float,
        seed: Tensor | None,
        wanted: list[bool],
    ) -> list[Tensor]:
        tensors, results = (query, key, value, inputs), (out, state)
        dropout = Dropout.of(dropout_p, seed)
        return cpu_backward(program, (grad_out, grad_lse), tensors, results, scale, wanted, dropout)

    label = f"{NAMESPACE}::{name}_backward_cpu"
    operator = torch.library.custom_op(label, backward, mutates_args=(), schema=_BACKWARD)
    operator.register_fake(_fake_backward)
    return operator


def _fake_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: list[Tensor],
    out: Tensor,
    state: Tensor,
    scale: float | None,
    precision: str | None,
    dropout_p: float,
    seed: Tensor | None,
    wanted: list[bool],
) -> list[Tensor]:
    chosen = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
    return [tensor.new_empty(tensor.shape) for tensor in (query, key, value, *chosen)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, tables, scale, precision, dropout_p, seed, _ = inputs
    ctx.save_for_backward(query, key, value, *tables, *output, seed)
    ctx.scale, ctx.precision, ctx.dropout_p = scale, precision, dropout_p
    ctx.set_materialize_grads(False)
    ctx.wanted = [table.is_floating_point() and table.requires_grad for table in tables]


def _make_backward(program: Program, operator: Any) -> Callable[..., tuple[Any, ...]]:
    def backward(ctx: Any, grad_out: Tensor | None, grad_state: Tensor | None) -> tuple[Any, ...]:
        query, key, value, *tables, out, state, seed = ctx.saved_tensors
        if grad_out is None and grad_state is None:
            return (None, None, None, [None] * len(tables), None, None, None, None, None)
        refuse_gradients_in_batches(program.name, (grad_out, grad_state))
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        # a peak has the derivative of the log-sum-exp, peak + log(total), that callers make of both
        grad_lse = grad_state[0] if grad_state is not None and program.kept == "peak" else grad_state
        if needs_composite([grad for grad in (grad_out, grad_lse) if grad is not None]):
            tensors, dropout = (query, key, value, tables), Dropout.of(ctx.dropout_p, seed)
            found = composite_backward(program, (grad_out, grad_lse), tensors, ctx.scale, dropout, ctx.wanted)
        else:
            options = ctx.scale, ctx.precision, ctx.dropout_p, seed
            found = operator(grad_out, grad_lse, query, key, value, tables, out, state, *options, ctx.wanted)
        own = iter(found[3:])
        return (*found[:3], [next(own) if want else None for want in ctx.wanted], None, None, None, None, None)

    return backward


def _launch(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: list[Tensor],
    scale: float | None,
    precision: str | None,
    dropout_p: float,
    seed: Tensor | None,
    with_state: bool,
) -> tuple[Tensor, Tensor]:
    program = program.at(query.shape[2], key.shape[2])
    if program.launch is None:
        raise RuntimeError(f"{program.name}: tensors on {query.device} need triton, which is not installed")
    shape = program.state_shape(*query.shape[:3]) if with_state else (0,)
    state = query.new_empty(shape, dtype=compute_dtype(query.dtype))
    plain = not state.numel() and not dropout_p
    if query.device.type == "cuda" and plain and program.is_library_call(query.shape[2], key.shape[2]):
        causal = program.library == "causal"
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return rows_outside(out), state
    check_head_sizes(program.name, query, value)
    out = _new_output(query, value)
    kept, dropout = state if state.numel() else None, Dropout.of(dropout_p, seed)
    program.launch(query, key, value, out, kept, tuple(inputs), scale, precision, dropout)
    return out, state


def _new_output(query: Tensor, value: Tensor) -> Tensor:
    """Return memory for an output `(B, H, N, E)`, laid out as `(B, N, H, E)`."""
    return new_output(query, (*query.shape[:3], value.shape[3]))
