"""Gradients as plain torch operations, and their derivatives: the backward pass of the backward operator.

What the backward operator computes is the vector-Jacobian product of the forward pass: a function of the gradients that
come in and of query, key, value and inputs. Here it is computed again by torch operations, a strip of query rows at a
time, and differentiated by autograd; the graph of a strip is gone before the next one is made. So a second derivative
takes memory linear in the lengths, and time in proportion to `N x M` whatever the mask. The output and what was kept of
rows follow from the tensors, and have no derivative of their own. Third derivatives keep the graphs of all strips, and
with them `N x M` numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.autocast import without_autocast
from attnc.runtime.blocks import compute_dtype
from attnc.runtime.calls import call_sizes
from attnc.runtime.composite import row_strips
from attnc.runtime.dense import dense_attention
from attnc.runtime.dropout import Dropout
from attnc.runtime.program import Program
from attnc.runtime.pullback import Results, pull_back
from attnc.runtime.transforms import refuse_gradients_in_batches


@dataclass(frozen=True, slots=True)
class Reverse:
    """The arguments of a backward operator, in the precision that they are computed in.

    Attributes:
        program: without the terms that the operators leave out.
        grads: of the output, and of the log-sum-exp if it was used.
        query: of the call.
        shared: what all rows have in common and is differentiated: key, value, and the inputs that are `wanted`.
        inputs: the pattern's tensors.
        wanted: one entry for each input.
        scale: of the call.
        dropout: of the call.
    """

    program: Program
    grads: tuple[Tensor, ...]
    query: Tensor
    shared: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    wanted: tuple[bool, ...]
    scale: float | None
    dropout: Dropout | None

    def strips(self) -> Iterable[tuple[slice, Tensor]]:
        """Return strips of query rows."""
        return row_strips(call_sizes(self.query, *self.shared[:2]), self.query.device)

    def attend(self, rows: Tensor) -> Callable[..., Results]:
        """Return the forward pass of some rows, a function of their queries and of what is `shared`."""
        sizes = call_sizes(self.query, *self.shared[:2])

        def forward(query: Tensor, key: Tensor, value: Tensor, *tables: Tensor) -> Results:
            own = iter(tables)
            inputs = [next(own) if want else tensor for tensor, want in zip(self.inputs, self.wanted, strict=True)]
            found = dense_attention(self.program, query, key, value, inputs, sizes, self.scale, self.dropout, rows)
            return found[: len(self.grads)]

        return forward

    def derive(self, rows: Tensor) -> Callable[..., Results]:
        """Return the gradients of some rows' query and of what is `shared`, a function of their own `grads` as well."""
        count = len(self.grads)
        return lambda *tensors: pull_back(self.attend(rows), tensors[count:], tensors[:count], again=True)


