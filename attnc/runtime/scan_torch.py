"""Causal scans by torch operations: chunks as batched products, some chunks at a time.

Inside a chunk every pair is computed, as in attention. What earlier keys contribute comes from sums of `y z^T` over
all of them, one for each chunk: a small lower triangular matrix makes them of the chunks' own sums. Memory beside the
output is that of one slab of chunks. Every operation is differentiable in both directions, and nothing is done in place
where a transform looks on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.runtime.blocks import compute_dtype
from attnc.runtime.scan_logs import ScanLogs, running_references, weights_of
from attnc.runtime.transforms import are_transforms_active

SLAB_NUMBERS = 1 << 20
"""Numbers that a slab's intermediate results have, unless one chunk of each head has more."""


FEW_PAIRS = 1 << 16
"""Pairs whose weights take less time than the question whether rows and keys can have them."""

FACTOR_LOG = 30.0
"""Greatest log, up or down, of weights of rows and keys that may replace those of pairs: far from float32's limits."""


@dataclass(frozen=True, slots=True)
class _ScanSlab:
    """Chunks of equal length that are computed together.

    Attributes:
        first: its first row.
        chunks: number of them.
        size: rows of a chunk.
        walked: how many chunks the walk has passed before.
    """

    first: int
    chunks: int
    size: int
    walked: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.first, self.first + self.chunks * self.size)


@dataclass(frozen=True, slots=True)
class _ScanSlabLogs:
    """Logs of a slab: of rows and keys `(.., K, L)`, and references in the order of its chunks `(.., K)`.

    Attributes:
        before: references of the sums that a chunk starts from.
        after: of those that it leaves.
        walk: all references of the slab, in the order of the walk, `(.., K + 1)`.
    """

    rows: Tensor
    keys: Tensor
    before: Tensor
    after: Tensor
    walk: Tensor


