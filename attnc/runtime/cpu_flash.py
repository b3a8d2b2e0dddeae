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

from attnc.runtime.bands import Band, is_shared, is_shared_by_classes, mask_periods
from attnc.runtime.blocks import block_pairs, common_shape, row_scale
from attnc.runtime.calls import Call, remember, row_values
from attnc.runtime.parts import Part, band_mask, band_pairs, cut_section, shared_shape
from attnc.runtime.schedule import MASK_ELEMENTS
from attnc.runtime.sections import cut_into_sections
from attnc.runtime.views import add_to_keys, key_view, row_numbers_view, row_view

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
    passes = call.program.passes
    if not (passes and passes[0].covers_rows):
        out.zero_()
    for section in cut_into_sections(call):
        fresh = section.frame.number == 0
        taken = tuple(section.new_rows(tensor) if fresh else section.of_rows(tensor) for tensor in (out, lse))
        for part in cut_section(section, by_tiles=False):
            if fresh and not part.schedule.covered:
                part.of_rows(taken[0]).zero_()
            whole = part.of_rows(taken[0]), part.of_rows(taken[1])
            for all_blocks in part.schedule.bands:
                for piece, band in _pieces(part, all_blocks):
                    mask, empty = _additive_mask(piece, band)
                    target = whole if piece is part else (piece.of_rows(taken[0]), piece.of_rows(taken[1]))
                    for one in _calls(piece, band, mask, empty):
                        _forward_call(one, target, scale, merges=not (fresh and band.first))
        section.put_rows(out, taken[0])
        section.put_rows(lse, taken[1])
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


