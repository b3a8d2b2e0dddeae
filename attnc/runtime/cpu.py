"""The CPU program: touched tiles only, few large calls, memory linear in the lengths, gradients by recomputation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnc.runtime.autocast import unaffected_by_autocast
from attnc.runtime.calls import Call, make_call, tables_of
from attnc.runtime.cpu_flash import flash_backward, flash_forward, suits_flash
from attnc.runtime.cpu_library import library_backward, library_forward, suits_library
from attnc.runtime.cpu_tiles import Backward, Gradients, Rows, tiled_backward, tiled_forward
from attnc.runtime.dropout import Dropout
from attnc.runtime.program import Program
from attnc.runtime.row_gradients import all_rows, scale_gradients, sink_gradients, values_of_rows


@unaffected_by_autocast
def cpu_forward(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: Sequence[Tensor],
    scale: float | None,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute checked arguments.

    Returns:
        The output `[B, H, N, E]` in the query's dtype, and what `Program.kept` says of each row, of the scores without
        the terms that were `dropped`.
    """
    if suits_library(program, query, key, value, dropout):
        found = library_forward(program, query, key, value, scale)
        if found is not None:
            return as_rows_outside(found[0]), found[1].contiguous()
    call = make_call(program, query, key, value, inputs, scale, dropout)
    out, state = _by_flash(call) or _by_tiles(call)
    result = rows_outside(out.flatten(1, 2).to(query.dtype))
    return result, state.flatten(-3, -2).clone() if program.kept else result.new_empty((0,))


def rows_outside(out: Tensor) -> Tensor:
    """Lay an output `[B, H, N, E]` out as `[B, N, H, E]` in memory, as projections take it and SDPA gives it."""
    return new_output(out, out.shape).copy_(out)


def as_rows_outside(out: Tensor) -> Tensor:
    """Return an output in that layout, itself if it has it already."""
    _, heads, rows, size = out.shape
    wanted = (heads * rows * size, size, heads * size, 1)
    return out if out.stride() == wanted and out.storage_offset() == 0 else rows_outside(out)


