"""Attention whose cost is linear in the length: one product of keys and values, or one that is carried along a scan.

With `x` the features of a query times its factor, `y` those of a key times its own, `A` and `G` their exponents,

    out_i = sum over j of exp(A_i + G_j) (x_i . y_j) z_j

over all keys, or those up to the query. Under `normalize rows`, `z` is the value with a column of ones behind it, whose
sum divides the others; the exponent of a query cancels then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype
from attnc.runtime.program import Formula
from attnc.runtime.scan import causal_scan


class State(NamedTuple):
    """What causal linear attention carries from one stretch of a sequence to the next.

    Attributes:
        memory: `exp(-log)` times the sum of the keys' features by their values, float32 at least: `(B, H, F, E)`, and
            `(B, H, F, E + 1)` under `normalize rows`, whose last column has the sum of the features.
        log: float64 `(B or 1, H or 1)`, or None for 0.
        length: positions so far, of all stretches.
    """

    memory: Tensor
    log: Tensor | None
    length: int


torch.serialization.add_safe_globals([State])


@dataclass(frozen=True, slots=True)
class Linear:
    """The form of an attention that is linear in its length.

    Attributes:
        chunk: positions that a scan takes together; 0 where every pair is allowed, and one product does.
        asked: whether it is taken whatever the length.
        at_end: whether the last query stands at the last key, and not the first at the first.
        lengths: what its factors depend on of all the lengths of a call, `M` or `N`, which no state can know; empty
            where they depend on none.
        query_factor, key_factor: None for 1.
        query_exponent, key_exponent: None for 0.
    """

    chunk: int = 0
    asked: bool = False
    at_end: bool = True
    lengths: str = ""
    query_factor: Formula | None = None
    key_factor: Formula | None = None
    query_exponent: Formula | None = None
    key_exponent: Formula | None = None

    @property
    def is_causal(self) -> bool:
        """Whether a query sees the keys up to its own position alone."""
        return self.chunk > 0


@dataclass(frozen=True, slots=True)
class Side:
    """Queries or keys, ready for products: `(B, heads, length, F)`, and exponents in float64 or None."""

    rows: Tensor
    exponent: Tensor | None


def is_cheaper(queries: int, keys: int, features: int, value_size: int, linear: Linear) -> bool:
    """Tell whether a form that is linear in the length takes less work than its pairs do.

    A pair takes two products, of `features` and of `value_size` numbers. Memory traffic counts as half as much again
    for the linear form, which writes its sums out.
    """
    pairs = queries * keys / (2 if linear.is_causal else 1)
    quadratic = pairs * (features + value_size)
    carried = (queries + keys) * features * value_size
    inside = queries * min(linear.chunk, keys) * (features + value_size) / 2
    return 1.5 * (carried + inside) < quadratic


def attend_to_all(query: Side, key: Side, value: Tensor, *, rows: bool) -> Tensor:
    """Attend to every key: `phi(Q) (phi(K)^T V)`."""
    values = with_ones(value) if rows else value
    memory, log = sum_of_keys(key, values, query.rows.shape[1])
    memory = memory.to(query.rows.dtype)
    heads = memory.shape[1]
    grouped = torch.unflatten(query.rows, 1, (heads, -1))
    out = (grouped @ memory.unsqueeze(2)).flatten(1, 2)
    return _with_exponents(out, query, None if log is None else log.unsqueeze(-1), rows=rows)


def attend_causally(
    query: Side, key: Side, value: Tensor, *, rows: bool, chunk: int, shift: int, state: State | None, keep: bool
) -> tuple[Tensor, State | None]:
    """Attend to the keys up to each query.

    Args:
        query: of `N` rows; row `r` sees keys up to `r + shift`.
        key: of `M` keys.
        value: `(B, G, M, E)`.
        rows: whether weights are divided by their sum.
        chunk: positions that are taken together.
        shift: at least 0.
        state: of the positions before these.
        keep: whether the state after the last key is wanted.
    """
    values = with_ones(value) if rows else value
    heads, count, length = query.rows.shape[1], query.rows.shape[2], value.shape[2]
    memory, log = (None, None) if state is None else (state.memory, state.log)
    if shift:
        memory, log = sum_of_keys(
            _wide(_stretch(key, 0, shift)), _wide_values(values[:, :, :shift]), heads, memory, log
        )
        memory = memory.repeat_interleave(heads // memory.shape[1], 1)
    own = _stretch(key, shift, min(shift + count, length))
    inside = values[:, :, shift : shift + count]
    if inside.shape[2] < count:  # rows behind the last key see what it sees
        missing = count - inside.shape[2]
        inside = _with_empty_rows(inside, missing)
        exponent = (
            None if own.exponent is None else torch.nn.functional.pad(own.exponent, (0, missing), value=-torch.inf)
        )
        own = Side(_with_empty_rows(own.rows, missing), exponent)
    peaks = _peaks(own.exponent, log)
    out, last, last_log = causal_scan(
        query.rows,
        own.rows,
        inside,
        None if peaks is None else -peaks,
        own.exponent,
        memory,
        log,
        heads=heads,
        chunk=chunk,
        return_state=keep,
        out_dtype=compute_dtype(query.rows.dtype),
    )
    found = _with_exponents(out, query, peaks, rows=rows)
    if not keep:
        return found, None
    behind = shift + count
    if behind < length:
        assert last is not None
        rest = _wide(_stretch(key, behind, length))
        last, last_log = sum_of_keys(rest, _wide_values(values[:, :, behind:]), heads, last, last_log)
    assert last is not None
    return found, State(last, last_log, length + (0 if state is None else state.length))


def sum_of_keys(
    key: Side, values: Tensor, heads: int, memory: Tensor | None = None, log: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return `exp(-peak)` times `sum over j of exp(G_j) y_j z_j^T`, added to what there was, and the peak.

    The sum has as many heads as keys or exponents have, or `heads` where it is added to a memory of so many.
    """
    peak = None if key.exponent is None else key.exponent.detach().amax(-1)
    if peak is not None:
        peak = torch.where(peak == -torch.inf, 0.0, peak)
    if log is not None or (memory is not None and peak is not None):
        before = torch.zeros((), dtype=torch.float64, device=values.device) if log is None else log
        peak = before if peak is None else torch.maximum(peak, before)
    rows = key.rows
    if peak is not None:
        logs = -peak.unsqueeze(-1)
        weights = (logs if key.exponent is None else key.exponent + logs).exp()
        rows = _spread_heads(rows, weights.shape[1]) * weights.unsqueeze(-1).to(rows.dtype)
    own_heads = max(rows.shape[1], values.shape[1])
    found = _spread_heads(rows, own_heads).transpose(-2, -1) @ _spread_heads(values, own_heads)
    if memory is not None:
        earlier = memory if peak is None else memory * _scale(log, peak).to(memory.dtype)
        found = earlier + _spread_heads(found, heads).to(memory.dtype)
    return found, peak


