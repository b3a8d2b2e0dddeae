"""The torch operator of one attention: visible to compile and export, with a fake and a gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype
from attnc.runtime.compute import launch_forward, output_of, runs_triton
from attnc.runtime.cpu import cpu_backward, cpu_forward
from attnc.runtime.direct import make_backward, save_forward
from attnc.runtime.dropout import Dropout
from attnc.runtime.kernel_gradients import kernel_backward
from attnc.runtime.program import Program
from attnc.runtime.second_derivatives import make_second_backward, save_reverse

NAMESPACE = "attnc"

_FORWARD = (
    "(Tensor query, Tensor key, Tensor value, Tensor[] inputs, float? scale, str? precision, float dropout_p,"
    " Tensor? seed, bool with_state) -> (Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor[] inputs, Tensor out,"
    " Tensor state, float? scale, str? precision, float dropout_p, Tensor? seed, bool[] wanted) -> Tensor[]"
)


def register(program: Program) -> str:
    """Register a program's operators and return the name of the one to be called, in `torch.ops.attnc`.

    That of its gradients is called the same with `_backward` behind. Registering the same program again does nothing,
    so that a module may be loaded twice.
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
            return launch_forward(program, query, key, value, inputs, scale, precision, dropout_p, seed, with_state)
        return on_cpu(query, key, value, inputs, scale, precision, dropout_p, seed, with_state)  # type: ignore[no-any-return]

    operator = _triton_op(name, forward, _FORWARD)
    operator.register_fake(_make_fake(program))
    operator.register_autograd(make_backward(program, backward), setup_context=save_forward)
    return name


def _triton_op(name: str, function: Callable[..., Any], schema: str) -> Any:
    """Register an operator that `torch.compile` sees into.

    PyTorch searches the source of such a function for kernels that it names, to make keys of its cache. There are none
    in these, whose names tell the program; but the search imports PyTorch's compiler, which takes a second. A function
    in C has no source, and so ends it.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    function.__wrapped__ = len  # type: ignore[attr-defined]
    return torch.library.triton_op(f"{NAMESPACE}::{name}", function, mutates_args=(), schema=schema)


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
        out = output_of(query, value)
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

    operator = _triton_op(f"{name}_backward", backward, _BACKWARD)
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
