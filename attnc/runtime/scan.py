"""Causal scans: sums over earlier keys, weighted by row and by key, at a cost that is linear in the length.

    out[i] = sum over j <= i of exp(A[i] + G[j]) * dot(x[i], y[j]) * z[j]  +  exp(A[i] + r0) * (x[i] @ S0)

A scan is closed under differentiation: the gradient of `x` is a scan of `z` and `y`, those of `y` and `z` are scans
from the end in which rows and keys change places, and those of the logs are dot products of these with what they belong
to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype
from attnc.runtime.composite import needs_composite
from attnc.runtime.scan_compute import register_scan, scan_compute
from attnc.runtime.scan_torch import scan_by_torch
from attnc.runtime.transforms import PLAIN_TENSORS, are_nested_tangents

SCAN_CHUNK = 64
"""Rows of a chunk, inside of which all pairs are computed."""


def causal_scan(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    row_logs: Tensor | None = None,
    key_logs: Tensor | None = None,
    state: Tensor | None = None,
    state_log: Tensor | None = None,
    *,
    heads: int | None = None,
    reverse: bool = False,
    chunk: int = SCAN_CHUNK,
    return_state: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return weighted sums of `z` over the keys up to each row.

    Args:
        x: of rows, `(B, *, N, F)`; as `y` and `z`, it may have fewer heads than there are, which then share them.
        y: of keys, `(B, *, N, F)`.
        z: of keys, `(B, *, N, E)`.
        row_logs: `A`, `(B or 1, H or 1, N)`, taken as float64; 0 unless given. They must add up to at most 0 with the
            logs of what a row sees, keys and state; each alone may be in the thousands.
        key_logs: `G`, likewise; minus infinity leaves a key out.
        state: `S0`, `(B, H, F, E)`: sums that the scan starts from.
        state_log: `r0`, `(B or 1, H or 1)`, 0 unless given: the sums are `state * exp(state_log)`. A constant for
            derivatives.
        heads: `H`; the greatest number of heads given unless said.
        reverse: sum over `j >= i` instead.
        chunk: rows of a chunk.
        return_state: return the sums behind the last key as well.
        out_dtype: of the output; that of `x` unless said.

    Returns:
        The output `(B, H, N, E)`; the sums at the end `(B, H, F, E)`, float32 at least, and the log that they are
        without: the greatest of `state_log` and all key logs, a constant for derivatives. The log is None if no logs of
        keys or of a state are given, and both are None without `return_state`.

    Raises:
        ValueError: shapes do not fit.
    """
    heads = max(x.shape[1], y.shape[1], z.shape[1]) if heads is None else heads
    _check_scan(x, y, z, row_logs, key_logs, state, state_log, heads, chunk)
    wanted = x.dtype if out_dtype is None else out_dtype
    out, end, log = _scan(
        x, y, z, row_logs, key_logs, state, state_log, heads, reverse, chunk, return_state, wanted
    )  # fmt: skip
    if not return_state:
        return out, None, None
    return out, end, log if key_logs is not None or state_log is not None else None


def _check_scan(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    row_logs: Tensor | None,
    key_logs: Tensor | None,
    state: Tensor | None,
    state_log: Tensor | None,
    heads: int,
    chunk: int,
) -> None:
    batch, _, length, features = x.shape
    for name, part, size in (("x", x, features), ("y", y, features), ("z", z, z.shape[-1])):
        if part.shape[0] != batch or part.shape[2:] != (length, size):
            raise ValueError(f"causal_scan: {name} is {tuple(part.shape)}, not ({batch}, *, {length}, {size})")
        if part.shape[1] < 1 or heads % part.shape[1]:
            raise ValueError(f"causal_scan: {name} has {part.shape[1]} heads, which do not divide {heads}")
    of_rows = (("row_logs", row_logs, (length,)), ("key_logs", key_logs, (length,)), ("state_log", state_log, ()))
    for name, logs, rest in of_rows:
        if logs is not None and not (
            logs.shape[2:] == rest and logs.shape[0] in (1, batch) and logs.shape[1] in (1, heads)
        ):
            raise ValueError(f"causal_scan: {name} is {tuple(logs.shape)}, not ({batch}, {heads}, ...) with {rest}")
    if state is not None and state.shape != (batch, heads, features, z.shape[3]):
        raise ValueError(f"causal_scan: state is {tuple(state.shape)}, not {(batch, heads, features, z.shape[3])}")
    if state_log is not None and state is None:
        raise ValueError("causal_scan: state_log is the log of a state, which is not given")
    if chunk < 1:
        raise ValueError(f"causal_scan: a chunk of {chunk} rows")


