"""Softmax attention whose score is a multiple of the dot product plus a bias, on PyTorch's flash operator of the CPU.

Each band of equal rectangles is one call; what the calls give is merged by log-sum-exp. The operator's own log-sum-exp
is not differentiable and is 0 for a row without keys, so it is mended here, and gradients are taken by giving its
backward the merged output and log-sum-exp, which is exact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attnc.runtime.blocks import block_pairs, common_shape, row_scale
from attnc.runtime.parts import Call, Part, band_mask, cut_call, remember, row_values
from attnc.runtime.schedule import MASK_ELEMENTS, Band, is_shared, mask_period
from attnc.runtime.views import add_to_keys, band_keys, band_rows, key_view, row_numbers_view, row_view

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_MASKS: OrderedDict[object, tuple[Tensor | None, Tensor | None]] = OrderedDict()
_REMEMBERED_PAIRS = 1 << 17
"""Most elements of a mask that is remembered."""
_RESULT_ELEMENTS = 1 << 20
"""Most elements of what one call gives: 4 MiB stay in the cache until merged, and more would be new pages each time."""


def suits_flash(call: Call) -> bool:
    """Tell whether the operator can compute this pattern."""
    program = call.program
    return program.normalize == "softmax" and program.weight is None and program.linear


def scaled_query(call: Call) -> tuple[Tensor, float]:
    """Return the query and the number that its dot products are multiplied by."""
    program = call.program
    at = block_pairs(call.heads, torch.arange(call.sizes.N).view(1, -1), None)
    factor = row_scale(program, at, call.scale)
    if isinstance(factor, float):
        return call.query, factor * program.factor
    return call.query * row_values(call, factor * program.factor).unsqueeze(-1), 1.0


def flash_forward(call: Call) -> tuple[Tensor, Tensor]:
    """Return output `[B, G, g, N, E]` and log-sum-exp `[B, G, g, N]`, without a sink."""
    query, scale = scaled_query(call)
    call = _even_heads(replace(call, query=query))
    if call.program.library == "causal" and call.program.is_library_call(call.sizes.N, call.sizes.M):
        return _causal(call, scale)
    batch, groups, members, rows = shape = call.query.shape[:-1]
    # laid out as `[B, N, H, E]`: what the operator gives for a band of blocks is copied as it lies in memory
    out = call.query.new_empty((batch, rows, groups, members, call.value.shape[-1])).permute(0, 2, 3, 1, 4)
    lse = call.query.new_full(shape, -torch.inf)
    for part in cut_call(call, by_tiles=False):
        part_out, part_lse = part.of_rows(out), part.of_rows(lse)
        if not part.schedule.covered:
            part_out.zero_()
        for whole in part.schedule.bands:
            for band in _pieces(part, whole):
                mask, empty = _additive_mask(part, band)
                for calls in _calls(part, band, mask):
                    _forward_call(calls, band, part_out, part_lse, scale, empty)
    return out[..., : call.sizes.value_size], lse


def _causal(call: Call, scale: float) -> tuple[Tensor, Tensor]:
    """Compute plain causal attention of equal lengths, for which the operator aligns rightly: one call a member."""
    found = [
        _attend(call.query[:, :, member], call.key, call.value, 0.0, True, scale=scale)
        for member in range(call.query.shape[2])
    ]
    out, lse = (
        torch.stack(parts, 2) if len(parts) > 1 else parts[0].unsqueeze(2) for parts in zip(*found, strict=True)
    )
    return out[..., : call.sizes.value_size], lse


def _even_heads(call: Call) -> Call:
    """Give query, key and value one head size by columns of zeros, which change nothing."""
    wanted = max(call.query.shape[-1], call.value.shape[-1])

    def widen(tensor: Tensor) -> Tensor:
        missing = wanted - tensor.shape[-1]
        return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor

    return replace(call, query=widen(call.query), key=widen(call.key), value=widen(call.value))


def _pieces(part: Part, band: Band) -> Iterator[Band]:
    """Yield a band, in pieces where its mask or result is large; without a mask, rows of equal keys are a block."""
    program = part.call.program
    masked = band.masked or program.bias is not None
    if not masked and band.count > 1 and band.key_step == 0:
        yield replace(band, rows=band.rows * band.count, count=1)
        return
    count = max(1, _RESULT_ELEMENTS // (band.rows * part.query.shape[1] * part.query.shape[-1]))
    if masked:
        periods = [mask_period(program, kind) for _, kind in band.pieces]
        periods += [program.bias_period] if program.bias is not None else []
        heads = part.query.shape[1] * part.query.shape[2] if program.bias is not None else 1
        if not all(is_shared(band, period) for period in periods):
            count = min(count, max(1, MASK_ELEMENTS // (band.rows * band.width * heads)))
    for start in range(0, band.count, count):
        yield band.part(start, min(count, band.count - start), 0, band.width)


def _additive_mask(part: Part, band: Band) -> tuple[Tensor | None, Tensor | None]:
    """Return the bias of a band, minus infinity where masked, and the rows `[.., R]` that see none of its keys.

    What no tensor decides is remembered if it is small: making the masks of short bands takes as long as using them.
    """
    program, sizes = part.call.program, part.call.sizes
    if program.tensors or not band.masked or band.rows * band.width > _REMEMBERED_PAIRS:
        return _make_mask(part, band)
    name = (program, sizes, part.schedule.batch, part.schedule.heads, band, part.query.dtype)
    found = _MASKS.get(name)
    if found is None:
        found = _make_mask(part, band)
        if found[0] is not None and found[0].numel() <= _REMEMBERED_PAIRS:
            remember(_MASKS, name, found)
    return found


def _make_mask(part: Part, band: Band) -> tuple[Tensor | None, Tensor | None]:
    program = part.call.program
    allowed = band_mask(part, band)
    if program.bias is None:
        if allowed is None:
            return None, None
        mask = torch.zeros(allowed.shape, dtype=part.query.dtype).masked_fill_(~allowed, -torch.inf)
        return mask, ~allowed.any(-1)
    shared = is_shared(band, program.bias_period)
    at = block_pairs(part.heads, band_rows(band, shared), band_keys(band, shared))
    bias = program.bias(at)
    bias = bias.expand(common_shape(bias.shape, (1, 1, 1, 1, band.rows, band.width)))
    mask = bias if allowed is None else torch.where(allowed, bias, -torch.inf)
    return mask, (mask == -torch.inf).all(-1)


class _FlashCall:
    """Views for one call of the operator: `[X, Y, rows or keys, D]`, and where the rows lie in the part."""

    __slots__ = ("band", "batch", "key", "mask", "member", "part", "query", "value")

    def __init__(self, part: Part, band: Band, batch: int | None, member: int, mask: Tensor | None) -> None:
        self.part, self.band, self.batch, self.member = part, band, batch, member
        self.query = self.rows(part.query)
        self.key, self.value = self.keys(part.key), self.keys(part.value)
        self.mask = None if mask is None else self.pairs(mask)

    def rows(self, tensor: Tensor) -> Tensor:
        """View rows `[B, G, g, N, D]`."""
        return self._turn(row_view(tensor[:, :, self.member], self.band))

    def row_numbers(self, tensor: Tensor) -> Tensor:
        """View numbers of rows `[B, G, g, N]`."""
        return self._turn(row_numbers_view(tensor[:, :, self.member], self.band))

    def keys(self, tensor: Tensor) -> Tensor:
        """View keys `[B, G, M, D]`."""
        return self._turn(key_view(tensor, self.band))

    def pairs(self, tensor: Tensor) -> Tensor:
        """View `[B, G, S, g, ...]`, any of them 1, as `[X, Y, ...]`."""
        return self._turn(tensor[:, :, :, min(self.member, tensor.shape[3] - 1)])

    def _turn(self, tensor: Tensor) -> Tensor:
        """View `[B, G, S, ...]` as `[B, G, ...]` where there is one block, else one batch entry as `[S, G, ...]`."""
        if self.batch is None:
            return tensor.squeeze(2)
        return tensor[min(self.batch, tensor.shape[0] - 1)].transpose(0, 1)

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        """Add gradients of the keys of this call to those of the part."""
        if self.batch is None:
            add_to_keys(total, part.unsqueeze(2), self.band)
        else:
            add_to_keys(total[self.batch], part.transpose(0, 1), self.band)


def _calls(part: Part, band: Band, mask: Tensor | None) -> Iterator[_FlashCall]:
    """Yield the calls that make up a band: all heads together, and all batch entries or all blocks."""
    for member in range(part.query.shape[2]):
        if band.count == 1:
            yield _FlashCall(part, band, None, member, mask)
            continue
        for batch in range(part.query.shape[0]):
            yield _FlashCall(part, band, batch, member, mask)


def _forward_call(call: _FlashCall, band: Band, out: Tensor, lse: Tensor, scale: float, empty: Tensor | None) -> None:
    found, found_lse = _attend(call.query, call.key, call.value, 0.0, False, attn_mask=call.mask, scale=scale)
    rows, numbers = call.rows(out), call.row_numbers(lse)
    if empty is not None:
        blank = call.pairs(empty.unsqueeze(-1)).squeeze(-1)
        found_lse = torch.where(blank, -torch.inf, found_lse)
    if band.first:
        rows.copy_(found)
        numbers.copy_(found_lse)
        return
    merge(rows, numbers, found, found_lse)


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Merge the softmax over further keys into an output and log-sum-exp, in place; minus infinity is no keys.

    One pass over the output. A NaN in either log-sum-exp reaches the output, so that it is noticed.
    """
    share = torch.where(other_lse == -torch.inf, 0.0, torch.sigmoid(other_lse - lse))
    out.lerp_(other, share.unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, other_lse))


