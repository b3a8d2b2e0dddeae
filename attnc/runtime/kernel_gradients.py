"""Gradients by Triton kernels, and what is left to do with their sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attnc.runtime.blocks import bind_tables, compute_dtype, head_pairs
from attnc.runtime.calls import call_sizes
from attnc.runtime.checks import check_head_sizes
from attnc.runtime.dropout import Dropout
from attnc.runtime.gpu_library import is_window_call, window_backward
from attnc.runtime.gpu_parts import add_part_gradients, part_of_call
from attnc.runtime.gradient_strips import PAIR_AXES, PairSum
from attnc.runtime.pairs import Pairs
from attnc.runtime.program import Program
from attnc.runtime.row_gradients import add_read, all_keys, all_rows, of_keys, of_rows, scale_gradients, sink_gradients


def kernel_backward(
    program: Program,
    grads: tuple[Tensor, Tensor | None],
    tensors: tuple[Tensor, Tensor, Tensor, Sequence[Tensor]],
    results: tuple[Tensor, Tensor],
    scale: float | None,
    precision: str | None,
    dropout: Dropout | None,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Compute the gradients of query, key, value and of those inputs that are `wanted`, in order.

    Args:
        program: of the forward pass.
        grads: of the output, and of the log-sum-exp if it was used.
        tensors: query, key, value, inputs.
        results: output of the forward pass, and what it kept of rows.
        scale: of the call.
        precision: of the call.
        dropout: of the call.
        wanted: one entry for each input.
    """
    query, key, value, inputs = tensors
    own, plain, drops = tensors[:3], grads[1] is None and not any(wanted), dropout is not None
    if plain and is_window_call(program, own, scale, dropout=drops, backward=True):
        whole = window_backward(program.window, grads[0].to(query.dtype), own, results, scale)
        return [grad.contiguous() for grad in whole]
    check_head_sizes(program.name, query, value)
    here = program.at(query.shape[2], key.shape[2])
    if here.gradients is None:
        raise RuntimeError(f"{program.name}: tensors on {query.device} need triton, which is not installed")
    grad_out, (out, state) = grads[0].to(query.dtype), results
    delta = _delta_of_rows(grad_out, out, grads[1]) if program.kept else None
    names = [argument.name for argument, want in zip(program.tensors, wanted, strict=True) if want]
    kept = state if program.kept else None
    sizes = call_sizes(query, key, value)
    heads = head_pairs(program, sizes, bind_tables(program, inputs, sizes), compute_dtype(query.dtype), query.device)
    totals = {name: torch.zeros(heads.tables[name].shape, dtype=torch.float64, device=query.device) for name in names}
    sums = _sums_of_reads(program, heads, totals)
    gradients, part = here.gradients, None
    if plain:
        part = part_of_call(here, own, scale, dropout=drops, backward=True)
        gradients = gradients if part is None or part.gradients is None else part.gradients
    found = gradients(query, key, value, grad_out, kept, delta, sums, tuple(inputs), scale, precision, dropout)
    if part is not None:
        add_part_gradients(part, found, grad_out, own, results, scale)
    _add_sums_of_reads(program, heads, sums, totals)
    grad_query = _finished(program, heads, (query, found[0]), (delta, kept), scale, totals)
    finished = [tensor.to(like.dtype) for tensor, like in zip((grad_query, *found[1:]), own, strict=True)]
    return [tensor.contiguous() for tensor in finished] + [
        totals[argument.name].sum_to_size(tensor.shape).to(tensor.dtype).contiguous()
        for argument, tensor in zip(program.tensors, inputs, strict=True)
        if argument.name in totals
    ]


def _delta_of_rows(grad_out: Tensor, out: Tensor, grad_lse: Tensor | None) -> Tensor:
    """Return what the gradients of all weights of a row have in common, float32 `(B, H, N)`."""
    delta = (grad_out.float() * out).sum(-1)
    return delta if grad_lse is None else delta - grad_lse


def _sums_of_reads(program: Program, heads: Pairs, totals: Mapping[str, Tensor]) -> list[Tensor | PairSum | None]:
    """Return where the gradients of each read of a table go: float32 for each query or each key of each head."""
    sizes = heads.sizes
    found: list[Tensor | PairSum | None] = []
    for read in program.reads:
        shape = (sizes.B, sizes.H, sizes.M if read.axes == "column" else sizes.N)
        if read.table not in totals:
            found.append(None)
        elif read.axes in PAIR_AXES:
            found.append(PairSum(heads, read, totals))
        else:
            found.append(torch.zeros(shape, dtype=torch.float32, device=heads.device))
    return found


def _add_sums_of_reads(
    program: Program, heads: Pairs, sums: list[Tensor | PairSum | None], totals: Mapping[str, Tensor]
) -> None:
    """Add sums of rows and keys to the elements that were read; those of pairs are there already."""
    for read, total in zip(program.reads, sums, strict=True):
        if not isinstance(total, Tensor):
            continue
        if read.axes == "column":
            add_read(all_keys(heads), read, of_keys(heads, total), totals)
        else:
            add_read(all_rows(heads), read, of_rows(heads, total), totals)


def _finished(
    program: Program,
    heads: Pairs,
    queries: tuple[Tensor, Tensor],
    rows: tuple[Tensor | None, Tensor | None],
    scale: float | None,
    totals: Mapping[str, Tensor],
) -> Tensor:
    """Add the gradients of sink and scale, and return that of the query with the factor that was missing.

    Args:
        program: of the attention.
        heads: coordinates of all heads.
        queries: query and its gradient, without the pattern's own factor.
        rows: what all gradients of a row have in common, and what was kept of it.
        scale: of the call.
        totals: gradients of tables.
    """
    sizes = heads.sizes

    def by_group(tensor: Tensor, axis: int = 1) -> Tensor:
        return torch.unflatten(tensor, axis, (sizes.kv_heads, sizes.g))

    delta, state = rows
    if program.sink is not None and delta is not None and state is not None:
        grouped = by_group(state, -2)
        if program.kept == "peak":
            peak, total = grouped[0], grouped[1]
        else:
            alive = grouped != -torch.inf
            peak, total = torch.where(alive, grouped, 0.0), alive.to(grouped.dtype)
        sink_gradients(program, heads, by_group(delta), peak, total, totals)
    query, grad_query = queries
    if program.scale is None or scale is not None:
        return grad_query
    factor = scale_gradients(program, heads, by_group(query.to(heads.dtype)), by_group(grad_query), scale, totals)
    return (by_group(grad_query) * factor).flatten(1, 2)