def composite_backward(
    program: Program,
    grads: tuple[Tensor, Tensor | None],
    tensors: tuple[Tensor, Tensor, Tensor, Sequence[Tensor]],
    scale: float | None,
    dropout: Dropout | None,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Compute what the backward operator does, for gradients that carry tangents or belong to a transform."""
    reverse = _make_reverse(program, [grad for grad in grads if grad is not None], tensors, scale, dropout, wanted)
    with without_autocast(reverse.query.device.type):
        by_rows, totals = _over_strips(
            reverse,
            lambda part, rows: pull_back(
                reverse.attend(rows),
                (reverse.query[:, :, part], *reverse.shared),
                [grad[:, :, part] for grad in reverse.grads],
                again=torch.is_grad_enabled(),
            ),
            count=1,
        )
    given = (*tensors[:3], *(tensor for tensor, want in zip(tensors[3], wanted, strict=True) if want))
    return [found.to(tensor.dtype) for found, tensor in zip((*by_rows, *totals), given, strict=True)]


def save_reverse(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    """Keep the arguments of a backward operator for its own backward pass."""
    grad_out, grad_lse, query, key, value, tables, _, _, ctx.scale, _, ctx.dropout_p, seed, ctx.wanted = inputs
    grads = [grad for grad in (grad_out, grad_lse) if grad is not None]
    ctx.count = len(grads)
    ctx.save_for_backward(*grads, query, key, value, *tables, seed)
    ctx.set_materialize_grads(False)


def make_second_backward(program: Program) -> Callable[..., tuple[Any, ...]]:
    """Return the backward function of a program's backward operator, for `register_autograd`."""

    def backward(ctx: Any, vectors: Sequence[Tensor | None]) -> tuple[Any, ...]:
        refuse_gradients_in_batches(program.name, vectors)
        saved = ctx.saved_tensors  # once: checkpoints compute them again each time
        grads, (query, key, value, *inputs, seed) = saved[: ctx.count], saved[ctx.count :]
        dropout = Dropout.of(ctx.dropout_p, seed)
        reverse = _make_reverse(program, grads, (query, key, value, inputs), ctx.scale, dropout, ctx.wanted)
        wide = [None if vector is None else vector.to(reverse.query.dtype) for vector in vectors]
        with without_autocast(query.device.type):
            by_rows, totals = _second_derivatives(reverse, wide)
        found = iter((*by_rows, *totals))
        of_grads = [next(found).to(grad.dtype) for grad in grads]
        of_tensors = [next(found).to(tensor.dtype) for tensor in (query, key, value)]
        of_inputs = [
            next(found).to(tensor.dtype) if want else None for tensor, want in zip(inputs, ctx.wanted, strict=True)
        ]
        lse = of_grads[1] if len(of_grads) > 1 else None
        # what comes back mirrors what was given, where an empty list counts as one of tensors
        return (of_grads[0], lse, *of_tensors, of_inputs, *(None,) * 6, None if ctx.wanted else [])

    return backward


def _make_reverse(
    program: Program,
    grads: Sequence[Tensor],
    tensors: tuple[Tensor, Tensor, Tensor, Sequence[Tensor]],
    scale: float | None,
    dropout: Dropout | None,
    wanted: Sequence[bool],
) -> Reverse:
    query, key, value, inputs = tensors
    dtype = compute_dtype(query.dtype)
    shared = (key, value, *(tensor for tensor, want in zip(inputs, wanted, strict=True) if want))
    return Reverse(
        replace(program, dropped=None),
        tuple(grad.to(dtype) for grad in grads),
        query.to(dtype),
        tuple(tensor.to(dtype) for tensor in shared),
        tuple(inputs),
        tuple(wanted),
        scale,
        dropout,
    )


def _second_derivatives(reverse: Reverse, vectors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Return derivatives of the gradients' products with `vectors`: by gradients and query, and by what is shared."""
    again = torch.is_grad_enabled()

    def of_strip(part: slice, rows: Tensor) -> Results:
        own = [tensor[:, :, part] for tensor in (*reverse.grads, reverse.query)]
        first = None if vectors[0] is None else vectors[0][:, :, part]
        return pull_back(reverse.derive(rows), (*own, *reverse.shared), (first, *vectors[1:]), again)

    return _over_strips(reverse, of_strip, count=len(reverse.grads) + 1)


def _over_strips(
    reverse: Reverse, of_strip: Callable[[slice, Tensor], Results], count: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute strip by strip; join the first `count` results, which belong to rows, and add the others up."""
    by_rows: list[list[Tensor]] = [[] for _ in range(count)]
    totals: list[Tensor] | None = None
    for strip, rows in reverse.strips():
        found = of_strip(strip, rows)
        for parts, part in zip(by_rows, found[:count], strict=True):
            parts.append(part)
        own = found[count:]
        totals = list(own) if totals is None else [total + part for total, part in zip(totals, own, strict=True)]
    assert totals is not None
    return [torch.cat(parts, 2) for parts in by_rows], totals