def _pieces(part: Part, band: Band) -> Iterator[tuple[Part, Band]]:
    """Yield a band, in pieces where its mask or result is large; without a mask, rows of equal keys are a block."""
    program, frame = part.section.call.program, part.frame
    entries, groups, members = part.query.shape[:3]
    masked = band.masked or program.bias is not None
    if not masked and band.count > 1 and band.key_step == 0:
        band = replace(band, rows=band.rows * band.count, count=1)
    count, some = band.count, entries
    each = band.rows * groups * part.query.shape[-1]
    if masked:
        periods = mask_periods(program, frame, band)
        if frame.rows.classes > 1 and not all(is_shared_by_classes(frame, period) for period in periods):
            some = min(some, max(1, MASK_ELEMENTS // (band.rows * band.width)))
        if not all(is_shared(frame, band, period) for period in periods):
            heads = groups * members if program.bias is not None else 1
            varied = some if frame.rows.classes > 1 else 1
            count = min(count, max(1, MASK_ELEMENTS // (band.rows * band.width * heads * varied)))
    if _is_by_blocks(entries, band):
        some = min(some, max(1, _RESULT_ELEMENTS // each))
    else:
        count = min(count, max(1, _RESULT_ELEMENTS // each))
    if some >= entries and count >= band.count:
        yield part, band
        return
    for first in range(0, entries, some):
        piece = part.narrow(first, min(entries, first + some), 0, groups)
        for start in range(0, band.count, count):
            yield piece, band.part(start, min(count, band.count - start), 0, band.width)


def _is_by_blocks(entries: int, band: Band) -> bool:
    """Tell whether each call has one block of all entries, rather than all blocks of one entry."""
    return band.count == 1 or entries > band.count


def _additive_mask(part: Part, band: Band) -> tuple[Tensor | None, Tensor | None]:
    """Return the bias of a band, minus infinity where masked, and the rows `[.., R]` that see none of its keys.

    What no tensor decides is remembered if it is small: making the masks of short bands takes as long as using them.
    """
    program, sizes, schedule = part.section.call.program, part.section.call.sizes, part.schedule
    if program.tensors or not band.masked or band.rows * band.width > _REMEMBERED_PAIRS:
        return _make_mask(part, band)
    name = (program, sizes, part.frame, schedule.entries, schedule.heads, band, part.query.dtype)
    found = _MASKS.get(name)
    if found is None:
        found = _make_mask(part, band)
        if found[0] is not None and found[0].numel() <= _REMEMBERED_PAIRS:
            remember(_MASKS, name, found)
    return found


def _make_mask(part: Part, band: Band) -> tuple[Tensor | None, Tensor | None]:
    program = part.section.call.program
    allowed = band_mask(part, band)
    if program.bias is None:
        if allowed is None:
            return None, None
        mask = torch.zeros(allowed.shape, dtype=part.query.dtype).masked_fill_(~allowed, -torch.inf)
        return mask, ~allowed.any(-1)
    blocks, classes, shape = shared_shape(part, band, program.bias_period)
    bias = program.bias(band_pairs(part, band, blocks=not blocks, classes=not classes))
    bias = bias.expand(common_shape(bias.shape, shape))
    mask = bias if allowed is None else torch.where(allowed, bias, -torch.inf)
    return mask, (mask == -torch.inf).all(-1)


class _FlashCall:
    """Views for one call of the operator, `[X, Y, rows or keys, D]`: all blocks of an entry, or one block of all."""

    __slots__ = ("band", "empty", "entry", "key", "mask", "member", "query", "value")

    def __init__(self, part: Part, band: Band, entry: int | None, member: int) -> None:
        self.band, self.entry, self.member = band, entry, member
        self.query = self.rows(part.query)
        self.key, self.value = self.keys(part.key), self.keys(part.value)
        self.mask: Tensor | None = None
        self.empty: Tensor | None = None

    def rows(self, tensor: Tensor) -> Tensor:
        """View rows `[X, G, g, rows, D]`."""
        return self._turn(row_view(tensor[:, :, self.member], self.band))

    def row_numbers(self, tensor: Tensor) -> Tensor:
        """View numbers of rows `[X, G, g, rows]`."""
        return self._turn(row_numbers_view(tensor[:, :, self.member], self.band))

    def keys(self, tensor: Tensor) -> Tensor:
        """View keys `[X, G, keys, D]`."""
        return self._turn(key_view(tensor, self.band))

    def pairs(self, tensor: Tensor) -> Tensor:
        """View `[X, G, S, g, ...]`, any of them 1, as `[X, Y, ...]`."""
        return self._turn(tensor[:, :, :, min(self.member, tensor.shape[3] - 1)])

    def _turn(self, tensor: Tensor) -> Tensor:
        """View `[X, G, S, ...]` as `[X, G, ...]` where there is one block, else one entry as `[S, G, ...]`."""
        if self.entry is None:
            return tensor.squeeze(2)
        return tensor[min(self.entry, tensor.shape[0] - 1)].transpose(0, 1)

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        """Add gradients of the keys of this call to those of the part."""
        if self.entry is None:
            add_to_keys(total, part.unsqueeze(2), self.band)
        else:
            add_to_keys(total[self.entry], part.transpose(0, 1), self.band)


def _calls(part: Part, band: Band, mask: Tensor | None, empty: Tensor | None) -> Iterator[_FlashCall]:
    """Yield the calls that make up a band: all heads together, and all entries or all blocks."""
    entries, _, members = part.query.shape[:3]
    by_blocks = _is_by_blocks(entries, band)
    for number in range(band.count if by_blocks else entries):
        own, own_mask, own_empty = band, mask, empty
        if by_blocks and band.count > 1:
            own, own_mask, own_empty = band.part(number, 1, 0, band.width), _block(mask, number), _block(empty, number)
        for member in range(members):
            call = _FlashCall(part, own, None if by_blocks else number, member)
            if own_mask is not None:
                call.mask = call.pairs(own_mask)
            if own_empty is not None:
                call.empty = call.pairs(own_empty.unsqueeze(-1)).squeeze(-1)
            yield call


def _block(pairs: Tensor | None, number: int) -> Tensor | None:
    """Return one of the blocks of `[X, G, S, ...]`; one that stands for all is all."""
    return None if pairs is None else pairs.narrow(2, min(number, pairs.shape[2] - 1), 1)


def _forward_call(call: _FlashCall, target: tuple[Tensor, Tensor], scale: float, merges: bool) -> None:
    """Compute a call, and put it into the output and log-sum-exp of its part or merge it with what is there."""
    found, found_lse = _attend(call.query, call.key, call.value, 0.0, False, attn_mask=call.mask, scale=scale)
    rows, numbers = call.rows(target[0]), call.row_numbers(target[1])
    if call.empty is not None:
        found_lse = torch.where(call.empty, -torch.inf, found_lse)
    if not merges:
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
    for section in cut_into_sections(call):
        known = section.of_rows(grad_out), section.of_rows(out), section.of_rows(lse)
        found = section.of_rows(grads[0]), section.of_keys(grads[1]), section.of_keys(grads[2])
        for part in cut_section(section, by_tiles=False):
            for whole in part.schedule.bands:
                for piece, band in _pieces(part, whole):
                    mask, _ = _additive_mask(piece, band)
                    rows = tuple(piece.of_rows(tensor) for tensor in known)
                    sums = piece.of_rows(found[0]), piece.of_keys(found[1]), piece.of_keys(found[2])
                    for one in _calls(piece, band, mask, None):
                        _backward_call(one, rows, sums)
        section.put_rows(grads[0], found[0])
        section.put_keys(grads[1], found[1])
        section.put_keys(grads[2], found[2])
    return grads[0][..., : sizes.D] * factor, grads[1][..., : sizes.D], grads[2][..., : sizes.value_size]


def _backward_call(call: _FlashCall, rows: tuple[Tensor, ...], sums: tuple[Tensor, Tensor, Tensor]) -> None:
    """Add the gradients of a call up; `rows` are the gradient of the output, the output and the log-sum-exp."""
    grad_out, out = call.rows(rows[0]), call.rows(rows[1])
    found = _attend_backward(
        grad_out,
        call.query,
        call.key,
        call.value,
        out,
        call.row_numbers(rows[2]),
        0.0,
        False,
        attn_mask=call.mask,
        scale=1.0,
    )
    call.rows(sums[0]).add_(found[0])
    call.add_keys(sums[1], found[1])
    call.add_keys(sums[2], found[2])