def _scan(
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
    """Compute a scan by what can be differentiated here: the operator, a function of autograd, or plain torch."""
    tensors = [part for part in (x, y, z, rows, keys, state) if part is not None]
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    traced = traced or any(type(part) not in PLAIN_TENSORS for part in tensors)
    if are_nested_tangents() or (traced and needs_composite(tensors)):
        compute = scan_by_torch
    elif traced:
        compute = _SCAN_OPERATOR
    else:
        compute = _Scan.apply if _is_recorded(tensors) else scan_compute
    return compute(
        x, y, z, rows, keys, state, state_log, heads, reverse, chunk, with_state, out_dtype
    )  # fmt: skip


def _is_recorded(tensors: list[Tensor]) -> bool:
    """Tell whether derivatives may be asked for."""
    recorded = torch.is_grad_enabled() and any(part.requires_grad for part in tensors)
    return recorded or needs_composite(tensors)


_SCAN_TENSORS = ("x", "y", "z", "rows", "keys", "state", "state_log")


class _Scan(torch.autograd.Function):
    """A scan whose derivatives are scans, in both directions and as often as asked for."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return output, state and its log."""
        return scan_compute(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep what derivatives are made of."""
        _save_scan(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:7])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of tensors."""
        return _scan_gradients(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        """Return the tangents of output and state."""
        return _scan_tangents(ctx, tangents[:6])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Take what stands for many as further entries of the batch."""
        return _batched_scan(info.batch_size, in_dims, args)


def _save_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    log = output[2] if output[2].numel() else None
    ctx.save_for_backward(*inputs[:7], log)
    ctx.options = inputs[7:]
    ctx.set_materialize_grads(False)


def _scan_gradients(
    ctx: Any, grad_out: Tensor | None, grad_state: Tensor | None, _of_log: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, y, z, rows, keys, state, state_log, log = ctx.saved_tensors
    heads, reverse, chunk, with_state, out_dtype = ctx.options
    if not with_state:
        grad_state = None
    if grad_out is None and grad_state is None:
        return (None,) * 12
    wants = ctx.needs_input_grad
    if grad_out is None:
        grad_out = z.new_zeros((z.shape[0], heads, z.shape[2], z.shape[3]), dtype=out_dtype)
    backwards = None if log is None or grad_state is None else -log
    found: list[Tensor | None] = [None] * 12

    def forward(wide: bool) -> Tensor:
        start = None if state is None else state.transpose(-1, -2)
        dtype = compute_dtype(x.dtype) if wide else x.dtype
        return _scan(
            grad_out, z, y, rows, keys, start, state_log, heads, reverse, chunk, False, dtype
        )[0]  # fmt: skip

    def backward(
        first: Tensor, second: Tensor, third: Tensor, start: Tensor | None, wide: bool, with_end: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = compute_dtype(x.dtype) if wide else x.dtype
        return _scan(
            first, second, third, keys, rows, start, backwards, heads, not reverse, chunk, with_end, dtype
        )  # fmt: skip

    if wants[0] or wants[3]:
        grad = forward(wants[3] or x.shape[1] < heads)
        found[0] = _gradient_of_shared(grad, x)
        found[3] = _gradient_of_logs(grad, x, rows) if wants[3] else None
    if wants[1] or wants[4]:
        start = None if grad_state is None else grad_state.transpose(-1, -2)
        grad, *_ = backward(z, grad_out, x, start, wants[4] or y.shape[1] < heads)
        found[1] = _gradient_of_shared(grad, y)
        found[4] = _gradient_of_logs(grad, y, keys) if wants[4] else None
    if wants[2] or wants[5]:
        grad, end, end_log = backward(y, x, grad_out, grad_state, z.shape[1] < heads, wants[5])
        found[2] = _gradient_of_shared(grad, z)
        if wants[5]:
            found[5] = _gradient_of_state(end, end_log, state, state_log)
    return tuple(found)


def _gradient_of_shared(grad: Tensor, part: Tensor) -> Tensor:
    """Return the gradient of what heads share."""
    if part.shape[1] < grad.shape[1]:
        grad = torch.unflatten(grad, 1, (part.shape[1], -1)).sum(2)
    return grad.to(part.dtype)


def _gradient_of_logs(grad: Tensor, part: Tensor, logs: Tensor) -> Tensor:
    """Return the gradient of logs from that of the rows whose weights they are in."""
    by_head = torch.unflatten(grad, 1, (part.shape[1], -1)) * part.unsqueeze(2)
    return by_head.sum(-1, dtype=torch.float64).flatten(1, 2).sum_to_size(logs.shape).to(logs.dtype)


def _gradient_of_state(end: Tensor, end_log: Tensor, state: Tensor, state_log: Tensor | None) -> Tensor:
    """Return the gradient of the state that a scan starts from, which is where the walk backward ends."""
    log = end_log if end_log.numel() else None
    if state_log is not None:
        log = state_log if log is None else log + state_log
    return (end if log is None else end * log.exp()[..., None, None].to(end.dtype)).to(state.dtype)


def _scan_tangents(ctx: Any, tangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    x, y, z, rows, keys, state, state_log = ctx.saved_tensors[:7]
    heads = ctx.options[0]
    of_x, of_y, of_z, of_rows, of_keys, of_state = tangents
    of_x = _tangent_with_logs(of_x, x, of_rows, heads)
    of_y = _tangent_with_logs(of_y, y, of_keys, heads)
    terms = []
    if of_x is not None:
        terms.append((of_x, y, z, state))
    if of_y is not None or of_state is not None:
        terms.append((x, torch.zeros_like(y) if of_y is None else of_y, z, of_state))
    if of_z is not None:
        terms.append((x, y, of_z, None))
    out: Tensor | None = None
    end: Tensor | None = None
    for number, (first, second, third, start) in enumerate(terms):
        one, state_of_one, _ = _scan(first, second, third, rows, keys, start, state_log, *ctx.options)
        out = one if out is None else out + one
        if number or of_x is None:  # the state knows nothing of rows
            end = state_of_one if end is None else end + state_of_one
    if end is None:
        end = x.new_zeros((x.shape[0], heads, x.shape[3], z.shape[3]), dtype=compute_dtype(x.dtype))
        end = end if ctx.options[3] else end.new_empty((0,))
    return out, end, None


def _tangent_with_logs(tangent: Tensor | None, part: Tensor, of_logs: Tensor | None, heads: int) -> Tensor | None:
    """Return the tangent of rows of which a weight is a weights_of."""
    if of_logs is None:
        return tangent
    if part.shape[1] != of_logs.shape[1] and of_logs.shape[1] > 1:
        repeats = heads // part.shape[1]
        part = part.repeat_interleave(repeats, 1)
        tangent = None if tangent is None else tangent.repeat_interleave(repeats, 1)
    by_logs = (part * of_logs.unsqueeze(-1)).to(part.dtype)
    return by_logs if tangent is None else tangent + by_logs


def _batched_scan(size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Compute `size` scans as one with a larger batch, of tensors some of which have one more dimension."""
    x, of_x = args[0], in_dims[0]
    batch = x.shape[0] if of_x is None else x.movedim(of_x, 0).shape[1]
    merged: list[Tensor | None] = []
    of_log = 1  # entries of the batch that the last log tells apart
    for name, part, dim in zip(_SCAN_TENSORS, args, in_dims, strict=False):
        if part is None or (dim is None and part.shape[0] == 1 < batch):
            merged.append(part)  # logs of all entries alike
            continue
        many = part.unsqueeze(0).expand(size, *part.shape) if dim is None else part.movedim(dim, 0)
        of_log = max(of_log, many.shape[1]) if name in ("keys", "state_log") else of_log
        if many.shape[1] < batch:
            many = many.expand(size, batch, *many.shape[2:])
        merged.append(many.flatten(0, 1))
    found = _scan(*merged, *args[7:])  # type: ignore[arg-type]
    dims = tuple(0 if part.shape[0] == size * batch else None for part in found)
    apart = [
        part if dim is None else torch.unflatten(part, 0, (size, -1)) for part, dim in zip(found, dims, strict=True)
    ]
    if dims[2] == 0:
        apart[2] = apart[2][:, :of_log]
    return tuple(apart), dims


_SCAN_OPERATOR = register_scan(_scan_gradients, _save_scan)
