"""Calls without the dispatcher: plain tensors, which nothing traces, transforms or watches, are computed at once.

An operator that is written in Python costs tens of microseconds for each call, and more for each that is recorded, and
imports PyTorch's compiler when it is first called. What `torch.compile`, `torch.export`, modes, subclasses of tensors,
the profiler and double backward need is the operator; where none of them is there, nobody can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.call_plans import exact, run_planned
from attnc.runtime.composite import needs_composite
from attnc.runtime.compute import compute_backward, compute_forward, is_library_call, launch_forward, runs_triton
from attnc.runtime.dropout import Dropout
from attnc.runtime.program import Program
from attnc.runtime.second_derivatives import composite_backward
from attnc.runtime.transforms import PLAIN_TENSORS, is_watched, refuse_gradients_in_batches

Options = tuple[float | None, str | None, float, Tensor | None]
"""Scale, precision, probability of dropout, seed."""


def is_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Tell whether tensors may be computed without asking the dispatcher. Never true where something is traced."""
    return not is_watched() and all(tensor is None or _is_plain_one(tensor) for tensor in tensors)


def _is_plain_one(tensor: Tensor) -> bool:
    """Tell whether a tensor is numbers in memory, as they are."""
    return type(tensor) in PLAIN_TENSORS and (tensor.is_cpu or tensor.is_cuda) and not tensor.is_neg()


def attend_directly(
    program: Program,
    operator: Any,
    tensors: tuple[Tensor, Tensor, Tensor],
    inputs: Sequence[Tensor],
    options: Options,
    with_state: bool,
    recorded: bool,
) -> tuple[Tensor, Tensor]:
    """Do what the operator does.

    Args:
        program: of the operator.
        operator: the one that computes gradients where these are differentiated again.
        tensors: query, key and value, plain ones.
        inputs: the pattern's own.
        options: of the call.
        with_state: whether what is kept of rows is asked for.
        recorded: whether a backward pass may follow.
    """
    if recorded:
        return _Recorded.apply(program, operator, options, *tensors, *inputs)  # type: ignore[no-untyped-call, no-any-return]
    with torch._C._AutoDispatchBelowAutograd():
        return _compute(program, tensors, inputs, options, with_state)


def _compute(
    program: Program,
    tensors: tuple[Tensor, Tensor, Tensor],
    inputs: Sequence[Tensor],
    options: Options,
    with_state: bool,
) -> tuple[Tensor, Tensor]:
    query, key, value = tensors
    scale, precision, dropout_p, seed = options
    if not runs_triton(query.device) or is_library_call(program, query, key, with_state, dropout_p):
        return compute_forward(program, query, key, value, inputs, scale, precision, dropout_p, seed, with_state)

    def compute(query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        numbers = scale, precision, dropout_p
        return launch_forward(program, query, key, value, others[:-1], *numbers, others[-1], with_state)

    what = program.launch, exact(scale), precision, dropout_p, with_state
    out, state = run_planned(what, query.device, compute, (query, key, value, *inputs, seed))
    return out, state


def _compute_backward(
    program: Program,
    grads: tuple[Tensor, Tensor | None],
    tensors: tuple[Tensor, Tensor, Tensor, Sequence[Tensor]],
    results: tuple[Tensor, Tensor],
    options: Options,
    wanted: Sequence[bool],
) -> Sequence[Tensor]:
    """Return the gradients of query, key, value and of those inputs that are wanted; by a plan on a device."""
    (query, key, value, inputs), (scale, precision, dropout_p, seed) = tensors, options
    if not runs_triton(query.device):
        return compute_backward(program, grads, tensors, results, scale, precision, Dropout.of(dropout_p, seed), wanted)

    def compute(*given: Any) -> list[Tensor]:
        grad_out, grad_lse, query, key, value, *inputs, out, state, seed = given
        return compute_backward(
            program, (grad_out, grad_lse), (query, key, value, inputs), (out, state), scale, precision,
            Dropout.of(dropout_p, seed), wanted,
        )  # fmt: skip

    what = program.gradients, exact(scale), precision, dropout_p, tuple(wanted)
    return run_planned(what, query.device, compute, (*grads, query, key, value, *inputs, *results, seed))


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, program: Program, operator: Any, options: Options, query: Tensor, key: Tensor, value: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        with torch._C._AutoDispatchBelowAutograd():
            results = _compute(program, (query, key, value), inputs, options, True)
        save_forward(ctx, (query, key, value, inputs, *options, True), results)
        ctx.backward_of_call = make_backward(program, operator)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        query, key, value, tables, *_ = ctx.backward_of_call(ctx, *grads)
        return None, None, None, query, key, value, *tables


def save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the backward pass of a call reads."""
    query, key, value, tables, scale, precision, dropout_p, seed, _ = inputs
    ctx.save_for_backward(query, key, value, *tables, *output, seed)
    ctx.scale, ctx.precision, ctx.dropout_p = scale, precision, dropout_p
    ctx.set_materialize_grads(False)
    ctx.wanted = [table.is_floating_point() and table.requires_grad for table in tables]


def make_backward(program: Program, operator: Any) -> Callable[..., tuple[Any, ...]]:
    """Return the backward function of a call.

    Args:
        program: of the call.
        operator: computes gradients that are traced, or differentiated again.
    """

    def backward(ctx: Any, grad_out: Tensor | None, grad_state: Tensor | None) -> tuple[Any, ...]:
        query, key, value, *tables, out, state, seed = ctx.saved_tensors
        if grad_out is None and grad_state is None:
            return (None, None, None, [None] * len(tables), None, None, None, None, None)
        refuse_gradients_in_batches(program.name, (grad_out, grad_state))
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        # a peak has the derivative of the log-sum-exp, peak + log(total), that callers make of both
        grad_lse = grad_state[0] if grad_state is not None and program.kept == "peak" else grad_state
        tensors, results = (query, key, value, tables), (out, state)
        if needs_composite([grad for grad in (grad_out, grad_lse) if grad is not None]):
            dropout = Dropout.of(ctx.dropout_p, seed)
            found = composite_backward(program, (grad_out, grad_lse), tensors, ctx.scale, dropout, ctx.wanted)
        elif not torch.is_grad_enabled() and is_plain((grad_out, grad_lse, *tensors[:3], *tables, out, state, seed)):
            options = ctx.scale, ctx.precision, ctx.dropout_p, seed
            with torch._C._AutoDispatchBelowAutograd():
                found = [*_compute_backward(program, (grad_out, grad_lse), tensors, results, options, ctx.wanted)]
        else:
            options = ctx.scale, ctx.precision, ctx.dropout_p, seed
            found = operator(grad_out, grad_lse, query, key, value, tables, out, state, *options, ctx.wanted)
        own = iter(found[3:])
        return (*found[:3], [next(own) if want else None for want in ctx.wanted], None, None, None, None, None)

    return backward