def with_ones(value: Tensor) -> Tensor:
    """Return values with a column of ones behind them."""
    return torch.cat((value, value.new_ones((*value.shape[:-1], 1))), -1)


def divided(out: Tensor) -> Tensor:
    """Divide sums by the last column; rows for which that is 0 are 0, and so is their gradient."""
    total = out[..., -1:]
    alive = total != 0
    return torch.where(alive, out[..., :-1] / torch.where(alive, total, 1.0), 0.0)


def _with_exponents(out: Tensor, query: Side, peaks: Tensor | None, *, rows: bool) -> Tensor:
    if rows:
        return divided(out)
    if query.exponent is None and peaks is None:
        return out
    exponent = sum(part for part in (query.exponent, peaks) if part is not None)
    assert isinstance(exponent, Tensor)
    return out * exponent.exp().unsqueeze(-1).to(out.dtype)


def _peaks(exponent: Tensor | None, log: Tensor | None) -> Tensor | None:
    """Return the greatest exponent of the keys up to each position, the memory's among them."""
    if exponent is None:
        return None if log is None else log.unsqueeze(-1)
    found = exponent.detach().cummax(-1).values
    if log is not None:
        found = torch.maximum(found, log.unsqueeze(-1))
    return torch.where(found == -torch.inf, 0.0, found)


def _scale(log: Tensor | None, peak: Tensor) -> Tensor:
    difference = -peak if log is None else log - peak
    return difference.exp()[..., None, None]


def _spread_heads(tensor: Tensor, heads: int) -> Tensor:
    """Repeat heads that several share; nothing where one number serves all heads."""
    if heads == 1 or tensor.shape[1] in (1, heads):
        return tensor
    return tensor.repeat_interleave(heads // tensor.shape[1], 1)


def _stretch(side: Side, first: int, end: int) -> Side:
    exponent = side.exponent
    return Side(side.rows[:, :, first:end], None if exponent is None else exponent[..., first:end])


def _wide(side: Side) -> Side:
    return Side(_wide_values(side.rows), side.exponent)


def _wide_values(values: Tensor) -> Tensor:
    """Return numbers as sums over many of them are kept: float32 at least."""
    return values.to(compute_dtype(values.dtype))


def _with_empty_rows(tensor: Tensor, missing: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, 0, missing))