def new_output(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return memory for an output in that layout: no view of anything, so that callers may change it in place."""
    _, heads, rows, size = shape
    return like.new_empty_strided(shape, (heads * rows * size, size, heads * size, 1))


def _by_flash(call: Call) -> tuple[Tensor, Tensor] | None:
    """Return output and log-sum-exp; None where the flash operator does not suit the pattern or the numbers."""
    if not suits_flash(call):
        return None
    out, lse = flash_forward(call)
    if not bool(torch.isfinite(out.sum())):
        return None
    if call.program.sink is None:
        return out, lse
    sink = values_of_rows(call.heads, call.program.sink(all_rows(call.heads)))
    whole = torch.logaddexp(lse, sink)
    share = torch.where(lse == -torch.inf, 0.0, torch.exp(lse - whole))
    return out * share.unsqueeze(-1), whole


def _by_tiles(call: Call) -> tuple[Tensor, Tensor]:
    """Return the output, and what is kept of rows."""
    out, rows = tiled_forward(call, careful=False)
    if not bool(torch.isfinite(out.sum())):
        # NaN or infinities somewhere: again, keeping those of masked pairs away from rows that may not see them
        out, rows = tiled_forward(call, careful=True)
    out, rows = _with_sink(call, out, rows)
    if call.program.normalize in ("softmax", "rows"):
        alive = rows.total != 0
        out = torch.where(alive.unsqueeze(-1), out / torch.where(alive, rows.total, 1.0).unsqueeze(-1), 0.0)
    match call.program.kept:
        case "peak":
            return out, torch.stack([rows.peak, rows.total])
        case "total":
            return out, rows.total
        case _:
            return out, log_sum_exp(rows)


def _with_sink(call: Call, out: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
    """Add the sink to the sums of the rows."""
    if call.program.sink is None:
        return out, rows
    sink = values_of_rows(call.heads, call.program.sink(all_rows(call.heads)))
    peak = torch.maximum(rows.peak, sink)
    base = torch.where(peak.isinf(), 0.0, peak)
    fade = torch.where(rows.peak == -torch.inf, 0.0, torch.exp(rows.peak - base))
    return out * fade.unsqueeze(-1), Rows(peak, rows.total * fade + torch.exp(sink - base))


def log_sum_exp(rows: Rows) -> Tensor:
    """Return the logarithm of each row's denominator."""
    alive = rows.total != 0
    return torch.where(alive, rows.peak + torch.log(torch.where(alive, rows.total, 1.0)), -torch.inf)


@unaffected_by_autocast
def cpu_backward(
    program: Program,
    grads: tuple[Tensor, Tensor | None],
    tensors: tuple[Tensor, Tensor, Tensor, Sequence[Tensor]],
    results: tuple[Tensor, Tensor],
    scale: float | None,
    wanted: Sequence[bool],
    dropout: Dropout | None = None,
) -> list[Tensor]:
    """Compute the gradients of query, key, value and of those inputs that are `wanted`, in order.

    Args:
        program: of the forward pass.
        grads: of the output, and of the log-sum-exp if it was used.
        tensors: query, key, value, inputs.
        results: output of the forward pass, and what it kept of rows.
        scale: of the call.
        wanted: one entry for each input.
        dropout: of the call.
    """
    query, key, value, inputs = tensors
    if grads[1] is None and not any(wanted) and suits_library(program, query, key, value, dropout):
        plain = library_backward(program, grads[0], (query, key, value), results, scale)
        if plain is not None:
            return plain
    call = make_call(program, query, key, value, inputs, scale, dropout)
    names = [argument.name for argument, want in zip(program.tensors, wanted, strict=True) if want]
    tables = {name: torch.zeros(tables_of(call)[name].shape, dtype=torch.float64) for name in names}
    groups = call.key.shape[1]

    def by_group(tensor: Tensor) -> Tensor:
        return torch.unflatten(tensor.detach().to(call.query.dtype), 1, (groups, call.sizes.g))

    grad_out, out = by_group(grads[0]).contiguous(), by_group(results[0])
    grad_lse = None if grads[1] is None or not program.has_lse else by_group(grads[1])
    sums = Gradients(torch.zeros_like(call.query), torch.zeros_like(call.key), torch.zeros_like(call.value), tables)
    rows = _rows_of_state(call, results[1])
    sums = _pair_gradients(call, sums, (grad_out, out, grad_lse), rows)
    sink_gradients(program, call.heads, _delta((grad_out, out, grad_lse)), rows.peak, rows.total, tables)
    factor = scale_gradients(program, call.heads, call.query, sums.query, call.scale, tables)
    found = [(sums.query * factor).flatten(1, 2), sums.key, sums.value]
    pairs = zip(found, (query, key, value), strict=True)
    results_of = [tensor.to(like.dtype).contiguous() for tensor, like in pairs]
    for argument, tensor in zip(program.tensors, inputs, strict=True):
        if argument.name in tables:
            results_of.append(tables[argument.name].sum_to_size(tensor.shape).to(tensor.dtype).contiguous())
    return results_of


def _rows_of_state(call: Call, state: Tensor) -> Rows:
    """Return peak and total of each row, which a forward pass has kept.

    A row that sees an infinite score has no weights but NaN, and so has no peak to compare with either.
    """
    grouped = torch.unflatten(state, -2, (call.key.shape[1], call.sizes.g)) if call.program.kept else state
    match call.program.kept:
        case "lse":
            alive = grouped != -torch.inf
            return Rows(_without_infinity(torch.where(alive, grouped, 0.0)), alive.to(grouped.dtype))
        case "peak":
            return Rows(_without_infinity(grouped[0]), grouped[1])
        case "total":
            return Rows(torch.zeros_like(grouped), grouped)
        case _:
            ones = call.query.new_ones(call.query.shape[:-1])
            return Rows(torch.zeros_like(ones), ones)


def _without_infinity(peak: Tensor) -> Tensor:
    return torch.where(peak == torch.inf, torch.nan, peak)


def _pair_gradients(call: Call, sums: Gradients, given: tuple[Tensor, Tensor, Tensor | None], rows: Rows) -> Gradients:
    program = call.program
    grad_out, out, grad_lse = given
    alive = rows.total != 0
    in_pairs = set(program.pair_tables) & set(sums.tables)
    if suits_flash(call) and not in_pairs:
        lse = torch.where(alive, rows.peak, -torch.inf)
        query, key, value = flash_backward(call, grad_out, grad_lse, out, lse)
        if all(bool(torch.isfinite(tensor.sum())) for tensor in (query, key, value)):
            return Gradients(query, key, value, sums.tables)
    divided = program.normalize in ("softmax", "rows")
    delta = _delta(given) if divided else None
    backward = Backward(grad_out, delta, rows, None if bool(alive.all()) or not divided else alive)
    tiled_backward(call, backward, sums, careful=False)
    if not all(bool(torch.isfinite(tensor.sum())) for tensor in (sums.query, sums.key, sums.value)):
        for tensor in (sums.query, sums.key, sums.value, *sums.tables.values()):
            tensor.zero_()
        tiled_backward(call, backward, sums, careful=True)
    return sums


def _delta(given: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    grad_out, out, grad_lse = given
    delta = (grad_out * out).sum(-1)
    return delta if grad_lse is None else delta - grad_lse