def scan_by_torch(
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
    length, dtype = x.shape[2], compute_dtype(x.dtype)
    logs = ScanLogs.of(rows, keys, state_log, x, has_state=state is not None)
    no_state, no_log = z.new_empty((0,), dtype=dtype), z.new_empty((0,), dtype=torch.float64)
    if length == 1:
        x, y, z = (_rows_in_heads(part, heads, dtype) for part in (x, y, z))
        out, end, log = _single_row(x, y, z, logs, state)
        last_log = no_log if log is None or not with_state else log.contiguous()
        return out.to(out_dtype).contiguous(), end.contiguous() if with_state else no_state, last_log
    chunk = min(chunk, max(1, length))
    slabs = list(_scan_slabs(length, chunk, reverse, _chunks_at_once(x, z, heads, chunk)))
    references = None
    if logs is not None:
        alone = length <= chunk and state is None and not with_state  # no sums, and so no references
        references = logs.keys.new_zeros((1, 1, 2)) if alone else running_references(logs, chunk, reverse)
    out = z.new_empty((z.shape[0], heads, length, z.shape[3]), dtype=out_dtype)
    pieces: list[Tensor] = []
    seen_through = are_transforms_active() or torch.compiler.is_compiling()
    carry = None if state is None else state.to(dtype)
    for slab in slabs:
        of_x, of_y, of_z = (_rows_in_heads(part[:, :, slab.rows], heads, dtype) for part in (x, y, z))
        goes_on = with_state or slab is not slabs[-1]
        of_logs = _logs_of_slab(logs, references, slab, reverse)
        piece, carry = _scan_slab(of_x, of_y, of_z, slab, of_logs, carry, reverse, goes_on)
        if seen_through:
            pieces.append(piece.to(out_dtype))
        else:
            out[:, :, slab.rows] = piece
    if pieces:
        out = torch.cat(pieces[::-1] if reverse else pieces, 2)
    if not with_state:
        return out, no_state, no_log
    if carry is None:
        carry = z.new_zeros((z.shape[0], heads, x.shape[3], z.shape[3]), dtype=dtype)
    dense = torch.contiguous_format
    last_log = no_log if references is None else references[..., -1].clone(memory_format=dense)
    return out, carry.clone(memory_format=dense), last_log


def _rows_in_heads(part: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """Return rows of a tensor in the type of the sums, once for each head."""
    given = part.shape[1]
    wide = part.to(dtype)
    return wide if given == heads else wide.unsqueeze(2).expand(-1, -1, heads // given, -1, -1).flatten(1, 2)


def _single_row(
    x: Tensor, y: Tensor, z: Tensor, logs: ScanLogs | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Take one step, as in decoding: the row reads the sums that it is part of."""
    own = y.transpose(-1, -2) * z
    if logs is None:
        end = own if state is None else own + state.to(own.dtype)
        return x @ end, end, None
    log = torch.maximum(logs.start, logs.keys[..., 0])
    end = own * _as_matrix(weights_of(logs.keys[..., 0] - log, own.dtype))
    if state is not None:
        end = end + state.to(own.dtype) * _as_matrix(weights_of(logs.start - log, own.dtype))
    return (x @ end) * _as_matrix(weights_of(logs.rows[..., 0] + log, own.dtype)), end, log


def _as_matrix(numbers: Tensor) -> Tensor:
    return numbers[..., None, None]


def _chunks_at_once(x: Tensor, z: Tensor, heads: int, chunk: int) -> int:
    features, values = x.shape[3], z.shape[3]
    numbers = 2 * chunk * chunk + 2 * features * values + 2 * chunk * (features + values)
    return max(1, SLAB_NUMBERS // max(1, x.shape[0] * heads * numbers))


def _scan_slabs(length: int, chunk: int, reverse: bool, at_once: int) -> Iterator[_ScanSlab]:
    """Yield slabs in the order of the walk; the rows that are left of the last whole chunk are one of their own."""
    whole, rest = divmod(length, chunk)
    found = [(first * chunk, min(at_once, whole - first), chunk) for first in range(0, whole, at_once)]
    found += [(whole * chunk, 1, rest)] if rest else []
    walked = 0
    for first, chunks, size in reversed(found) if reverse else found:
        yield _ScanSlab(first, chunks, size, walked)
        walked += chunks


def _logs_of_slab(
    logs: ScanLogs | None, references: Tensor | None, slab: _ScanSlab, reverse: bool
) -> _ScanSlabLogs | None:
    if logs is None or references is None:
        return None
    walk = references[..., slab.walked : slab.walked + slab.chunks + 1]
    before, after = walk[..., :-1], walk[..., 1:]
    if reverse:
        before, after = before.flip(-1), after.flip(-1)
    shape = (slab.chunks, slab.size)
    rows, keys = (torch.unflatten(part[..., slab.rows], -1, shape) for part in (logs.rows, logs.keys))
    return _ScanSlabLogs(rows, keys, before, after, walk)


def _scan_slab(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    slab: _ScanSlab,
    logs: _ScanSlabLogs | None,
    carry: Tensor | None,
    reverse: bool,
    goes_on: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return a slab's rows of the output, and the sums behind it if the walk goes on."""
    batch, heads = x.shape[:2]
    shape = (batch, heads, slab.chunks)
    x, y, z = (part.reshape(batch * heads * slab.chunks, slab.size, part.shape[3]) for part in (x, y, z))
    seen = _seen_pairs(x, y, shape, logs, reverse)
    states, carry = _chunk_states(y, z, shape, logs, carry, reverse, goes_on)
    if states is None:
        out = torch.bmm(seen, z)
    elif logs is None:
        out = torch.baddbmm(torch.bmm(seen, z), x, states)
    else:
        decay = weights_of(logs.rows + logs.before.unsqueeze(-1), x.dtype).unsqueeze(-1)
        earlier = torch.unflatten(torch.bmm(x, states), 0, shape) * decay
        out = torch.baddbmm(earlier.flatten(0, 2), seen, z)
    return out.reshape(batch, heads, slab.chunks * slab.size, z.shape[2]), carry


def _seen_pairs(x: Tensor, y: Tensor, shape: tuple[int, int, int], logs: _ScanSlabLogs | None, reverse: bool) -> Tensor:
    """Return the weighted products of the pairs of each chunk, 0 where a row does not see a key."""
    factors = None if logs is None else _pair_factors(logs, x.dtype)
    if logs is not None and factors is None:
        pairs = torch.unflatten(torch.bmm(x, y.transpose(1, 2)), 0, shape)
        return (pairs * _pair_weights(logs, reverse, pairs.dtype)).flatten(0, 2)
    if factors is not None:
        x, y = (
            (torch.unflatten(part, 0, shape) * weight.unsqueeze(-1)).flatten(0, 2)
            for part, weight in zip((x, y), factors, strict=True)
        )
    pairs = torch.bmm(x, y.transpose(1, 2))
    return pairs.triu() if reverse else pairs.tril()


def _pair_factors(logs: _ScanSlabLogs, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Return weights of rows and of keys whose products are those of pairs, None where these might not be exact.

    Logs within a chunk mostly differ by little. Those far above or below others would leave the range of the type.
    """
    if logs.rows.numel() * logs.rows.shape[-1] <= FEW_PAIRS:
        return None
    if not logs.keys.is_cpu or are_transforms_active() or torch.compiler.is_compiling():
        return None  # values are not at hand, or a device would have to be waited for
    highest, lowest = _finite_extent(logs.keys)
    middle = torch.where(highest > -torch.inf, 0.5 * (highest + lowest), -_finite_extent(logs.rows)[0])
    middle = torch.where(middle.isfinite(), middle, 0.0)  # nothing in the chunk has a weight
    rows, keys = logs.rows + middle, logs.keys - middle
    for part in (rows, keys):
        above, below = _finite_extent(part)
        if not bool(((above <= FACTOR_LOG) & (below >= -FACTOR_LOG)).all()):
            return None
    return rows.exp().to(dtype), keys.exp().to(dtype)


def _finite_extent(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the greatest and the least finite log of each chunk."""
    least = torch.where(logs == -torch.inf, torch.inf, logs).amin(-1, keepdim=True)
    return logs.amax(-1, keepdim=True), least


def _pair_weights(logs: _ScanSlabLogs, reverse: bool, dtype: torch.dtype) -> Tensor:
    """Return the weights of a chunk's pairs, 0 where a row does not see a key: `(.., K, L, L)`."""
    exponents = (logs.rows.unsqueeze(-1) + logs.keys.unsqueeze(-2)).to(dtype)
    size = exponents.shape[-1]
    hidden = torch.ones((size, size), dtype=torch.bool, device=exponents.device)
    hidden = hidden.tril(-1) if reverse else hidden.triu(1)
    return exponents.masked_fill(hidden, -torch.inf).exp()


def _chunk_states(
    y: Tensor,
    z: Tensor,
    shape: tuple[int, int, int],
    logs: _ScanSlabLogs | None,
    carry: Tensor | None,
    reverse: bool,
    goes_on: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the sums that each chunk starts from, None for no sums, and those behind the last one if it goes on."""
    chunks = shape[2]
    if chunks == 1 and not goes_on:
        return (None, None) if carry is None else (carry.flatten(0, 1), None)
    if logs is not None:
        weights = weights_of(logs.keys - logs.after.unsqueeze(-1), y.dtype)
        y = (torch.unflatten(y, 0, shape) * weights.unsqueeze(-1)).flatten(0, 2)
    own = torch.unflatten(torch.bmm(y.transpose(1, 2), z), 0, shape)
    if chunks == 1:
        start, weight = carry, None if logs is None else weights_of(logs.walk[..., 0] - logs.walk[..., 1], y.dtype)
        end = own[:, :, 0]
        if start is not None:
            end = end + (start if weight is None else start * _as_matrix(weight))
        return (None if start is None else start.flatten(0, 1)), end
    moves = _chunk_moves(logs, chunks, reverse, y)
    size = own.shape[-2:]
    summed = torch.unflatten(moves @ own.flatten(-2), -1, size)
    if carry is not None:
        kept = _as_matrix(_chunk_moves_of_start(logs, chunks, reverse, y))
        summed = summed + carry.unsqueeze(2) * kept
    return summed[:, :, :chunks].flatten(0, 2), summed[:, :, chunks] if goes_on else None


def _chunk_moves(logs: _ScanSlabLogs | None, chunks: int, reverse: bool, like: Tensor) -> Tensor:
    """Return what the sums at each chunk, and behind all of them, take of each chunk's own: `(.., K + 1, K)`."""
    before = torch.ones((chunks + 1, chunks), dtype=torch.bool, device=like.device).tril(-1)
    if logs is None:
        moves = before.to(like.dtype)
    else:
        exponents = logs.walk[..., None, 1:] - logs.walk[..., :, None]
        moves = exponents.masked_fill(~before, -torch.inf).to(like.dtype).exp()
    return torch.cat([moves[..., :-1, :].flip(-1, -2), moves[..., -1:, :].flip(-1)], -2) if reverse else moves


def _chunk_moves_of_start(logs: _ScanSlabLogs | None, chunks: int, reverse: bool, like: Tensor) -> Tensor:
    """Return what the same sums take of those that the slab starts from: `(.., K + 1)`."""
    if logs is None:
        return like.new_ones((chunks + 1,))
    moves = weights_of(logs.walk[..., :1] - logs.walk, like.dtype)
    return torch.cat([moves[..., :-1].flip(-1), moves[..., -1:]], -1) if reverse else moves