def flash_backward(
    call: Call, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `factor * query`, key and value in the layout of a `Call`.

    Args:
        call: as in the forward pass.
        grad_out: `[B, G, g, N, E]`.
        grad_lse: `[B, G, g, N]`, or None for 0.
        out: merged, the sink included.
        lse: merged, the sink included; minus infinity for rows without keys.
    """
    sizes, factor = call.sizes, call.program.factor
    query, scale = scaled_query(call)
    call = replace(call, query=query * scale if scale != 1.0 else query)
    if grad_lse is not None:
        # a value column of ones whose output is taken to be 0 adds grad_lse to every pair's gradient
        ones = torch.ones_like(call.value[..., :1])
        grad_out = torch.cat([grad_out, grad_lse.unsqueeze(-1)], -1)
        out = torch.cat([out, torch.zeros_like(out[..., :1])], -1)
        call = replace(call, value=torch.cat([call.value, ones], -1))
    call = _even_heads(call)
    missing = call.value.shape[-1] - out.shape[-1]
    if missing:
        out, grad_out = (torch.nn.functional.pad(tensor, (0, missing)) for tensor in (out, grad_out))
    lse = torch.where(lse == -torch.inf, 0.0, lse)
    grads = (torch.zeros_like(call.query), torch.zeros_like(call.key), torch.zeros_like(call.value))
    for part in cut_call(call, by_tiles=False):
        rows = part.of_rows(grad_out), part.of_rows(out)
        numbers = part.of_rows(lse)
        sums = (part.of_rows(grads[0]), part.of_keys(grads[1]), part.of_keys(grads[2]))
        for whole in part.schedule.bands:
            for band in _pieces(part, whole):
                mask, _ = _additive_mask(part, band)
                for one in _calls(part, band, mask):
                    _backward_call(one, rows, numbers, sums)
    return grads[0][..., : sizes.D] * factor, grads[1][..., : sizes.D], grads[2][..., : sizes.value_size]


def _backward_call(
    call: _FlashCall, rows: tuple[Tensor, Tensor], lse: Tensor, sums: tuple[Tensor, Tensor, Tensor]
) -> None:
    grad_out, out = (call.rows(tensor) for tensor in rows)
    found = _attend_backward(
        grad_out,
        call.query,
        call.key,
        call.value,
        out,
        call.row_numbers(lse),
        0.0,
        False,
        attn_mask=call.mask,
        scale=1.0,
    )
    call.rows(sums[0]).add_(found[0])
    call.add_keys(sums[1], found[1])
    call.add_keys(sums[2], found[2])
